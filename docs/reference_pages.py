"""Reference pages: policy, plan, report, exit codes."""

from record_tables import summary, table

from purify_audit.cli.app import EXIT_CODES
from purify_audit.core.findings import Finding
from purify_audit.core.records import Record
from purify_audit.gate.judgement import Judgement, RuleResult
from purify_audit.gate.policy import Policy, Rule, Waiver
from purify_audit.report.schema import (
    AttackInfo,
    Citation,
    DataInfo,
    DrawInfo,
    ModelInfo,
    Report,
    RunInfo,
)
from purify_audit.spec.attack_plan import PRESETS, AttackPlan
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.engine import Engine
from purify_audit.spec.load_options import Assumption, LoadOptions, Recognised
from purify_audit.spec.probes import (
    FileProbe,
    LowFrequencyProbe,
    PowerProbe,
    SignProbe,
    SphereProbe,
    UniformProbe,
)
from purify_audit.spec.project_file import SETTINGS
from purify_audit.spec.tuning import Components, MicrobatchTrial, Pilot, Tuning
from purify_audit.statistics.estimates import (
    CapPoint,
    Correlation,
    Estimate,
    Fuzziness,
    ImageVerdict,
    Quantiles,
)
from purify_audit.statistics.metrics import METRICS, Kind, Stage, metric_info

PROBES = (SignProbe, UniformProbe, SphereProbe, LowFrequencyProbe, PowerProbe, FileProbe)
PLAN = (AuditPlan, Engine, AttackPlan, *PROBES, LoadOptions)
POLICY = (Policy, Rule, Waiver)
JUDGEMENT = (Judgement, RuleResult)
REPORT = (
    Report,
    ModelInfo,
    DrawInfo,
    Recognised,
    Assumption,
    DataInfo,
    Estimate,
    Quantiles,
    Finding,
    Citation,
    AttackInfo,
    Fuzziness,
    CapPoint,
    Correlation,
    ImageVerdict,
    RunInfo,
    Tuning,
    MicrobatchTrial,
    Pilot,
    Components,
)

_MEASURED_BY: dict[Stage, str] = {
    "compress": "`compress`",
    "predict": "`predict`",
    "attack": "`attack`",
}
_KINDS: dict[Kind, str] = {
    "mean": "mean over images",
    "root": "root of a mean over images",
    "share": "share, 0 to 1",
    "difference": "difference of shares, −1 to 1",
}
_ENDS = {
    "`compress`, `attack`, `predict`, `verify`, `sweep`, `resume`, `merge`": "3: a finding is an"
    " error, or the audit stopped early",
    "`reproduce`, `verify REPORT`, `replay`": "3: a recomputed cell differs",
    "`gate`, `run`": "1: a rule fails; 3: none fails, and at least one is undecided",
    "`stale`": "1: the report does not match the models in this directory",
    "`baseline`, `report`, `compare`, `inspect`, `convert`, `export`, `attach`": "none",
}


def exit_codes_page() -> str:
    """Every exit code, and the commands that use it."""
    rows = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    ends = "\n".join(f"| {commands} | {codes} |" for commands, codes in _ENDS.items())
    return f"""# Exit codes

Generated from `purify_audit/cli/app.py` by `make docs`.

| code | meaning |
|---|---|
{rows}

## Exit codes of commands

| command | codes besides 0, 2, 4, 130 and 143 |
|---|---|
{ends}

For the gate, code 1 has a single meaning: the purifier was measured, and violates the policy
significantly. A mistyped option, a full disk or a bug never gives 1. A CI system that can let a job
fail without blocking can do so for 3 only (in GitLab `allow_failure: exit_codes: [3]`).

`gate --fail-on fail` exits non-zero on FAIL only, and `--exit-zero` not on FAIL either; both keep 2
and 4. With `--fail-on warning`, rules of severity `warning` count like the others.

```console
$ purify-audit compress no-such-file.safetensors   # exit 2
purify-audit: no-such-file.safetensors: ...
```
"""


def policy_page() -> str:
    """Every key of a policy, the metrics, and how rules are decided."""
    metrics = "\n".join(_metric(name) for name in METRICS)
    settings = ", ".join(f"`{name}`" for name in SETTINGS)
    return f"""# Policy

Generated from `purify_audit/gate/policy.py` by `make docs`. A JSON Schema for editors:
[policy.schema.json](policy.schema.json).

A policy is the table `[gate]` of a project file:

```toml
# Settings of the audit, named like the options.
checkpoint = "models/digits-ddpm.safetensors"
images = 64

# Requirements.
[gate]
confidence = 0.95

[[gate.rule]]
id = "compresses"
metric = "compression_rate"
norm = "l2"
probe = "sign"
max = 0.5

[[gate.rule]]
id = "no-regression"
metric = "aligned_robust_accuracy"
max_decrease = 0.05

[[gate.rule]]
id = "nothing-hidden"
findings = ["PA1", "PA309"]

[[gate.waiver]]
rule = "compresses"
model = "cb51c7b9705b"
reason = "Retraining is under way."
expires = 2027-01-31
```

## Search order

1. the file that `--policy FILE` names;
2. `purify-audit.toml` in the current folder;
3. `[tool.purify-audit.gate]` in `pyproject.toml`; rules are then `[[tool.purify-audit.gate.rule]]`.

The first that exists is used; they are not merged. Besides `gate` the file may contain settings of
the audit, named like the options with `_` for `-`: {settings}.
Any other key is an error, reported with its line.

## How a rule is decided

| decision | a rule `max = T` | a rule `min = T` |
|---|---|---|
| PASS | the whole interval is at or below T | the whole interval is at or above T |
| FAIL | the whole interval is above T | the whole interval is below T |
| INCONCLUSIVE | T lies inside | T lies inside |

The point estimate decides nothing. A rule without norm, probe or radius covers every estimate of
its metric, and the worst decision counts. A rule is also INCONCLUSIVE if its measurement cannot be
trusted:

- fewer images or draws than the policy requires; one image, which gives no interval;
- a metric that the report does not have, or a regression rule without a baseline;
- a finding that is an error: PA1 and PA2 invalidate every rule on a metric, PA3 those on an attack,
  except that robust accuracy below a minimum remains a FAIL, as a stronger attack would only lower
  it;
- a rule that would pass in an audit that was interrupted.

`max_increase` and `max_decrease` are compared with the change from a baseline, paired by image. A
rule about `findings` passes if none of its codes is in the report and every check for them was run.

The verdict is the worst decision of the rules of severity `error` that are not waived. Why several
rules need no correction: [Statistics](statistics.md#several-rules).

## Keys of `[gate]`

{table(Policy, POLICY)}

## Rule

Keys of `[[gate.rule]]`: {_lower(summary(Rule))}
Of `metric` and `findings` exactly one; with a metric exactly one of `min`, `max`, `max_increase`
and `max_decrease`. A radius may be text: `eps = "8/255"`.

{table(Rule)}

## Waiver

Keys of `[[gate.waiver]]`: {_lower(summary(Waiver))}
It has an expiry date, and covers one model only, so that the next one is judged again.

{table(Waiver)}

## Metrics

Definitions: [Method](method.md), sections 2 and 10. A rule without a probe uses the default probe;
"every" means that all probes in the report must satisfy the rule.

| metric | measured by | default probe | kind |
|---|---|---|---|
{metrics}
"""


def plan_page() -> str:
    """Every field of a plan."""
    parts = [
        "# Plan",
        "",
        "Generated from `purify_audit/spec/audit_plan.py` and `purify_audit/spec/attack_plan.py`"
        " by `make docs`.",
        "",
        "A plan contains everything that decides an audit's numbers. Commands build it from their"
        " options, the project file and defaults; the report stores it under `plan`. Reports with"
        " equal `plan_digest` have equal settings. Defaults below are those of the record; those of"
        " the [command line](cli.md) take precedence.",
        "",
        *_sections(PLAN),
        "## Sampler",
        "",
        "Overrides the card's sampler; [sampler presets](samplers.md) lists all settings.",
        "",
        "## Attack presets",
        "",
        "| preset | audit | attack |",
        "|---|---|---|",
    ]
    for name, preset in PRESETS.items():
        cells = (", ".join(f"{k} {v}" for k, v in preset[part].items()) for part in preset)
        parts.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*parts, ""])


def report_page() -> str:
    """Every field of a report, and of a judgement."""
    parts = [
        "# Report",
        "",
        "Generated from the package by `make docs`. As JSON Schema:"
        " [report.schema.json](report.schema.json).",
        "",
        "A report is one JSON file. The same folder contains the raw rows and, after an attack, the"
        " attacked images (`*.rows.safetensors`, `*.attack.safetensors`), whose SHA-256 are in the"
        " report. Everything except `run` is the *body*: a second run of the same plan on the same"
        " machine gives the same body byte for byte.",
        "",
        *_sections(REPORT),
        "## Card",
        "",
        "The model as it ran: family, network, schedule, sampler. Its fields are in the schema;"
        " `purify-audit inspect` prints those of a checkpoint.",
        "",
        "## Verdicts",
        "",
        "The gate's verdict is a separate record, which `purify-audit gate --json` prints.",
        "",
        *_sections(JUDGEMENT),
    ]
    return "\n".join(parts)


def _sections(records: tuple[type[Record], ...]) -> list[str]:
    parts = []
    for record in records:
        parts += [f"## {record.__name__}", "", summary(record), ""]
        if any(name != "kind" for name in record.model_fields):
            parts += [table(record, records), ""]
    return parts


def _metric(name: str) -> str:
    known = metric_info(name)
    probe = "every" if known.probe is None else f"`{known.probe}`"
    if known.probe is None and not _has_probe(name):
        probe = "—"
    return f"| `{name}` | {_MEASURED_BY[known.stage]} | {probe} | {_KINDS[known.kind]} |"


def _has_probe(name: str) -> bool:
    return name != "distance_anchor" and not name.endswith("_accuracy")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
