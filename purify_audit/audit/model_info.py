"""Entries of a report about models and data."""

import os
from dataclasses import asdict

import torch

from purify_audit.audit.subject import Subject
from purify_audit.models.checkpoint import Checkpoint
from purify_audit.models.user_code.draws import UnalignedRandomnessError
from purify_audit.models.user_code.purifier import UserPurifier
from purify_audit.report.schema import DataInfo, DrawInfo, ModelInfo
from purify_audit.spec.card import ClassifierCard, PurifierCard


def captured_draws(subject: Subject) -> tuple[DrawInfo, ...]:
    """Draws of user code in one purification; none where they cannot be aligned."""
    purifier = subject.purifier
    if not isinstance(purifier, UserPurifier):
        return ()
    few = subject.images.select(list(range(min(2, len(subject.images)))))
    x = torch.from_numpy(few.pixels.copy()).to(subject.device)
    try:
        with torch.no_grad():
            seen = purifier.capture_report(x)
    except UnalignedRandomnessError:  # reported as a finding
        return ()
    drawn = ((asdict(draw), os.path.basename(draw.where)) for draw in seen)
    return tuple(DrawInfo.model_validate(draw | {"where": where}) for draw, where in drawn)


def model_info(
    checkpoint: Checkpoint, card: PurifierCard | ClassifierCard, evaluations: int | None
) -> ModelInfo:
    """The report's entry about a model."""
    return ModelInfo(
        source=checkpoint.source,
        sha256=checkpoint.sha256,
        parameters=checkpoint.parameters,
        card=card,
        evaluations=evaluations,
        recognised=checkpoint.recognised,
    )


def classifier_info(subject: Subject) -> ModelInfo | None:
    """The classifier's entry in the report, if there is one."""
    if subject.classifier is None:
        return None
    checkpoint = subject.classifier.checkpoint
    return model_info(checkpoint, checkpoint.card, None)


def data_info(subject: Subject, used: int) -> DataInfo:
    """The report's entry about the first `used` images; about all planned ones when none was."""
    images = subject.images.select(list(range(used or len(subject.images))))
    return DataInfo(
        source=images.source,
        digest=images.digest,
        user_images_digest=None if subject.user_images is None else subject.user_images.digest,
        ids=tuple(images.ids[:used].tolist()),
        image_digests=images.image_digests[:used],
        available=subject.available,
        image_shape=images.image_shape,
        labelled=images.labels is not None,
    )
