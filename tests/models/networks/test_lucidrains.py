"""The U-Net of denoising-diffusion-pytorch: its names, its parts and the whole, written out."""

import pytest
import torch
from network_checks import check_double, check_rows_apart, images, trained
from oracles import diffusion_card
from pydantic import ValidationError
from torch.nn import functional as F

from purify_audit.core.errors import CheckpointError
from purify_audit.models.checkpoint import read_checkpoint, save_checkpoint
from purify_audit.models.load import load_purifier
from purify_audit.models.networks.lucidrains import LucidrainsUNet
from purify_audit.spec.architectures import LucidrainsArgs
from purify_audit.spec.card import ImageSpec
from purify_audit.spec.samplers import DDPMSampler

GREY = ImageSpec(channels=1, height=8, width=8)
SMALL = LucidrainsArgs(
    width=8, multipliers=(1, 2), heads=2, head_channels=5, memory=3, full_attention=(1,)
)
GROUPS = LucidrainsArgs(width=8, multipliers=(2, 1, 1), groups=4, heads=1, head_channels=6)
VARIANTS = pytest.mark.parametrize("args", [SMALL, GROUPS], ids=["rms", "groups"])


def small(args, image=GREY, out=2):
    return trained(LucidrainsUNet(image, out, args))


# --- names --------------------------------------------------------------------------------------


def block_shapes(key, c_in, c_out, time, norms=(".norm.g",)):
    shapes = {
        f"{key}.mlp.1.weight": (2 * c_out, time),
        f"{key}.mlp.1.bias": (2 * c_out,),
        f"{key}.block1.proj.weight": (c_out, c_in, 3, 3),
        f"{key}.block2.proj.weight": (c_out, c_out, 3, 3),
    }
    for block in ("block1", "block2"):
        shapes[f"{key}.{block}.proj.bias"] = (c_out,)
        for norm in norms:
            shape = (1, c_out, 1, 1) if norm == ".norm.g" else (c_out,)
            shapes[f"{key}.{block}{norm}"] = shape
    if c_in != c_out:
        shapes[f"{key}.res_conv.weight"] = (c_out, c_in, 1, 1)
        shapes[f"{key}.res_conv.bias"] = (c_out,)
    return shapes


def attention_shapes(key, width, full):
    """Two heads of 5 channels, 3 learned keys and values."""
    shapes = {
        f"{key}.norm.g": (1, width, 1, 1),
        f"{key}.mem_kv": (2, 2, 3, 5) if full else (2, 2, 5, 3),
        f"{key}.to_qkv.weight": (30, width, 1, 1),
    }
    out = f"{key}.to_out" if full else f"{key}.to_out.0"
    shapes |= {f"{out}.weight": (width, 10, 1, 1), f"{out}.bias": (width,)}
    return shapes if full else shapes | {f"{key}.to_out.1.g": (1, width, 1, 1)}


def test_names_and_shapes_of_version_2():
    """As `denoising_diffusion_pytorch` 2.2.5 lists them for dim 8 and dim_mults (1, 2)."""
    want = {
        "init_conv.weight": (8, 1, 7, 7),
        "init_conv.bias": (8,),
        "time_mlp.1.weight": (32, 8),
        "time_mlp.1.bias": (32,),
        "time_mlp.3.weight": (32, 32),
        "time_mlp.3.bias": (32,),
        "downs.0.3.1.weight": (8, 32, 1, 1),
        "downs.0.3.1.bias": (8,),
        "downs.1.3.weight": (16, 8, 3, 3),
        "downs.1.3.bias": (16,),
        "ups.0.3.1.weight": (8, 16, 3, 3),
        "ups.0.3.1.bias": (8,),
        "ups.1.3.weight": (8, 8, 3, 3),
        "ups.1.3.bias": (8,),
        "final_conv.weight": (2, 8, 1, 1),
        "final_conv.bias": (2,),
    }
    for key, c_in, c_out in (
        *((f"downs.{level}.{n}", 8, 8) for level in (0, 1) for n in (0, 1)),
        ("mid_block1", 16, 16),
        ("mid_block2", 16, 16),
        *((f"ups.0.{n}", 24, 16) for n in (0, 1)),
        *((f"ups.1.{n}", 16, 8) for n in (0, 1)),
        ("final_res_block", 16, 8),
    ):
        want |= block_shapes(key, c_in, c_out, time=32)
    for key, width, full in (
        ("downs.0.2", 8, False),
        ("downs.1.2", 8, True),
        ("mid_attn", 16, True),
        ("ups.0.2", 16, True),
        ("ups.1.2", 8, False),
    ):
        want |= attention_shapes(key, width, full)
    state = LucidrainsUNet(GREY, 2, SMALL).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == want


def test_groups_name_the_norms_of_version_1():
    state = LucidrainsUNet(GREY, 1, GROUPS).state_dict()
    wanted = block_shapes("mid_block1", 8, 8, 32, (".norm.weight", ".norm.bias"))
    found = {n: tuple(t.shape) for n, t in state.items() if n.startswith("mid_block1")}
    assert found == wanted


# --- parts --------------------------------------------------------------------------------------


def test_rms_norm_divides_by_the_root_mean_square_of_each_pixel():
    norm = small(SMALL).downs[0][2].norm
    x = images(2, (8, 3, 5)).double() - 0.5
    rms = x.square().mean(1, keepdim=True).sqrt()
    g = norm.g.detach().double()
    torch.testing.assert_close(norm.double()(x), x / rms * g, rtol=0, atol=1e-12)


def test_softmax_attention_pixel_by_pixel():
    """Each pixel's query meets all pixels' keys and the learned ones."""
    layer = small(SMALL).double().mid_attn
    x = images(1, (16, 2, 3)).double()
    pixels = layer.norm(x)[0].flatten(1).T.detach()
    weight = layer.to_qkv.weight[:, :, 0, 0].detach()
    mixed = torch.zeros(6, 10, dtype=torch.float64)
    for head in range(2):
        part = slice(5 * head, 5 * head + 5)
        keys = [*layer.mem_kv[0, head].detach(), *(weight[10:20][part] @ p for p in pixels)]
        values = [*layer.mem_kv[1, head].detach(), *(weight[20:30][part] @ p for p in pixels)]
        for i, pixel in enumerate(pixels):
            query = weight[0:10][part] @ pixel
            shares = torch.stack([torch.exp(query @ key / 5**0.5) for key in keys])
            shares = shares / shares.sum()
            mixed[i, part] = sum(s * v for s, v in zip(shares, values, strict=True))
    want = mixed @ layer.to_out.weight[:, :, 0, 0].T + layer.to_out.bias
    torch.testing.assert_close(layer(x)[0].flatten(1).T, want, rtol=0, atol=1e-12)


def test_linear_attention_pixel_by_pixel():
    """out_i = sum_j v_j (softmax_over_j(k_j) . softmax_over_channels(q_i)) / sqrt(5)"""
    layer = small(SMALL).double().downs[0][2]
    x = images(1, (8, 2, 3)).double()
    pixels = layer.norm(x)[0].flatten(1).T.detach()
    weight = layer.to_qkv.weight[:, :, 0, 0].detach()
    mixed = torch.zeros(6, 10, dtype=torch.float64)
    for head in range(2):
        part = slice(5 * head, 5 * head + 5)
        learned_k, learned_v = layer.mem_kv[:, head].detach()
        keys = [*learned_k.T, *(weight[10:20][part] @ p for p in pixels)]
        values = [*learned_v.T, *(weight[20:30][part] @ p for p in pixels)]
        total = sum(torch.exp(key) for key in keys)
        for i, pixel in enumerate(pixels):
            query = torch.exp(weight[0:10][part] @ pixel)
            query = query / query.sum() / 5**0.5
            for key, value in zip(keys, values, strict=True):
                mixed[i, part] += (torch.exp(key) / total) @ query * value
    out, norm = layer.to_out
    linear = mixed @ out.weight[:, :, 0, 0].T + out.bias
    rms = linear.square().mean(1, keepdim=True).sqrt()
    want = linear / rms * norm.g.flatten()
    torch.testing.assert_close(layer(x)[0].flatten(1).T, want, rtol=0, atol=1e-12)


# --- the whole ----------------------------------------------------------------------------------


def silu(h):
    return h / (1.0 + torch.exp(-h))


class ByHand:
    """The order of the layers, from their names; attention, tested above, is the network's own."""

    def __init__(self, network, args):
        self.network, self.args, self.w = network, args, network.state_dict()

    def __call__(self, x, t):
        half, last = self.args.width // 2, len(self.args.multipliers) - 1
        powers = torch.arange(half, dtype=x.dtype) / (half - 1)
        angles = t[:, None].to(x.dtype) * 10_000.0**-powers
        time = self.linear(torch.cat((angles.sin(), angles.cos()), 1), "time_mlp.1")
        self.time = self.linear(time * torch.special.ndtr(time), "time_mlp.3")  # GELU
        h = first = self.conv(x, "init_conv")
        skips = []
        for level in range(last + 1):
            skips.append(self.block(h, f"downs.{level}.0"))
            h = self.block(skips[-1], f"downs.{level}.1")
            skips.append(h + self.network.downs[level][2](h))
            key = f"downs.{level}.3"
            h = self.conv(skips[-1], key) if level == last else self.halved(skips[-1], key)
        h = self.block(h, "mid_block1")
        h = self.block(h + self.network.mid_attn(h), "mid_block2")
        for n in range(last + 1):
            for part in (0, 1):
                h = self.block(torch.cat((h, skips.pop()), 1), f"ups.{n}.{part}")
            h = h + self.network.ups[n][2](h)
            h = self.conv(h, f"ups.{n}.3") if n == last else self.doubled(h, f"ups.{n}.3")
        return self.conv(self.block(torch.cat((h, first), 1), "final_res_block"), "final_conv")

    def conv(self, h, key):
        weight = self.w[f"{key}.weight"]
        return F.conv2d(h, weight, self.w[f"{key}.bias"], padding=weight.shape[-1] // 2)

    def linear(self, h, key):
        return h @ self.w[f"{key}.weight"].T + self.w[f"{key}.bias"]

    def norm(self, h, key):
        if self.args.groups:
            affine = self.w[f"{key}.weight"], self.w[f"{key}.bias"]
            return F.group_norm(h, self.args.groups, *affine, eps=1e-5)
        return h / h.square().mean(1, keepdim=True).sqrt() * self.w[f"{key}.g"]

    def block(self, h, key):
        told = self.linear(silu(self.time), f"{key}.mlp.1")[:, :, None, None]
        scale, shift = told.chunk(2, 1)
        inner = self.norm(self.conv(h, f"{key}.block1.proj"), f"{key}.block1.norm")
        inner = silu(inner * (1 + scale) + shift)
        inner = silu(self.norm(self.conv(inner, f"{key}.block2.proj"), f"{key}.block2.norm"))
        return inner + (
            self.conv(h, f"{key}.res_conv") if f"{key}.res_conv.weight" in self.w else h
        )

    def halved(self, h, key):
        n, c, a, b = h.shape
        squares = h.reshape(n, c, a // 2, 2, b // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return self.conv(squares.reshape(n, 4 * c, a // 2, b // 2), f"{key}.1")

    def doubled(self, h, key):
        return self.conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3), f"{key}.1")


@VARIANTS
def test_the_network_is_what_the_names_of_its_weights_say(args):
    network = small(args).double()
    x, t = images(2, (1, 8, 12)).double(), torch.tensor([3, 998])
    want = ByHand(network, args)(x, t)
    assert want.shape == (2, 2, 8, 12)
    assert want.std() > 0.05
    torch.testing.assert_close(network(x, t), want, rtol=0, atol=1e-10)


PACKAGE = "denoising_diffusion_pytorch"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"dim": 8, "dim_mults": (1, 2)}, {"width": 8, "multipliers": (1, 2)}),
        (
            {"dim": 8, "dim_mults": (2, 1, 1), "full_attn": (True, False, False)}
            | {"attn_heads": 2, "attn_dim_head": 6, "channels": 3, "learned_variance": True},
            {"width": 8, "multipliers": (2, 1, 1), "full_attention": (0,)}
            | {"heads": 2, "head_channels": 6},
        ),
    ],
    ids=["default", "chosen"],
)
def test_output_is_the_packages(theirs, ours):
    """Needs the package, versions 2.0 to 2.2; it is no dependency of this one."""
    package = pytest.importorskip(PACKAGE, reason=f"no {PACKAGE}", exc_type=ImportError)
    channels = theirs.setdefault("channels", 1)
    torch.manual_seed(0)
    reference = package.Unet(**theirs).eval()
    last = len(ours["multipliers"]) - 1
    args = LucidrainsArgs(**({"full_attention": (last,)} | ours))
    network = LucidrainsUNet(
        ImageSpec(channels=channels, height=8, width=8), reference.out_dim, args
    )
    network.load_state_dict(reference.state_dict())
    x, t = images(2, (channels, 8, 8)), torch.tensor([3, 700])
    with torch.no_grad():
        want = reference(x, t)
        torch.testing.assert_close(
            network.eval()(x, t), want, rtol=0, atol=1e-5 * float(want.abs().max())
        )


# --- what every network must do -----------------------------------------------------------------


@VARIANTS
def test_rows_precision_and_gradients(args):
    network, t = small(args), torch.tensor([3.0, 700.0])
    x = images(2, (1, 8, 8))
    check_rows_apart(lambda x: network(x, t[:1].expand(len(x))), x)
    check_double(network, lambda network: lambda x: network(x, t[: len(x)]), x)
    exact, x = network.double(), x.double().requires_grad_()
    exact(x, t).square().sum().backward()
    for name, tensor in (("x", x), *exact.named_parameters()):
        assert tensor.grad.abs().max() > 1e-9, name


def test_a_native_checkpoint_is_loaded_strictly(tmp_path):
    network = small(SMALL, out=1)
    card = diffusion_card(DDPMSampler(), image=GREY, network=SMALL)
    path = tmp_path / "lucidrains.safetensors"
    save_checkpoint(path, card, network.state_dict())
    loaded = load_purifier(read_checkpoint(path), torch.device("cpu")).network
    x, t = images(2, (1, 8, 8)), torch.tensor([3.0, 700.0])
    assert torch.equal(loaded(x, t), network(x, t))
    tensors = network.state_dict()
    tensors["init_conv.weight"] = torch.zeros(8, 2, 7, 7)  # as self-conditioning has it
    save_checkpoint(path, card, tensors)
    with pytest.raises(CheckpointError, match=r"'init_conv\.weight' has shape \[8, 2, 7, 7\]"):
        load_purifier(read_checkpoint(path), torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"full_attention": (2,)}, "attention (2,) names a level that is not there"),
        ({"groups": 3}, "width 8 is not a multiple of groups 3"),
        ({"width": 9}, "multiple of 2"),
        ({"width": 2}, "greater than or equal to 4"),
    ],
    ids=str,
)
def test_settings_that_make_no_network(changes, sentence):
    with pytest.raises(ValidationError) as raised:
        LucidrainsArgs(**(SMALL.model_dump() | changes))
    assert sentence in str(raised.value)
