"""Audit a purifier that is an object in the test, not a file."""

import numpy as np
import torch

from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.result import AuditResult, Progress
from purify_audit.audit.subject import LoadedClassifier, Subject
from purify_audit.images.image_set import ImageSet, choose, load_images
from purify_audit.models.checkpoint import transform_checkpoint
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.card import ImageSpec, Provenance, TransformCard

CPU = torch.device("cpu")
DIGITS = ImageSpec(channels=1, height=8, width=8)
PROVENANCE = Provenance(data="none", command="none", licence="Apache-2.0")


def grey_images(n=32, shape=(1, 8, 8), contrast=0.1):
    """Images near mid-grey, so that no perturbation of these tests is clipped."""
    values = np.random.default_rng(3).uniform(0.5 - contrast, 0.5 + contrast, (n, *shape))
    return ImageSet(values.astype(np.float32), np.arange(n) % 10, np.arange(n) + 100, "grey")


def plan_for(images, **settings):
    defaults = {
        "checkpoint": "test",
        "data": images.source,
        "images": len(images),
        "norm": "linf",
        "eps": (0.05,),
        "probes": ({"kind": "sign"},),
        "draws": 3,
        "directions": 4,
        "seed": 1,
        "microbatch": 16,
    }
    return AuditPlan.model_validate(defaults | settings)


def subject_for(purifier, images=None, judge=None, user_images=None, **settings) -> Subject:
    images = choose(load_images("digits"), 16, 0) if images is None else images
    c, h, w = images.image_shape
    card = TransformCard(
        name="test",
        image=ImageSpec(channels=c, height=h, width=w),
        provenance=PROVENANCE,
        transform={"kind": "gaussian-noise"},
    )
    checkpoint = transform_checkpoint("test", card)
    if judge is not None:
        settings.setdefault("classifier", "test-classifier")
    return Subject(
        plan=plan_for(images, **settings),
        checkpoint=checkpoint,
        card=card,
        purifier=purifier,
        images=images,
        available=len(images),
        user_images=user_images,
        classifier=None if judge is None else LoadedClassifier(*judge),
        device=CPU,
    )


def run(purifier, images=None, measure_anyway=False, **settings) -> AuditResult:
    return run_compression(
        subject_for(purifier, images, **settings), Progress(), measure_anyway=measure_anyway
    )


def codes(outcome) -> list[str]:
    return [f.code for f in outcome.report.findings]


def pick(outcome, metric, norm=None, probe=None, eps=None):
    found = [
        e
        for e in outcome.report.estimates
        if e.metric == metric
        and (norm is None or e.norm == norm)
        and (probe is None or e.probe == probe)
        and (eps is None or e.eps == eps)
    ]
    assert len(found) == 1, f"{len(found)} estimates of {metric} {norm} {probe} {eps}"
    return found[0]
