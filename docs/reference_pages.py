"""Reference pages of what people write (policies, plans) and read (reports, exit codes)."""

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
from purify_audit.spec.tuning import Components, Pilot, Tuning, MicrobatchTrial
from purify_audit.statistics.estimates import (
    CapPoint,
    Correlation,
    Estimate,
    Fuzziness,
    ImageVerdict,
    Quantiles,
)
from purify_audit.statistics.metrics import METRICS, Kind, Stage, about

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
    "predict": "`verify --predict`",
    "attack": "`verify --attack`",
}
_KINDS: dict[Kind, str] = {
    "mean": "mean over images",
    "root": "root of a mean over images",
    "share": "share, 0 to 1",
    "difference": "difference of shares, −1 to 1",
}
_ENDS = {
    "`compress`, `verify`, `sweep`, `resume`, `merge`": "3: a finding is an error, the audit ended"
    " early, or a recomputed cell differs",
    "`replay`": "3: the cell differs",
    "`gate`, `run`": "1: a rule fails; 3: none fails, and at least one is undecided",
    "`fresh`": "1: the report is about other models than lie here",
    "`baseline`, `report`, `compare`, `inspect`, `convert`, `export`, `attach`": "none",
}


def exit_codes_page() -> str:
    """Every exit code, and which command ends with which."""
    rows = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    ends = "\n".join(f"| {commands} | {codes} |" for commands, codes in _ENDS.items())
    return f"""# Exit codes

Generated from `purify_audit/cli/app.py` by `make docs`.

| code | meaning |
|---|---|
{rows}

## Which command ends how

| command | codes besides 0, 2, 4, 130 and 143 |
|---|---|
{ends}

Of a gate, code 1 has one meaning that a pipeline may rely on: the purifier was measured, and is
beyond what the policy allows by more than chance explains. A typing error, a full disk or a fault
of this program is never a 1. Continuous integration that may let a job fail without blocking can do
so for 3 alone (in GitLab `allow_failure: exit_codes: [3]`).

`gate --fail-on fail` turns a 3 into 0, `--exit-zero` a 1 too; both leave 2 and 4. With `--fail-on
warning` rules of severity `warning` count like the others.

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

Generated from `purify_audit/gate/policy.py` by `make docs`. The same as JSON Schema, for editors:
[policy.schema.json](policy.schema.json).

A policy is the table `[gate]` of a project's file:

```toml
# How to audit: settings named like the options.
checkpoint = "models/digits-ddpm.safetensors"
images = 64

# What it must show.
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

## Where it is looked for

1. the file that `--policy FILE` names;
2. `purify-audit.toml` in the current folder;
3. `[tool.purify-audit.gate]` in `pyproject.toml`; rules are then `[[tool.purify-audit.gate.rule]]`.

The first that exists is used; they are not merged. Beside `gate` the file may hold settings of the
audit, named like the options with `_` for `-`: {settings}.
A key that is none is an error that says in which line it stands.

## How a rule is decided

| decision | a rule `max = T` | a rule `min = T` |
|---|---|---|
| PASS | the whole interval is at or below T | the whole interval is at or above T |
| FAIL | the whole interval is above T | the whole interval is below T |
| INCONCLUSIVE | T lies inside | T lies inside |

The estimate itself decides nothing. A rule that names no norm, probe or radius is about every
estimate of its metric, and the worst decision counts. Undecided is also what cannot be trusted:

- fewer images or draws than are asked for; one image, which gives no interval;
- a metric that the report does not have, or a regression rule without a baseline;
- what was measured beside a finding that is an error: PA1 and PA2 void every rule on a metric, PA3
  those on an attack, but that robust accuracy too low stays too low, as a better attack would lower
  it further;
- what would pass, in an audit that was interrupted.

`max_increase` and `max_decrease` are held against the change from a baseline, image by image. A
rule about `findings` passes where none of its codes is in the report and everything that looks for
them was done.

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
It expires by itself, and names one model, so that the next one is judged again.

{table(Waiver)}

## Metrics

What each is: [Method](method.md), sections 2 and 10. The default probe is what is meant where a
rule names none; "every" means that all in the report must satisfy it.

| metric | measured by | default probe | is a |
|---|---|---|---|
{metrics}
"""


def plan_page() -> str:
    """Every field of a plan."""
    parts = [
        "# Plan",
        "",
        "Generated from `purify_audit/spec/audit_plan.py` and `purify_audit/spec/attack_plan.py` by `make docs`.",
        "",
        "A plan is everything that decides an audit's numbers. Commands make it of their options,"
        " of the project's file and of defaults, and it stands in the report under `plan`. Reports"
        " with one `plan_digest` had the same settings. Defaults below are the record's; those of"
        " the [command line](cli.md) come before them.",
        "",
        *_sections(PLAN),
        "## Sampler",
        "",
        "Overrides the card's; every setting is under [sampler presets](samplers.md).",
        "",
        "## Attack presets",
        "",
        "| preset | audit | attack |",
        "|---|---|---|",
    ]
    for name, preset in PRESETS.items():
        told = (", ".join(f"{k} {v}" for k, v in preset[part].items()) for part in preset)
        parts.append(f"| `{name}` | {' | '.join(told)} |")
    return "\n".join([*parts, ""])


def report_page() -> str:
    """Every field of a report, and of a judgement."""
    parts = [
        "# Report",
        "",
        "Generated from the package by `make docs`. The same as JSON Schema:"
        " [report.schema.json](report.schema.json).",
        "",
        "A report is one JSON file. Beside it lie the raw rows and, after an attack, the attacked"
        " images (`*.rows.safetensors`, `*.attack.safetensors`); it holds their SHA-256. Everything"
        " but `run` is the *body*: a second run of one plan on one machine gives the same body byte"
        " for byte.",
        "",
        *_sections(REPORT),
        "## Card",
        "",
        "What ran: family, network, schedule, sampler. Its fields are in the schema;"
        " `purify-audit inspect` prints those of a checkpoint.",
        "",
        "## Verdicts",
        "",
        "The gate's verdict is a record of its own, which `purify-audit gate --json` prints.",
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
    known = about(name)
    probe = "every" if known.probe is None else f"`{known.probe}`"
    if known.probe is None and not _has_probe(name):
        probe = "—"
    return f"| `{name}` | {_MEASURED_BY[known.stage]} | {probe} | {_KINDS[known.kind]} |"


def _has_probe(name: str) -> bool:
    return name != "distance_anchor" and not name.endswith("_accuracy")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
