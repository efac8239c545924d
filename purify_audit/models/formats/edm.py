"""Karras et al. 2022: state dicts converted from their pickles (`edm_cifar_uncond_vp.pt`).

Names of modules contain the resolution (`enc.32x32_conv`) and thus the image size. The two
preconditionings share their names: a preset or an answer selects one.
"""

import re

from purify_audit.core.errors import CheckpointError
from purify_audit.models.formats.draft import (
    Draft,
    Format,
    State,
    ratio,
    refuse_class_conditional,
    shape,
    whole,
)

_BLOCK = re.compile(r"model\.enc\.(\d{1,4})x\d+_block(\d{1,2})\.conv0\.weight")


def _matches(state: State) -> bool:
    return {"model.map_layer0.weight", "model.map_layer1.weight"} <= state.keys() and any(
        name.startswith("model.enc.") for name in state
    )


def _draft(state: State) -> Draft:
    refuse_class_conditional(state, "model.map_label.weight")
    blocks: dict[int, dict[int, int]] = {}
    for name in state:
        if match := _BLOCK.fullmatch(name):
            blocks.setdefault(int(match[1]), {})[int(match[2])] = shape(state, name, 4)[0]
    sides = sorted(blocks, reverse=True)
    count = len(blocks[sides[0]]) if sides else 0
    if not count or any(set(level) != set(range(count)) for level in blocks.values()):
        raise CheckpointError("its encoder's blocks are not those of a SongUNet")
    width, channels, _, _ = shape(state, f"model.enc.{sides[0]}x{sides[0]}_conv.weight", 4)
    attention = [
        level
        for level, side in enumerate(sides)
        if f"model.enc.{side}x{side}_block0.qkv.weight" in state
    ]
    augment = "model.map_augment.weight"
    network = {
        "arch": "edm",
        "width": width,
        "multipliers": [ratio(blocks[side][0], width) for side in sides],
        "blocks": count,
        "attention": attention,
        "augment": shape(state, augment, 2)[1] if augment in state else 0,
    }
    fields = {
        "family": "diffusion",
        "network": network,
        "image": {"channels": channels, "height": sides[0], "width": sides[0]},
        "prediction": "x0",
        "time_conditioning": "sigma",
        "data_range": [-1.0, 1.0],
    }
    return Draft(fields, whole(state), ("data_range",))


FORMAT = Format("edm", "an EDM network (SongUNet)", _matches, _draft)
