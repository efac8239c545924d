"""The ADM U-Net against numbers of the published code, and against a reading of its weights."""

from pathlib import Path

import pytest
import torch
from network_checks import check_double, check_rows_apart, images, parameters, trained
from oracles import Script, diffusion_card
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.nn import functional as F

from purify_audit.core.errors import CheckpointError
from purify_audit.models.checkpoint import read_checkpoint, save_checkpoint
from purify_audit.models.load import load_purifier
from purify_audit.models.networks.adm import ADM
from purify_audit.spec.architectures import ADMArgs
from purify_audit.spec.card import ImageSpec
from purify_audit.spec.samplers import DDIMSampler, DDPMSampler, VPSDESampler

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
IMAGE = ImageSpec(channels=3, height=32, width=32)
GUIDED = ADMArgs(
    width=32,
    multipliers=(1, 2),
    blocks=1,
    attention=(1,),
    head_channels=16,
    resblock_updown=True,
)
IMPROVED = ADMArgs(width=32, multipliers=(1, 2), blocks=2, attention=(0, 1), heads=4)
ADDED = ADMArgs(width=32, multipliers=(2, 1, 3), blocks=1, heads=2, scale_shift=False)
NEW_ORDER = GUIDED.model_copy(update={"new_attention_order": True})


def golden(name):
    path = GOLDEN / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path.name} in {path.parent}")
    return load_file(path)


@pytest.fixture
def published():
    """The network with the weights of the golden file, and the file."""
    numbers = golden("guided_diffusion_adm")
    network = ADM(IMAGE, 6, GUIDED)
    network.load_state_dict(
        {k.removeprefix("model."): v for k, v in numbers.items() if k.startswith("model.")}
    )
    return network.eval().requires_grad_(False), numbers


def small(args, channels=2, out=4):
    return trained(ADM(ImageSpec(channels=channels, height=8, width=8), out, args))


# --- golden numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_is_the_published_codes(published, dtype):
    network, numbers = published
    want = numbers["out"]
    out = network.to(dtype)(numbers["x"].to(dtype), numbers["t"])
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("name", "sampler", "read"),
    [
        ("vpsde", VPSDESampler(clamp=False), 21),
        ("ddpm", DDPMSampler(variance="learned-range", clip=True, clamp=False), 20),
        ("ddim_eta0", DDIMSampler(eta=0.0, clip=True, clamp=False), 1),
    ],
)
def test_chains_are_the_published_codes(tmp_path, published, name, sampler, read):
    """From a native checkpoint; the last ancestral step adds no noise."""
    chain = golden(f"guided_diffusion_adm__{name}_t20")
    card = diffusion_card(sampler, image=IMAGE, network=GUIDED, learned_variance=True, t_star=20)
    path = tmp_path / "adm.safetensors"
    save_checkpoint(path, card, published[0].state_dict())
    purifier = load_purifier(read_checkpoint(path), torch.device("cpu"))
    noise = Script(torch.cat((chain["e"][None], chain["z"])).transpose(0, 1))
    purified = 2.0 * purifier((chain["x0"] + 1.0) / 2.0, noise) - 1.0
    assert noise.asked == list(range(read))
    torch.testing.assert_close(purified, chain["purified"], rtol=0, atol=1e-5)


def test_the_order_of_attention_matters(published):
    """The golden file has the legacy order: the new one gives other numbers."""
    network, numbers = published
    other = ADM(IMAGE, 6, NEW_ORDER).eval().requires_grad_(False)
    other.load_state_dict(network.state_dict())
    out = other(numbers["x"], numbers["t"])
    assert (out - numbers["out"]).abs().max() > 1e-2 * numbers["out"].abs().max()


# --- a reading of the weights -------------------------------------------------------------------


def silu(h):
    return h / (1.0 + torch.exp(-h))


def nearest(h):
    return h.repeat_interleave(2, 2).repeat_interleave(2, 3)


def means(h):
    n, c, a, b = h.shape
    return h.reshape(n, c, a // 2, 2, b // 2, 2).mean((3, 5))


def same(h):
    return h


class ByHand:
    """The network, from a state dict: what a layer is, its names say."""

    def __init__(self, w, args):
        self.w, self.args = w, args

    def __call__(self, x, t):
        half = self.args.width // 2
        frequencies = 10_000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
        angles = t[:, None].to(x.dtype) * self.args.time_scale * frequencies
        time = self.apply(torch.cat((angles.cos(), angles.sin()), 1), "time_embed.0")
        self.time = self.apply(silu(time), "time_embed.2")
        h, skips = x, []
        for n in self.under("input_blocks."):
            halves = self.args.resblock_updown and n > 0 and n % (self.args.blocks + 1) == 0
            h = self.stage(h, f"input_blocks.{n}", means if halves else same)
            skips.append(h)
        h = self.stage(h, "middle_block", same)
        for n in self.under("output_blocks."):
            h = self.stage(torch.cat((h, skips.pop()), 1), f"output_blocks.{n}", same, nearest)
        return self.apply(silu(self.apply(h, "out.0")), "out.2")

    def under(self, prefix):
        return sorted({int(k[len(prefix) :].split(".")[0]) for k in self.w if k.startswith(prefix)})

    def apply(self, h, key, stride=1):
        weight, bias = self.w[f"{key}.weight"], self.w[f"{key}.bias"]
        if weight.ndim == 1:
            return F.group_norm(h, 32, weight, bias, eps=1e-5)
        if weight.ndim == 2:
            return h @ weight.T + bias
        return F.conv2d(h, weight, bias, stride, weight.shape[-1] // 2)

    def stage(self, h, key, first, later=same):
        """`first` and `later` are how residual blocks change the size."""
        for part in self.under(f"{key}."):
            here = f"{key}.{part}"
            if f"{here}.op.weight" in self.w:
                h = self.apply(h, f"{here}.op", stride=2)
            elif f"{here}.conv.weight" in self.w:
                h = self.apply(nearest(h), f"{here}.conv")
            elif f"{here}.qkv.weight" in self.w:
                h = self.attend(h, here)
            elif f"{here}.in_layers.0.weight" in self.w:
                h = self.block(h, here, later if part else first)
            else:
                h = self.apply(h, here)
        return h

    def block(self, h, key, resample):
        told = self.apply(silu(self.time), f"{key}.emb_layers.1")[:, :, None, None]
        inner = resample(silu(self.apply(h, f"{key}.in_layers.0")))
        inner = self.apply(inner, f"{key}.in_layers.2")
        if self.args.scale_shift:
            scale, shift = told.chunk(2, 1)
            inner = self.apply(inner, f"{key}.out_layers.0") * (1 + scale) + shift
        else:
            inner = self.apply(inner + told, f"{key}.out_layers.0")
        h = resample(h)
        if f"{key}.skip_connection.weight" in self.w:
            h = self.apply(h, f"{key}.skip_connection")
        return h + self.apply(silu(inner), f"{key}.out_layers.3")

    def attend(self, h, key):
        c, args = h.shape[1], self.args
        qkv = self.w[f"{key}.qkv.weight"][:, :, 0] @ self.apply(h, f"{key}.norm").flatten(2)
        qkv = qkv + self.w[f"{key}.qkv.bias"][:, None]
        width = args.head_channels or c // args.heads
        mixed = []
        for head in range(c // width):
            legacy = [(3 * head + part) * width for part in range(3)]
            new = [part * c + head * width for part in range(3)]
            rows = new if args.new_attention_order else legacy
            q, k, v = (qkv[:, row : row + width] for row in rows)
            share = (torch.einsum("ncq,nck->nqk", q, k) / width**0.5).softmax(-1)
            mixed.append(torch.einsum("nqk,nck->ncq", share, v))
        out = self.w[f"{key}.proj_out.weight"][:, :, 0] @ torch.cat(mixed, 1)
        return h + (out + self.w[f"{key}.proj_out.bias"][:, None]).reshape(h.shape)


@pytest.mark.parametrize(
    "args",
    [GUIDED, NEW_ORDER, IMPROVED, ADDED, IMPROVED.model_copy(update={"time_scale": 0.25})],
    ids=["guided", "new-order", "improved", "added", "rescaled"],
)
def test_the_network_is_what_the_names_of_its_weights_say(args):
    network = small(args).double()
    x, t = images(2, (2, 8, 12)).double(), torch.tensor([3, 998])
    want = ByHand(network.state_dict(), args)(x, t)
    assert want.shape == (2, 4, 8, 12)
    assert want.std() > 0.1
    torch.testing.assert_close(network(x, t), want, rtol=0, atol=1e-9)


def test_names_of_the_improved_diffusion_layout():
    names = set(ADM(IMAGE, 6, IMPROVED).state_dict())
    assert {
        "time_embed.2.bias",
        "input_blocks.0.0.weight",
        "input_blocks.1.1.qkv.weight",
        "input_blocks.3.0.op.weight",
        "input_blocks.4.0.skip_connection.weight",
        "middle_block.1.proj_out.weight",
        "output_blocks.2.2.conv.weight",
        "out.2.weight",
    } <= names
    assert {name.split(".")[1] for name in names if name.startswith("output")} == set("012345")


def test_the_imagenet_network_has_its_known_size():
    """256x256_diffusion_uncond.pt is 2,211,383,297 bytes of float32 weights and their names."""
    args = ADMArgs(
        width=256,
        multipliers=(1, 1, 2, 2, 4, 4),
        blocks=2,
        attention=(3, 4, 5),
        head_channels=64,
        resblock_updown=True,
    )
    with torch.device("meta"):
        network = ADM(ImageSpec(channels=3, height=256, width=256), 6, args)
    assert 0 < 2_211_383_297 - 4 * parameters(network) < 2_000_000
    assert network.out[2].weight.shape == (6, 256, 3, 3)


# --- what every network must do -----------------------------------------------------------------


@pytest.mark.parametrize("args", [GUIDED, IMPROVED], ids=["guided", "improved"])
def test_rows_precision_and_gradients(args):
    """Two channels or more in every group: GroupNorm of one forgets what is added to it."""
    args = args.model_copy(update={"multipliers": (2, 4)})
    network, t = small(args), torch.tensor([3.0, 700.0])
    x = images(2, (2, 8, 8))
    check_rows_apart(lambda x: network(x, t[:1].expand(len(x))), x)
    check_double(network, lambda network: lambda x: network(x, t[: len(x)]), x)
    exact, x = network.double(), x.double().requires_grad_()
    exact(x, t).square().sum().backward()
    for name, tensor in (("x", x), *exact.named_parameters()):
        assert tensor.grad.abs().max() > 1e-8, name


def test_a_native_checkpoint_is_loaded_strictly(tmp_path):
    network = small(IMPROVED, channels=3, out=3)
    card = diffusion_card(
        DDPMSampler(), image=ImageSpec(channels=3, height=8, width=8), network=IMPROVED
    )
    path = tmp_path / "adm.safetensors"
    save_checkpoint(path, card, network.state_dict())
    loaded = load_purifier(read_checkpoint(path), torch.device("cpu")).network
    x, t = images(2, (3, 8, 8)), torch.tensor([3.0, 700.0])
    assert torch.equal(loaded(x, t), network(x, t))
    save_checkpoint(path, card, network.state_dict() | {"label_emb.weight": torch.zeros(10, 128)})
    with pytest.raises(CheckpointError, match=r"not part of the card's network: label_emb\.weight"):
        load_purifier(read_checkpoint(path), torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention": (2,)}, "attention (2,) names a level that is not there"),
        ({"heads": 4}, "give heads or head_channels, and not both"),
        ({"head_channels": None}, "give heads or head_channels, and not both"),
        ({"head_channels": 48}, "head_channels 48 do not divide 64 channels of level 1"),
        ({"head_channels": None, "heads": 3}, "heads 3 do not divide 64 channels of level 1"),
        ({"width": 48}, "multiple of 32"),
        ({"time_scale": 0.0}, "greater than 0"),
    ],
    ids=str,
)
def test_settings_that_make_no_network(changes, sentence):
    with pytest.raises(ValidationError) as raised:
        ADMArgs(**(GUIDED.model_dump() | changes))
    assert sentence in str(raised.value)
