"""Units of a run that several processes compute at once: who is overtaken lets go."""

import numpy as np
import pytest

from purify_audit.audit import phases as work
from purify_audit.audit.phases import Phase, SharedRun
from purify_audit.audit.store import Unit, open_run
from purify_audit.models.runner import Stopped
from purify_audit.spec.shard import Shard

MANIFEST = {"of": "a test"}


@pytest.fixture(autouse=True)
def always_looking(monkeypatch):
    monkeypatch.setattr(work, "_LOOK_SECONDS", -1.0)
    monkeypatch.setattr(work, "_LOOK_SHARE", float("inf"))


@pytest.fixture
def own(tmp_path):
    """This process's way to a run."""
    with open_run(tmp_path / "r", MANIFEST, "own") as store:
        yield store


@pytest.fixture
def other(tmp_path, own):
    """Another process's way to the same run."""
    with open_run(tmp_path / "r", MANIFEST, "other") as store:
        yield store


def unit(place):
    return Unit({"x": np.full(2, float(place))}, {"place": place})


def phase(race, log, during=lambda place, step: None, count=4):
    """Units of three steps each; `during` is what happens in the meantime."""

    def make(place):
        for step in range(3):
            during(place, step)
            race.check()
            log.append((place, step))
        return unit(place)

    return Phase("p", count, make)


def kept(store):
    return sorted(store.done("p"))


def test_own_units_from_the_front_and_the_others_from_the_back(own):
    log, race = [], SharedRun(own)
    phase(race, log, count=6).share(race, Shard(0, 2), alone=False)
    assert [place for place, step in log if step == 0] == [0, 2, 4, 5, 3, 1]
    assert kept(own) == list(range(6))


def test_a_part_that_is_alone_leaves_the_others_units(own):
    log, race = [], SharedRun(own)
    phase(race, log).share(race, Shard(1, 2), alone=True)
    assert kept(own) == [1, 3]


def test_who_is_overtaken_lets_go_and_computes_the_next(own, other):
    log, race = [], SharedRun(own)

    def overtake(place, step):
        if (place, step) == (2, 1):
            other.put("p", 2, unit(2).arrays, unit(2).facts)

    phase(race, log, overtake).share(race, Shard(0, 2), alone=False)
    assert [entry for entry in log if entry[0] == 2] == [(2, 0)]
    assert kept(own) == [0, 1, 2, 3]
    for place in range(4):
        assert own.get("p", place).facts == {"place": place}


def test_what_others_finish_elsewhere_does_not_matter(own, other):
    log, race = [], SharedRun(own)

    def beside(place, step):
        other.put("p", 1, unit(1).arrays, unit(1).facts)
        other.put("another", place, {}, {})

    phase(race, log, beside).share(race, Shard(0, 2), alone=False)
    assert {place for place, _ in log} == {0, 2, 3}


def test_a_run_that_has_ended_ends_this_process_within_its_unit(own):
    log, ended = [], []
    race = SharedRun(own, lambda: bool(ended))

    def end(place, step):
        if (place, step) == (2, 1):
            ended.append(True)

    with pytest.raises(Stopped):
        phase(race, log, end).share(race, Shard(0, 2), alone=False)
    assert kept(own) == [0]
    assert log[-1] == (2, 0)
    race.check()  # between units nobody is asked


def test_slow_looks_are_seldom_too(own, monkeypatch):
    now, looks = [0.0], []
    monkeypatch.setattr(work, "_LOOK_SHARE", 0.02)
    monkeypatch.setattr(work.time, "monotonic", lambda: now[0])

    def ended():
        looks.append(now[0])
        now[0] += 3.0
        return False

    race = SharedRun(own, ended, ("p", 0))
    for second in range(0, 1000, 10):
        now[0] = max(now[0], float(second))
        race.check()
    assert looks == [0.0, 160.0, 320.0, 480.0, 640.0, 800.0, 960.0]


def test_looks_are_seldom(own, monkeypatch):
    monkeypatch.setattr(work, "_LOOK_SECONDS", 3600.0)
    log, race = [], SharedRun(own, lambda: True)
    phase(race, log).share(race, Shard(), alone=False)
    assert kept(own) == [0, 1, 2, 3]
