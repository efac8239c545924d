"""Karras et al. 2022: state dicts converted from their pickles (`edm_cifar_uncond_vp.pt`).

Names of modules carry the resolution (`enc.32x32_conv`), so the size of the images is known. The
two preconditionings have the same names: a preset or an answer tells which.
"""

import re

from purify_audit.core.errors import CheckpointError
from purify_audit.models.formats.draft import Draft, Format, State, ratio, shape

_BLOCK = re.compile(r"model\.enc\.(\d{1,4})x\d+_block(\d{1,2})\.conv0\.weight")


def _marks(state: State) -> bool:
    return {"model.map_layer0.weight", "model.map_layer1.weight"} <= state.keys() and any(
        name.startswith("model.enc.") for name in state
    )


def _draft(state: State) -> Draft:
    if "model.map_label.weight" in state:
        raise CheckpointError(
            "this network is told a class (map_label.weight), and a purifier knows none"
        )
    blocks: dict[int, dict[int, int]] = {}
    for name in state:
        if found := _BLOCK.fullmatch(name):
            here = blocks.setdefault(int(found[1]), {})
            here[int(found[2])] = shape(state, name, 4)[0]
    sides = sorted(blocks, reverse=True)
    count = len(blocks[sides[0]]) if sides else 0
    if not count or any(set(here) != set(range(count)) for here in blocks.values()):
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
        "multipliers": [ratio(blocks[side][0], width, "width of a level") for side in sides],
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
    return Draft(fields, {name: name for name in state}, ("data_range",))


FORMAT = Format("edm", "an EDM network (SongUNet)", _marks, _draft)
