"""Ho et al. 2020: `model-790000.ckpt` and its family (SDEdit's CelebA-HQ, the ddim repository).

A plain state dict; or a list as written by training, whose first entry is the state dict, with
DataParallel's prefix, and whose last may be the moving average.
"""

from purify_audit.core.errors import CheckpointError
from purify_audit.models.formats.draft import Draft, Format, State, indices, ratio, shape, whole


def _matches(state: State) -> bool:
    return {"temb.dense.0.weight", "down.0.block.0.norm1.weight", "mid.block_1.norm1.weight"} <= (
        state.keys()
    )


def _draft(state: State) -> Draft:
    width, channels, _, _ = shape(state, "conv_in.weight", 4)
    out = shape(state, "conv_out.weight", 4)[0]
    if out != channels:
        raise CheckpointError(f"{channels} input channels do not fit {out} output channels")
    levels = indices(state, "down.")
    blocks = {len(indices(state, f"down.{level}.block.")) for level in levels}
    if len(blocks) != 1:
        raise CheckpointError(f"its levels have {sorted(blocks)} blocks, but they should be equal")
    wide = [shape(state, f"down.{level}.block.0.conv1.weight", 4)[0] for level in levels]
    network = {
        "arch": "ddpm-unet",
        "width": width,
        "multipliers": [ratio(w, width) for w in wide],
        "blocks": blocks.pop(),
        "attention": [level for level in levels if f"down.{level}.attn.0.q.weight" in state],
    }
    fields = {
        "family": "diffusion",
        "network": network,
        "channels": channels,
        "prediction": "eps",
        "time_conditioning": "index",
        "data_range": [-1.0, 1.0],
        "schedule": {"kind": "linear"},
    }
    conventions = ("prediction", "time_conditioning", "data_range", "schedule")
    return Draft(fields, whole(state), conventions)


FORMAT = Format("ddpm", "Ho et al.'s DDPM U-Net", _matches, _draft)
