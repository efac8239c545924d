"""Runs that are interrupted, divided, killed and taken up again end with one report."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from purify_audit.audit.phases import PHASES
from purify_audit.audit.store import RunStore, open_run, read_run
from purify_audit.cli.progress import Reporter
from purify_audit.report.schema import read_report
from purify_audit.spec.shard import LAUNCHERS

ROOT = Path(__file__).parents[2]
DDPM = ROOT / "models" / "digits-ddpm.safetensors"
pytestmark = pytest.mark.skipif(not DDPM.is_file(), reason="the shipped models are not here")

SMALL = ("--images", 12, "--probe", "sign", "--quiet")
MEDIAN = ("compress", "median:size=3", *SMALL, "--microbatch", 3, "--directions", 2)
CHAIN = ("--sampler", "one-step", "--t-star", 3, "--draws", 2, "--directions", 1)
DIFFUSION = ("compress", DDPM, *SMALL, "--microbatch", 1, *CHAIN)
ATTACK = ("verify", "gaussian-noise:sigma=0.1", "--attack", "--images", 8, "--steps", 2)
ATTACK += ("--microbatch", 4, "--held-out", 2, "--quiet")
PORTFOLIO = (*ATTACK, "--fresh-draws", 2, "--fresh-steps", 2)
ATTACK += ("--optimiser", "pgd")  # in two groups of images; a portfolio's are larger
PREDICT = tuple("--predict" if part == "--attack" else part for part in ATTACK)
RUNS = {"transform": MEDIAN, "diffusion": DIFFUSION, "attack": ATTACK, "predict": PREDICT}
RUNS["portfolio"] = PORTFOLIO
CHECK = ("gradients", 0)  # which every part needs
# Many units of some 0.05 s: a kill falls into one of them.
SLOW = ("compress", DDPM, "--images", 24, "--probe", "sign", "--microbatch", 1, "--quiet")
SLOW += ("--sampler", "ddim:steps=2", "--t-star", 4, "--draws", 2, "--directions", 1)


def body(path):
    """The digest of what a report says, whoever computed it."""
    return read_report(Path(path)).run.body_sha256


def evaluations(path):
    return read_report(Path(path)).run.evaluations


def kept(folder):
    """The units of a run folder but preflight's: (phase, place)."""
    with open_run(Path(folder), read_run(Path(folder)), "reader") as store:
        return {(p, n) for p in PHASES[1:] for n in store.done(p)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder, and nothing that launched this process."""
    monkeypatch.chdir(tmp_path)
    for index, count, _ in LAUNCHERS:
        monkeypatch.delenv(index, raising=False)
        monkeypatch.delenv(count, raising=False)
    return tmp_path


@pytest.fixture
def done(run_cli):
    """Run a command that must end well; its standard output."""

    def run(*arguments):
        code, out, err = run_cli(*arguments)
        assert code in (0, 3), f"exit code {code}: {err}"
        return out

    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory, cli_in):
    """Name of a run -> its report, computed in one go and kept nowhere."""
    folder, made = tmp_path_factory.mktemp("plain"), {}

    def get(name, command=None):
        if name not in made:
            ended = cli_in(folder, *(command or RUNS[name]), "--out", f"{name}.json")
            assert ended.returncode in (0, 3), ended.stderr
            made[name] = folder / f"{name}.json"
        return made[name]

    return get


class Impatient(Reporter):
    """Asked by a signal to end, in the unit after so many were kept."""

    puts, after = [], None

    def tick(self, evaluations):
        if len(self.puts) == self.after:
            type(self).after = None
            os.kill(os.getpid(), self.sent)
        super().tick(evaluations)


@pytest.fixture
def puts(monkeypatch):
    """The units but preflight's that this process keeps, in order; `Impatient` looks at them."""
    log, put = [], RunStore.put

    def logged(store, phase, place, *rest):
        put(store, phase, place, *rest)
        if phase != "preflight":
            log.append((phase, place))

    monkeypatch.setattr(RunStore, "put", logged)
    monkeypatch.setattr(Impatient, "puts", log)
    monkeypatch.setattr("purify_audit.cli.progress.Reporter", Impatient)
    return log


@pytest.fixture
def interrupt(run_cli, monkeypatch, puts):
    """Interrupt a command by a signal after so many more units."""

    def run(after, *command, sent=signal.SIGTERM):
        monkeypatch.setattr(Impatient, "after", len(puts) + after)
        monkeypatch.setattr(Impatient, "sent", sent, raising=False)
        code, out, err = run_cli(*command)
        assert code == 128 + sent, err
        return out

    return run


# --- kept, interrupted, and taken up again --------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_a_kept_run_is_the_plain_one_and_is_computed_once(name, plain, done, puts):
    done(*RUNS[name], "--run-dir", "r", "--out", "a.json")
    assert body("a.json") == body(plain(name))
    assert evaluations("a.json") == evaluations(plain(name))
    assert len(puts) == len(set(puts)) == len(kept("r"))
    phases = Counter(phase for phase, _ in puts)
    assert phases["compression"] >= 1
    assert (phases["attack"], phases["comparison"]) == {
        "attack": (2, 5),
        "portfolio": (1, 5),
        "predict": (2, 0),
    }.get(name, (0, 0))
    puts.clear()
    done(*RUNS[name], "--run-dir", "r", "--out", "b.json")
    done("resume", "r", "--out", "c.json")
    assert puts == []
    assert body("b.json") == body("c.json") == body("a.json")
    assert evaluations("b.json") == evaluations("c.json") < evaluations("a.json")


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("transform", 0),
        ("transform", 5),
        ("transform", 11),
        ("diffusion", 3),
        ("attack", 0),  # among compressions
        ("attack", 1),  # in the gradient's check
        ("attack", 2),  # among attacks
        ("attack", 3),
        ("attack", 5),  # among those that it is held against
        ("predict", 3),
        ("portfolio", 4),
    ],
)
def test_resume_computes_what_is_missing_and_ends_with_the_same_body(
    name, after, plain, interrupt, done, puts
):
    told = interrupt(after, *RUNS[name], "--run-dir", "r", "--out", "a.json")
    assert "to continue: purify-audit resume r --out a.json" in told
    assert read_report(Path("a.json")).status == "partial"
    assert kept("r") == set(puts)
    assert len(puts) == after
    before = puts.copy()
    puts.clear()
    done("resume", "r", "--out", "b.json")
    assert body("b.json") == body(plain(name))
    assert set(puts).isdisjoint(before)
    assert {*puts, *before} == kept("r")
    now = evaluations("b.json")
    missing = cost_of("r", puts, plain(name), done)
    assert now == missing + evaluations("again.json")


def cost_of(folder, units, whole, done):
    """Network evaluations that some units of a finished run took.

    Attacks and the gradient's check tell theirs; groups of compressed images are of one size, and
    what is left of the whole.
    """
    done("resume", folder, "--out", "again.json")  # all but the units
    with open_run(Path(folder), read_run(Path(folder)), "reader") as store:
        told = {
            (phase, place): store.get(phase, place).facts["evaluations"]
            for phase in ("gradients", "attack", "comparison")
            for place in store.done(phase)
        }
        groups = len(store.done("compression"))
    left = evaluations(whole) - evaluations("again.json") - sum(told.values())
    assert left % groups == 0
    return sum(told.get(unit, left // groups) for unit in units)


def test_interrupted_again_and_again(plain, interrupt, done, puts):
    """Every signal that is a wish, and every command that goes on."""
    sent = [signal.SIGINT, signal.SIGTERM]
    sent += [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []
    command = (*MEDIAN, "--run-dir", "m.run", "--out", "m.json")
    for n, number in enumerate(sent):
        interrupt(2, *(command if n == 0 else ("resume", "m.run")), sent=number)
    assert len(puts) == 2 * len(sent)
    done("resume", "m.run")
    assert sorted(puts) == [("compression", n) for n in range(12)]
    assert body("m.json") == body(plain("transform"))


def test_a_limit_of_time_keeps_what_is_finished(plain, run_cli, done):
    told = run_cli(*ATTACK, "--max-seconds", 0, "--run-dir", "x.run", "--out", "x.json")
    assert told[0] == 3
    assert "to continue: purify-audit resume x.run" in told[1]
    done("resume", "x.run")
    assert body("x.json") == body(plain("attack"))


def test_a_damaged_unit_is_computed_again(plain, run_cli, done, puts):
    done(*MEDIAN, "--run-dir", "r", "--out", "a.json")
    sorted(Path("r/units").iterdir())[3].write_bytes(b"")
    puts.clear()
    code, _, err = run_cli("resume", "r", "--out", "b.json")
    assert code == 2
    assert "unit 3 of phase 'compression' is damaged and was removed" in err
    assert not Path("b.json").exists()
    done("resume", "r", "--out", "b.json")
    assert puts == [("compression", 3)]
    assert body("b.json") == body(plain("transform"))


def test_where_resume_puts_the_report(done):
    done(*MEDIAN, "--run-dir", "r", "--out", "a.json")
    done("resume", "r")
    assert body("r/report.json") == body("a.json")


# --- a report that is attacked --------------------------------------------------------------------


@pytest.fixture
def compressed(done, here):
    """A report of compression, in a folder of its own."""
    Path("first").mkdir()
    done(
        "compress", ATTACK[1], "--images", 10, "--probe", "sign", "--quiet", "--out", "first/r.json"
    )
    return Path("first/r.json")


ON_REPORT = ("--attack", "--images", 8, "--steps", 2, "--microbatch", 4, "--held-out", 2, "--quiet")
ON_REPORT += ("--optimiser", "pgd")


def test_an_attack_on_a_report_goes_on(compressed, interrupt, done, puts):
    done("verify", compressed, *ON_REPORT, "--out", "plain.json")
    command = ("verify", compressed, *ON_REPORT, "--run-dir", "r", "--out", "a.json")
    interrupt(2, *command)
    first = [("gradients", 0), ("attack", 0)]
    assert puts == first
    done("resume", "r", "--out", "b.json")
    assert puts == [*first, ("attack", 1), *(("comparison", n) for n in range(5))]
    done(*command)
    assert body("a.json") == body("b.json") == body("plain.json")


def test_parts_of_an_attack_on_a_report(compressed, done, puts):
    done("verify", compressed, *ON_REPORT, "--out", "plain.json")
    for n in (0, 1):
        done("verify", compressed, *ON_REPORT, "--shard", f"{n}/2", "--run-dir", f"p{n}")
    assert "compression" not in {phase for phase, _ in puts}
    done("merge", "p1", "p0", "--out", "m.json")
    assert body("m.json") == body("plain.json")


def test_a_report_whose_cells_do_not_come_again_is_found_out_by_resume_too(
    compressed, run_cli, monkeypatch
):
    from purify_audit.audit import replay

    monkeypatch.setattr(replay.Replayed, "same", property(lambda cell: False))
    command = ("verify", compressed, *ON_REPORT, "--measure-anyway")
    assert run_cli(*command, "--run-dir", "r", "--out", "a.json")[0] == 3
    assert run_cli("resume", "r", "--out", "b.json")[0] == 3
    assert "PA313" in {f.code for f in read_report(Path("b.json")).findings}
    assert body("a.json") == body("b.json")


def test_another_report_under_the_same_name_is_refused(compressed, done, refused):
    done("verify", compressed, *ON_REPORT, "--run-dir", "r", "--out", "a.json")
    text = compressed.read_text(encoding="utf-8")
    compressed.write_text(text.replace('"started": "2', '"started": "1'), encoding="utf-8")
    assert "differs in 'basis_sha256'" in refused("resume", "r", "--quiet")


def test_a_checkpoint_beside_its_report_is_found_by_resume(done, here):
    Path("first").mkdir()
    shutil.copy(DDPM, "first/p.safetensors")
    os.chdir("first")
    one_step = ("--sampler", "one-step", "--t-star", 3)
    small = ("--images", 4, "--probe", "sign", "--directions", 1, "--draws", 1, "--quiet")
    done("compress", "p.safetensors", *small, *one_step, "--out", "r.json")
    os.chdir(here)
    command = ("verify", "first/r.json", "--predict", "--microbatch", 2, "--quiet")
    done(*command, "--run-dir", "r", "--out", "a.json")
    done("resume", "r", "--out", "b.json")
    assert body("a.json") == body("b.json")


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"), [("transform", 3), ("diffusion", 2), ("attack", 2), ("predict", 4)]
)
def test_parts_merged_are_the_whole(name, count, plain, done, puts):
    whole, seen = RUNS[name], []
    for n in reversed(range(count)):
        puts.clear()
        told = done(*whole, "--shard", f"{n}/{count}", "--run-dir", f"p{n}", "--out", "none.json")
        assert told == f"part {n}/{count} of p{n} is stored\n"
        mine = [unit for unit in puts if unit != CHECK]
        assert {place % count for _, place in mine} <= {n}
        seen += mine
    assert not Path("none.json").exists()
    puts.clear()
    done("merge", *(f"p{n}" for n in range(count)), "--out", "m.json")
    assert (set(puts) | kept("p0")) - {CHECK} == set(seen)
    assert len(seen) == len(set(seen))
    assert body("m.json") == body(plain(name))


def test_parts_in_one_folder(plain, done):
    for n in range(3):
        done(*MEDIAN, "--shard", f"{n}/3", "--run-dir", "all.run")
    done("merge", "all.run")
    assert body("all.json") == body(plain("transform"))


def test_an_interrupted_part_goes_on_with_the_same_command(plain, interrupt, done, puts):
    part = (*MEDIAN, "--shard", "1/2", "--run-dir", "p1")
    assert interrupt(2, *part) == "part 1/2 of p1 was interrupted; the same command continues it\n"
    done(*part)
    assert puts == [("compression", n) for n in range(1, 12, 2)]
    done(*MEDIAN, "--shard", "0/2", "--run-dir", "p0")
    done("merge", "p0", "p1", "--out", "m.json")
    assert body("m.json") == body(plain("transform"))


def test_a_missing_part_is_told_by_its_units(run_cli, plain, done):
    for n in (0, 2):
        done(*MEDIAN, "--shard", f"{n}/3", "--run-dir", f"p{n}")
    code, out, err = run_cli("merge", "p0", "p2", "--out", "m.json")
    assert (code, out) == (4, "")
    assert err == (
        "purify-audit: units are missing: compression 1, 4, 7, 10; compute their parts, or all of"
        " them with `purify-audit resume p0`\n"
    )
    assert not Path("m.json").exists()
    done("resume", "p0", "--out", "m.json")
    assert body("m.json") == body(plain("transform"))


def test_missing_attacks_are_told_by_phase(run_cli, done):
    done(*ATTACK, "--shard", "0/2", "--run-dir", "p0")
    code, _, err = run_cli("merge", "p0")
    assert code == 4
    assert "units are missing: attack 1; comparison 1, 3; compute" in err


@pytest.mark.parametrize("anyway", [(), ("--measure-anyway",)])
def test_parts_of_a_run_that_ends_in_preflight_have_nothing_to_compute(anyway, run_cli, here):
    code = "def make():\n    return lambda x: x * float('nan')\n"
    Path("broken.py").write_text(code, encoding="utf-8")
    run = ("compress", "--purifier", "broken.py:make", "--data", "digits", *SMALL, *anyway)
    assert run_cli(*run, "--out", "a.json")[0] == 3
    assert "PA103" in {f.code for f in read_report(Path("a.json")).findings}
    for n in (0, 1):
        assert run_cli(*run, "--shard", f"{n}/2", "--run-dir", f"p{n}")[0] == 0
    assert run_cli("merge", "p0", "p1", "--out", "m.json")[0] == 3
    assert body("m.json") == body("a.json")


def test_parts_of_different_runs_do_not_merge(refused, done):
    done(*MEDIAN, "--shard", "0/2", "--run-dir", "p0")
    done(*MEDIAN, "--shard", "1/2", "--run-dir", "p1", "--seed", 1)
    assert refused("merge", "p0", "p1") == "p1: is another run than p0: plan differs"
    assert "is no run folder" in refused("merge", "p0", "nowhere")


def test_the_folder_of_another_run_is_refused(refused, done):
    done(*MEDIAN, "--run-dir", "r", "--out", "a.json")
    before = sorted(Path("r/units").iterdir())
    told = refused(*MEDIAN, "--level", 0.9, "--run-dir", "r", "--out", "b.json")
    assert told == (
        "r: holds another run, which differs in 'plan'; give another folder, or delete this one"
    )
    told = refused("compress", "median:size=5", *MEDIAN[2:], "--run-dir", "r", "--out", "b.json")
    assert "differs in 'checkpoint', 'plan';" in told
    told = refused(*MEDIAN, "--seed", 1, "--run-dir", "r", "--out", "b.json")
    assert "differs in 'images', 'plan';" in told
    assert not Path("b.json").exists()
    assert sorted(Path("r/units").iterdir()) == before


def test_another_numerics_class_is_refused(refused, done, monkeypatch):
    done(*MEDIAN, "--shard", "0/2", "--run-dir", "p0")
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    assert "differs in 'environment'" in refused("resume", "p0", "--quiet")
    done(*MEDIAN, "--shard", "1/2", "--run-dir", "p1")
    assert refused("merge", "p0", "p1") == "p1: is another run than p0: environment differs"


def test_what_is_no_run_folder(refused, here):
    assert "is no run folder: it holds no manifest.json" in refused("resume", "nowhere")
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    assert "holds files ('notes.txt')" in refused(*MEDIAN, "--run-dir", "other")


def test_a_part_needs_a_folder_and_must_be_one(refused):
    assert refused(*MEDIAN, "--shard", "0/2") == (
        "--shard stores its part in a folder: give --run-dir"
    )
    told = refused(*MEDIAN, "--shard", "2/2", "--run-dir", "r")
    assert told == "--shard '2/2' is not I/N with I from 0 to N - 1, such as 0/4"


def test_a_run_that_may_end_at_a_look_has_no_parts(refused, done, monkeypatch):
    looks = (*MEDIAN, "--tolerance", 0.5)
    told = refused(*looks, "--shard", "0/2", "--run-dir", "r")
    assert told == "a run that may end at a look cannot be shared: drop the tolerance"
    assert not Path("r").exists(), "whoever drops the tolerance would be refused this folder"
    done(*looks, "--run-dir", "r", "--out", "kept.json")
    done(*looks, "--out", "plain.json")
    assert body("kept.json") == body("plain.json")


def test_the_whole_is_part_0_of_1_whatever_launched_it(plain, done, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    done(*MEDIAN, "--shard", "0/1", "--out", "a.json")
    assert body("a.json") == body(plain("transform"))
    assert not Path("a.run").exists()


# --- processes that share a folder ----------------------------------------------------------------


def test_each_of_those_that_share_does_its_own_and_then_what_is_left(
    plain, done, monkeypatch, puts
):
    monkeypatch.setenv("CI_NODE_TOTAL", "3")
    monkeypatch.setenv("CI_NODE_INDEX", "2")
    assert done(*ATTACK, "--out", "s.json") == "part 1/3 of s.run is stored\n"
    assert puts == [("compression", 0), ("gradients", 0), ("attack", 1), ("attack", 0)] + [
        ("comparison", n) for n in (1, 4, 2, 3, 0)
    ]
    puts.clear()
    monkeypatch.setenv("CI_NODE_INDEX", "1")
    done(*ATTACK, "--out", "s.json")
    assert puts == []
    assert body("s.json") == body(plain("attack"))


@pytest.mark.parametrize(
    ("output", "code"), [("x[:, :, ::2]", "PA104"), ("x * float('nan')", "PA103")]
)
def test_who_begins_before_preflight_is_done_ends_as_it_says(output, code, run_cli, monkeypatch):
    Path(f"{code}.py").write_text(f"def make():\n    return lambda x: {output}\n", encoding="utf-8")
    run = ("compress", "--purifier", f"{code}.py:make", "--data", "digits", *SMALL)
    monkeypatch.setenv("CI_NODE_TOTAL", "2")
    monkeypatch.setenv("CI_NODE_INDEX", "2")
    ended, out, err = run_cli(*run, "--out", "s.json")
    assert (ended, out) == (0, "part 1/2 of s.run is stored\n"), err
    monkeypatch.setenv("CI_NODE_INDEX", "1")
    assert run_cli(*run, "--out", "s.json")[0] == 3
    assert code in {f.code for f in read_report(Path("s.json")).findings}
    assert read_report(Path("s.json")).status == "partial"


def test_contradictory_variables_compute_nothing(refused, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = refused(*MEDIAN, "--run-dir", "r")
    assert told == "RANK=2 and WORLD_SIZE=2 name no part of a run; give --shard I/N"
    assert not Path("r").exists()


# --- real processes -------------------------------------------------------------------------------


def start(*arguments, **environment):
    """`python -m purify_audit …` in this folder."""
    return spawn("-m", "purify_audit", *arguments, **environment)


def spawn(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


@contextmanager
def running(*processes):
    """Kill what is still there in the end."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_for(units, folder, process, seconds=60):
    """Wait until so many units but preflight's lie in a run folder."""
    end = time.monotonic() + seconds
    while sum(1 for _ in Path(folder).glob("units/[!p]*-*.safetensors")) < units:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def test_killed_at_random_moments(plain, done):
    whole, draw = plain("slow", SLOW), np.random.default_rng(11)
    command, before = (*SLOW, "--run-dir", "k.run", "--out", "k.json"), 0
    for n in range(2):
        process = start(*(command if n == 0 else ("resume", "k.run", "--quiet")))
        with running(process):
            wait_for(before + 2, "k.run", process)
            time.sleep(draw.uniform(0, 0.1))
            process.kill()
            assert process.wait() == -signal.SIGKILL
        now = len(kept("k.run"))
        assert before + 1 <= now < 24, "of two files that are seen, one at least is stored"
        before = now
    assert not Path("k.json").exists()
    done("resume", "k.run")
    assert body("k.json") == body(whole)
    assert not list(Path("k.run").rglob("*.tmp"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signal")
def test_a_folder_in_use_is_refused_and_sigterm_ends_its_run_in_order(refused, plain, done):
    process = start(*SLOW, "--run-dir", "t.run", "--out", "t.json")
    with running(process):
        wait_for(1, "t.run", process)
        process.send_signal(signal.SIGSTOP)  # it must not be done before the other one has looked
        told = refused(*SLOW, "--run-dir", "t.run", "--out", "b.json")
        process.terminate()
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=60)
    assert told.startswith(f"t.run: is in use by process {process.pid} on ")
    assert not Path("b.json").exists()
    assert process.returncode == 143
    assert "to continue: purify-audit resume t.run --out t.json" in out
    report = read_report(Path("t.json"))
    assert report.status == "partial"
    assert 1 <= len(report.data.ids) < 24
    done("resume", "t.run")
    assert body("t.json") == body(plain("slow", SLOW))


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--max-restarts", 2)


def torchrun(*command):
    return spawn(*TORCHRUN, "-m", "purify_audit", *command, MASTER_PORT="0")


def pid_of(writer, folder):
    """Who locked a writer's name, or will: another rank may be there first."""
    path, end = Path(folder, f"writer-{writer}.lock"), time.monotonic() + 60
    while not path.exists() or len(path.read_text().split()) < 2:
        assert time.monotonic() < end
        time.sleep(0.005)
    return int(path.read_text().split()[1])


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
@pytest.mark.parametrize("victim", [None, 0])
def test_torchrun_is_one_process_also_when_a_rank_is_killed(victim, plain):
    process = torchrun(*SLOW, "--out", "d.json")
    with running(process):
        if victim is not None:
            wait_for(4, "d.run", process)
            os.kill(pid_of(f"{victim}-of-2", "d.run"), signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert ("SIGKILL" in err or "-9" in err) == (victim is not None)
    assert body("d.json") == body(plain("slow", SLOW))
    assert Path("d.run/writer-1-of-2.sqlite").exists()


def test_when_one_of_two_dies_the_other_finishes(plain):
    ranks = [start(*SLOW, "--out", "p.json", RANK=str(n), WORLD_SIZE="2") for n in (0, 1)]
    with running(*ranks):
        wait_for(4, "p.run", ranks[1])
        ranks[1].kill()
        _, err = ranks[0].communicate(timeout=120)
    assert ranks[0].returncode == 0, err
    assert len(kept("p.run")) == 24
    assert body("p.json") == body(plain("slow", SLOW))


def test_the_page_tells_what_the_kills_gave():
    made = json.loads((ROOT / "benchmarks" / "kill_runs.json").read_text(encoding="utf-8"))
    among = sum(n for where, n in made["kills_by_place"].items() if where.endswith("among units"))
    kills, runs = made["kills"], sum(made["runs"].values())
    page = (ROOT / "docs" / "howto-cluster.md").read_text(encoding="utf-8")
    told = " ".join(page.split())
    assert kills >= 60
    assert (made["faults"], made["kept_units_computed_again"]) == (0, 0)
    assert f"{kills} kills in {runs} runs of `compress` and `verify`, {among} of them" in told
    assert f"between units and {kills - among} before the first one" in told
