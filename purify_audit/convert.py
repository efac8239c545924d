"""Write a checkpoint of any known format as a native one."""

from collections import Counter
from pathlib import Path

import torch

from purify_audit.architectures import GraphArgs
from purify_audit.card import ClassifierCard, CodeCard, GraphCard, ImageSpec, TransformCard
from purify_audit.checkpoint import Checkpoint, load_tensors, read_checkpoint, save_checkpoint
from purify_audit.errors import CheckpointError
from purify_audit.loading import load_classifier, load_purifier
from purify_audit.opening import open_checkpoint
from purify_audit.reading import Reading


def convert(
    source: str, out: Path, reading: Reading, image: ImageSpec | None = None
) -> tuple[Checkpoint, Checkpoint]:
    """Convert after a strict load; weights keep their names and numbers, as float32.

    Args:
        source: a file, a folder, or `hub:owner/name`.
        out: the safetensors file to write.
        reading: answers to what the source does not say.
        image: the images that it takes, if nothing else says.

    Returns:
        The source as it was read, and what was written.

    Raises:
        InputError: the source cannot be read, is not of a known format, leaves something to be
            said, does not fit its network, or is the file to write; or it is code or a graph,
            which has no weights of its own to convert.
    """
    found = open_checkpoint(source, image, reading)
    cpu = torch.device("cpu")
    match found.card:
        case TransformCard() | CodeCard() | GraphCard() | ClassifierCard(network=GraphArgs()):
            raise CheckpointError(
                f"{source}: is no set of weights; give it to `compress` and `verify` as it is"
            )
        case ClassifierCard():
            load_classifier(found, cpu)
        case _:
            load_purifier(found, cpu)
    if found.path is not None and out.exists() and out.samefile(found.path):
        raise CheckpointError(f"{out}: is the source itself; give the new file another name")
    stored = load_tensors(found)
    shared = Counter(tensor.untyped_storage().data_ptr() for tensor in stored.values())
    tensors = {}
    for name, tensor in stored.items():
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
        if shared[tensor.untyped_storage().data_ptr()] > 1:  # safetensors does not store ties
            tensors[name] = tensors[name].clone()
    save_checkpoint(out, found.card, tensors)
    return found, read_checkpoint(out)
