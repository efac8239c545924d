"""Give plain weights a card."""

from pathlib import Path

import torch

from purify_audit.card import ClassifierCard, TransformCard, parse_card
from purify_audit.checkpoint import (
    Checkpoint,
    load_tensors,
    read_checkpoint,
    read_header,
    save_checkpoint,
    tensor_infos,
)
from purify_audit.digests import file_sha256
from purify_audit.errors import CardError
from purify_audit.loading import load_classifier, load_purifier


def attach_card(weights: Path, card_file: Path, out: Path, device: torch.device) -> Checkpoint:
    """Write a native checkpoint of plain safetensors weights and a card, after a strict load.

    Raises:
        CheckpointError: the weights are damaged or do not fit the card.
        CardError: the card cannot be read or used.
    """
    try:
        text = card_file.read_bytes()
    except OSError as error:
        raise CardError(f"{card_file}: cannot be read: {error.strerror}") from None
    card = parse_card(text, str(card_file))
    tensors = tensor_infos(read_header(weights))
    plain = Checkpoint(str(weights), card, tensors, file_sha256(weights), weights)
    if isinstance(card, ClassifierCard):
        load_classifier(plain, device)
    elif isinstance(card, TransformCard):
        raise CardError(f"{card_file}: an input transformation has no weights to attach")
    else:
        load_purifier(plain, device)
    save_checkpoint(out, card, load_tensors(plain))
    return read_checkpoint(out)
