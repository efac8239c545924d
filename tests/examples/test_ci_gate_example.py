"""The example of a gate: its two versions and its undecided case end as its README says."""

import json
import re
import shutil
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "ci-gate"
RULES = ["compresses", "keeps-the-class", "withstands-aligned-attack", "no-hidden-randomness"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("example") / "ci-gate")


@pytest.fixture
def judge(folder, run_cli, monkeypatch):
    """Arguments of `run` -> (exit code, what was printed, decisions by rule, the report)."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        code, out, err = run_cli(
            "run", *arguments, "--policy", "purify-audit.toml", "--quiet", "--out", "audit"
        )
        assert err == ""
        judgement = json.loads(Path("audit/judgement.json").read_text())
        decisions = {rule["rule"]: rule["decision"] for rule in judgement["rules"]}
        assert list(decisions) == RULES
        return code, out, decisions, json.loads(Path("audit/report.json").read_text())

    return run


def accuracy(report, metric, probe):
    return next(
        e["value"] for e in report["estimates"] if (e["metric"], e["probe"]) == (metric, probe)
    )


def findings(report):
    return {f["code"] for f in report["findings"] if f["severity"] != "info"}


def told_in_readme(out):
    """Whether every number that was printed stands in the README, but for an image or so."""
    readme = (EXAMPLE / "README.md").read_text()
    told, printed = ([float(n) for n in re.findall(r"\b0\.\d+\b", t)] for t in (readme, out))
    return all(min(abs(n - known) for known in told) < 0.02 for n in printed)


def test_the_good_version_passes(judge, run_cli, folder):
    code, out, decisions, report = judge("defence.py:good")
    assert code == 0
    assert set(decisions.values()) == {"pass"}
    assert told_in_readme(out)
    assert findings(report) == set()
    # The committed report is fresh until the defence changes.
    assert run_cli("fresh", "audit/report.json")[0] == 0
    source = folder / "defence.py"
    text = source.read_text()
    source.write_text(text.replace("width=0.5", "width=0.1"))
    assert run_cli("fresh", "audit/report.json")[0] == 1
    source.write_text(text)


def test_the_bad_version_fails_though_the_usual_protocol_sees_no_difference(judge):
    code, out, decisions, report = judge("defence.py:bad")
    assert code == 1
    assert decisions == dict.fromkeys(RULES, "pass") | {
        "compresses": "fail",
        "withstands-aligned-attack": "fail",
    }
    assert told_in_readme(out)
    assert findings(report) == {"PA309"}
    usual = accuracy(report, "mean_robust_accuracy", "fresh")
    aligned = accuracy(report, "aligned_robust_accuracy", "aligned")
    assert usual > 0.7
    assert aligned < 0.5


def test_too_few_images_are_inconclusive(judge, run_cli):
    code, out, decisions, _ = judge("--images", "20")  # of the policy file's checkpoint
    assert code == 3
    assert decisions == dict.fromkeys(RULES, "pass") | {"withstands-aligned-attack": "inconclusive"}
    assert re.search(r"about\s+\d+\s+more\s+images\s+would\s+decide", out)
    assert run_cli("gate", "audit/report.json", "--fail-on", "fail")[0] == 0
