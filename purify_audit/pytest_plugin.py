"""A pytest plugin: a policy as a test. `purify_audit("model.safetensors").assert_policy()`.

pytest imports this at every start, so at the top there is nothing slow: neither torch nor pydantic.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from purify_audit.cli.judging import Saved
    from purify_audit.gate.judgement import Judgement, RuleResult
    from purify_audit.report.schema import Report
    from purify_audit.subject import Subject

T = TypeVar("T")

_MODES = ("fail", "skip", "xfail")
_NAME_LENGTH = 150  # of a file; file systems allow 255 bytes, and rows and attack add theirs


@dataclass(frozen=True, slots=True)
class Audited:
    """An audit, in a test.

    Attributes:
        report: what was measured.
        path: the saved report; its rows lie beside it.
        policy: by which it is judged unless another is named; none: the project's.
        inconclusive: what becomes of a test whose policy cannot be decided: fail, skip or xfail.
    """

    report: "Report"
    path: Path
    policy: Path | None
    inconclusive: str

    def assert_policy(
        self, policy: str | Path | None = None, baseline: str | Path | None = None
    ) -> "Judgement":
        """Fail the test unless every rule that counts passes.

        Args:
            policy: default: that of the audit, else `purify-audit.toml` or `pyproject.toml` of the
                current folder.
            baseline: for regression rules; default: the policy's.

        Returns:
            The judgement; every rule that counts passes.

        Raises:
            AssertionError: a rule fails, or is undecided and `inconclusive` is `fail`.
        """
        __tracebackhide__ = True
        judgement = _told(lambda: self._judged(policy, baseline))
        if judgement.verdict == "pass":
            return judgement
        table = _table(judgement)
        if judgement.verdict == "inconclusive" and self.inconclusive == "skip":
            pytest.skip(table)
        if judgement.verdict == "inconclusive" and self.inconclusive == "xfail":
            pytest.xfail(table)
        raise AssertionError(table)

    def _judged(self, policy: str | Path | None, baseline: str | Path | None) -> "Judgement":
        from purify_audit.cli.judging import Saved, judged, opened_baseline
        from purify_audit.gate.policy import read_policy

        rules = read_policy(self.policy if policy is None else Path(policy), Path.cwd())
        before = None if baseline is None else Path(baseline)
        return judged(Saved(self.report, self.path), rules, opened_baseline(rules, before))


@dataclass(frozen=True, slots=True)
class Auditor:
    """The fixture `purify_audit`: audits what it is called with.

    Attributes:
        test: the test's name, for its reports.
        paths: where they go, one after the other.
        inconclusive: see `Audited`.
    """

    test: str
    paths: Iterator[Path] = field(repr=False)
    inconclusive: str

    def __call__(
        self, checkpoint: str | Path, *, policy: str | Path | None = None, **settings: Any
    ) -> Audited:
        """Audit a purifier as `purify-audit run` would in the current folder, or read a report.

        What stops an audit, such as a file that cannot be used, fails the test in one sentence.

        Args:
            checkpoint: a checkpoint, code (`defence.py:make`) or an input transformation; or a
                report, whose name ends in `.json`.
            policy: what it needs is measured; default: the project's.
            settings: named like those of `purify-audit.toml`, which they override: `images=16`.
                Also `arguments`, a dict for a factory; and `attack=True`, to attack although there
                is no policy.
        """
        __tracebackhide__ = True
        rules = None if policy is None else Path(policy)
        saved = _told(lambda: self._saved(str(checkpoint), rules, settings))
        return Audited(saved.report, saved.path, rules, self.inconclusive)

    def _saved(self, checkpoint: str, policy: Path | None, settings: dict[str, Any]) -> "Saved":
        from purify_audit.cli.judging import open_report
        from purify_audit.errors import PlanError

        if not checkpoint.endswith(".json"):
            asked = settings | {"checkpoint": checkpoint}
            return _measured(asked, policy, next(self.paths), self.test)
        if settings:
            name = next(iter(settings))
            raise PlanError(f"{checkpoint}: is a report, so '{name}' cannot be changed")
        return open_report(Path(checkpoint))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options and settings, all of which begin with `purify`."""
    group = parser.getgroup("purify-audit", "audits of adversarial purifiers")
    group.addoption(
        "--purify-inconclusive",
        choices=_MODES,
        help="What becomes of a test whose policy cannot be decided. Default: fail.",
    )
    group.addoption(
        "--purify-report-dir", metavar="DIR", help="Save the reports of audits and their rows here."
    )
    parser.addini("purify_inconclusive", "The same as --purify-inconclusive.", default="fail")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker.

    Raises:
        UsageError: the setting `purify_inconclusive` is none of the choices.
    """
    config.addinivalue_line(
        "markers", "purify_audit: audits a purifier; so is every test with the fixture marked"
    )
    if _inconclusive(config) not in _MODES:
        told = f"purify_inconclusive '{_inconclusive(config)}' is not one of {', '.join(_MODES)}"
        raise pytest.UsageError(told)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests with the fixture, so that `-m "not purify_audit"` leaves them out."""
    for item in items:
        if "purify_audit" in getattr(item, "fixturenames", ()):
            item.add_marker("purify_audit")


@pytest.fixture(name="purify_audit")
def _purify_audit(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Auditor:
    """Audit a purifier: `purify_audit("model.safetensors", images=16).assert_policy()`."""
    chosen = request.config.getoption("--purify-report-dir")
    test = request.node.nodeid
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("purify-audit")
    return Auditor(test, _paths(folder, test), _inconclusive(request.config))


def _inconclusive(config: pytest.Config) -> str:
    return str(config.getoption("--purify-inconclusive") or config.getini("purify_inconclusive"))


def _paths(folder: Path, test: str) -> Iterator[Path]:
    """Files for a test's reports."""
    stem = re.sub(r"[^A-Za-z0-9._=]+", "-", test)[-_NAME_LENGTH:].strip("-.")
    for n in count(1):
        yield folder / (f"{stem}.json" if n == 1 else f"{stem}-{n}.json")


def _told(work: Callable[[], T]) -> T:
    """What `work` gives; its errors, which are sentences for users, fail the test as they are."""
    __tracebackhide__ = True
    from purify_audit.errors import PurifyAuditError

    try:
        return work()
    except PurifyAuditError as error:
        told = str(error)
    pytest.fail(f"purify-audit: {told}", pytrace=False)


def _measured(asked: dict[str, Any], policy: Path | None, out: Path, test: str) -> "Saved":
    """Audit what the policy needs, and save the report with its rows."""
    from rich.console import Console

    from purify_audit.cli.judging import Saved
    from purify_audit.cli.measuring import measure
    from purify_audit.cli.output import write
    from purify_audit.progress import Reporter

    started = datetime.now().astimezone().isoformat(timespec="seconds")
    subject = _subject(asked, policy)
    out.parent.mkdir(parents=True, exist_ok=True)
    reporter = Reporter(Console(stderr=True), 0, quiet=True)
    made = write(out, measure(subject, reporter), reporter, started)
    assert made.report.run is not None, "it was written"
    run = made.report.run.model_copy(update={"command": f"pytest {test}"})
    report = made.report.model_copy(update={"run": run})
    out.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Saved(report, out)


def _subject(asked: dict[str, Any], policy: Path | None) -> "Subject":
    """What is audited: what the test asks, then the policy's file; without one the project's.

    Raises:
        PlanError: a setting is none that there is.
    """
    from purify_audit.cli.options import reading
    from purify_audit.cli.run import planned_subject
    from purify_audit.cli.verify import plan_settings
    from purify_audit.errors import PlanError
    from purify_audit.loading import choose_device
    from purify_audit.settings import SETTINGS, find_project, meant_instead, project_settings
    from purify_audit.subject import prepare

    arguments, attack = asked.pop("arguments", {}), asked.pop("attack", False)
    for name in asked:
        if name not in SETTINGS:
            meant = meant_instead(name, [*SETTINGS, "arguments", "attack", "policy"])
            raise PlanError(f"purify_audit(…): no setting '{name}'{meant}")
    from purify_audit.gate.policy import policy_if_any

    rules = policy_if_any(policy, Path())
    project = project_settings(find_project(Path.cwd())) if rules is None else rules.settings
    asked = project | asked
    asked["reading"] = reading(arguments=[f"{name}={text}" for name, text in arguments.items()])
    device = choose_device(str(asked.pop("device", "auto")))
    if rules is not None:
        return planned_subject(rules, asked, device, full=True)
    fields = plan_settings(asked)
    return prepare(fields if attack else fields | {"attack": None}, device)


def _table(judgement: "Judgement") -> str:
    """The rules that keep the verdict from PASS, and how many pass."""
    from purify_audit.gate.judgement import WORDS

    policy = Path(judgement.policy).name
    lines = [f"{judgement.model} by {policy}: {WORDS[judgement.verdict]}"]
    counted = [rule for rule in judgement.rules if rule.waived is None]
    open_rules = [rule for rule in counted if rule.decision != "pass"]
    width = max(len(rule.rule) for rule in open_rules)
    for rule in sorted(open_rules, key=_gravity):
        kind = " (warning)" if rule.severity == "warning" else ""
        lines.append(f"  {rule.rule:<{width}}  {WORDS[rule.decision]}{kind}: {rule.requirement}")
        lines.append(f"  {'':<{width}}  {rule.sentence}")
    if others := len(judgement.rules) - len(open_rules):
        does = "rule passes or is" if others == 1 else "rules pass or are"
        lines.append(f"  {others} other {does} waived")
    return "\n".join((*lines, *(f"  {note}" for note in judgement.notes)))


def _gravity(rule: "RuleResult") -> tuple[bool, bool]:
    return rule.severity == "warning", rule.decision != "fail"
