"""The report: all results of an audit, as frozen data (`docs/report.schema.json`)."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from purify_audit.core.errors import ReportError
from purify_audit.core.findings import Finding
from purify_audit.core.records import Record, first_fault
from purify_audit.report.upgrade import SCHEMA_VERSION, upgrade
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.card import ClassifierCard, PurifierCard
from purify_audit.spec.load_options import Recognised
from purify_audit.spec.tuning import Tuning
from purify_audit.statistics.estimates import (
    CapPoint,
    Convergence,
    Correlation,
    Estimate,
    Fuzziness,
    ImageVerdict,
    Quantiles,
)


class DrawInfo(Record):
    """Random draws of one kind in one purification by user code.

    Attributes:
        operator: `aten::randn_like`, `numpy.random` or `random`.
        distribution: of the numbers; empty where it is not known.
        shape: of one image's numbers, or of the whole result where rows of a batch share it.
        where: the line of code that draws, `file:line`; empty where it is not known.
        count: how many in one purification.
        per_row: whether each row of a batch has numbers of its own.
        constant: whether the numbers are always the same, from a generator with a constant seed.
    """

    operator: str
    distribution: str
    shape: tuple[int, ...]
    where: str
    count: int
    per_row: bool
    constant: bool


class ModelInfo(Record):
    """Which model was audited or used.

    Attributes:
        source: as the user named it.
        sha256: of the file; of the card where there is no file.
        parameters: numbers in the weights.
        card: the settings that ran, after any override.
        evaluations: network evaluations in one purification (purifiers only).
        recognised: the format detected in a file of another tool, and what was assumed.
        draws: the random draws of one purification, where its randomness is captured.
    """

    source: str
    sha256: str
    parameters: int
    card: PurifierCard | ClassifierCard
    evaluations: int | None = None
    recognised: Recognised | None = None
    draws: tuple[DrawInfo, ...] = ()


class DataInfo(Record):
    """Which images were audited.

    Attributes:
        source: as the user named it.
        digest: SHA-256 over the pixels, labels and ids of the images audited, in order; of the
            planned images if none was audited.
        user_images_digest: the same of the perturbed images of a `file` probe (all planned ones).
        ids: their ids, in order.
        image_digests: of each, in that order: the first 16 digits of a SHA-256 over its pixels and
            label, which identify the images that two audits share.
        available: number of images in the source.
        image_shape: (channels, height, width).
        labelled: whether they have labels.
    """

    source: str
    digest: str
    user_images_digest: str | None = None
    ids: tuple[int, ...]
    image_digests: tuple[str, ...]
    available: int
    image_shape: tuple[int, int, int]
    labelled: bool


class Citation(Record):
    """The source of a method that this audit used.

    Attributes:
        used_for: the method.
        reference: author, title, venue.
    """

    used_for: str
    reference: str


class AttackInfo(Record):
    """Results of the attacks other than robust accuracies (which are among the estimates).

    Attributes:
        gradients: errors of the gradient check, shares of useless gradients, and cosines between
            gradients (`docs/method.md`, section 10).
        fuzziness: on how many held-out draws attacked images are misclassified.
        caps: how often random directions change a decision, by radius.
        correlations: of each compression rate with the smallest fooling radius.
        images: results for each image.
        fooled_despite_compression: ids of images that are misclassified although they are among the
            quarter that is compressed most; their anchors may lie near a decision boundary.
        robust_without_compression: ids of images that resist although they are among the quarter
            that is compressed least.
        evaluations: network evaluations spent, a backward pass counted as one.
        environment: device, threads and versions of the attack.
        convergence: what an independent continuation still breaks; none: there was none.
    """

    gradients: dict[str, float]
    fuzziness: tuple[Fuzziness, ...]
    caps: tuple[CapPoint, ...]
    correlations: dict[str, Correlation]
    images: tuple[ImageVerdict, ...]
    fooled_despite_compression: tuple[int, ...]
    robust_without_compression: tuple[int, ...]
    evaluations: int
    environment: dict[str, str | int]
    convergence: Convergence | None = None


class RunInfo(Record):
    """What differs between two runs of the same audit, and the digest of what does not.

    Attributes:
        command: the command line.
        started: local time, ISO 8601.
        seconds: wall time of the audit.
        evaluations: of the network, a backward pass counted as one, padding not counted.
        rows_file: name of the safetensors file of raw rows in the report's folder; none when
            nothing was measured.
        attacks_file: the same of attacked images and their predicted labels.
        tuning: settings tuned before the run, and the trials behind them.
        short_of_memory: whether memory ran out while the graphs of several steps were kept for
            gradients; from then on none was kept, which changes run time and no number.
        body_sha256: SHA-256 of the report's JSON without this part (`Report.body_sha256`).
    """

    command: str
    started: str
    seconds: float
    evaluations: int
    rows_file: str | None
    attacks_file: str | None = None
    tuning: Tuning | None = None
    short_of_memory: bool = False
    body_sha256: str


class Report(Record):
    """An audit. See `docs/method.md` for what each number means.

    Attributes:
        schema_version: of this record.
        tool_version: version of purify-audit that measured.
        noise_spec: how random numbers were generated (`docs/noise.md`).
        status: partial if the audit ended before all planned images were measured.
        plan: everything that decided the numbers.
        plan_digest: SHA-256 of the plan.
        environment: device, threads and versions, on which the last bits of results depend.
        checkpoint: the purifier.
        classifier: the classifier, if there was one.
        data: the images.
        estimates: every number with its interval.
        quantiles: distribution of per-image values.
        numeric_floor: distance by which rounding alone moves an output, by norm
            (`docs/method.md`, section 7).
        findings: errors, warnings and notes about the results.
        citations: sources of the methods that were used.
        rows_sha256: of the file of raw rows.
        attack: results of the attack, if there was one.
        attacks_sha256: of the file of attacked images.
        run: what differs between two runs; none in a report that was not written to a file.
    """

    schema_version: Literal["2.1"] = SCHEMA_VERSION
    tool_version: str
    noise_spec: str
    status: Literal["complete", "partial"]
    plan: AuditPlan
    plan_digest: str
    environment: dict[str, str | int]
    checkpoint: ModelInfo
    classifier: ModelInfo | None
    data: DataInfo
    estimates: tuple[Estimate, ...]
    quantiles: tuple[Quantiles, ...]
    numeric_floor: dict[str, float]
    findings: tuple[Finding, ...]
    citations: tuple[Citation, ...]
    rows_sha256: str | None
    attack: AttackInfo | None = None
    attacks_sha256: str | None = None
    run: RunInfo | None = None

    def find(self, metric: str, norm: str | None, at: Estimate | None = None) -> Estimate | None:
        """The estimate of a metric at the probe and radius of another, or at none."""
        probe, eps = (None, None) if at is None else (at.probe, at.eps)
        for e in self.estimates:
            if (e.metric, e.norm, e.probe, e.eps) == (metric, norm, probe, eps):
                return e
        return None

    def body(self) -> str:
        """JSON of everything but `run`: two runs of one plan on one machine agree byte for byte."""
        return self.model_copy(update={"run": None}).model_dump_json(indent=1).rpartition(_RUN)[0]

    def body_sha256(self) -> str:
        """SHA-256 of `body`, in hexadecimal.

        The body is the beginning of the saved file, so any version of this program can check the
        digest from the bytes of the file, whatever fields its own reports have.
        """
        return hashlib.sha256(self.body().encode()).hexdigest()

    @property
    def digest(self) -> str:
        """The digest that the report was saved with, else that of its body."""
        return self.body_sha256() if self.run is None else self.run.body_sha256


_RUN = '\n "run": '  # the last key of a report, indented by one; no JSON string holds a line break


def read_report(path: Path) -> Report:
    """A saved report.

    Raises:
        ReportError: unreadable, not a report, or changed since it was written.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_report(raw, path)


def parse_report(raw: bytes, path: Path) -> Report:
    """A report from its JSON, of this schema version or an earlier one.

    The digest of the body, checked here, is that of the bytes as they were written.

    Args:
        raw: the JSON.
        path: named in error messages.

    Raises:
        ReportError: not a report, of an unknown schema version, or changed since it was written.
    """
    try:
        report = Report.model_validate_json(upgrade(raw, path))
    except ValidationError as error:
        raise ReportError(f"{path}: is not a report: {first_fault(error)}") from None
    body = raw.rpartition(_RUN.encode())[0]
    if report.run is not None and report.run.body_sha256 != hashlib.sha256(body).hexdigest():
        raise ReportError(f"{path}: was changed after it was written (its digest does not match)")
    return report


def json_schema() -> str:
    """The JSON Schema of a report."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Report.model_json_schema(mode="serialization"),
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
