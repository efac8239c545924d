"""The DDPM U-Net of Ho et al. against numbers of published code, and its layout."""

from pathlib import Path

import pytest
import torch
from network_checks import check_double, check_rows_apart, images, parameters, trained
from oracles import Script, diffusion_card
from pydantic import ValidationError
from safetensors.torch import load_file

from purify_audit.core.errors import CheckpointError
from purify_audit.models.checkpoint import read_checkpoint, save_checkpoint
from purify_audit.models.load import load_purifier
from purify_audit.models.networks.ddpm_unet import DDPMUNet
from purify_audit.spec.architectures import DDPMUNetArgs
from purify_audit.spec.card import ImageSpec
from purify_audit.spec.samplers import DDPMSampler

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
IMAGE = ImageSpec(channels=3, height=32, width=32)
SMALL = DDPMUNetArgs(width=32, multipliers=(1, 2), blocks=1, attention=(1,))


def golden(name):
    path = GOLDEN / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path.name} in {path.parent}")
    return load_file(path)


@pytest.fixture
def published():
    """The network with the weights of the golden file, and the file."""
    numbers = golden("ddpm_ho")
    network = DDPMUNet(IMAGE, SMALL)
    network.load_state_dict(
        {k.removeprefix("model."): v for k, v in numbers.items() if k.startswith("model.")}
    )
    return network.eval().requires_grad_(False), numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_is_the_published_codes(published, dtype):
    network, numbers = published
    want = numbers["out"]
    out = network.to(dtype)(numbers["x"].to(dtype), numbers["t"])
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_the_chain_is_the_published_codes(tmp_path, published):
    """Small variance, no clipping; from a native checkpoint; no noise in the last step."""
    chain = golden("ddpm_ho__ddpm_t20")
    sampler = DDPMSampler(variance="fixed-small", clip=False, clamp=False)
    card = diffusion_card(sampler, image=IMAGE, network=SMALL, t_star=20)
    path = tmp_path / "ddpm.safetensors"
    save_checkpoint(path, card, published[0].state_dict())
    purifier = load_purifier(read_checkpoint(path), torch.device("cpu"))
    noise = Script(torch.cat((chain["e"][None], chain["z"])).transpose(0, 1))
    purified = 2.0 * purifier((chain["x0"] + 1.0) / 2.0, noise) - 1.0
    assert noise.asked == list(range(20))
    torch.testing.assert_close(purified, chain["purified"], rtol=0, atol=1e-5)


def test_the_cifar10_network_has_its_known_size_and_names():
    """35.7M weights (Ho et al. 2020, appendix B); the published file has 143,046,049 bytes."""
    args = DDPMUNetArgs(width=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(1,))
    with torch.device("meta"):
        network = DDPMUNet(IMAGE, args)
    count = parameters(network)
    assert round(count / 1e6, 1) == 35.7
    assert 0 < 143_046_049 - 4 * count < 200_000
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name, shape in {
        "temb.dense.0.weight": (512, 128),
        "temb.dense.1.weight": (512, 512),
        "conv_in.weight": (128, 3, 3, 3),
        "down.0.block.1.temb_proj.weight": (128, 512),
        "down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "down.1.attn.1.proj_out.weight": (256, 256, 1, 1),
        "down.2.downsample.conv.weight": (256, 256, 3, 3),
        "mid.attn_1.q.weight": (256, 256, 1, 1),
        "mid.block_2.conv2.bias": (256,),
        "up.3.block.2.norm1.weight": (512,),
        "up.1.attn.2.norm.weight": (256,),
        "up.1.block.2.conv1.weight": (256, 384, 3, 3),
        "up.1.upsample.conv.weight": (256, 256, 3, 3),
        "up.0.block.0.conv1.weight": (128, 384, 3, 3),
        "norm_out.weight": (128,),
        "conv_out.weight": (3, 128, 3, 3),
    }.items():
        assert shapes[name] == shape, name
    absent = ("down.3.downsample", "up.0.upsample", "down.0.attn", "up.2.attn")
    assert not [name for name in shapes if name.startswith(absent)]


@pytest.mark.parametrize(
    "args",
    [
        DDPMUNetArgs(width=32, multipliers=(2,), blocks=1),
        DDPMUNetArgs(width=32, multipliers=(2, 1, 3), blocks=2, attention=(0, 2)),
    ],
    ids=str,
)
def test_any_size_that_can_be_halved(args):
    network = trained(DDPMUNet(ImageSpec(channels=2, height=8, width=12), args, 4))
    x, t = images(2, (2, 8, 12)), torch.tensor([1.0, 30.0])
    out = network(x, t)
    assert out.shape == (2, 4, 8, 12)
    assert torch.isfinite(out).all()
    assert (network(x, t + 5.0) - out).abs().max() > 1e-3  # it hears the time


def test_rows_precision_and_gradients():
    """Two channels or more in every group: GroupNorm of one forgets what is added to it."""
    args = DDPMUNetArgs(width=32, multipliers=(2, 4), blocks=1, attention=(1,))
    network = trained(DDPMUNet(ImageSpec(channels=2, height=8, width=8), args))
    x, t = images(2, (2, 8, 8)), torch.tensor([3.0, 700.0])
    check_rows_apart(lambda x: network(x, t[:1].expand(len(x))), x)
    check_double(network, lambda network: lambda x: network(x, t[: len(x)]), x)
    exact, x = network.double(), x.double().requires_grad_()
    exact(x, t).square().sum().backward()
    for name, tensor in (("x", x), *exact.named_parameters()):
        if not name.endswith(".k.bias"):  # one number on all scores of a pixel: softmax ignores it
            assert tensor.grad.abs().max() > 1e-8, name


def test_a_native_checkpoint_is_loaded_strictly(tmp_path):
    image = ImageSpec(channels=3, height=8, width=8)
    network = trained(DDPMUNet(image, SMALL))
    card = diffusion_card(DDPMSampler(), image=image, network=SMALL)
    path = tmp_path / "ddpm.safetensors"
    save_checkpoint(path, card, network.state_dict())
    loaded = load_purifier(read_checkpoint(path), torch.device("cpu")).network
    x, t = images(2, (3, 8, 8)), torch.tensor([3.0, 700.0])
    assert torch.equal(loaded(x, t), network(x, t))
    tensors = network.state_dict()
    del tensors["mid.attn_1.k.bias"]
    save_checkpoint(path, card, tensors)
    with pytest.raises(CheckpointError, match=r"1 tensors .* missing: mid\.attn_1\.k\.bias"):
        load_purifier(read_checkpoint(path), torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention": (2,)}, "attention (2,) names a level that is not there"),
        ({"width": 48}, "multiple of 32"),
        ({"multipliers": ()}, "at least 1 item"),
    ],
    ids=str,
)
def test_settings_that_make_no_network(changes, sentence):
    with pytest.raises(ValidationError) as raised:
        DDPMUNetArgs(**(SMALL.model_dump() | changes))
    assert sentence in str(raised.value)
