"""Write a checkpoint of any known format as a native one."""

from collections import Counter
from pathlib import Path

import torch

from purify_audit.core.digests import file_sha256
from purify_audit.core.errors import CardError, CheckpointError
from purify_audit.models.checkpoint import (
    Checkpoint,
    load_tensors,
    read_checkpoint,
    read_header,
    save_checkpoint,
    tensor_infos,
)
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.open import open_checkpoint
from purify_audit.spec.architectures import GraphArgs
from purify_audit.spec.card import (
    ClassifierCard,
    CodeCard,
    GraphCard,
    ImageSpec,
    TransformCard,
    parse_card,
)
from purify_audit.spec.load_options import LoadOptions


def convert(
    source: str, out: Path, options: LoadOptions, image: ImageSpec | None = None
) -> tuple[Checkpoint, Checkpoint]:
    """Convert after a strict load; weights keep their names and values, as float32.

    Args:
        source: a file, a folder, or `hub:owner/name`.
        out: the safetensors file to write.
        options: settings that the source does not contain.
        image: shape of its images, if the source does not define it.

    Returns:
        The source's checkpoint and the written one.

    Raises:
        InputError: the source cannot be read, is not of a known format, leaves a
            setting undefined, does not fit its network, or is the output file; or it is code or
            a graph, which has no weights to convert.
    """
    checkpoint = open_checkpoint(source, image, options)
    cpu = torch.device("cpu")
    match checkpoint.card:
        case TransformCard() | CodeCard() | GraphCard() | ClassifierCard(network=GraphArgs()):
            raise CheckpointError(
                f"{source}: has no weights to convert; use it directly with `compress` and `verify`"
            )
        case ClassifierCard():
            load_classifier(checkpoint, cpu)
        case _:
            load_purifier(checkpoint, cpu)
    if checkpoint.path is not None and out.exists() and out.samefile(checkpoint.path):
        raise CheckpointError(f"{out}: is the source itself; give the new file another name")
    stored = load_tensors(checkpoint)
    shared = Counter(tensor.untyped_storage().data_ptr() for tensor in stored.values())
    tensors = {}
    for name, tensor in stored.items():
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
        if (
            shared[tensor.untyped_storage().data_ptr()] > 1
        ):  # safetensors does not store shared tensors
            tensors[name] = tensors[name].clone()
    save_checkpoint(out, checkpoint.card, tensors)
    return checkpoint, read_checkpoint(out)


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
