"""A policy: requirements that a report must meet, in TOML (`[gate]` of a project file).

`docs/policy.md` and `docs/policy.schema.json` are generated from here.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from purify_audit.core.errors import PlanError
from purify_audit.core.findings import CODES
from purify_audit.core.records import Record, printable
from purify_audit.gate.judgement import Severity
from purify_audit.spec.norms import Norm
from purify_audit.spec.notation import meant_instead, parse_radius
from purify_audit.spec.project_file import ProjectFile, find_project, open_project, project_settings
from purify_audit.statistics.metrics import MetricName, metric_info

REGRESSIONS = ("max_increase", "max_decrease")
BOUNDS = ("min", "max", *REGRESSIONS)


def _radius(value: object) -> object:
    """A radius, also as a fraction such as `"8/255"`."""
    if isinstance(value, bool):
        raise ValueError("a radius is a number")
    if not isinstance(value, str):
        return value
    try:
        return parse_radius(value)
    except PlanError as error:
        raise ValueError(str(error)) from None


Number = Annotated[float, Field(strict=True)]
Confidence = Annotated[float, Field(gt=0.5, lt=1, strict=True)]
Count = Annotated[int, Field(ge=2, strict=True)]


class Rule(Record):
    """One requirement: on a metric, on its change against a baseline, or on findings.

    Attributes:
        id: its name in messages and CI services.
        metric: the metric that is bounded; see the list of metrics.
        findings: instead of a metric: codes of findings, or prefixes such as `PA1`, that the report
            must not have.
        norm: only estimates in this norm; default: in every norm.
        probe: only of this probe or attack; default: of every probe, and of the aligned attack.
        eps: only at this radius; default: at every radius.
        min: lower bound of the metric.
        max: upper bound of the metric.
        max_increase: the largest allowed increase over the baseline, paired by image.
        max_decrease: the largest allowed decrease from the baseline, paired by image.
        severity: `error`, or `warning`: reported, but not a reason to fail.
        confidence: of the interval that decides; default: the gate's.
        min_images: with fewer images it is inconclusive; default: the gate's.
        min_draws: with fewer draws of each image it is inconclusive.
    """

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    metric: MetricName | None = None
    findings: tuple[str, ...] = ()
    norm: Norm | None = None
    probe: str | None = None
    eps: Annotated[
        Annotated[float, Field(gt=0)] | None,
        BeforeValidator(_radius, json_schema_input_type=float | str | None),
    ] = None
    min: Number | None = None
    max: Number | None = None
    max_increase: Annotated[Number, Field(ge=0)] | None = None
    max_decrease: Annotated[Number, Field(ge=0)] | None = None
    severity: Severity = "error"
    confidence: Confidence | None = None
    min_images: Count | None = None
    min_draws: Annotated[int, Field(ge=1, strict=True)] = 1

    @field_validator("findings")
    @classmethod
    def _known(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        for code in codes:
            if not (code and any(known.startswith(code) for known in CODES)):
                raise ValueError(f"no finding '{code}'; docs/findings.md lists them")
            if code == "PA313":
                raise ValueError("PA313 is reported when a report is recomputed, not by a gate")
        return codes

    @model_validator(mode="after")
    def _one_requirement(self) -> Self:
        bounds = [name for name in BOUNDS if getattr(self, name) is not None]
        if (self.metric is None) == (not self.findings):
            raise ValueError("give either a metric or findings")
        if self.findings:
            used = [n for n in ("norm", "probe", "eps") if getattr(self, n) is not None] + bounds
            used += [n for n in ("confidence", "min_draws") if n in self.model_fields_set]
            if used:
                raise ValueError(f"a rule about findings has no '{used[0]}'")
        elif len(bounds) != 1:
            raise ValueError(f"give one of {', '.join(BOUNDS)}")
        elif self.metric == "rms_gain" and bounds[0] in REGRESSIONS:
            raise ValueError("rms_gain is a root and has no paired difference; use the rate")
        elif self.metric is not None and metric_info(self.metric).kind == "share":
            bound = getattr(self, bounds[0])
            if not 0 <= bound <= 1:
                raise ValueError(f"{self.metric} is in [0, 1], and {bounds[0]} = {bound:g} is not")
        return self

    @property
    def bound(self) -> tuple[Literal["<=", ">="], float]:
        """Required relation of the metric, or of its change, to a threshold."""
        if self.min is not None:
            return ">=", self.min
        if self.max_decrease is not None:
            return ">=", -self.max_decrease
        upper = self.max if self.max is not None else self.max_increase
        assert upper is not None, "a rule on a metric has one bound"
        return "<=", upper

    @property
    def regression(self) -> bool:
        """Whether it bounds the change against a baseline."""
        return self.max_increase is not None or self.max_decrease is not None

    @property
    def stage(self) -> Literal["compress", "predict", "attack"]:
        """The part of an audit that it needs."""
        if self.metric is not None:
            return metric_info(self.metric).stage
        attack = any(code.startswith("PA3") or "PA3".startswith(code) for code in self.findings)
        return "attack" if attack else "compress"


class Waiver(Record):
    """Permission to fail a rule, for one model, until a date.

    Attributes:
        rule: id of the rule.
        model: digest of the model's file (SHA-256, hexadecimal), or at least its first 12 digits.
        reason: why.
        expires: the last day of its validity.
    """

    rule: str
    model: Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")]
    reason: Annotated[str, Field(pattern=r"\S")]
    expires: Annotated[date, Field(strict=True)]


class Policy(Record):
    """The table `[gate]` of a policy file.

    Attributes:
        confidence: of every interval that decides. Each end of it is wrong with probability
            (1 − confidence) / 2.
        min_images: with fewer images rules are inconclusive.
        baseline: a baseline file, or a report with its files of rows; relative to the policy's
            folder.
        rule: the rules.
        waiver: the waivers.
    """

    confidence: Confidence = 0.95
    min_images: Count = 16
    baseline: str | None = None
    rule: Annotated[tuple[Rule, ...], Field(min_length=1)]
    waiver: tuple[Waiver, ...] = ()

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        ids = Counter(rule.id for rule in self.rule)
        for name, count in ids.items():
            if count > 1:
                raise ValueError(f"two rules are called '{name}'")
        for waiver in self.waiver:
            if waiver.rule not in ids:
                raise ValueError(f"a waiver is for '{waiver.rule}', and there is no such rule")
        return self

    def min_images_of(self, rule: Rule) -> int:
        """The smallest number of images with which a rule is decided."""
        return self.min_images if rule.min_images is None else rule.min_images

    def confidence_of(self, rule: Rule) -> float:
        """The level of the interval that decides a rule."""
        return self.confidence if rule.confidence is None else rule.confidence


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy and its file.

    Attributes:
        policy: the policy.
        file: its file.
        settings: other settings of the file, for running the audit.
    """

    policy: Policy
    file: ProjectFile
    settings: dict[str, object]

    def line(self, *path: str | int) -> int | None:
        """The line of a key of `[gate]`."""
        return self.file.line("gate", *path)


def read_policy(path: Path | None, folder: Path) -> PolicyFile:
    """The policy of a file, else of `purify-audit.toml`, else of `[tool.purify-audit]`.

    Args:
        path: the file, if one was given.
        folder: searched otherwise.

    Raises:
        PlanError: there is none, or it has an error; the message names the line and suggests a
            correction.
    """
    file = open_project(path) if path is not None else find_project(folder)
    if file is None:
        raise PlanError(
            "no policy: give --policy FILE, or write [gate] in purify-audit.toml, or"
            " [tool.purify-audit.gate] in pyproject.toml"
        )
    if "gate" not in file.table:
        raise PlanError(f"{file.path}: has no policy; rules are written under {_header(file)}")
    settings = project_settings(file)
    try:
        policy = Policy.model_validate(file.table["gate"])
    except ValidationError as error:
        raise PlanError(_fault(file, error)) from None
    return PolicyFile(policy, file, settings)


def policy_if_any(path: Path | None, folder: Path) -> PolicyFile | None:
    """The policy given, else the project's; none if it has none.

    Raises:
        PlanError: see `read_policy`.
    """
    if path is None:
        file = find_project(folder)
        if file is None or "gate" not in file.table:
            return None
    return read_policy(path, folder)


def _header(file: ProjectFile) -> str:
    return f"[[{'.'.join((*file.inside, 'gate', 'rule'))}]]"


def _fault(file: ProjectFile, error: ValidationError) -> str:
    """One sentence: the key, its line, and a suggestion."""
    faults = error.errors(include_url=False)  # an unknown key may explain a missing one
    fault = min(faults, key=lambda each: each["type"] != "extra_forbidden")
    path = tuple(part for part in fault["loc"] if not str(part).startswith("function-"))
    where, name = file.place("gate", *path), printable(str(path[-1])) if path else "gate"
    if fault["type"] == "extra_forbidden":
        records: dict[str, type[Record]] = {"rule": Rule, "waiver": Waiver}
        record = records.get(str(path[0]), Policy)
        return f"{where}: no key '{name}'{meant_instead(name, record.model_fields)}"
    if fault["type"] == "missing" and path == ("rule",):
        return f"{where}: a policy without rules decides nothing; write {_header(file)}"
    if fault["type"] == "missing":
        return f"{where}: '{name}' is missing"
    if fault["type"] == "literal_error":
        known = re.findall(r"'([^']+)'", str(fault.get("ctx", {}).get("expected", "")))
        meant = meant_instead(str(fault["input"]), known)
        return f"{where}: '{name}' is {printable(repr(fault['input']))}{meant}"
    message = printable(fault["msg"].removeprefix("Value error, "))
    of_table = not path or isinstance(path[-1], int)
    return f"{where}: {message}" if of_table else f"{where}: '{name}': {message}"


def policy_schema() -> str:
    """The JSON Schema of a policy file, for editors; other settings are allowed beside `gate`."""
    schema: dict[str, Any] = Policy.model_json_schema()
    definitions = schema.pop("$defs")
    definitions["Policy"] = schema
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "purify-audit policy",
        "type": "object",
        "properties": {"gate": {"$ref": "#/$defs/Policy"}},
        "required": ["gate"],
        "$defs": definitions,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
