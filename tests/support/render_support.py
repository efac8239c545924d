"""Small reports and judgements, written out, and hostile text for every field that is free."""

from purify_audit.core.findings import Finding
from purify_audit.gate.judgement import Judgement, RuleResult
from purify_audit.report.schema import AttackInfo, DataInfo, ModelInfo, Report, RunInfo
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.card import ImageSpec, Provenance, TransformCard
from purify_audit.statistics.estimates import Estimate, ImageVerdict

HOSTILE = (
    "=1+1</script><b>|`x`|``\r\n@team/ops #12 GH-7 www.evil.example http://evil.example :bug:"
    " \"q\" 'p' \\ % :: , $x$ &lt; *_~[a](b) {{}} ${{ secrets }} \x00\x07\x1b[31m\u202e\ufffe🦊]]>"
)
DIGEST = "0123456789abcdef" * 4
DATA = "digits"


def estimate(metric="compression_rate", value=0.5, **changes):
    at = {"norm": "l2", "probe": "sign", "eps": 0.15}
    ends = {"lower": 0.4, "upper": 0.625, "level": 0.95, "method": "t on images", "n_images": 32}
    return Estimate.model_validate({"metric": metric, "value": value} | at | ends | changes)


def robust(metric, value, probe="aligned", **changes):
    return estimate(metric, value, norm="linf", probe=probe, **changes)


COMPRESSION = (
    estimate(),
    estimate(value=1.25, norm="linf", lower=1.125, upper=1.375),
    estimate(value=0.25, probe="power", eps=8 / 255, lower=None, upper=None, n_images=1),
    estimate("unaligned_ratio", 0.75),
    estimate("anchor_accuracy", 0.9375, norm=None, probe=None, eps=None, lower=0.75, upper=1.0),
)
ATTACKED = (
    robust("aligned_robust_accuracy", 0.25, lower=0.125, upper=0.5),
    robust("aligned_robust_accuracy_control", 0.9375),
    robust("mean_robust_accuracy", 0.375),
    robust("mean_robust_accuracy", 0.75, probe="fresh"),
    robust("aligned_robust_accuracy", 0.625, probe="fresh"),
    robust("bare_robust_accuracy", 0.0, probe="bare", lower=0.0, upper=0.125),
)
NOTHING_FOUND = AttackInfo(
    gradients={},
    fuzziness=(),
    caps=(),
    correlations={},
    images=(
        ImageVerdict(image=7, label=3, margin=1.5, robust=0.5, fooling_radius=0.125, rates={}),
        ImageVerdict(image=9, label=4, margin=2.5, robust=1.0, fooling_radius=None, rates={}),
    ),
    fooled_despite_compression=(),
    robust_without_compression=(),
    evaluations=1,
    environment={},
)
ATTACK = AttackPlan(
    norm="linf", eps=(0.15,), steps=10, draws=2, restarts=1, held_out=4, square_queries=1,
    microbatch=4,
)  # fmt: skip


def model(name="purifier", source="models/purifier.safetensors", licence="none", sha256=DIGEST):
    card = TransformCard(
        name=name,
        image=ImageSpec(channels=1, height=8, width=8),
        provenance=Provenance(data=DATA, command="none", licence=licence),
        transform={"kind": "gaussian-noise"},
    )
    return ModelInfo(source=source, sha256=sha256, parameters=12, card=card, evaluations=1)


def report(attacked=True, **changes):
    plan = AuditPlan(
        checkpoint="models/purifier.safetensors", classifier="c" if attacked else None, data=DATA,
        images=32, norm="linf", eps=(0.15,), probes=({"kind": "sign"}, {"kind": "power"}),
        draws=2, directions=4, seed=1, microbatch=16, attack=ATTACK if attacked else None,
    )  # fmt: skip
    fields = {
        "tool_version": "0.1.0",
        "noise_spec": "noise spec v1",
        "status": "complete",
        "plan": plan,
        "plan_digest": plan.digest,
        "environment": {"device": "cpu", "threads": 1},
        "checkpoint": model(),
        "classifier": model("classifier", "models/classifier.safetensors") if attacked else None,
        "data": DataInfo(
            source=DATA, digest=DIGEST, ids=(7, 9), image_digests=("0" * 16, "1" * 16),
            available=450, image_shape=(1, 8, 8), labelled=True,
        ),
        "estimates": COMPRESSION + (ATTACKED if attacked else ()),
        "quantiles": (),
        "numeric_floor": {},
        "findings": (finding("PA309", "warning"),),
        "citations": (),
        "rows_sha256": None,
        "attack": NOTHING_FOUND if attacked else None,
        "run": started("purify-audit verify models/purifier.safetensors --attack"),
    }  # fmt: skip
    return Report(**fields | changes)


def started(command, at="2027-01-31T12:00:00+00:00"):
    return RunInfo(
        command=command, started=at, seconds=1.5, evaluations=3, rows_file=None, body_sha256=DIGEST
    )


def finding(code, severity, sentence="AttackResults.", advice="Look."):
    return Finding(code=code, severity=severity, sentence=sentence, evidence={}, advice=advice)


def result(rule="compresses", decision="pass", severity="error", **changes):
    fields = {
        "requirement": "compression_rate (l2, sign, 0.15) <= 0.7",
        "sentence": "0.5, 0.95 interval 0.4 to 0.625 from 32 images.",
        "metric": "compression_rate",
        "value": 0.5,
        "lower": 0.4,
        "upper": 0.625,
        "threshold": 0.7,
        "n_images": 32,
        "line": 12,
    }
    told = {"rule": rule, "decision": decision, "severity": severity}
    return RuleResult.model_validate(told | fields | changes)


def judgement(*rules, verdict="pass", **changes):
    fields = {
        "policy": "policies/release.toml",
        "policy_sha256": DIGEST,
        "report_sha256": DIGEST,
        "model": "purifier",
        "model_sha256": DIGEST,
        "judged": "2027-01-31",
        "tool_version": "0.1.0",
    }
    return Judgement.model_validate({"verdict": verdict, "rules": rules} | fields | changes)


PASS = result()
FAIL = result("stands", "fail", line=20)
OPEN = result("decided", "inconclusive", line=30)
WARNS = result("warns", "fail", "warning")
UNSURE = result("unsure", "inconclusive", "warning")
WAIVED = result("waived", "fail", waived="known since May")
EVERY = judgement(PASS, FAIL, OPEN, WARNS, UNSURE, WAIVED, verdict="fail")
VERDICTS = {
    "pass": judgement(PASS, WARNS, WAIVED),
    "fail": judgement(PASS, FAIL, verdict="fail"),
    "inconclusive": judgement(PASS, OPEN, verdict="inconclusive"),
}


def hostile_judgement():
    bad = {"requirement": HOSTILE, "sentence": HOSTILE, "metric": HOSTILE, "probe": HOSTILE}
    rules = [
        result(f"{HOSTILE}{n}", decision, **bad, waived=HOSTILE if n == 2 else None)
        for n, decision in enumerate(("fail", "inconclusive", "fail", "pass"))
    ]
    return judgement(
        *rules, verdict="fail", policy=HOSTILE, model=HOSTILE, notes=(HOSTILE,), tool_version="1"
    )


def hostile_report():
    told = report()
    return report(
        checkpoint=model(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        classifier=model(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        data=told.data.model_copy(update={"source": HOSTILE}),
        estimates=(*told.estimates, estimate(HOSTILE, probe=HOSTILE, method=HOSTILE)),
        findings=(finding(HOSTILE, "warning", HOSTILE, HOSTILE),),
        environment={HOSTILE: HOSTILE},
        run=started(HOSTILE, HOSTILE),
    )


def many_rules(n=500):
    sentence = "The estimates cannot be trusted. " * 20
    return judgement(
        *(result(f"rule-{k}", "fail", sentence=sentence) for k in range(n)), verdict="fail"
    )


def many_findings(n=10_000):
    return report(findings=tuple(finding("PA205", "info", f"Finding {k}.") for k in range(n)))
