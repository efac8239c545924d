"""What is settled before a run: sizes of micro-batches, draws and directions."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from subjects import CPU, DIGITS, grey_images, subject_for

from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.tuning import microbatch as packing
from purify_audit.audit.tuning.microbatch import attack_within_memory, measured, within_memory
from purify_audit.audit.tuning.pilot import _rates, allocated
from purify_audit.compression.microbatches import default_microbatch
from purify_audit.core.errors import OutOfMemoryError, PlanError
from purify_audit.core.noise import Noise
from purify_audit.images.image_set import ImageSet
from purify_audit.report.schema import read_report
from purify_audit.spec.card import ImageSpec

DDPM = Path(__file__).parents[2] / "models" / "digits-ddpm.safetensors"
JUDGE = torch.nn.Linear(64, 10)


@dataclass(frozen=True)
class Scaling:
    """Scales what is not grey: by image, by draw; so the l2 rate of a row is its factor."""

    by_image: float = 0.0
    by_draw: float = 0.0
    randomised: bool = True
    image: ImageSpec = DIGITS
    evaluations: int = 1

    def factor(self, image, draw):
        u, v = (np.random.default_rng([image, n]).uniform(-1, 1) for n in (0, draw + 1))
        return 0.5 + self.by_image * u + self.by_draw * v

    def __call__(self, x: torch.Tensor, noise: Noise) -> torch.Tensor:
        scale = [self.factor(i, d) for i, d in zip(noise.images, noise.draws, strict=True)]
        return 0.5 + torch.tensor(scale, dtype=x.dtype)[:, None, None, None] * (x - 0.5)


@dataclass(frozen=True)
class Cramped(Scaling):
    """Has memory for so many rows only; for fewer with gradients."""

    rows: int = 8
    with_gradients: int = 8

    def __call__(self, x, noise):
        if len(x) > (self.with_gradients if x.requires_grad else self.rows):
            raise torch.OutOfMemoryError("no memory")
        return super().__call__(x, noise)


@dataclass(frozen=True)
class Classify:
    image: ImageSpec = DIGITS
    classes: int = 10

    def __call__(self, x):
        return JUDGE(x.flatten(1))


def for_tolerance(purifier, tolerance, n=400, **settings):
    return subject_for(purifier, grey_images(n), tolerance=tolerance, draws=3, **settings)


# --- a pilot --------------------------------------------------------------------------------------


def test_the_components_are_those_of_the_purifier():
    purifier = Scaling(by_image=0.3, by_draw=0.1)
    subject = for_tolerance(purifier, 0.01)
    _, pilot = allocated(subject)
    ids = subject.images.ids[: pilot.images]
    factors = np.array([[purifier.factor(int(i), d) for d in range(2)] for i in ids])
    draw = factors.var(1, ddof=1).mean()
    assert pilot.components.draw == pytest.approx(draw, rel=1e-3)
    assert pilot.components.image == pytest.approx(factors.mean(1).var(ddof=1) - draw / 2, rel=1e-3)
    for nothing in ("pair", "both", "odd"):
        assert getattr(pilot.components, nothing) < 1e-9


def test_where_images_differ_each_gets_the_least_and_the_tolerance_is_reached():
    subject, pilot = allocated(for_tolerance(Scaling(by_image=0.3), 0.03))
    assert (subject.plan.draws, subject.plan.directions) == (2, 2)
    assert subject.plan.images == len(subject.images) == min(400, math.ceil(1.25 * pilot.needed))
    assert subject.plan.first_look == 48 <= min(subject.plan.looks)
    # The factors are uniform: n = (t 0.3 / sqrt(3) / (0.95 × 0.03))², and t of four looks is 2.5
    assert 0.7 * 230 < pilot.needed < 1.3 * 230
    report = run_compression(subject).report
    assert "PA205" not in {f.code for f in report.findings}
    rate = next(e for e in report.estimates if (e.metric, e.norm) == ("compression_rate", "l2"))
    assert (rate.upper - rate.lower) / 2 <= 0.03


def test_where_there_are_few_images_each_gets_more_draws():
    few, _ = allocated(for_tolerance(Scaling(by_draw=0.3), 0.03, n=50))
    many, _ = allocated(for_tolerance(Scaling(by_draw=0.3), 0.03, n=400))
    assert many.plan.draws == 2 < few.plan.draws
    assert few.plan.images == 50


def test_what_cannot_be_reached_takes_all_images():
    subject, pilot = allocated(for_tolerance(Scaling(by_image=0.3), 1e-4, n=20))
    assert pilot.needed is None
    assert subject.plan.images == 20


def test_there_are_as_many_images_as_in_the_pilot():
    """Fewer that happen to be alike would make a narrow interval."""
    subject, pilot = allocated(for_tolerance(Scaling(), 0.03))
    assert (pilot.needed, subject.plan.images, subject.plan.looks) == (2, 48, (48,))
    subject, pilot = allocated(for_tolerance(Scaling(by_image=0.1), 0.03))
    assert 2 * pilot.needed == subject.plan.images > 48
    assert min(subject.plan.looks) >= 48


def test_images_whose_rates_are_no_numbers_decide_nothing():
    """A black image and a probe of one low frequency: half of its perturbations clip to nothing."""
    images = grey_images(60)
    pixels = images.pixels.copy()
    pixels[3] = 0.0
    images = ImageSet(pixels, images.labels, images.ids, "one is black")
    probe = {"kind": "lowfreq", "band": 1}
    subject = subject_for(Scaling(by_image=0.1), images, tolerance=0.05, probes=(probe,))
    assert not np.isfinite(_rates(subject, 8)).all() or len(_rates(subject, 8)[0]) == 7
    assert allocated(subject)[1].needed > 2


def test_without_randomness_there_is_one_draw():
    subject, _ = allocated(for_tolerance(Scaling(by_image=0.3, randomised=False), 0.03))
    assert subject.plan.draws == 1


def test_the_estimate_is_that_of_the_same_plan_without_a_pilot():
    subject, _ = allocated(for_tolerance(Scaling(by_image=0.3, by_draw=0.1), 0.05))
    plain = subject_for(Scaling(by_image=0.3, by_draw=0.1), grey_images(400))
    plain = replace(plain, plan=subject.plan, images=subject.images)
    reports = [run_compression(each).report for each in (subject, plain)]
    assert reports[0] == reports[1]


@pytest.mark.parametrize("wrong", [lambda x: x * np.nan, lambda x: x[:, :, ::2]])
def test_a_purifier_that_makes_no_images_is_left_to_preflight(wrong):
    @dataclass(frozen=True)
    class Wrong(Scaling):
        def __call__(self, x, noise):
            return wrong(x)

    subject, pilot = allocated(for_tolerance(Wrong(), 0.03))
    assert (subject.plan.images, len(subject.images), pilot) == (48, 48, None)
    assert run_compression(subject).report.findings[0].code in ("PA103", "PA104")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tolerance": None}, "give --tolerance"),
        ({"probes": ({"kind": "power"},)}, "'power' has none to choose; name another --probe"),
        ({"n": 1}, "--allocate compares images: give two or more"),
    ],
)
def test_a_plan_with_nothing_to_allocate_is_refused(settings, told):
    with pytest.raises(PlanError, match=told):
        allocated(for_tolerance(Scaling(), **{"tolerance": 0.1} | settings))


# --- sizes of micro-batches -----------------------------------------------------------------------


def attacked(purifier, **settings):
    attack = {"norm": "linf", "eps": (0.05,), "steps": 2, "draws": 1, "restarts": 1, "held_out": 1}
    attack |= {"square_queries": 2, "microbatch": 16}
    judge = (None, Classify())
    return subject_for(purifier, grey_images(16), judge, attack=attack, **settings)


def test_micro_batches_are_halved_until_they_fit():
    subject, refused = within_memory(subject_for(Cramped(rows=8), microbatch=64))
    assert (subject.plan.microbatch, refused) == (8, (64, 32, 16))


def test_those_of_an_attack_too():
    asked = attacked(Cramped(rows=32, with_gradients=2), microbatch=32)
    subject, refused = attack_within_memory(asked)
    assert (subject.plan.microbatch, subject.plan.attack.microbatch) == (32, 2)
    assert refused == (16, 8, 4)


def test_what_fits_stays_as_it_is():
    subject = attacked(Scaling())
    assert within_memory(subject) == attack_within_memory(subject) == (subject, ())


@pytest.mark.parametrize("find", [within_memory, measured])
def test_no_memory_for_a_single_row_is_an_error(find):
    with pytest.raises(OutOfMemoryError, match="cpu has no memory for one image"):
        find(subject_for(Cramped(rows=0)))


def of_time(monkeypatch, milliseconds):
    monkeypatch.setattr(packing, "_milliseconds", lambda subject, size: milliseconds(size))


def plain_rows(n, **settings):
    """One row for each image beside the anchor: 2 n rows."""
    settings |= {"draws": 1, "directions": 1, "microbatch": 1}
    return subject_for(Scaling(), grey_images(n), **settings)


def test_the_quickest_size_is_found(monkeypatch):
    of_time(monkeypatch, lambda size: 1.0 + 16.0 / size if size <= 32 else 3.0)
    subject, tried = measured(plain_rows(256))
    assert subject.plan.microbatch == 32
    assert [one.microbatch for one in tried] == [1, 2, 4, 8, 16, 32, 64, 128]


def test_padding_counts(monkeypatch):
    of_time(monkeypatch, lambda size: 1.0)  # then 2 × 24 rows are best without padding
    subject, _ = measured(plain_rows(24))
    assert 48 % subject.plan.microbatch == 0


def test_a_size_without_memory_is_the_last_one_tried(monkeypatch):
    of_time(monkeypatch, lambda size: 1.0 / size if size < 16 else None)
    subject, tried = measured(plain_rows(256))
    assert subject.plan.microbatch == 8
    assert (tried[-1].microbatch, tried[-1].ms_per_row) == (16, None)


def test_sizes_are_really_timed():
    subject, tried = measured(subject_for(Cramped(rows=4), grey_images(8)))
    assert [one.microbatch for one in tried] == [1, 2, 4, 8]
    assert [one.ms_per_row is None for one in tried] == [False, False, False, True]
    assert subject.plan.microbatch in (1, 2, 4)


@pytest.mark.parametrize(
    ("side", "images", "size"),
    [(8, 64, 256), (8, 16, 128), (8, 1, 8), (32, 64, 32), (64, 64, 8), (224, 64, 1)],
)
def test_by_default_large_images_come_in_few_rows(side, images, size):
    probes = ({"kind": "sign"}, {"kind": "lowfreq"}, {"kind": "power"})
    plan = subject_for(Scaling(), grey_images(1), probes=probes, draws=4, directions=8).plan
    plan = plan.model_copy(update={"images": images})
    assert default_microbatch(plan, (3, side, side), CPU) == size


# --- on the command line --------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_report_tells_what_was_settled(run_cli):
    command = ("compress", "gaussian-noise:sigma=0.1", "--probe", "sign", "--out", "a.json")
    code, _, err = run_cli(
        *command, "--tolerance", "0.03", "--allocate", "--microbatch", "measured"
    )
    assert code == 0, err
    report = read_report(Path("a.json"))
    pilot, tried = report.run.tuning.pilot, report.run.tuning.timed
    assert (report.plan.draws, report.plan.directions) == (pilot.draws, pilot.directions)
    assert report.plan.microbatch in {one.microbatch for one in tried}
    assert f"{pilot.draws} draws, {pilot.directions} directions, about {pilot.needed} images" in (
        " ".join(err.split())
    )
    assert f"micro-batches of {report.plan.microbatch}, measured" in err
    again = ("--tolerance", "0.03", "--allocate", "--microbatch", report.plan.microbatch)
    run_cli(*command[:-1], "b.json", *again)
    same = read_report(Path("b.json")).run
    assert same.body_sha256 == report.run.body_sha256
    assert (same.tuning.pilot, same.tuning.timed) == (pilot, ())


def test_a_run_remembers_what_was_settled(run_cli, monkeypatch):
    command = ("compress", "gaussian-noise:sigma=0.1", "--probe", "sign", "--run-dir", "r")
    command += ("--tolerance", "0.03", "--allocate", "--microbatch", "measured", "--out")
    assert run_cli(*command, "a.json")[0] == 0
    monkeypatch.setattr(packing, "_milliseconds", lambda subject, size: 1.0 / size)  # another size
    assert run_cli(*command, "b.json")[0] == 0
    assert run_cli("resume", "r", "--out", "c.json")[0] == 0
    told = [read_report(Path(f"{name}.json")).run for name in "abc"]
    assert told[0].tuning.pilot is not None
    assert told[0].tuning == told[1].tuning == told[2].tuning
    assert len({run.body_sha256 for run in told}) == 1


def test_processes_that_share_a_run_do_not_measure(refused):
    shared = ("--microbatch", "measured", "--shard", "0/2", "--run-dir", "r")
    assert "give a number" in refused("compress", "median:size=3", *shared)


@pytest.mark.parametrize("option", ["--draws", "--directions"])
def test_what_is_allocated_is_not_asked_for(option, refused):
    told = refused("compress", "median:size=3", "--allocate", "--tolerance", 0.1, option, 2)
    assert told == "--allocate chooses draws and directions: leave out --draws, --directions"


def test_without_memory_the_size_falls_and_that_is_told(run_cli, monkeypatch):
    """As on CUDA, where sizes are tried before every run; here they never do not fit."""
    monkeypatch.setattr(packing, "_fits", lambda compute: False)
    monkeypatch.setattr("purify_audit.audit.tuning.tune._HAS_LIMITS", ("cpu",))
    code, _, err = run_cli("compress", "median:size=3", "--microbatch", 2)
    assert code == 4
    assert "no memory for one image" in err
    sizes = iter([False, True])
    monkeypatch.setattr(packing, "_fits", lambda compute: next(sizes))
    code, _, err = run_cli("compress", "median:size=3", "--images", 4, "--microbatch", 8)
    assert code == 0
    assert "no memory for micro-batches of 8" in err
    report = read_report(Path("report.json"))
    assert report.plan.microbatch == 4
    assert report.run.tuning.too_large == (8,)


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "0"])
def test_what_is_no_size(text, refused):
    told = refused("compress", "median:size=3", f"--microbatch={text}")
    assert "microbatch" in told


@pytest.mark.parametrize("checkpoint", ["median:size=3", DDPM])
def test_a_dry_run_tells_the_cost_and_spends_nothing(checkpoint, run_cli):
    command = ("compress", checkpoint, "--images", 8, "--probe", "sign", "--draws", 2)
    code, out, err = run_cli(*command, "--directions", 4, "--dry-run")
    assert code == 0, err
    each = 1 if checkpoint != DDPM else 60
    assert re.fullmatch(rf"{8 * 2 * 5 * each:,} network evaluations, about \d+ s\n", out)
    assert not list(Path().iterdir())
