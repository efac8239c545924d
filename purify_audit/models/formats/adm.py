"""Guided-diffusion and improved-diffusion U-Nets (Dhariwal and Nichol 2021).

The files are plain state dicts. They determine neither the number of heads nor the channel order of
attention; presets or answers do.
"""

from purify_audit.core.errors import CheckpointError
from purify_audit.models.formats.draft import (
    Draft,
    Format,
    State,
    indices,
    learned_variance,
    ratio,
    refuse_class_conditional,
    shape,
    whole,
)


def _matches(state: State) -> bool:
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= state.keys()


def _draft(state: State) -> Draft:
    refuse_class_conditional(state, "label_emb.weight")
    width = shape(state, "time_embed.0.weight", 2)[1]  # the first convolution may be wider
    channels = shape(state, "input_blocks.0.0.weight", 4)[1]
    variance = learned_variance(channels, shape(state, "out.2.weight", 4)[0])
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
            multipliers.append(ratio(wide, width))
        counts[-1] += 1
        if f"input_blocks.{n}.1.qkv.weight" in state and len(counts) - 1 not in attention:
            attention.append(len(counts) - 1)
    if len(set(counts)) != 1:
        raise CheckpointError(f"its levels have {counts} blocks, but they should be equal")
    network = {
        "arch": "adm",
        "width": width,
        "multipliers": multipliers,
        "blocks": counts[0],
        "attention": attention,
        "resblock_updown": updown,
        "scale_shift": _scales_and_shifts(state),
    }
    fields = {
        "family": "diffusion",
        "network": network,
        "channels": channels,
        "learned_variance": variance,
        "prediction": "eps",
        "time_conditioning": "index",
    }
    return Draft(fields, whole(state), ("prediction", "time_conditioning"))


def _period(state: State) -> int | None:
    """The distance between input blocks that downsample by residual blocks; none without such.

    Their tensors are like those of other blocks. But each has an upsampling counterpart, a second
    or third part of an output block, one per level except one; and each level has one more output
    block than input blocks.
    """
    up = indices(state, "output_blocks.")
    parts = [f"output_blocks.{n}.{part}.in_layers.0.weight" for n in up for part in (1, 2)]
    upsampling = sum(name in state for name in parts)
    return len(up) // (upsampling + 1) if upsampling else None


def _scales_and_shifts(state: State) -> bool:
    block = "input_blocks.1.0."
    wide = shape(state, f"{block}out_layers.3.weight", 4)[0]
    return shape(state, f"{block}emb_layers.1.weight", 2)[0] == 2 * wide


FORMAT = Format("adm", "a guided-diffusion or improved-diffusion U-Net", _matches, _draft)
