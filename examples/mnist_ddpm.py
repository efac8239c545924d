"""A diffusion purifier for MNIST as research code has it: purify-audit has never heard of it.

The weights are B. Pulfer's small DDPM (MIT licence): a U-Net of 10, 20 and 40 channels that
predicts the noise, trained on images in [−1, 1] with betas from 1e-4 to 0.02 in 1000 steps. Noise
is drawn with plain `torch.randn_like`; the audit captures it.

    purify-audit compress --purifier examples/mnist_ddpm.py:purifier \
        --arg weights=ddpm_mnist.safetensors --arg t_star=200 --arg steps=10 --data mnist.npz
"""

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class Block(nn.Module):
    """LayerNorm over channels and pixels, then two convolutions."""

    normalised = True

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        """For images of `size` × `size` pixels."""
        super().__init__()
        self.ln = nn.LayerNorm((inputs, size, size))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, size, size] to [n, outputs, size, size]."""
        x = nn.functional.silu(self.conv1(self.ln(x) if self.normalised else x))
        out: Tensor = nn.functional.silu(self.conv2(x))
        return out


def blocks(widths: tuple[int, int, int, int], size: int) -> nn.Sequential:
    """Three blocks from each width to the next."""
    return nn.Sequential(*(Block(a, b, size) for a, b in pairwise(widths)))


def time_layers(width: int) -> nn.Sequential:
    """From the embedding of a time to what is added to `width` channels."""
    return nn.Sequential(nn.Linear(100, width), nn.SiLU(), nn.Linear(width, width))


class UNet(nn.Module):
    """Names and shapes are those of the published weights."""

    def __init__(self) -> None:
        """Weights are loaded by the caller."""
        super().__init__()
        self.time_embed = nn.Embedding(1000, 100)
        self.te1, self.te2, self.te3 = time_layers(1), time_layers(10), time_layers(20)
        self.te_mid, self.te4 = time_layers(40), time_layers(80)
        self.te5, self.te_out = time_layers(40), time_layers(20)
        self.b1, self.b2 = blocks((1, 10, 10, 10), 28), blocks((10, 20, 20, 20), 14)
        self.b3, self.b_mid = blocks((20, 40, 40, 40), 7), blocks((40, 20, 20, 40), 3)
        self.b4, self.b5 = blocks((80, 40, 20, 20), 7), blocks((40, 20, 10, 10), 14)
        self.b_out = blocks((20, 10, 10, 10), 28)
        last = self.b_out[2]
        assert isinstance(last, Block)
        last.normalised = False  # its LayerNorm is there, and was never trained
        self.down1, self.down2 = (nn.Conv2d(c, c, 4, 2, 1) for c in (10, 20))
        self.down3 = nn.Sequential(nn.Conv2d(40, 40, 2), nn.SiLU(), nn.Conv2d(40, 40, 4, 2, 1))
        self.up1 = nn.Sequential(
            nn.ConvTranspose2d(40, 40, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(40, 40, 2)
        )
        self.up2, self.up3 = (nn.ConvTranspose2d(c, c, 4, 2, 1) for c in (20, 10))
        self.conv_out = nn.Conv2d(10, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise in images x [n, 1, 28, 28] at times t [n, 1] in 0 … 999."""
        time = self.time_embed(t[:, 0])

        def told(layers: nn.Sequential, images: Tensor) -> Tensor:
            shift: Tensor = layers(time)
            return images + shift[:, :, None, None]

        x1 = self.b1(told(self.te1, x))
        x2 = self.b2(told(self.te2, self.down1(x1)))
        x3 = self.b3(told(self.te3, self.down2(x2)))
        mid = self.b_mid(told(self.te_mid, self.down3(x3)))
        x4 = self.b4(told(self.te4, torch.cat((x3, self.up1(mid)), 1)))
        x5 = self.b5(told(self.te5, torch.cat((x2, self.up2(x4)), 1)))
        out: Tensor = self.conv_out(self.b_out(told(self.te_out, torch.cat((x1, self.up3(x5)), 1))))
        return out


class MnistDDPM(nn.Module):
    """Noise to t*, then back: every step of the ancestral chain, or a few of DDIM.

    The attributes are for the audit: which images it takes, and what one purification costs.
    """

    image_shape = (1, 28, 28)
    betas: Tensor
    left: Tensor

    def __init__(self, unet: UNet, t_star: int, steps: int) -> None:
        """See `purifier`."""
        super().__init__()
        self.unet, self.t_star, self.steps = unet, t_star, steps
        self.evaluations = steps or t_star
        self.register_buffer("betas", torch.linspace(1e-4, 0.02, 1000))
        self.register_buffer("left", torch.cumprod(1 - self.betas, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 1, 28, 28] in [0, 1] to purified ones."""
        left = self.left[self.t_star - 1]
        x = 2 * x - 1
        x = left.sqrt() * x + (1 - left).sqrt() * torch.randn_like(x)
        x = self.ddim(x) if self.steps else self.ancestral(x)
        return ((x + 1) / 2).clamp(0, 1)

    def eps(self, x: Tensor, t: int) -> Tensor:
        """The network's guess of the noise."""
        eps: Tensor = self.unet(x, torch.full((len(x), 1), t, device=x.device))
        return eps

    def ancestral(self, x: Tensor) -> Tensor:
        """Algorithm 2 of Ho et al. (2020), with variance beta."""
        for t in range(self.t_star - 1, -1, -1):
            beta, left = self.betas[t], self.left[t]
            x = (x - beta / (1 - left).sqrt() * self.eps(x, t)) / (1 - beta).sqrt()
            if t > 0:
                x = x + beta.sqrt() * torch.randn_like(x)
        return x

    def ddim(self, x: Tensor) -> Tensor:
        """DDIM with eta = 0 (Song, Meng and Ermon 2021, eq. 12)."""
        times = torch.linspace(self.t_star - 1, 0, self.steps + 1).long().tolist()[:-1]
        for t, after in zip(times, [*times[1:], -1], strict=True):
            eps, left = self.eps(x, t), self.left[t]
            x0 = ((x - (1 - left).sqrt() * eps) / left.sqrt()).clamp(-1, 1)
            there = self.left[after] if after >= 0 else torch.ones_like(left)
            x = there.sqrt() * x0 + (1 - there).sqrt() * eps
        return x


def purifier(weights: Path, t_star: int = 200, steps: int = 0) -> MnistDDPM:
    """The factory.

    Args:
        weights: a safetensors file.
        t_star: how much noise is added: as much as in step t* of 1000.
        steps: of DDIM; 0 for the whole ancestral chain.
    """
    unet = UNet()
    tensors = load_file(weights)
    unet.load_state_dict({name.removeprefix("network."): t for name, t in tensors.items()})
    return MnistDDPM(unet, t_star, steps).eval()
