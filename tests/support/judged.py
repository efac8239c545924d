"""Reports and policies for tests of the gate: numbers chosen, everything else real."""

from datetime import date
from functools import lru_cache
from pathlib import Path

import torch

from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.result import Progress
from purify_audit.audit.subject import prepare
from purify_audit.gate.judge import judge
from purify_audit.gate.policy import Policy, PolicyFile, read_policy
from purify_audit.statistics.estimates import Estimate

TODAY = date(2026, 11, 1)


@lru_cache
def measured():
    """A report of a small real audit."""
    asked = {"checkpoint": "gaussian-noise:sigma=0.05", "data": "digits", "images": 4, "draws": 2}
    return run_compression(
        prepare(asked | {"directions": 2}, torch.device("cpu")), Progress()
    ).report


def estimate(metric="compression_rate", **changes):
    told = {
        "metric": metric,
        "norm": "l2",
        "probe": "sign",
        "eps": 0.1,
        "value": 0.4,
        "lower": 0.3,
        "upper": 0.5,
        "level": 0.95,
        "method": "t on images",
        "n_images": 64,
        "n_draws": 4,
    }
    if "accuracy" in metric:
        told |= {"norm": None, "probe": None, "eps": None, "method": "clopper-pearson on images"}
    if "robust" in metric:
        told |= {"norm": "linf", "probe": "aligned", "eps": 0.1}
    return Estimate.model_validate(told | changes)


def report_of(*estimates, **changes):
    return measured().model_copy(update={"estimates": estimates, "findings": (), **changes})


def policy_file(folder: Path, text: str) -> PolicyFile:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return read_policy(path, folder)


def rules(folder: Path, *texts: str, gate: str = "", after: str = "") -> PolicyFile:
    """A policy of rules written as `id, key = value, …` lines."""
    body = "".join(f"[[gate.rule]]\n{text}\n" for text in texts)
    return policy_file(folder, f"[gate]\n{gate}\n{body}{after}")


def decided(report, policy, difference=None, today=TODAY):
    return judge(report, policy, today, difference)


def only(policy: Policy) -> object:
    (rule,) = policy.rule
    return rule
