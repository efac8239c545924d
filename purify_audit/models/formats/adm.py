"""Guided-diffusion and improved-diffusion U-Nets (Dhariwal and Nichol 2021).

The files are plain state dicts. They do not say how heads are counted, nor in which order
attention splits its channels: presets and answers do.
"""

from purify_audit.core.errors import CheckpointError
from purify_audit.models.formats.draft import Draft, Format, State, indices, ratio, shape


def _marks(state: State) -> bool:
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= state.keys()


def _draft(state: State) -> Draft:
    if "label_emb.weight" in state:
        raise CheckpointError(
            "this network is told a class (label_emb.weight), and a purifier knows none"
        )
    width = shape(state, "time_embed.0.weight", 2)[1]  # the first convolution may be wider
    channels = shape(state, "input_blocks.0.0.weight", 4)[1]
    out = shape(state, "out.2.weight", 4)[0]
    if out not in (channels, 2 * channels):
        raise CheckpointError(f"{out} channels come out where {channels} go in")
    multipliers, counts, attention, updown = [], [0], [], False
    period = _period(state)
    for n in indices(state, "input_blocks.")[1:]:
        block = f"input_blocks.{n}.0."
        inside = period is not None and n % period == 0
        if inside or f"{block}op.weight" in state:
            updown |= inside
            counts.append(0)
            continue
        wide = shape(state, f"{block}out_layers.3.weight", 4)[0]
        if counts[-1] == 0:
            multipliers.append(ratio(wide, width, "width of a level"))
        counts[-1] += 1
        if f"input_blocks.{n}.1.qkv.weight" in state and len(counts) - 1 not in attention:
            attention.append(len(counts) - 1)
    if len(set(counts)) != 1:
        raise CheckpointError(f"its levels have {counts} blocks, which should be equal")
    scale_shift = _scales_and_shifts(state)
    network = {
        "arch": "adm",
        "width": width,
        "multipliers": multipliers,
        "blocks": counts[0],
        "attention": attention,
        "resblock_updown": updown,
        "scale_shift": scale_shift,
    }
    fields = {
        "family": "diffusion",
        "network": network,
        "channels": channels,
        "learned_variance": out == 2 * channels,
        "prediction": "eps",
        "time_conditioning": "index",
    }
    return Draft(fields, {name: name for name in state}, ("prediction", "time_conditioning"))


def _period(state: State) -> int | None:
    """Every how many-th input block is a residual block that halves; none if none is.

    By its tensors it is like any other. But its twin on the way up is a further part of an output
    block, one for each level but one; and every level has one block more on the way up.
    """
    up = indices(state, "output_blocks.")
    parts = [(n, part) for n in up for part in (1, 2)]
    twins = [p for p in parts if f"output_blocks.{p[0]}.{p[1]}.in_layers.0.weight" in state]
    return len(up) // (len(twins) + 1) if twins else None


def _scales_and_shifts(state: State) -> bool:
    block = "input_blocks.1.0."
    wide = shape(state, f"{block}out_layers.3.weight", 4)[0]
    return shape(state, f"{block}emb_layers.1.weight", 2)[0] == 2 * wide


FORMAT = Format("adm", "a guided-diffusion or improved-diffusion U-Net", _marks, _draft)
