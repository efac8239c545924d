"""A pytest plugin: a policy as a test. `purify_audit("model.safetensors").assert_policy()`.

pytest imports this at every start, so at the top there is nothing slow: neither torch nor pydantic.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from purify_audit.audit.subject import Subject
    from purify_audit.gate.judgement import Judgement, RuleResult
    from purify_audit.report.saved import SavedReport
    from purify_audit.report.schema import Report

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
        judgement = _sentences(lambda: self._judged(policy, baseline))
        if judgement.verdict == "pass":
            return judgement
        table = _table(judgement)
        if judgement.verdict == "inconclusive" and self.inconclusive == "skip":
            pytest.skip(table)
        if judgement.verdict == "inconclusive" and self.inconclusive == "xfail":
            pytest.xfail(table)
        raise AssertionError(table)

    def _judged(self, policy: str | Path | None, baseline: str | Path | None) -> "Judgement":
        from purify_audit.gate.policy import read_policy
        from purify_audit.gate.saved import judge_saved, policy_baseline
        from purify_audit.report.saved import SavedReport

        rules = read_policy(self.policy if policy is None else Path(policy), Path.cwd())
        named = None if baseline is None else Path(baseline)
        saved = SavedReport(self.report, self.path)
        return judge_saved(saved, rules, policy_baseline(rules, named))


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
        saved = _sentences(lambda: self._saved(str(checkpoint), rules, settings))
        return Audited(saved.report, saved.path, rules, self.inconclusive)

    def _saved(
        self, checkpoint: str, policy: Path | None, settings: dict[str, Any]
    ) -> "SavedReport":
        from purify_audit.core.errors import PlanError
        from purify_audit.report.saved import open_report

        if not checkpoint.endswith(".json"):
            options = settings | {"checkpoint": checkpoint}
            return _measured(options, policy, next(self.paths), self.test)
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
        text = f"purify_inconclusive '{_inconclusive(config)}' is not one of {', '.join(_MODES)}"
        raise pytest.UsageError(text)


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


def _sentences(work: Callable[[], T]) -> T:
    """The result of `work`; its errors, one sentence each, fail the test as they are."""
    __tracebackhide__ = True
    from purify_audit.core.errors import PurifyAuditError

    try:
        return work()
    except PurifyAuditError as error:
        text = str(error)
    pytest.fail(f"purify-audit: {text}", pytrace=False)


def _measured(settings: dict[str, Any], policy: Path | None, out: Path, test: str) -> "SavedReport":
    """Audit what the policy needs, and save the report with its rows."""
    from purify_audit.audit.result import Progress
    from purify_audit.audit.run import run_audit
    from purify_audit.audit.save import RunRecord, save_result
    from purify_audit.report.saved import SavedReport

    started, begun = datetime.now().astimezone().isoformat(timespec="seconds"), time.monotonic()
    subject, spent = _subject(settings, policy), list[int]()
    out.parent.mkdir(parents=True, exist_ok=True)
    result = run_audit(subject, Progress(spent.append))
    run = RunRecord(f"pytest {test}", started, time.monotonic() - begun, sum(spent))
    return SavedReport(save_result(out, result, run).report, out)


def _subject(settings: dict[str, Any], policy: Path | None) -> "Subject":
    """What is audited: the test's settings, then the policy file's; without one the project's.

    Raises:
        PlanError: there is no such setting.
    """
    from purify_audit.audit.defaults import plan_settings
    from purify_audit.audit.policy_run import prepare_for_policy
    from purify_audit.audit.subject import prepare
    from purify_audit.core.errors import PlanError
    from purify_audit.gate.policy import policy_if_any
    from purify_audit.models.runner import choose_device
    from purify_audit.spec.from_text import load_options
    from purify_audit.spec.notation import meant_instead
    from purify_audit.spec.project_file import SETTINGS, find_project, project_settings

    arguments, attack = settings.pop("arguments", {}), settings.pop("attack", False)
    for name in settings:
        if name not in SETTINGS:
            meant = meant_instead(name, [*SETTINGS, "arguments", "attack", "policy"])
            raise PlanError(f"purify_audit(…): no setting '{name}'{meant}")
    rules = policy_if_any(policy, Path())
    project = project_settings(find_project(Path.cwd())) if rules is None else rules.settings
    options = project | settings
    options["load_options"] = load_options(arguments=[f"{n}={v}" for n, v in arguments.items()])
    device = choose_device(str(options.pop("device", "auto")))
    if rules is not None:
        return prepare_for_policy(rules, options, device, all_images=True)
    fields = plan_settings(options)
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
