"""A pytest plugin: a policy as a test. `purify_audit("model.safetensors").assert_policy()`.

pytest imports this at every start, so at the top there is nothing slow: neither torch nor pydantic.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from purify_audit.cli.judging import Saved
    from purify_audit.cli.output import Made
    from purify_audit.gate.judgement import Judgement, RuleResult
    from purify_audit.progress import Reporter
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
        inconclusive: what becomes of a test whose policy cannot be decided: fail, skip or xfail.
    """

    report: "Report"
    path: Path
    inconclusive: str

    def assert_policy(
        self, policy: str | Path | None = None, baseline: str | Path | None = None
    ) -> "Judgement":
        """Fail the test unless every rule that counts passes.

        Args:
            policy: default: `purify-audit.toml`, else `pyproject.toml`, of the current folder.
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
        from purify_audit.cli.judging import Saved, judged
        from purify_audit.gate.policy import read_policy

        rules = read_policy(None if policy is None else Path(policy), Path.cwd())
        before = None if baseline is None else Path(baseline)
        return judged(Saved(self.report, self.path), rules, before)


@dataclass(frozen=True, slots=True)
class Auditor:
    """The fixture `purify_audit`: audits what it is called with.

    Attributes:
        test: the test's name, for its reports.
        paths: where they go, one after the other.
        inconclusive: see `Audited`.
    """

    test: str
    paths: Iterator[Path]
    inconclusive: str

    def __call__(self, checkpoint: str | Path, **settings: Any) -> Audited:
        """Audit a purifier as `purify-audit` would in the current folder, or read a saved report.

        What stops an audit, such as a file that cannot be used, fails the test in one sentence.

        Args:
            checkpoint: a checkpoint, code (`defence.py:make`) or an input transformation; or a
                report, whose name ends in `.json`.
            settings: named like those of `purify-audit.toml`, which they override: `images=16`.
                Also `arguments`, a dict for a factory; and `attack`, whether to attack: otherwise
                if a rule of the project's policy needs it.
        """
        __tracebackhide__ = True
        saved = _told(lambda: self._saved(str(checkpoint), settings))
        return Audited(saved.report, saved.path, self.inconclusive)

    def _saved(self, checkpoint: str, settings: dict[str, Any]) -> "Saved":
        from purify_audit.cli.judging import open_report
        from purify_audit.errors import PlanError

        if not checkpoint.endswith(".json"):
            return _measured(checkpoint, settings, next(self.paths), self.test)
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


def _measured(checkpoint: str, settings: dict[str, Any], out: Path, test: str) -> "Saved":
    """Audit, and save the report with its rows."""
    from rich.console import Console

    from purify_audit.cli.judging import Saved
    from purify_audit.cli.output import write
    from purify_audit.loading import choose_device
    from purify_audit.progress import Reporter
    from purify_audit.subject import prepare

    asked = _asked(checkpoint, settings)
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    subject = prepare(asked, choose_device(str(asked.pop("device"))))
    out.parent.mkdir(parents=True, exist_ok=True)
    reporter = Reporter(Console(stderr=True), 0, quiet=True)
    made = write(out, _made(subject, reporter), reporter, started)
    assert made.report.run is not None, "it was written"
    run = made.report.run.model_copy(update={"command": f"pytest {test}"})
    report = made.report.model_copy(update={"run": run})
    out.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Saved(report, out)


def _made(subject: "Subject", reporter: "Reporter") -> "Made":
    """The report, with an attack if it is planned and the purifier can be trusted so far."""
    from purify_audit.audit import Outcome, Watch, audit
    from purify_audit.cli.output import Made
    from purify_audit.verify import verify

    each = subject.purifier.evaluations
    basis: Outcome = audit(subject, Watch(lambda rows: reporter.tick(rows * each)))
    broken = any(f.severity == "error" for f in basis.report.findings)
    if subject.plan.attack is None or basis.samples is None or broken:
        return Made(basis.report, basis.samples, None)
    found = verify(subject, basis, reporter.tick)
    return Made(found.report, found.samples, found.attacks)


def _asked(checkpoint: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Fields of an audit plan, and the device: what the test says, then what the project says.

    Raises:
        PlanError: a setting is none that there is.
    """
    from purify_audit.cli import options
    from purify_audit.cli.verify import plan_settings
    from purify_audit.errors import PlanError
    from purify_audit.settings import SETTINGS, find_project, meant_instead, project_settings

    given = dict(settings)
    attack, arguments = given.pop("attack", None), given.pop("arguments", {})
    for name in given:
        if name not in SETTINGS:
            meant = meant_instead(name, [*SETTINGS, "arguments", "attack"])
            raise PlanError(f"purify_audit(…): no setting '{name}'{meant}")
    stages = _stages()
    asked = project_settings(find_project(Path.cwd())) | given | {"checkpoint": checkpoint}
    asked["reading"] = options.reading(arguments=[f"{k}={v}" for k, v in arguments.items()])
    asked["predict_only"] = attack is None and "attack" not in stages
    fields = plan_settings(asked)
    if not (stages & {"attack", "predict"} if attack is None else attack):
        del fields["attack"]
    return fields | {"device": asked.get("device", "auto")}


def _stages() -> set[str]:
    """The parts of an audit that the project's policy needs."""
    from purify_audit.gate.policy import read_policy
    from purify_audit.settings import find_project

    file = find_project(Path.cwd())
    if file is None or "gate" not in file.table:
        return set()
    return {rule.stage for rule in read_policy(None, Path.cwd()).policy.rule}


def _table(judgement: "Judgement") -> str:
    """The rules that keep the verdict from PASS, and how many pass."""
    from purify_audit.gate.judgement import WORDS

    lines = [f"{judgement.model} by {judgement.policy}: {WORDS[judgement.verdict]}"]
    counted = [rule for rule in judgement.rules if rule.waived is None]
    open_rules = [rule for rule in counted if rule.decision != "pass"]
    width = max(len(rule.rule) for rule in open_rules)
    for rule in sorted(open_rules, key=_gravity):
        kind = " (warning)" if rule.severity == "warning" else ""
        lines.append(f"  {rule.rule:<{width}}  {WORDS[rule.decision]}{kind}: {rule.requirement}")
        lines.append(f"  {'':<{width}}  {rule.sentence}")
    lines.append(f"  {len(judgement.rules) - len(open_rules)} other rules pass or are waived")
    return "\n".join((*lines, *(f"  {note}" for note in judgement.notes)))


def _gravity(rule: "RuleResult") -> tuple[bool, bool]:
    return rule.severity == "warning", rule.decision != "fail"
