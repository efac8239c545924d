"""Real libraries, unmodified, as purifiers: diffusers, torchsde and torchdiffeq under capture."""

import itertools
import math

import numpy as np
import pytest
import torch
from subjects import DIGITS, PROVENANCE, codes, grey_images, pick, run
from test_user_code import Unaligned, exact, head, steps_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from purify_audit.core.noise import Noise
from purify_audit.models.user_code.purifier import UserPurifier
from purify_audit.spec.architectures import CodeArgs
from purify_audit.spec.card import CodeCard

X = torch.from_numpy(grey_images(6).pixels.copy())
NOISE = Noise(9, (4, 4, 7, 7, 8, 8), (0, 0, 0, 1, 1, 1))
STEPS, T_STAR = 3, 300

diffusers = pytest.importorskip("diffusers", reason="diffusers is an extra")
torchsde = pytest.importorskip("torchsde", reason="torchsde is a test requirement")
torchdiffeq = pytest.importorskip("torchdiffeq", reason="torchdiffeq is a test requirement")


def user_purifier(call):
    about = CodeCard(
        name="test",
        image=DIGITS,
        provenance=PROVENANCE,
        network=CodeArgs(factory="tests:code"),
        randomised=True,
    )
    return UserPurifier(about, call)


def tiny_unet():
    torch.manual_seed(0)
    return (
        diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
        .eval()
        .requires_grad_(False)
    )


class Diffusers:
    """Noise to t*, then the library's own scheduler, step by step.

    Args:
        scheduler: `ddpm`, or `ddim` with eta = 1.
        checkpointed: recompute the network in the backward pass.
        generator: whether noise comes from an explicit generator, seeded in every call from the
            global one.
    """

    def __init__(self, scheduler, checkpointed=False, generator=False):
        self.unet, self.checkpointed, self.generator = tiny_unet(), checkpointed, generator
        kind = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}[scheduler]
        self.scheduler = kind(num_train_timesteps=1000, clip_sample=False)
        self.extra = {"eta": 1.0} if scheduler == "ddim" else {}

    def eps(self, x, t):
        return self.unet(x, t).sample

    def __call__(self, x):
        generator = None
        if self.generator:
            generator = torch.Generator().manual_seed(torch.seed() % 2**31)
        self.scheduler.set_timesteps(10)
        z = torch.randn(x.shape, generator=generator)
        x = self.scheduler.add_noise(2 * x - 1, z, torch.tensor([T_STAR]))
        for t in [t for t in self.scheduler.timesteps if t <= T_STAR][:STEPS]:
            eps = (
                checkpoint(self.eps, x, t, use_reentrant=False)
                if self.checkpointed
                else self.eps(x, t)
            )
            step = self.scheduler.step(eps, t, x, generator=generator, **self.extra)
            x = step.prev_sample
        return (x + 1) / 2


class Pipeline:
    """The library's whole sampling pipeline, under its own `no_grad`, mixed with the image."""

    def __init__(self):
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
        self.pipeline = diffusers.DDPMPipeline(tiny_unet(), scheduler)
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, x):
        made = self.pipeline(batch_size=len(x), num_inference_steps=3, output_type="np").images
        return 0.5 * x + 0.5 * torch.from_numpy(made).permute(0, 3, 1, 2)


class DiffPure(nn.Module):
    """Reverse VP-SDE by `torchsde.sdeint`, as DiffPure calls it (Nie et al. 2022).

    Args:
        solve: `torchsde.sdeint`, or `sdeint_adjoint`.
    """

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, solve=None):
        super().__init__()
        self.unet, self.solve = tiny_unet(), solve or torchsde.sdeint

    def f(self, t, x):
        beta = 0.1 + 19.9 * (1 - t)
        eps = self.unet(x.view(-1, 1, 8, 8), 999 * (1 - t)).sample.view(x.shape)
        left = math.exp(-0.1 * (1 - t.item()) - 9.95 * (1 - t.item()) ** 2)
        return 0.5 * beta * x - beta * eps / math.sqrt(1 - left)

    def g(self, t, x):
        return torch.sqrt(0.1 + 19.9 * (1 - t)) * torch.ones_like(x)

    def forward(self, x):
        noisy = 0.95 * (2 * x - 1) + math.sqrt(1 - 0.95**2) * torch.randn_like(x)
        flat = noisy.reshape(len(x), -1)
        times = torch.tensor([0.9, 1.0 - 1e-3])
        motion = torchsde.BrownianInterval(t0=times[0], t1=times[1], size=flat.shape)
        states = self.solve(self, flat, times, method="euler", dt=0.03, bm=motion)
        return (states[-1].view(x.shape) + 1) / 2


class Flow(nn.Module):
    """A noised start carried back by an ODE on a fixed grid, with `torchdiffeq.odeint`."""

    def __init__(self):
        super().__init__()
        self.unet = tiny_unet()

    def velocity(self, t, x):
        return self.unet(x, 999 * (1 - t)).sample

    def forward(self, x):
        start = 0.8 * (2 * x - 1) + 0.2 * torch.randn_like(x)
        times = torch.linspace(0.8, 1.0, 4)
        states = torchdiffeq.odeint(self.velocity, start, times, method="midpoint")
        return (states[-1] + 1) / 2


CODE = {
    "DDPMScheduler": lambda: Diffusers("ddpm"),
    "DDIMScheduler, eta 1": lambda: Diffusers("ddim"),
    "DDPMScheduler, generator": lambda: Diffusers("ddpm", generator=True),
    "DDPMPipeline": Pipeline,
    "torchsde": DiffPure,
    "torchdiffeq": Flow,
}
CHECKPOINTED = {
    "DDPMScheduler": lambda: Diffusers("ddpm", checkpointed=True),
    "DDIMScheduler, eta 1": lambda: Diffusers("ddim", checkpointed=True),
}
DIFFERENTIABLE = [name for name in CODE if name != "DDPMPipeline"]


@pytest.mark.parametrize("name", CODE)
def test_rows_are_the_same_in_any_batch(name):
    code = CODE[name]()
    whole = user_purifier(code)(X, NOISE)
    for size in (1, 4):
        purify = user_purifier(code)
        parts = [purify(X[n : n + size], NOISE[n : n + size]) for n in range(0, 6, size)]
        torch.testing.assert_close(torch.cat(parts), whole, atol=2e-5, rtol=0)
    assert not torch.allclose(user_purifier(code)(X, Noise(8, NOISE.images, NOISE.draws)), whole)


@pytest.mark.parametrize("name", CODE)
def test_whole_batches_are_purified_together(name):
    purify = user_purifier(CODE[name]())
    assert purify.handling(X).together == "batch"
    assert purify.findings() == []
    assert all(draw.per_row for draw in purify.capture_report(X) if draw.where)


@pytest.mark.parametrize("name", CODE)
def test_the_aligned_rate_is_far_below_what_fresh_noise_shows(name):
    settings = {"draws": 2, "directions": 2, "eps": (0.01,), "microbatch": 6}
    images, code = grey_images(3), CODE[name]()
    aligned = run(user_purifier(code), images, **settings)
    assert not {"PA101", "PA102", "PA107", "PA111"} & set(codes(aligned))
    fresh = run(Unaligned(code), images, measure_anyway=True, **settings)
    rate, seeming = (pick(o, "compression_rate", "l2").value for o in (aligned, fresh))
    print(f"{name}: {rate:.3f} aligned, {seeming:.3f} not, {seeming / rate:.1f} times")
    assert seeming > 3 * rate
    other = run(user_purifier(code), images, **(settings | {"microbatch": 4}))
    assert pick(other, "compression_rate", "l2").value == pytest.approx(rate, rel=1e-3)


def gradient(code, x=X):
    with torch.no_grad():
        return exact(steps_of(user_purifier(code), NOISE), head, x).at_input


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_those_of_central_differences(name):
    x, code = X.double(), CODE[name]()
    found, purify = gradient(code, x), user_purifier(code)
    along = NOISE.normal(77, (1, 8, 8)).double()
    along = along / along.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        up, down = (head(purify(x + h * along, NOISE))[0] for h in (1e-5, -1e-5))
    error = (up - down) / 2e-5 - (found * along).flatten(1).sum(1)
    assert float((error / found.flatten(1).norm(dim=1)).abs().max()) < 1e-5


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointing_changes_no_gradient(name):
    plain, checked = gradient(CODE[name]()), gradient(CHECKPOINTED[name]())
    assert torch.equal(plain, checked)
    assert plain.abs().max() > 0


def test_the_adjoint_solver_queries_the_same_brownian_motion_backwards():
    """Not the exact gradient (Nie et al. 2022, appendix), but of the same path: nearly so."""
    torch.manual_seed(0)
    adjoint = gradient(DiffPure(torchsde.sdeint_adjoint))
    again = gradient(DiffPure(torchsde.sdeint_adjoint))
    true = gradient(DiffPure())
    assert torch.equal(adjoint, again)
    cosine = nn.functional.cosine_similarity(adjoint.flatten(1), true.flatten(1))
    assert float(cosine.min()) > 0.9


def test_a_brownian_path_asked_again_answers_again():
    from purify_audit.models.user_code.capture import Capture

    with Capture(NOISE):
        np.random.seed(3)  # noqa: NPY002
        motion = torchsde.BrownianInterval(t0=0.0, t1=1.0, size=(6, 4), cache_size=1)
        times = torch.linspace(0, 1, 17)
        forth = [motion(a, b) for a, b in itertools.pairwise(times)]
        back = [motion(a, b) for a, b in reversed(list(itertools.pairwise(times)))]
        whole = motion(0.0, 1.0)
    for a, b in zip(forth, reversed(back)):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(sum(forth), whole)
    other = torch.stack(forth).flatten(2)
    assert not torch.allclose(other[:, 0], other[:, 2])
