"""A policy as a test: `pytest` here, with purify-audit installed.

The audit of an input transformation by the policy beside this file takes seconds; a checkpoint or
code (`defence.py:make`) is named in the same place.
"""

from typing import Any


def test_smoothing_compresses(purify_audit: Any) -> None:
    """Every rule of purify-audit.toml passes."""
    purify_audit("gaussian-smoothing:sigma=1").assert_policy()


def test_worst_direction_is_not_stretched(purify_audit: Any) -> None:
    """Numbers that no rule is about."""
    audited = purify_audit("gaussian-smoothing:sigma=1", images=16)
    rates = {
        e.probe: e
        for e in audited.report.estimates
        if e.metric == "compression_rate" and e.norm == "l2"
    }
    assert rates["power"].upper < 1
