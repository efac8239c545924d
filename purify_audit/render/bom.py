"""CycloneDX 1.6, a bill of materials with a model card: https://cyclonedx.org/docs/1.6/json/."""

import json
import re
import uuid
from datetime import datetime
from typing import Any

from purify_audit.render.untested import untested
from purify_audit.report.schema import ModelInfo, Report
from purify_audit.spec.card import ClassifierCard
from purify_audit.spec.notation import radius_text
from purify_audit.statistics.estimates import Estimate

_SHA256 = re.compile("[0-9a-f]{64}")


def ml_bom(report: Report) -> str:
    """The audited purifier, and the classifier behind it, as machine-learning models.

    The purifier's model card has every estimate with its interval, and what was not tested as
    limitations. The serial number is derived from the report's digest.
    """
    digest = report.digest
    metadata: dict[str, Any] = {
        "tools": {
            "components": [
                {"type": "application", "name": "purify-audit", "version": report.tool_version}
            ]
        },
        "properties": [{"name": "purify-audit:report_sha256", "value": digest}],
    }
    if (stamp := _timestamp(report)) is not None:
        metadata = {"timestamp": stamp, **metadata}
    purifier = _component(report.checkpoint, "purifier")
    purifier["modelCard"] |= {
        "quantitativeAnalysis": {"performanceMetrics": [_metric(e) for e in report.estimates]},
        "considerations": {"technicalLimitations": list(untested(report))},
    }
    components = [purifier]
    if report.classifier is not None:
        components.append(_component(report.classifier, "classifier"))
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, f'purify-audit:{digest}')}",
        "version": 1,
        "metadata": metadata,
        "components": components,
    }
    return json.dumps(bom, indent=1) + "\n"


def _component(model: ModelInfo, role: str) -> dict[str, Any]:
    card = model.card
    classifies = isinstance(card, ClassifierCard)
    parameters: dict[str, Any] = {
        "task": "image classification" if classifies else "adversarial purification",
        "architectureFamily": card.family,
        "datasets": [{"type": "dataset", "name": card.provenance.data}],
    }
    network = getattr(card, "network", None)
    if (arch := getattr(network, "arch", None)) is not None:
        parameters["modelArchitecture"] = arch
    return {
        "type": "machine-learning-model",
        "bom-ref": role,
        "name": card.name,
        **_hashes(model.sha256),
        "licenses": [{"license": {"name": card.provenance.licence}}],
        "modelCard": {"modelParameters": parameters},
        "properties": [
            {"name": "purify-audit:source", "value": model.source},
            {"name": "purify-audit:parameters", "value": str(model.parameters)},
        ],
    }


def _hashes(sha256: str) -> dict[str, Any]:
    if not _SHA256.fullmatch(sha256):
        return {}
    return {"hashes": [{"alg": "SHA-256", "content": sha256}]}


def _metric(e: Estimate) -> dict[str, Any]:
    """One estimate; the slice has its norm, probe, radius and sample size."""
    fields = {
        "norm": e.norm,
        "probe": e.probe,
        "eps": None if e.eps is None else radius_text(e.eps),
        "images": e.n_images,
        "draws": e.n_draws,
        "level": e.level,
        "method": e.method,
    }
    metric: dict[str, Any] = {
        "type": e.metric,
        "value": repr(e.value),
        "slice": "; ".join(f"{name}={v}" for name, v in fields.items() if v is not None),
    }
    if e.lower is not None and e.upper is not None:
        ends = {"lowerBound": repr(e.lower), "upperBound": repr(e.upper)}
        metric["confidenceInterval"] = ends
    return metric


def _timestamp(report: Report) -> str | None:
    """When the audit began, in RFC 3339; none if unknown or without a time zone."""
    if report.run is None:
        return None
    try:
        started = datetime.fromisoformat(report.run.started)
    except ValueError:
        return None
    return None if started.tzinfo is None else started.isoformat()
