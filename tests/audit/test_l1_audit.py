"""The l1 threat model in plans, gate rules, reports and the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run_in

from purify_audit.audit.defaults import default_fields
from purify_audit.compression.perturbations import scale_to_ball
from purify_audit.core.errors import PlanError
from purify_audit.gate.needs import check_answerable
from purify_audit.gate.policy import Policy
from purify_audit.report.wording import norm_text
from purify_audit.spec.audit_plan import AuditPlan

AUTOENCODER = Path(__file__).parents[2] / "models/digits-autoencoder.safetensors"


def test_a_probe_is_scaled_to_an_l1_length():
    v = np.random.default_rng(0).normal(size=(2, 3, 1, 4, 4)).astype(np.float32)
    for kind in ("sign", "uniform", "sphere", "lowfreq"):
        got = scale_to_ball(v, kind, "l1", 5.0)
        np.testing.assert_allclose(np.abs(got).sum((2, 3, 4)), 5.0, rtol=1e-6)


def test_defaults_and_wording():
    for digits, eps in ((True, (2.0,)), (False, (12.0,))):
        got = default_fields({"norm": "l1"}, 10, randomised=True, digits=digits)
        assert got["eps"] == eps
        assert got["probes"][0] == {"kind": "sphere"}
    assert norm_text("l1") == "ℓ1"


def test_a_rule_on_a_rate_in_l1_is_refused_and_one_on_an_l1_attack_is_not():
    attack = {"norm": "l1", "eps": (2.0,), "steps": 5, "draws": 1, "restarts": 1, "held_out": 4}
    plan = AuditPlan.model_validate(
        {
            "checkpoint": "c",
            "classifier": "f",
            "data": "digits",
            "images": 64,
            "norm": "l1",
            "eps": (2.0,),
            "probes": ({"kind": "sphere"},),
            "draws": 2,
            "directions": 2,
            "seed": 0,
            "microbatch": 4,
            "attack": attack | {"square_queries": 9, "microbatch": 4},
        }
    )

    def policy(metric, **bound):
        return Policy.model_validate(
            {"rule": [{"id": "r", "metric": metric, "norm": "l1"} | bound]}
        )

    check_answerable(policy("aligned_robust_accuracy", min=0.5), plan)
    with pytest.raises(PlanError, match="compression_rate is not measured in l1"):
        check_answerable(policy("compression_rate", max=0.5), plan)


BUDGET = "--images 8 --steps 8"


def test_an_attack_from_the_command_line(tmp_path):
    arguments = f"--norm l1 {BUDGET} --out a.json".split()
    ended = run_in(tmp_path, "attack", AUTOENCODER, *arguments)
    assert ended.returncode in (0, 3), ended.stderr
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["plan"]["attack"]["norm"] == report["plan"]["norm"] == "l1"
    assert report["plan"]["attack"]["eps"] == [2.0]
    robust = [e for e in report["estimates"] if e["metric"] == "aligned_robust_accuracy"]
    assert [e["norm"] for e in robust] == ["l1"]
    rates = {e["norm"] for e in report["estimates"] if e["metric"] == "compression_rate"}
    assert rates == {"l2", "linf"}
    assert not {"PA303", "PA305", "PA308"} & {f["code"] for f in report["findings"]}
    assert "ℓ1" in ended.stdout
