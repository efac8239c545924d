"""P. Wang's denoising-diffusion-pytorch: files of a trainer, a GaussianDiffusion, or a U-Net.

A GaussianDiffusion stores its schedule (`betas`) with the network (`model.*`), but not its
prediction target. Clean estimates are clipped to [−1, 1]; the variance is the posterior's.
"""

from purify_audit.models.formats.draft import (
    Draft,
    Format,
    State,
    indices,
    learned_variance,
    ratio,
    shape,
)

_BUFFERS = (
    *("betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_"),
    *("loss_weight", "p2_loss_weight"),
)


def _prefix(state: State) -> str | None:
    for prefix in ("", "model."):
        if {f"{prefix}init_conv.weight", f"{prefix}downs.0.0.block1.proj.weight"} <= state.keys():
            return prefix
    return None


def _matches(state: State) -> bool:
    return _prefix(state) is not None


def _draft(state: State) -> Draft:
    prefix = _prefix(state) or ""
    width, channels, _, _ = shape(state, f"{prefix}init_conv.weight", 4)
    out = shape(state, f"{prefix}final_conv.weight", 4)[0]
    hint = " (self-conditioning is not supported)"
    levels = indices(state, f"{prefix}downs.")
    full, wide = [], []
    for level in levels:
        down = f"{prefix}downs.{level}."
        if f"{down}2.to_out.bias" in state:
            full.append(level)
        last = f"{down}3.1.weight" if f"{down}3.1.weight" in state else f"{down}3.weight"
        wide.append(shape(state, last, 4)[0])
    heads, memory, head_channels = shape(state, f"{prefix}mid_attn.mem_kv", 4)[1:]
    grouped = f"{prefix}downs.0.0.block1.norm.weight" in state
    network = {
        "arch": "lucidrains-unet",
        "width": width,
        "multipliers": [ratio(w, width) for w in wide],
        "heads": heads,
        "head_channels": head_channels,
        "memory": memory,
        "full_attention": full,
        "groups": 8 if grouped else None,
    }
    fields = {
        "family": "diffusion",
        "network": network,
        "channels": channels,
        "time_conditioning": "index",
        "learned_variance": learned_variance(channels, out, hint),
    }
    if "betas" in state:
        betas = [float(beta) for beta in state["betas"].flatten()[:10_001]]
        fields["schedule"] = {"kind": "table", "betas": betas}
    network_names = [n for n in state if not (prefix == "model." and n.startswith(_BUFFERS))]
    conventions = ("time_conditioning", "network.groups") if grouped else ("time_conditioning",)
    return Draft(fields, {name.removeprefix(prefix): name for name in network_names}, conventions)


FORMAT = Format("lucidrains", "a denoising-diffusion-pytorch network", _matches, _draft)
