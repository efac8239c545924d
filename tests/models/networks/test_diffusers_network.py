"""Networks that diffusers builds: called as ours are, under diffusers' own names."""

import json
import sys

import pytest
import torch
from network_checks import check_double, check_rows_apart, images
from oracles import diffusion_card
from pydantic import ValidationError

from purify_audit.core.errors import CardError, CheckpointError
from purify_audit.models.checkpoint import read_checkpoint, save_checkpoint
from purify_audit.models.formats.diffusers_keys import modern_keys
from purify_audit.models.load import load_purifier
from purify_audit.models.networks.diffusers_unet import _model, diffusers_unet
from purify_audit.spec.architectures import DiffusersArgs
from purify_audit.spec.card import ImageSpec
from purify_audit.spec.samplers import DDPMSampler

diffusers = pytest.importorskip("diffusers", reason="no diffusers: install the extra")

SQUARE = ImageSpec(channels=3, height=8, width=8)
CONFIG = {  # the keys of google/ddpm-cifar10-32, two levels of it
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [16, 32],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 8,
    "time_embedding_type": "positional",
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def args(**changes):
    return DiffusersArgs(config=json.dumps(CONFIG | changes))


def plain(config=CONFIG):
    """As diffusers itself reads a configuration."""
    torch.manual_seed(0)
    return diffusers.UNet2DModel.from_config(dict(config)).eval().requires_grad_(False)


def built(seed=0, **changes):
    torch.manual_seed(seed)
    return diffusers_unet(args(**changes)).eval()


def test_it_is_the_model_that_diffusers_reads_from_the_same_file():
    theirs, ours = plain(), built(seed=1)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x, t = images(2, (3, 8, 8)), torch.tensor([3.0, 700.0])
    assert torch.equal(ours(x, t), theirs(x, t).sample)
    assert torch.equal(ours(x, t.long()), theirs(x, t).sample)


def test_the_flags_of_the_configuration_are_heard():
    x, t = images(2, (3, 8, 8)), torch.tensor([3.0, 700.0])
    first = built()
    for changes in ({"flip_sin_to_cos": True}, {"freq_shift": 0}, {"downsample_padding": 1}):
        other = built(**changes)
        other.load_state_dict(first.state_dict())
        assert (other(x, t) - first(x, t)).abs().max() > 1e-4, changes


def test_it_is_built_without_memory():
    with torch.device("meta"):
        network = built()
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
    assert not list(network.buffers())  # nothing that a checkpoint would not fill


def test_rows_precision_and_gradients():
    network, x, t = built(), images(2, (3, 8, 8)), torch.tensor([3.0, 700.0])
    check_rows_apart(lambda x: network(x, t[:1].expand(len(x))), x)
    check_double(network, lambda network: lambda x: network(x, t[: len(x)]), x)
    exact, x = network.double(), x.double().requires_grad_()
    exact(x, t).square().sum().backward()
    for name, tensor in (("x", x), *exact.named_parameters()):
        if not name.endswith("to_k.bias"):  # one number on all scores of a pixel
            assert tensor.grad.abs().max() > 1e-8, name


def test_a_native_checkpoint_is_loaded_strictly(tmp_path):
    network, path = built(), tmp_path / "diffusers.safetensors"
    card = diffusion_card(DDPMSampler(), image=SQUARE, network=args())
    save_checkpoint(path, card, network.state_dict())
    loaded = load_purifier(read_checkpoint(path), torch.device("cpu")).network
    x, t = images(2, (3, 8, 8)), torch.tensor([3.0, 700.0])
    assert torch.equal(loaded(x, t), network(x, t))
    tensors = network.state_dict()
    del tensors["mid_block.attentions.0.to_q.weight"]
    save_checkpoint(path, card, tensors)
    with pytest.raises(CheckpointError, match=r"missing: mid_block\.attentions\.0\.to_q\.weight"):
        load_purifier(read_checkpoint(path), torch.device("cpu"))


def test_a_missing_extra_is_told(monkeypatch):
    _model.cache_clear()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(CardError, match=r"install purify-audit\[diffusers\]$"):
        diffusers_unet(args())
    monkeypatch.undo()
    assert diffusers_unet(args())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"down_block_types": ["A", "B"]}, "diffusers cannot build a UNet2DModel from it: Value"),
        ({"norm_num_groups": 7}, "diffusers cannot build a UNet2DModel from it: ValueError"),
        ({"attention_head_dim": 0}, "diffusers cannot build a UNet2DModel from it: ZeroDivision"),
        ({"colour": "red\n"}, "the installed diffusers does not know 'colour'"),
    ],
    ids=str,
)
def test_configurations_that_diffusers_cannot_use(changes, sentence):
    with pytest.raises(CardError) as raised:
        diffusers_unet(args(**changes))
    assert str(raised.value).startswith(f"config.json: {sentence}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "field '_class_name': Input should be 'UNet2D"),
        ({"in_channels": 0}, "field 'in_channels': Input should be greater"),
        ({"block_out_channels": []}, "field 'block_out_channels': Tuple should have at least 1"),
        ({"block_out_channels": [10**6]}, "field 'block_out_channels.0': Input should be less"),
        ({"layers_per_block": 10**9}, "field 'layers_per_block': Input should be less"),
        ({"num_class_embeds": 10}, "the network is class-conditional"),
        ({"class_embed_type": "timestep"}, "the network is class-conditional"),
        ({"time_embedding_type": "learned"}, "field 'time_embedding_type': Input should be"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(changes, sentence):
    with pytest.raises(ValidationError) as raised:
        args(**changes)
    assert f"in config.json, {sentence}" in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not JSON", "1" * 200_000])
def test_what_is_no_configuration(text):
    with pytest.raises(ValidationError, match=r"in config\.json, |at most 100000 characters"):
        DiffusersArgs(config=text)


def test_the_card_must_fit_its_configuration():
    settings = {"sampler": DDPMSampler(), "image": SQUARE, "network": args()}
    assert diffusion_card(**settings).network.levels == 2
    doubled = args(out_channels=6)
    assert diffusion_card(**settings | {"network": doubled, "learned_variance": True})
    with pytest.raises(ValidationError, match=r"\(3, 6\) channels in and out; .* \(3, 3\)"):
        diffusion_card(**settings | {"network": doubled})
    grey = ImageSpec(channels=1, height=8, width=8)
    with pytest.raises(ValidationError, match=r"\(3, 3\) channels in and out; .* \(1, 1\)"):
        diffusion_card(**settings | {"image": grey})
    odd = ImageSpec(channels=3, height=9, width=8)
    with pytest.raises(ValidationError, match="9 x 8 pixels cannot be halved 1 times"):
        diffusion_card(**settings | {"image": odd})


# --- old names ----------------------------------------------------------------------------------


def test_old_names_become_those_of_the_model():
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    modern = list(plain().state_dict())
    stored = []
    for name in modern:
        for now, before in old.items():
            name = name.replace(f".{now}.", f".{before}.")
        stored.append(name)
    assert sum(a != b for a, b in zip(stored, modern, strict=True)) == 4 * 8  # 4 attentions
    assert modern_keys(stored) == dict(zip(stored, modern, strict=True))
    assert modern_keys(modern) == {name: name for name in modern}


def test_other_names_stay():
    names = ("key.weight", "down_blocks.0.resnets.0.key.weight", "attentions.0.key.weights")
    assert modern_keys(names) == {name: name for name in names}


def test_one_weight_under_two_names_is_refused():
    names = ["mid_block.attentions.0.key.bias", "mid_block.attentions.0.to_k.bias"]
    with pytest.raises(CheckpointError, match=r"key\.bias' and .*to_k\.bias' are the same weight"):
        modern_keys(names)
