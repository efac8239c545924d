"""Image restorers as KAIR distributes them: DnCNN, FFDNet, DRUNet (K. Zhang et al.).

Plain state dicts, which contain neither the noise level of training nor that of the input.
"""

from purify_audit.core.errors import CheckpointError
from purify_audit.models.formats.draft import Draft, Format, State, indices, shape, whole


def _chain(state: State) -> bool:
    """A chain of 3 x 3 convolutions named model.0, model.2, model.4, ..."""
    numbers = indices(state, "model.")
    names = {f"model.{n}.weight" for n in numbers} | {f"model.{n}.bias" for n in numbers}
    convolutions = all(
        tuple(state[f"model.{n}.weight"].shape[2:]) == (3, 3)
        for n in numbers
        if f"model.{n}.weight" in state
    )
    return len(numbers) > 2 and convolutions and set(state) <= names and "model.0.weight" in state


def _ends(state: State) -> tuple[int, int, int]:
    """Input channels, width, and output channels of a chain."""
    width, channels, _, _ = shape(state, "model.0.weight", 4)
    last = f"model.{indices(state, 'model.')[-1]}."
    end = state.get(f"{last}weight", state.get(f"{last}bias"))
    return channels, width, 0 if end is None or not end.ndim else end.shape[0]


def _is_dncnn(state: State) -> bool:
    return _chain(state) and _ends(state)[0] == _ends(state)[2]


def _dncnn(state: State) -> Draft:
    channels, width, _ = _ends(state)
    depth = len(indices(state, "model."))
    if (width, depth) == (64, 7):
        raise CheckpointError("so does an IRCNN, whose dilations its tensors do not contain")
    network = {"arch": "dncnn", "width": width, "depth": depth}
    return _feedforward(state, network, channels)


def _is_ffdnet(state: State) -> bool:
    return _chain(state) and _ends(state)[0] == _ends(state)[2] + 1


def _ffdnet(state: State) -> Draft:
    _, width, out = _ends(state)
    if out % 4:
        raise CheckpointError(f"its {out} output channels are not a multiple of 2 x 2 pixels")
    network = {"arch": "ffdnet", "width": width, "depth": len(indices(state, "model."))}
    return _feedforward(state, network, out // 4)


def _is_drunet(state: State) -> bool:
    return {"m_head.weight", "m_tail.weight", "m_down1.0.res.0.weight"} <= state.keys()


def _drunet(state: State) -> Draft:
    out = shape(state, "m_tail.weight", 4)[0]
    levels = [f"m_down{n}" for n in range(1, 8) if f"m_down{n}.0.res.0.weight" in state]
    widths = [shape(state, f"{level}.0.res.0.weight", 4)[0] for level in levels]
    widths.append(shape(state, "m_body.0.res.0.weight", 4)[0])
    blocks = len(indices(state, "m_body."))
    return _feedforward(state, {"arch": "drunet", "widths": widths, "blocks": blocks}, out)


def _feedforward(state: State, network: dict[str, object], channels: int) -> Draft:
    fields = {
        "family": "feedforward",
        "network": network,
        "channels": channels,
        "data_range": [0.0, 1.0],
    }
    return Draft(fields, whole(state), ("data_range",))


def _any(state: State) -> Draft:
    fields = {"family": "feedforward", "network": {"arch": "spandrel"}, "data_range": [0.0, 1.0]}
    return Draft(fields, whole(state), ("data_range",))


SPANDREL = Format("spandrel", "a restorer for spandrel to detect", lambda state: True, _any)
"""Used only with `--as spandrel`; loading fails if spandrel does not detect the network."""

FORMATS = (
    Format("dncnn", "a DnCNN denoiser", _is_dncnn, _dncnn),
    Format("ffdnet", "an FFDNet denoiser", _is_ffdnet, _ffdnet),
    Format("drunet", "a DRUNet denoiser", _is_drunet, _drunet),
)
