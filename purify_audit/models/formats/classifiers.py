"""Published classifiers: CIFAR ResNets and RobustBench's two layouts of WideResNet.

Only the second WideResNet layout stores its input normalisation.
"""

from purify_audit.core.errors import CheckpointError
from purify_audit.models.formats.draft import Draft, Format, State, indices, ratio, shape, whole


def _is_resnet(state: State) -> bool:
    return {"conv1.weight", "layer1.0.conv1.weight", "layer3.0.conv2.weight", "linear.weight"} <= (
        state.keys()
    ) and not any(name.startswith("layer4.") for name in state)


def _resnet(state: State) -> Draft:
    blocks = {len(indices(state, f"layer{n}.")) for n in (1, 2, 3)}
    if len(blocks) != 1 or shape(state, "conv1.weight", 4)[0] != 16:
        raise CheckpointError("its layers are not those of a CIFAR ResNet of depth 6n + 2")
    network = {"arch": "cifar-resnet", "depth": 6 * blocks.pop() + 2}
    return _classifier(state, network, shape(state, "conv1.weight", 4)[1], "linear.weight")


def _is_classic(state: State) -> bool:
    return {"conv1.weight", "block1.layer.0.conv1.weight", "fc.weight"} <= state.keys()


def _classic(state: State) -> Draft:
    """RobustBench's class also has `sub_block1`, whose weights are saved and never used."""
    used = {name: t for name, t in state.items() if not name.startswith("sub_block1.")}
    return _wideresnet(used, "classic", "block1.layer.", "conv1.weight", "fc.weight")


def _is_deepmind(state: State) -> bool:
    return {"init_conv.weight", "logits.weight", "layer.0.block.0.conv_0.weight"} <= state.keys()


def _deepmind(state: State) -> Draft:
    draft = _wideresnet(state, "deepmind", "layer.0.block.", "init_conv.weight", "logits.weight")
    for name in ("mean", "std"):
        if name in state:
            draft.fields[name] = [float(v) for v in state[name].flatten()]
            draft.tensors.pop(name)
    return draft


def _wideresnet(state: State, layout: str, blocks: str, first: str, last: str) -> Draft:
    """A WideResNet, by the prefix of its first blocks and the names of the outer layers."""
    convolution = "conv_0" if layout == "deepmind" else "conv1"
    network: dict[str, object] = {
        "arch": "wideresnet",
        "depth": 6 * len(indices(state, blocks)) + 4,
        "width": ratio(shape(state, f"{blocks}0.{convolution}.weight", 4)[0], 16),
        "layout": layout,
    }
    return _classifier(state, network, shape(state, first, 4)[1], last)


def _classifier(state: State, network: dict[str, object], channels: int, last: str) -> Draft:
    fields = {
        "family": "classifier",
        "network": network,
        "channels": channels,
        "classes": shape(state, last, 2)[0],
    }
    return Draft(fields, whole(state))


FORMATS = (
    Format("cifar-resnet", "a CIFAR ResNet", _is_resnet, _resnet),
    Format("wideresnet", "a WideResNet (RobustBench's classic layout)", _is_classic, _classic),
    Format("dm-wideresnet", "a WideResNet (DeepMind's layout)", _is_deepmind, _deepmind),
)
