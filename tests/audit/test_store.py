"""Finished work survives: round trips, refusals, real processes, real kills, a really full disk."""

import errno
import hashlib
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import store_worker
from store_worker import PHASE, POINTS, manifest, unit

from purify_audit.audit.store import RunStore, manifest_digest, open_run, read_run
from purify_audit.core.errors import InputError, PurifyAuditError, RunError

WORKER = Path(store_worker.__file__)
RUN = {"seed": 1, "eps": [0.1, 1e-300], "name": "é", "deep": {"b": None, "a": True}}
DTYPES = ["bool", "float16", "float32", "float64", "complex64"]
DTYPES += [f"{kind}{width}" for kind in ("int", "uint") for width in (8, 16, 32, 64)]
ONE = {"x": np.arange(3.0)}
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def same(found, expected):
    """Whether two arrays agree in dtype, shape and every bit."""
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and (
        found.tobytes() == expected.tobytes()
    )


def assert_unit(store, seed, place):
    found, (arrays, facts) = store.get(PHASE, place), unit(seed, place)
    assert found.arrays.keys() == arrays.keys()
    assert all(same(found.arrays[name], arrays[name]) for name in arrays)
    assert found.facts == facts


def units_of(folder):
    return sorted((folder / "units").iterdir())


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


# --- what goes in comes out ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_comes_back_bitwise(folder, dtype):
    raw = np.random.default_rng(0).integers(0, 2, 48).astype(dtype)
    arrays = {
        "row": raw,
        "cube": raw.reshape(2, 4, 6),
        "strided": raw.reshape(6, 8).T[::2],
        "scalar": np.asarray(raw[0]),
        "nothing": raw[:0].reshape(0, 3),
    }
    with open_run(folder, RUN) as store:
        store.put("a", 0, arrays)
        found = store.get("a", 0).arrays
    assert found.keys() == arrays.keys()
    assert all(same(found[name], arrays[name]) for name in arrays)


def test_payloads_of_nan_signed_zeros_and_infinities_come_back(folder):
    bits = np.array([0x7FF8000000000123, 0xFFF0000000000000, 1 << 63, 1], dtype=np.uint64)
    with open_run(folder, RUN) as store:
        store.put("a", 0, {"x": bits.view(np.float64)})
        assert (store.get("a", 0).arrays["x"].view(np.uint64) == bits).all()


def test_the_other_byte_order_keeps_its_values(folder):
    with open_run(folder, RUN) as store:
        store.put("a", 0, {"x": np.array([1.5, -2.0], dtype=">f4")})
        assert same(store.get("a", 0).arrays["x"], np.array([1.5, -2.0], dtype=np.float32))


def test_a_unit_without_arrays_keeps_its_facts_exactly(folder):
    facts = {"x": 0.1 + 0.2, "tiny": 5e-324, "minus": -0.0, "big": 2**70, "é\ud800": [None, "\n"]}
    with open_run(folder, RUN) as store:
        store.put("a", np.int64(7), {}, facts)
        store.put("a", 8, {})
    with open_run(folder, RUN) as store:
        found = store.get("a", 7)
        assert found.arrays == {}
        assert found.facts == facts
        assert str(found.facts["minus"]) == "-0.0"
        assert store.get("a", 8).facts == {}
        assert store.done("a") == {7, 8}
        assert store.done("b") == frozenset()


def test_phases_do_not_mix_and_a_second_put_changes_nothing(folder):
    with open_run(folder, RUN) as store:
        store.put("a", 0, ONE)
        store.put("b", 0, {"x": np.zeros(1)})
        store.put("a", 0, {"x": np.ones(9)}, {"second": True})
        assert same(store.get("a", 0).arrays["x"], ONE["x"])
        assert store.get("a", 0).facts == {}
        assert len(units_of(folder)) == 2


@pytest.mark.parametrize(
    ("phase", "place", "arrays", "facts"),
    [
        ("A", 0, ONE, {}),
        ("../a", 0, ONE, {}),
        ("", 0, ONE, {}),
        ("a", -1, ONE, {}),
        ("a", 2**63, ONE, {}),
        ("a", 0, {"x": np.array(["text"])}, {}),
        ("a", 0, {"x": np.zeros(1, dtype=np.complex128)}, {}),
        ("a", 0, {"__metadata__": np.zeros(1)}, {}),
        ("a", 0, ONE, {"x": float("nan")}),
    ],
)
def test_what_cannot_be_kept_is_a_fault_of_the_caller(folder, phase, place, arrays, facts):
    with open_run(folder, RUN) as store:
        with pytest.raises(ValueError, match=r"no unit|cannot be kept|JSON"):
            store.put(phase, place, arrays, facts)
        assert units_of(folder) == []


# --- the manifest -------------------------------------------------------------------------------


def test_the_manifest_is_canonical(folder):
    text = '{"deep":{"a":true,"b":null},"eps":[0.1,1e-300],"name":"\\u00e9","seed":1}'
    open_run(folder, RUN).close()
    assert manifest_digest(RUN) == hashlib.sha256(text.encode()).hexdigest()
    whole = json.loads((folder / "manifest.json").read_text())
    assert whole == {"schema": 2, "digest": manifest_digest(RUN), "manifest": RUN}
    assert read_run(folder) == RUN
    open_run(folder, dict(reversed(RUN.items()))).close()


def test_another_run_is_refused_with_what_differs(folder):
    open_run(folder, RUN).close()
    other = {k: v for k, v in RUN.items() if k != "name"} | {"seed": 1.0, "new": None}
    with pytest.raises(RunError, match=r"differs in 'name', 'new', 'seed'; give another folder"):
        open_run(folder, other)
    assert issubclass(RunError, InputError)
    assert read_run(folder) == RUN


def test_a_folder_of_other_things_is_no_run_folder(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"holds files \('thesis.tex'\) but no manifest.json"):
        open_run(tmp_path, RUN)
    with pytest.raises(RunError, match=r"is no run folder: it holds no manifest.json"):
        read_run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(folder):
    folder.write_text("")
    with pytest.raises(RunError, match="cannot hold a run"):
        open_run(folder, RUN)
    with pytest.raises(RunError, match="cannot be read"):
        read_run(folder)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ("\x00\xff", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("9" * 5000, "no JSON"),
        ("[]", "no 'manifest'"),
        ('{"schema": 2, "manifest": 3}', "no 'manifest'"),
        ('{"schema": 1, "manifest": {}}', "schema 1, and this version of purify-audit reads 2"),
        ('{"schema": 2, "digest": "ab", "manifest": {"seed": 2}}', "does not have its digest"),
        ('{"schema": 2, "digest": "ab", "manifest": {"seed": NaN}}', "does not have its digest"),
    ],
)
def test_a_damaged_manifest_is_a_sentence(folder, text, why):
    folder.mkdir()
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=why):
        read_run(folder)
    with pytest.raises(RunError, match=why):
        open_run(folder, RUN)


def test_a_half_written_manifest_is_begun_again(folder):
    folder.mkdir()
    (folder / ".manifest.tmp").write_text('{"sch')
    (folder / "manifest.lock").write_text("")
    with open_run(folder, RUN) as store:
        assert store.done("a") == frozenset()
    assert not (folder / ".manifest.tmp").exists()


def test_a_manifest_that_is_no_json_makes_no_folder(folder):
    with pytest.raises(ValueError, match="JSON"):
        open_run(folder, {"x": float("inf")})
    with pytest.raises(ValueError, match="like 'rank-3'"):
        open_run(folder, RUN, writer="../x")
    assert not folder.exists()


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
def test_a_damaged_unit_is_removed_and_can_be_put_again(folder, harm):
    with open_run(folder, RUN) as store:
        store.put("a", 3, ONE, {"v": 1})
        store.put("a", 4, ONE)
        (path,) = (p for p in units_of(folder) if "00000003" in p.name)
        data = path.read_bytes()
        harmed = {"flip": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-1], "empty": b""}
        path.write_bytes(harmed[harm])
        with pytest.raises(RunError, match=r"unit 3 of phase 'a' is damaged and was removed"):
            store.get("a", 3)
        assert store.done("a") == {4}
        with pytest.raises(RunError, match=r"unit 3 of phase 'a' is not done; `purify-audit res"):
            store.get("a", 3)
        store.put("a", 3, {"x": np.ones(2)}, {"v": 2})  # not even the same
        assert store.done("a") == {3, 4}
        assert store.get("a", 3).facts == {"v": 2}
        assert len(units_of(folder)) == 2


def test_a_missing_file_is_a_unit_to_do(folder):
    with open_run(folder, RUN) as store:
        store.put("a", 0, ONE)
        units_of(folder)[0].unlink()
        assert store.done("a") == frozenset()
        store.put("a", 0, ONE)
        assert store.done("a") == {0}


@pytest.mark.parametrize(
    ("change", "listed"),
    [
        ("facts = '{\"v\":2}'", True),
        ("facts = CAST(x'ff' AS TEXT)", True),
        ("facts = NULL", False),
        ("place = 1", False),
        ("place = 'x'", False),
        ("file = '../manifest.json'", False),
        ("sha256 = 'ab'", False),
    ],
)
def test_a_row_that_is_not_as_it_was_written_vouches_for_nothing(folder, change, listed):
    with open_run(folder, RUN) as store:
        store.put("a", 0, ONE, {"v": 1})
    with sqlite3.connect(folder / "writer-0.sqlite") as rows:
        rows.execute(f"UPDATE units SET {change}")
    rows.close()
    with open_run(folder, RUN) as store:
        assert store.done("a") == (frozenset({0}) if listed else frozenset())
        for place in (0, 1):
            with pytest.raises(RunError, match=r"is damaged and was removed|is not done"):
                store.get("a", place)
        assert store.done("a") == frozenset()
        store.put("a", 0, ONE, {"v": 1})
        assert store.get("a", 0).facts == {"v": 1}
    assert read_run(folder) == RUN


def test_a_row_cannot_reach_out_of_its_folder(folder):
    with open_run(folder, RUN) as store:
        store.put("a", 0, ONE)
    out = "/../../precious"
    with sqlite3.connect(folder / "writer-0.sqlite") as rows:
        rows.execute(
            "UPDATE units SET sha256 = ?, file = ?", (out, f"a-00000000-{out}.safetensors")
        )
    rows.close()
    precious = folder / "precious.safetensors"
    precious.write_text("mine")
    (folder / "units" / "a-00000000-").mkdir()  # without it the path leads nowhere
    with open_run(folder, RUN) as store:
        with pytest.raises(RunError, match="is not done"):
            store.get("a", 0)
        store.forget("a", 0)
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("whose", ["own", "other"])
@pytest.mark.parametrize("keep", [10, 100, 4096, 5000])
def test_a_cut_writers_file_is_a_sentence(folder, whose, keep):
    with open_run(folder, RUN, "w") as store:
        for place in range(12):
            store.put("a", place, {}, {"long": "x" * 1000})
    path = folder / "writer-w.sqlite"
    assert path.stat().st_size > 8192
    os.truncate(path, keep)
    told = r"writer-w.sqlite: is damaged \(.*\); delete this file, and `purify-audit resume"
    if whose == "own":
        with pytest.raises(RunError, match=told):
            open_run(folder, RUN, "w")
    else:
        with open_run(folder, RUN, "v") as store:
            with pytest.raises(RunError, match=told):
                store.done("a")
            with pytest.raises(RunError, match=told):
                store.get("a", 0)
    path.unlink()  # as told
    with open_run(folder, RUN, "w") as store:
        assert store.done("a") == frozenset()
        store.put("a", 0, {}, {"long": "x" * 200})
        assert store.done("a") == {0}


def test_a_garbled_writers_file_is_a_sentence(folder):
    with open_run(folder, RUN) as store:
        store.put("a", 0, ONE)
    path = folder / "writer-0.sqlite"
    data = bytearray(path.read_bytes())
    data[4096:4196] = bytes(100)
    for garbled in (bytes(data), b"no database" * 500):
        path.write_bytes(garbled)
        with pytest.raises(RunError, match=r"writer-0\.sqlite: is damaged"):
            open_run(folder, RUN)


def test_a_writers_file_that_cannot_be_opened_is_a_sentence(folder):
    with open_run(folder, RUN) as store:
        (folder / "writer-x.sqlite").mkdir()
        told = r"writer-x.sqlite: the disk refuses \(unable to open .*\): finished units are kept"
        with pytest.raises(PurifyAuditError, match=told):
            store.done("a")
    (folder / "writer-y.sqlite").mkdir()
    with pytest.raises(PurifyAuditError, match=r"writer-y.sqlite: the disk refuses"):
        open_run(folder, RUN, "y")
    (folder / "writer-y.sqlite").rmdir()
    open_run(folder, RUN, "y").close()  # and its lock is free


def test_a_journal_of_nonsense_is_passed_over(folder):
    with open_run(folder, RUN) as store:
        store.put("a", 0, ONE)
    (folder / "writer-0.sqlite-journal").write_bytes(b"nonsense" * 200)
    with open_run(folder, RUN) as store:
        assert store.done("a") == {0}


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "a ?b#c%20'é"
    with open_run(folder, RUN, "a") as store, open_run(folder, RUN, "b") as other:
        store.put("a", 0, ONE)
        assert other.done("a") == {0}
        with pytest.raises(RunError) as told:
            store.get("a", 1)
    assert shlex.split(str(told.value).split("`")[1]) == ["purify-audit", "resume", str(folder)]


def test_a_writers_file_cut_to_nothing_is_empty(folder):
    with open_run(folder, RUN) as store:
        store.put("a", 0, ONE)
    os.truncate(folder / "writer-0.sqlite", 0)
    with open_run(folder, RUN, "other") as store:
        assert store.done("a") == frozenset()
    with open_run(folder, RUN) as store:
        store.put("a", 0, ONE)
        assert store.done("a") == {0}
    assert len(units_of(folder)) == 1


# --- processes ----------------------------------------------------------------------------------


@contextmanager
def worker(folder, *options, units=20, seed=5):
    command = [sys.executable, WORKER, folder, "--units", units, "--seed", seed]
    command += ["--log", folder.with_suffix(".log"), *options]
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def finish(process):
    """Wait for a worker that ends by itself or by its own signal; its exit code."""
    _, errors = process.communicate(timeout=60)
    assert errors == ""
    return process.returncode


def log_of(folder):
    return [line.split() for line in folder.with_suffix(".log").read_text().splitlines()]


def assert_complete(folder, units=20, seed=5, kills=0):
    starts = [place for what, place in log_of(folder) if what == "start"]
    assert len(starts) - units <= kills
    with open_run(folder, manifest(seed, units), "reader") as store:
        assert store.done(PHASE) == set(range(units))
        for place in range(units):
            assert_unit(store, seed, place)
    assert not [p.name for p in folder.rglob("*") if p.name.endswith((".tmp", "-journal"))]
    assert len(units_of(folder)) == units


def test_a_second_process_under_one_name_is_refused_with_the_first_ones_pid(folder):
    run = manifest(5, 20)
    with worker(folder, "--hold", "--writer", "w") as held:
        assert held.stdout.readline() == "open\n"
        with pytest.raises(RunError, match=rf"is in use by process {held.pid} on .*as 'w'; wait"):
            open_run(folder, run, "w")
        # A living writer's half-written file is left alone, a dead one's is removed.
        scratch = folder / "units" / ".w.tmp"
        with open_run(folder, run, "v") as store:
            assert scratch.read_bytes() == b"half"
            store.put("a", 0, ONE)
        held.kill()
        held.wait()
        open_run(folder, run, "u").close()
        assert not scratch.exists()
        open_run(folder, run, "w").close()


def test_one_process_cannot_open_a_writer_twice_and_may_after_closing(folder):
    with open_run(folder, RUN), pytest.raises(RunError, match=f"process {os.getpid()} on"):
        open_run(folder, RUN)
    open_run(folder, RUN).close()


def test_another_writers_work_is_seen_at_once(folder):
    with open_run(folder, RUN, "a") as one, open_run(folder, RUN, "b") as two:
        assert two.done("p") == frozenset()
        one.put("p", 0, ONE)
        two.put("p", 1, ONE)
        assert one.done("p") == two.done("p") == {0, 1}
        assert same(two.get("p", 0).arrays["x"], ONE["x"])


def test_two_writers_of_one_unit_do_no_harm(folder):
    with open_run(folder, RUN, "a") as one, open_run(folder, RUN, "b") as two:
        one.put("p", 0, ONE, {"by": "a"})
        two.put("p", 0, ONE, {"by": "b"})
        assert one.get("p", 0).facts == two.get("p", 0).facts == {"by": "a"}
        units_of(folder)[0].unlink()  # one of the two
        (left,) = units_of(folder)
        assert two.done("p") == {0}
        assert same(two.get("p", 0).arrays["x"], ONE["x"])
        left.write_bytes(b"")
        with pytest.raises(RunError, match="damaged"):
            one.get("p", 0)
        assert one.done("p") == two.done("p") == frozenset()
        two.put("p", 0, ONE, {"by": "b"})
        assert one.get("p", 0).facts == {"by": "b"}


def test_a_good_copy_stands_in_for_a_damaged_one(folder):
    with open_run(folder, RUN, "a") as one, open_run(folder, RUN, "b") as two:
        one.put("p", 0, {"x": np.zeros(1)})
        (first,) = units_of(folder)
        two.put("p", 0, ONE)
        first.write_bytes(b"")
        assert same(one.get("p", 0).arrays["x"], ONE["x"])


def test_real_writers_that_do_the_same_units_at_once(folder):
    with (
        worker(folder, "--writer", "a", "--overlap", "--nap", 0) as one,
        worker(folder, "--writer", "b", "--overlap", "--nap", 0) as two,
        worker(folder, "--writer", "c", "--overlap", "--nap", 0) as three,
    ):
        assert [finish(p) for p in (one, two, three)] == [0, 0, 0]
    assert len(log_of(folder)) == 3 * 2 * 20
    assert_complete(folder, kills=40)


def test_real_writers_that_share_the_units(folder):
    with (
        worker(folder, "--writer", "a", "--share", 0, "--of", 2) as one,
        worker(folder, "--writer", "b", "--share", 1, "--of", 2) as two,
    ):
        assert [finish(p) for p in (one, two)] == [0, 0]
    assert_complete(folder)


@linux
def test_each_step_is_on_the_disk_before_the_next(folder, monkeypatch):
    """What a loss of power rests on: it cannot be tried, but the order can be seen."""
    seen, fsync, replace, commit = [], os.fsync, os.replace, RunStore._commit

    def new_fsync(handle):
        seen.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def new_replace(source, target):
        seen.append(("rename", Path(source).name, Path(target).name))
        replace(source, target)

    def new_commit(store, row):
        seen.append(("commit",))
        commit(store, row)

    monkeypatch.setattr(os, "fsync", new_fsync)
    monkeypatch.setattr(os, "replace", new_replace)
    monkeypatch.setattr(RunStore, "_commit", new_commit)
    with open_run(folder, RUN) as store:
        assert seen == [
            ("sync", ".manifest.tmp"),
            ("rename", ".manifest.tmp", "manifest.json"),
            ("sync", "run"),
            ("sync", folder.parent.name),
            ("sync", "run"),  # now with units/ in it
        ]
        seen.clear()
        store.put("a", 0, ONE)
        (path,) = units_of(folder)
        assert seen == [
            ("sync", ".0.tmp"),
            ("rename", ".0.tmp", path.name),
            ("sync", "units"),
            ("commit",),
        ]
        # Of SQLite's own syncs there is only its word: a rollback journal, and EXTRA, which is 3.
        own = store._files[folder / "writer-0.sqlite"]
        assert own.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert own.execute("PRAGMA synchronous").fetchone() == (3,)


@linux
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_every_step_of_put(folder, point):
    with worker(folder, "--die", point, "--at", 2) as process:
        assert finish(process) == -signal.SIGKILL
    journal = folder / "writer-0.sqlite-journal"
    assert (journal.exists() and journal.stat().st_size > 0) == (point == "mid-commit")
    assert (folder / "units" / ".0.tmp").exists() == (
        point in ("torn-file", "before-fsync", "before-replace")
    )
    assert [what for what, _ in log_of(folder)] == ["start", "done"] * 2 + ["start"]
    done = {0, 1} | ({2} if point == "after-commit" else set())
    with open_run(folder, manifest(5, 20), "reader") as store:  # it is not the dead one's heir
        assert store.done(PHASE) == done
        for place in done:
            assert_unit(store, 5, place)
    with worker(folder) as process:
        assert finish(process) == 0
    assert_complete(folder, kills=1)


@linux
def test_a_dead_writers_file_may_be_deleted_without_its_journal(folder):
    with worker(folder, "--die", "mid-commit", "--at", 2) as process:
        assert finish(process) == -signal.SIGKILL
    (folder / "writer-0.sqlite").unlink()
    assert (folder / "writer-0.sqlite-journal").exists()
    with worker(folder) as process:
        assert finish(process) == 0
    assert_complete(folder, kills=3)


@linux
def test_twenty_kills_at_random_moments_lose_at_most_the_unit_in_flight(folder):
    delays, kills, units = np.random.default_rng(7).uniform(0, 0.1, 20), 0, 120
    for delay in delays:
        with worker(folder, "--nap", 0.01, units=units) as process:
            # Half of them while the run is being opened, or Python itself.
            if kills % 2:
                process.stdout.readline()
            time.sleep(delay)
            process.kill()
            process.wait()
            assert process.returncode == -signal.SIGKILL, "the worker had nothing left to do"
            assert process.stderr.read() == ""
        kills += 1
    with worker(folder, units=units) as process:
        assert finish(process) == 0
    events = log_of(folder)
    for i, (what, place) in enumerate(events):
        assert what == "start" or ["start", place] not in events[i:], f"unit {place} was lost"
    assert_complete(folder, units=units, kills=kills)


@linux
def test_a_terminated_process_loses_nothing(folder):
    with worker(folder, "--nap", 0.02, units=40) as process:
        process.stdout.readline()
        time.sleep(0.1)
        process.terminate()
        process.wait()
        assert process.returncode == -signal.SIGTERM
    with worker(folder, units=40) as process:
        assert finish(process) == 0
    assert_complete(folder, units=40, kills=1)


def test_ctrl_c_inside_put_leaves_the_unit_undone(folder, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    with open_run(folder, RUN) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.put("a", 0, ONE)
        assert units_of(folder) == []
        store.put("a", 0, ONE)
        assert store.done("a") == {0}


# --- a disk that is full, or refuses ------------------------------------------------------------


def out_of_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_no_space_for_the_file(folder, monkeypatch, call):
    with open_run(folder, RUN) as store:
        store.put("a", 0, ONE)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, out_of_space)
            with pytest.raises(PurifyAuditError) as told:
                store.put("a", 1, ONE)
        assert str(told.value) == (
            f"the disk with {folder} is full: 1 unit is kept; free space and run"
            f" `purify-audit resume {folder}`"
        )
        assert told.value.exit_code == 4
        assert store.done("a") == {0}
        assert len(units_of(folder)) == 1
        store.put("a", 1, ONE)
        assert store.done("a") == {0, 1}


def test_no_space_for_the_row(folder):
    with open_run(folder, RUN) as store:
        for place in range(3):
            store.put("a", place, ONE)
        (pages,) = store._files[folder / "writer-0.sqlite"].execute("PRAGMA page_count").fetchone()
        store._files[folder / "writer-0.sqlite"].execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(PurifyAuditError, match="is full: 3 units are kept; free space"):
            store.put("a", 3, ONE, {"long": "x" * 10_000})
        assert store.done("a") == {0, 1, 2}
        assert len(units_of(folder)) == 3  # the file without a row is gone
        store._files[folder / "writer-0.sqlite"].execute("PRAGMA max_page_count=1000000")
        store.put("a", 3, ONE, {"long": "x" * 10_000})
        assert store.done("a") == {0, 1, 2, 3}


def test_no_space_for_the_row_spares_another_writers_file(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.EDQUOT, "quota")

    with open_run(folder, RUN, "a") as one, open_run(folder, RUN, "b") as two:
        one.put("p", 0, ONE)
        monkeypatch.setattr(RunStore, "_commit", full)
        with pytest.raises(PurifyAuditError, match="is full: 1 unit is kept"):
            two.put("p", 0, ONE)
        assert same(two.get("p", 0).arrays["x"], ONE["x"])


def test_no_space_to_begin(folder, monkeypatch):
    monkeypatch.setattr(os, "fsync", out_of_space)
    with pytest.raises(PurifyAuditError, match=r"the disk with .* is full"):
        open_run(folder, RUN)
    monkeypatch.undo()
    open_run(folder, RUN).close()


def test_a_disk_that_refuses_otherwise(folder, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    with open_run(folder, RUN) as store:
        monkeypatch.setattr(os, "replace", broken)
        with pytest.raises(
            PurifyAuditError, match=r"the disk refuses \(Input/output error\): 0 un"
        ):
            store.put("a", 0, ONE)


def test_a_closed_store_is_closed(folder):
    with open_run(folder, RUN) as store:
        store.put("a", 0, ONE)
    for use in (lambda: store.done("a"), lambda: store.get("a", 0), lambda: store.put("a", 1, ONE)):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_store_is_for_one_thread(folder):
    with open_run(folder, RUN) as store, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(store.done, "a")
        with pytest.raises(sqlite3.ProgrammingError, match="thread"):
            asked.result()


def refusal(store, place, arrays, facts=None):
    """What putting a unit is refused with, or None."""
    try:
        store.put("a", place, arrays, facts)
    except PurifyAuditError as error:
        return str(error)
    return None


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "purify-audit-test", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except OSError as error:
        pytest.skip(f"no command to mount with: {error}")
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=20)


def test_a_really_full_disk(small_disk):
    folder = small_disk / "run"
    pixels = np.arange(25_000, dtype=np.float32)
    with open_run(folder, RUN) as store:
        told = [refusal(store, place, {"x": pixels + place}) for place in range(12)]
        n = told.count(None)
        assert 5 <= n <= 10
        assert told[:n] == [None] * n, "a unit was kept after the disk was full"
        assert all(f"is full: {n} units are kept; free space and run" in t for t in told[n:])
        assert [p.name for p in units_of(folder) if p.name.endswith(".tmp")] == []
    with open_run(folder, RUN) as store:  # on the disk as it is
        assert store.done("a") == set(range(n))
        assert all(same(store.get("a", i).arrays["x"], pixels + i) for i in range(n))
        subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True, timeout=20)
        store.put("a", n, {"x": pixels + n})
        assert store.done("a") == set(range(n + 1))


def test_a_disk_that_fills_at_any_step_of_put(small_disk):
    """Page by page less space, so that the file, the journal and the row meet the end of it."""
    folder, ballast = small_disk / "run", small_disk / "ballast"
    refused = set()
    with open_run(folder, RUN) as store:
        store.put("a", 0, ONE)
        for pages in range(12):
            free = os.statvfs(small_disk).f_bavail
            ballast.write_bytes(bytes(4096 * (free - pages)))
            told = refusal(store, 1 + pages, {"x": np.arange(1500.0)}, {"long": "x" * 3000})
            if told is not None:
                assert "is full: " in told
                refused.add(1 + pages)
            ballast.unlink()
            done = set(range(2 + pages)) - refused
            assert store.done("a") == done
            assert len(units_of(folder)) == len(done)
            for place in done:
                store.get("a", place)
        assert {1, 2, 3} <= refused < set(range(1, 13))
        for place in refused:
            store.put("a", place, {"x": np.arange(1500.0)}, {"long": "x" * 3000})
        assert store.done("a") == set(range(13))
