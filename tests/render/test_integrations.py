"""The files for services, as far as a machine without those services can tell.

Schemas are those that check-jsonschema brings along. Scripts are taken out of the YAML and run in
bash with what the service would set; where only their own logic is asked, `purify-audit` and
`python` are stand-ins that write down their arguments.
"""

import json
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = ACTION["runs"]["steps"]
TEMPLATE = yaml.safe_load((ROOT / "ci" / "gitlab.yml").read_text())[".purify-audit"]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())

HOSTILE = [
    '"; touch pwned; echo "',
    "$(touch pwned)",
    "`touch pwned`",
    "'; touch pwned; '",
    "a b  *",
    "--exit-zero",
]
POLICY = """
data = "digits"
images = 16
eps = 0.15

[[gate.rule]]
id = "compresses"
metric = "compression_rate"
norm = "l2"
probe = "sign"
max = {bound}
"""
STAND_IN = """#!{python}
import json, os, sys
from pathlib import Path
Path("called.json").write_text(json.dumps(sys.argv[1:]))
if "--out" in sys.argv and "MAKES" in os.environ:
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    out.mkdir()
    (out / os.environ["MAKES"]).write_text("")
sys.exit(int(os.environ.get("ENDS", "0")))
"""


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("github-actions", "action.yml"),
        ("github-workflows", "examples/github/workflow.yml"),
        ("gitlab-ci", "ci/gitlab.yml"),
        ("gitlab-ci", "examples/gitlab/.gitlab-ci.yml"),
    ],
)
def test_schemas(schema, path, tmp_path):
    shown = tmp_path / "shown.yml"  # hidden jobs are not held against the schema
    shown.write_text((ROOT / path).read_text().replace("\n.purify-audit:", "\npurify-audit:"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, shown], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder whose `purify-audit` and `python` are stand-ins, and the environment to use them."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("purify-audit", "python"):
        (tools / name).write_text(STAND_IN.format(python=sys.executable))
        (tools / name).chmod(stat.S_IRWXU)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return {"PATH": f"{tools}:/usr/bin:/bin"}


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A folder in which `purify-audit` is the real one, and the environment to use it."""
    monkeypatch.chdir(tmp_path)
    return {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


def called():
    return json.loads(Path("called.json").read_text())


# --- GitHub -------------------------------------------------------------------------------------


def step(name):
    return next(s for s in STEPS if s.get("name") == name)


def given(text, inputs, outputs):
    """A value with its expressions replaced, as the service replaces them."""

    def value(match):
        names = match[1].split(".")
        if names[0] == "inputs":
            return inputs.get(names[1], ACTION["inputs"][names[1]]["default"])
        if names[:3] == ["steps", "audit", "outputs"]:
            return outputs.get(names[3], "")
        assert match[1] == "github.action_path"
        return "/action"

    return re.sub(r"\$\{\{ ([\w.-]+) \}\}", value, text)


def run_step(name, environment, inputs=None, outputs=None):
    """(exit code, what was printed) of a step, run as GitHub runs `shell: bash`."""
    about = step(name)
    values = {k: given(v, inputs or {}, outputs or {}) for k, v in about["env"].items()}
    values |= {"GITHUB_OUTPUT": "output", "GITHUB_STEP_SUMMARY": "summary"} | environment
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", about["run"]]
    done = subprocess.run(command, env=values, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def outputs_of():
    lines = Path("output").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_no_expression_stands_in_a_script():
    workflow = yaml.safe_load((EXAMPLES / "github" / "workflow.yml").read_text())
    steps = [*STEPS, *workflow["jobs"]["purify-audit"]["steps"]]
    assert not [s["run"] for s in steps if "${{" in s.get("run", "")]
    for text in (s["uses"] for s in steps if "uses" in s):
        assert re.fullmatch(r"[\w-]+/[\w/-]+@v\d+", text)


def test_the_verdict_is_enforced_last_and_after_every_upload():
    assert step("Audit")["continue-on-error"] is True
    uploads = [n for n, s in enumerate(STEPS) if "upload" in s.get("uses", "")]
    assert len(uploads) == 2
    assert STEPS[-1]["name"] == "Verdict"
    assert "continue-on-error" not in STEPS[-1]
    for n in (*uploads, len(STEPS) - 1):
        assert STEPS[n]["if"].startswith("always()")
        assert n > STEPS.index(step("Audit"))
    outputs = {name: about["value"] for name, about in ACTION["outputs"].items()}
    assert outputs == {
        n: f"${{{{ steps.audit.outputs.{n} }}}}" for n in ("verdict", "exit-code", "report")
    }


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 143])
def test_the_exit_code_goes_through(code, workplace):
    ended, _ = run_step("Audit", workplace | {"ENDS": str(code)})
    outputs = outputs_of()
    assert ended == code
    assert outputs["exit-code"] == str(code)
    assert outputs["folder"] == str(Path("audit").absolute())
    judged = code in (0, 1, 3)
    assert outputs.get("verdict") == (None if judged else "error")
    assert Path("summary").exists() != judged
    assert run_step("Verdict", workplace, outputs=outputs)[0] == code


def test_an_audit_that_never_ended_fails_the_job(workplace):
    assert run_step("Verdict", workplace)[0] == 4


def test_sarif_is_named_where_there_is_one(workplace):
    run_step("Audit", workplace | {"MAKES": "purify-audit.sarif"})
    assert outputs_of()["sarif"] == str(Path("audit/purify-audit.sarif").absolute())


def test_inputs_become_options(workplace):
    run_step("Audit", workplace)
    out = Path("audit").absolute()
    told = f"run --github --out {out} --device auto --fail-on inconclusive"
    assert shlex.join(called()) == told
    inputs = {
        "checkpoint": "m.safetensors",
        "policy": "p.toml",
        "baseline": "b.safetensors",
        "device": "cpu",
        "fail-on": "fail",
        "args": "--max-seconds=60\n\n--purifier\nmy file.py:make\n",
        "out": "/tmp/elsewhere",
    }
    run_step("Audit", workplace, inputs)
    assert shlex.join(called()) == (
        "run --github --out /tmp/elsewhere --device cpu --fail-on fail --policy p.toml"
        " --baseline b.safetensors --max-seconds=60 --purifier 'my file.py:make' -- m.safetensors"
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_inputs_are_text(text, workplace):
    names = ("checkpoint", "policy", "baseline", "device", "fail-on", "args", "out")
    ended, printed = run_step("Audit", workplace, dict.fromkeys(names, text))
    assert (ended, printed) == (0, "")
    assert called() == [
        *["run", "--github", "--out", str(Path(text).absolute()), "--device", text],
        *["--fail-on", text, "--policy", text, "--baseline", text, text, "--", text],
    ]
    assert run_step("Install", workplace, {"extras": text}) == (0, "")
    assert called() == ["-m", "pip", "install", "--quiet", f"/action[{text}]"]
    assert not list(Path.cwd().parent.rglob("pwned"))


def test_a_line_end_in_an_input_adds_no_output(workplace):
    run_step("Audit", workplace | {"ENDS": "1"}, {"out": "a\nexit-code=0", "device": "a\nb=c"})
    outputs = outputs_of()
    assert outputs["exit-code"] == "1"
    assert set(outputs) == {"exit-code", "folder"}


def test_without_extras_the_action_itself_is_installed(workplace):
    run_step("Install", workplace)
    assert called() == ["-m", "pip", "install", "--quiet", "/action"]


def test_the_whole_action(real):
    Path("purify-audit.toml").write_text(POLICY.format(bound=0.2))
    code, printed = run_step("Audit", real, {"checkpoint": "gaussian-smoothing:sigma=1"})
    outputs = outputs_of()
    assert code == 1, printed
    assert (outputs["verdict"], outputs["exit-code"]) == ("fail", "1")
    assert json.loads(Path(outputs["report"]).read_text())["status"] == "complete"
    assert json.loads(Path(outputs["sarif"]).read_text())["runs"][0]["results"]
    assert "compresses" in Path("summary").read_text()
    assert "::error file=" in printed
    assert run_step("Verdict", real, outputs=outputs)[0] == 1


def test_the_whole_action_without_a_policy(real):
    code, printed = run_step("Audit", real, {"checkpoint": "identity"})
    assert code == 2
    assert "purify-audit: no policy: give --policy FILE" in printed
    assert outputs_of()["verdict"] == "error"
    assert "exit code 2" in Path("summary").read_text()


def test_the_example_workflow_uses_inputs_and_outputs_that_there_are():
    workflow = (EXAMPLES / "github" / "workflow.yml").read_text()
    steps = yaml.safe_load(workflow)["jobs"]["purify-audit"]["steps"]
    used = next(s for s in steps if "purify-audit@" in s.get("uses", ""))
    assert set(used["with"]) <= set(ACTION["inputs"])
    assert set(re.findall(r"steps\.audit\.outputs\.([\w-]+)", workflow)) <= set(ACTION["outputs"])


# --- GitLab -------------------------------------------------------------------------------------


def run_job(environment, shell="bash", **variables):
    """(exit code, what was printed) of the job's script, run as the runner runs it."""
    values = TEMPLATE["variables"] | variables | environment
    command = [shell, "-e", "-c", "\n".join(TEMPLATE["script"])]
    done = subprocess.run(command, env=values, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_the_job_ends_as_the_audit_does(code, shell, workplace):
    assert run_job(workplace | {"ENDS": str(code)}, shell, PURIFY_AUDIT_PACKAGE="")[0] == code
    told = "run --out audit --policy purify-audit.toml --device auto --fail-on inconclusive"
    assert shlex.join(called()) == told


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_variables_are_text(text, workplace):
    names = set(TEMPLATE["variables"]) - {"PURIFY_AUDIT_PACKAGE"}
    assert run_job(workplace, **dict.fromkeys(names, text), PURIFY_AUDIT_PACKAGE="") == (0, "")
    assert called() == [
        *["run", "--out", "audit", "--policy", text, "--device", text, "--fail-on", text],
        *["--baseline", text, "--max-seconds", text, "--", text],
    ]
    assert not Path("pwned").exists()


def test_the_job_installs_what_it_is_told_to(workplace):
    assert run_job(workplace | {"ENDS": "7"}, PURIFY_AUDIT_PACKAGE="a package")[0] == 7
    assert called() == ["-m", "pip", "install", "--quiet", "a package"]  # and no audit after it


def test_the_whole_job_leaves_every_artefact_that_it_names(real):
    Path("purify-audit.toml").write_text(POLICY.format(bound=0.6))
    code, printed = run_job(
        real, PURIFY_AUDIT_PACKAGE="", PURIFY_AUDIT_CHECKPOINT="gaussian-smoothing:sigma=1"
    )
    assert code == 0, printed
    assert TEMPLATE["artifacts"]["when"] == "always"
    assert set(TEMPLATE["artifacts"]["reports"]) == {"junit", "metrics", "codequality"}
    for path in TEMPLATE["artifacts"]["reports"].values():
        assert Path(path).is_file()
        assert path.startswith(TEMPLATE["artifacts"]["paths"][0])
    assert json.loads(Path("audit/codequality.json").read_text()) == []


def test_the_example_job_uses_variables_that_there_are():
    example = yaml.safe_load((EXAMPLES / "gitlab" / ".gitlab-ci.yml").read_text())
    assert example["include"][0]["file"] == "ci/gitlab.yml"
    assert example["audit"]["extends"] == ".purify-audit"
    assert set(example["audit"]["variables"]) <= set(TEMPLATE["variables"])
    assert example["audit"]["allow_failure"] == {"exit_codes": [3]}


# --- pre-commit and pytest ----------------------------------------------------------------------


def test_the_hook_runs_as_its_example_asks(run_cli, tmp_path, monkeypatch):
    config = yaml.safe_load((EXAMPLES / "pre-commit" / ".pre-commit-config.yaml").read_text())
    asked = config["repos"][0]["hooks"][0]
    hook = next(h for h in HOOKS if h["id"] == asked["id"])
    assert (hook["language"], hook["pass_filenames"]) == ("python", False)
    program, *arguments = shlex.split(hook["entry"])
    assert program == "purify-audit"
    monkeypatch.chdir(tmp_path)
    Path("purify-audit.toml").write_text(POLICY.format(bound=0.6))
    Path("defence.py").write_text("def make():\n    return lambda x: 0.5 * x\n")
    assert run_cli("run", "--purifier", "defence.py:make", "--quiet", "--images", "16")[0] == 0
    assert run_cli(*arguments, *asked["args"])[0] == 0
    Path("defence.py").write_text("def make():\n    return lambda x: 0.1 * x\n")
    assert run_cli(*arguments, *asked["args"])[0] == 1
    Path("purify-audit.toml").write_text("[gate]\n")
    assert run_cli(*arguments, *asked["args"])[0] == 2


def test_the_example_of_a_test_passes(tmp_path):
    folder = shutil.copytree(EXAMPLES / "pytest", tmp_path / "example")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error"]
    command += ["-p", "purify_audit.pytest_plugin", "-p", "no:purify_audit"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
