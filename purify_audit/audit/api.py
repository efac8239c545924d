"""The Python interface: the functions of the package root.

Settings are keyword arguments named like the command line's long options with `_` for `-`
(`docs/cli.md`), and take the same text: `eps="8/255"`, `sampler="ddim:steps=5"`,
`probes=["sign", "power:block=4"]`. Settings that are left out have the command line's defaults.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.defaults import plan_fields, plan_settings
from purify_audit.audit.from_report import from_report
from purify_audit.audit.replay import Reproduction, reproduce
from purify_audit.audit.result import SILENT, AuditResult, Progress
from purify_audit.audit.run import run_audit
from purify_audit.audit.subject import prepare
from purify_audit.audit.sweep import run_sweep, settings, subjects
from purify_audit.core.errors import PlanError
from purify_audit.models import load
from purify_audit.models.open import open_checkpoint, open_classifier
from purify_audit.models.protocols import Classifier, Purifier
from purify_audit.models.runner import choose_device
from purify_audit.report.comparison import Comparison
from purify_audit.report.comparison import compare as compare_reports
from purify_audit.report.curve import Setting
from purify_audit.report.schema import Report, read_report
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.card import ImageSpec
from purify_audit.spec.notation import meant_instead
from purify_audit.spec.project_file import ATTACK, AUDIT, ENGINE


def compress(
    checkpoint: str | Path,
    *,
    progress: Progress = SILENT,
    device: str = "auto",
    measure_anyway: bool = False,
    **options: Any,
) -> AuditResult:
    """Estimate the compression rate of a purifier, as `purify-audit compress` does.

    Args:
        checkpoint: of any known format, an input transformation, or `module:factory`.
        progress: progress callbacks; raising `Stopped` there gives a partial result.
        device: auto, cpu, cuda or cuda:N.
        measure_anyway: go on after errors in preflight.
        **options: settings, see the module's docstring.

    Raises:
        InputError: a setting, a file, or a combination of them cannot be used.
    """
    _check_names(options, _known(AuditPlan) | AUDIT.keys() | ENGINE.keys())
    fields = plan_fields(options | {"checkpoint": str(checkpoint)})
    subject = prepare(fields, choose_device(device))
    return run_compression(subject, progress, measure_anyway=measure_anyway)


def attack(
    target: str | Path,
    *,
    progress: Progress = SILENT,
    device: str = "auto",
    measure_anyway: bool = False,
    **options: Any,
) -> AuditResult:
    """Attack with aligned randomness, as `purify-audit attack` does.

    Args:
        target: a checkpoint as for `compress`, or the path of a report of it (`.json`).
        progress: progress callbacks; raising `Stopped` there gives a partial result.
        device: auto, cpu, cuda or cuda:N.
        measure_anyway: go on after findings that are errors.
        **options: settings, see the module's docstring; `preset` is smoke, standard or paper.

    Raises:
        InputError: a setting, a file, or a combination of them cannot be used.
    """
    known = _known(AttackPlan) | AUDIT.keys() | ATTACK.keys() | ENGINE.keys()
    _check_names(options, known | {"preset", "load_options", "classifier_load_options"})
    where, basis = choose_device(device), None
    if str(target).endswith(".json"):
        subject, report = from_report(Path(target), options, where)
        basis = report.result
    else:
        subject = prepare(plan_settings(options | {"checkpoint": str(target)}), where)
    return run_audit(subject, progress, basis=basis, measure_anyway=measure_anyway)


def verify(
    report: str | Path, *, cells: int = 16, device: str | None = None, allow_pickle: bool = False
) -> Reproduction:
    """Compute a sample of a saved report's cells again, as `purify-audit reproduce` does.

    Args:
        report: the report's path; its rows lie in the same folder.
        cells: how many.
        device: default: the kind of device of the report.
        allow_pickle: whether the report's models may be unpickled.

    Raises:
        ReportError: the rows, models or images are missing or changed.
    """
    where = None if device is None else choose_device(device)
    return reproduce(Path(report), cells, where, allow_pickle=allow_pickle)


def sweep(
    checkpoint: str | Path,
    *,
    t_star: Sequence[int] = (),
    sampler: Sequence[str] = (),
    eps: Sequence[float] = (),
    attack: bool = True,
    progress: Progress = SILENT,
    device: str = "auto",
    **options: Any,
) -> list[tuple[Setting, AuditResult]]:
    """Measure compression, and attack, at every combination of settings.

    Args:
        checkpoint: a diffusion model.
        t_star: values of t*.
        sampler: samplers, such as `ddim:steps=5`.
        eps: radii.
        attack: whether to attack too.
        progress: progress callbacks.
        device: auto, cpu, cuda or cuda:N.
        **options: other settings, for all points.

    Raises:
        PlanError: nothing is swept, or a setting cannot be used.
    """
    fields = plan_settings(options | {"checkpoint": str(checkpoint)})
    if not attack:
        del fields["attack"]
    points = settings(tuple(t_star), tuple(sampler), tuple(eps))
    return list(run_sweep(subjects(fields, points, choose_device(device)), progress))


def compare(*reports: Report | str | Path, seed: int = 0, level: float = 0.95) -> Comparison:
    """Rank purifiers, and correlate what is cheap to measure with aligned robust accuracy.

    Args:
        *reports: reports, or their paths.
        seed: of resamples and permutations.
        level: confidence level of the intervals.

    Raises:
        ReportError: a report cannot be read, or cannot be compared with the others.
    """
    named = [
        (report.checkpoint.source, report)
        if isinstance(report, Report)
        else (Path(report).name, read_report(Path(report)))
        for report in reports
    ]
    return compare_reports(named, seed, level)


def load_purifier(checkpoint: str | Path, *, device: str = "auto") -> Purifier:
    """The purifier of a checkpoint: a function of images [n, c, h, w] in [0, 1] and `Noise`.

    Raises:
        InputError: it cannot be loaded without answers that only `compress` takes.
    """
    return load.load_purifier(open_checkpoint(str(checkpoint), None), choose_device(device))


def load_classifier(
    checkpoint: str | Path, image_shape: tuple[int, int, int], *, device: str = "auto"
) -> Classifier:
    """The classifier of a checkpoint: a function of images [n, c, h, w] in [0, 1] to logits.

    Args:
        checkpoint: its file, or code.
        image_shape: (channels, height, width) of the images.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        InputError: it cannot be loaded.
    """
    channels, height, width = image_shape
    spec = ImageSpec(channels=channels, height=height, width=width)
    return load.load_classifier(open_classifier(str(checkpoint), spec), choose_device(device))


def _known(plan: type[AuditPlan] | type[AttackPlan]) -> set[str]:
    return set(plan.model_fields)


def _check_names(options: dict[str, Any], known: set[str]) -> None:
    for name in options:
        if name not in known:
            raise PlanError(f"no setting '{name}'{meant_instead(name, known)}")
