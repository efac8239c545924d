"""The recipes in examples/cluster, as far as a machine that is no cluster can tell.

The SLURM script is run in bash: `srun` is a stand-in that starts its command, `scontrol` one that
writes down its arguments. The Kubernetes manifest's command is run with its variables and those
that an Indexed Job sets. The Ray recipe is really run, where Ray is.
"""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from purify_audit.report.schema import read_report
from purify_audit.spec.shard import LAUNCHERS, Shard, shard_of

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples" / "cluster"
PROGRAM = Path(sys.executable).with_name("purify-audit")
SMALL = ("--images", 2, "--steps", 1, "--held-out", 1, "--microbatch", 2)
STAND_INS = {
    # Without options of its own, and with what it sets for a step of one task.
    "srun": "export SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0\n"
    'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"',
    "scontrol": 'echo "$@" >> scontrol.txt',
}
RAY = Path(os.environ.get("RAY_PYTHON", sys.executable))  # may be another environment's


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder with stand-ins first in the path, and nothing that launched this process."""
    monkeypatch.chdir(tmp_path)
    for index, count, _ in LAUNCHERS:
        monkeypatch.delenv(index, raising=False)
        monkeypatch.delenv(count, raising=False)
    Path("bin").mkdir()
    for name, text in STAND_INS.items():
        stand_in(name, text)
    path = [tmp_path / "bin", PROGRAM.parent, os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, path)))
    return tmp_path


def stand_in(name, text):
    path = Path("bin", name)
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run(*command, **environment):
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def body(path):
    return read_report(Path(path)).run.body_sha256


# --- SLURM ----------------------------------------------------------------------------------------


def task(number, *arguments, count=2, **environment):
    """slurm.sh as one task of an array."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    said = {
        "SLURM_ARRAY_TASK_ID": str(number),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_JOB_ID": f"70{number}",
        "SLURM_CPUS_PER_TASK": "1",
        "CHECKPOINT": "median:size=3",
    }
    return run("bash", CLUSTER / "slurm.sh", *arguments, **said | environment)


def test_a_slurm_array_makes_one_report(run_cli):
    for number in (1, 0):
        ended = task(number, *SMALL)
        assert ended.returncode in (0, 3), ended.stderr
        assert Path("verify.json").exists() == (number == 0)
    assert ended.returncode in (0, 3)
    assert not Path("scontrol.txt").exists()
    run_cli("verify", "median:size=3", "--attack", *SMALL, "--quiet", "--out", "plain.json")
    assert body("verify.json") == body("plain.json")


@pytest.mark.parametrize(
    ("code", "again"), [(138, True), (143, True), (0, False), (3, False), (2, False), (4, False)]
)
def test_a_slurm_task_is_requeued_if_it_was_interrupted_only(code, again):
    stand_in("purify-audit", f'echo "$OMP_NUM_THREADS $@" > called.txt; exit {code}')
    ended = task(5, "--seed", 1, count=8, SLURM_CPUS_PER_TASK="3", OUT="a b/v.json")
    assert ended.returncode == code
    assert Path("called.txt").read_text() == (
        "3 verify median:size=3 --attack --run-dir a b/v.run --out a b/v.json --quiet --seed 1\n"
    )
    told = Path("scontrol.txt").read_text() if Path("scontrol.txt").exists() else ""
    assert told == ("requeue 705\n" if again else "")


def test_a_slurm_script_without_a_checkpoint_says_so():
    ended = task(0, CHECKPOINT="")
    assert ended.returncode != 0
    assert "the purifier to audit" in ended.stderr


def test_what_the_slurm_script_asks_for_fits_the_program():
    text = (CLUSTER / "slurm.sh").read_text(encoding="utf-8")
    asked = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH --" in line]
    assert "--signal=USR1@120" in asked
    assert "--requeue" in asked
    assert "--array=0-7" in asked  # in sequence from 0: what `shard_of` takes
    before = text[: text.index("\nset -u")].splitlines()
    assert all(line.startswith("#") for line in before), "SLURM reads no #SBATCH after a command"


# --- Kubernetes -----------------------------------------------------------------------------------


@pytest.fixture
def job():
    return yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text(encoding="utf-8"))


def test_the_kubernetes_job_is_indexed_and_says_of_how_many(job):
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert spec["completionMode"] == "Indexed"
    assert environment["JOB_COMPLETIONS"] == str(spec["completions"])
    last = environment | {"JOB_COMPLETION_INDEX": str(spec["completions"] - 1)}
    assert shard_of(last) == Shard(spec["completions"] - 1, spec["completions"])
    # A failure policy needs Never, and names a container and codes that are there.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    (codes,) = (r["onExitCodes"] for r in spec["podFailurePolicy"]["rules"] if "onExitCodes" in r)
    assert (codes["containerName"], codes["values"]) == (container["name"], [2, 3])
    (mount,), (volume,) = container["volumeMounts"], spec["template"]["spec"]["volumes"]
    assert mount["name"] == volume["name"]
    assert mount["mountPath"] == container["workingDir"]
    assert container["image"] == "${PURIFY_AUDIT_IMAGE}"


def test_the_first_pod_of_the_kubernetes_job_makes_the_report(job):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert "model.safetensors" in container["command"]
    command = ["median:size=3" if c == "model.safetensors" else c for c in container["command"]]
    said = {one["name"]: one["value"] for one in container["env"]}
    said |= {"OMP_NUM_THREADS": "1", "JOB_COMPLETIONS": "2"}
    ended = run(*command, *container["args"], *SMALL, **said, JOB_COMPLETION_INDEX="0")
    assert ended.returncode in (0, 3), ended.stderr
    assert read_report(Path("verify.json")).status == "complete"
    assert [p.name for p in Path("verify.run").glob("*.sqlite")] == ["writer-0-of-2.sqlite"]


# --- Ray ------------------------------------------------------------------------------------------


def test_parts_as_ray_tasks(run_cli, here):
    if run(RAY, "-c", "import ray").returncode:
        pytest.skip(f"Ray is not installed for {RAY} (RAY_PYTHON names another Python)")
    audit = ("compress", "median:size=3", "--images", 6, "--probe", "sign", "--microbatch", 3)
    made = run(RAY, CLUSTER / "ray_parts.py", 2, "out", PROGRAM, *audit, "--directions", 2)
    assert made.returncode == 0, made.stderr
    parts = [
        sorted(p.name for p in (here / f"out/part-{n}").glob("writer-*-of-2.sqlite"))
        for n in (0, 1)
    ]
    assert parts == [["writer-0-of-2.sqlite"], ["writer-1-of-2.sqlite"]]
    run_cli(*audit, "--directions", 2, "--quiet", "--out", "plain.json")
    assert body("out/report.json") == body("plain.json")
    # A part that cannot be computed is told, and nothing is merged.
    bad = run(RAY, CLUSTER / "ray_parts.py", 2, "bad", PROGRAM, "compress", "nowhere.safetensors")
    assert bad.returncode != 0
    assert "nowhere.safetensors" in bad.stderr
    assert not Path("bad/report.json").exists()
