"""Chains against loops over the `step` of diffusers' own schedulers, under the same noise.

The schedulers keep their schedule in float32; here they are given ours, so that what is compared is
the arithmetic of a step (one test leaves them as they are).
"""

import numpy as np
import pytest
import torch
from oracles import Script, diffusion_card, literal_abar
from pydantic import ValidationError
from torch import nn

from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.purifiers.schedule import reverse_indices
from purify_audit.spec.card import ImageSpec
from purify_audit.spec.samplers import DDIMSampler, DDPMSampler, LinearSchedule

diffusers = pytest.importorskip("diffusers", reason="no diffusers: install the extra")

SHAPE = (2, 2, 2, 2)
IMAGE = ImageSpec(channels=2, height=2, width=2)
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "fixed-small",
    "fixed_large": "fixed-large",
    "learned_range": "learned-range",
}
SHORT = {"num_train_timesteps": 60, "beta_start": 0.002, "beta_end": 0.3}
SHORT_SCHEDULE = LinearSchedule(steps=60, beta_start=0.002, beta_end=0.3)
GRIDS = [
    ("leading", 12, 0),
    ("leading", 12, 4),
    ("leading", 7, 3),
    ("trailing", 12, 0),
    ("trailing", 12, 1),  # the offset is of leading spacing
    ("linspace", 7, 0),
    ("linspace", 1, 0),
]


class Waves(nn.Module):
    """A prediction that drives pixels out of range, for clipping to bite; perhaps variances too."""

    def __init__(self, learned=False):
        super().__init__()
        self.learned = learned

    def forward(self, x, t):
        out = 0.5 - torch.sin(1.7 * x + 0.01 * t[:, None, None, None]) + 0.3 * x.flip(1)
        return torch.cat((out, torch.cos(2.0 * x)), 1) if self.learned else out


def scheduler_of(kind, exactly=None, **config):
    scheduler = kind(**{"beta_schedule": "linear", **config})
    if exactly is not None:
        scheduler.alphas_cumprod = torch.tensor(literal_abar(exactly), dtype=torch.float64)
    return scheduler


def normals(count, seed=4):
    """What `DDPMScheduler` draws from a generator of this seed, one step after the other."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


def start():
    rng = np.random.default_rng(0)
    return (torch.from_numpy(rng.uniform(size=SHAPE)), torch.from_numpy(rng.normal(size=SHAPE)))


def noised(scheduler, timestep):
    """By arithmetic in float64: `add_noise` would round what we gave the scheduler."""
    pixels, e = start()
    abar = scheduler.alphas_cumprod[timestep].double()
    return abar.sqrt() * (2.0 * pixels - 1.0) + (1.0 - abar).sqrt() * e


def theirs_ddpm(scheduler, timesteps, network):
    generator = torch.Generator().manual_seed(4)
    x = noised(scheduler, timesteps[0])
    for t in timesteps:
        out = network(x, torch.full((len(x),), float(t), dtype=x.dtype))
        x = scheduler.step(out, t, x, generator=generator).prev_sample
    return x


def theirs_ddim(scheduler, timesteps, network, **how):
    x = noised(scheduler, timesteps[0])
    for t, z in zip(timesteps, normals(len(timesteps)), strict=True):
        out = network(x, torch.full((len(x),), float(t), dtype=x.dtype))
        noise = {"variance_noise": z} if how["eta"] else {}
        x = scheduler.step(out, t, x, **noise, **how).prev_sample
    return x


def ours(sampler, network, steps, **settings):
    """A purification, back in the data range; `steps` as many normals as the chain may read."""
    card = diffusion_card(sampler, image=IMAGE, learned_variance=network.learned, **settings)
    pixels, e = start()
    script = Script(torch.stack((e, *normals(steps)), 1))
    return 2.0 * DiffusionPurifier(card, network)(pixels, script) - 1.0


def same(got, want, tolerance=1e-10):
    assert want.abs().max() > 0.1
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


# --- from t* = 50 -------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", VARIANCES)
def test_ddpm_from_50(variance, clip, prediction):
    network = Waves(learned=variance == "learned_range")
    config = {"variance_type": variance, "clip_sample": clip, "prediction_type": prediction}
    scheduler = scheduler_of(diffusers.DDPMScheduler, LinearSchedule(), **config)
    sampler = DDPMSampler(variance=VARIANCES[variance], clip=clip, clamp=False)
    got = ours(sampler, network, 50, t_star=50, prediction=PREDICTIONS[prediction])
    same(got, theirs_ddpm(scheduler, range(49, -1, -1), network))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("clipped_eps", [False, True])
def test_ddim_from_50(eta, clip, prediction, clipped_eps):
    network = Waves()
    config = {"clip_sample": clip, "prediction_type": prediction}
    scheduler = scheduler_of(diffusers.DDIMScheduler, LinearSchedule(), **config)
    scheduler.set_timesteps(1000)
    sampler = DDIMSampler(eta=eta, clip=clip, clipped_eps=clipped_eps, clamp=False)
    got = ours(sampler, network, 50, t_star=50, prediction=PREDICTIONS[prediction])
    how = {"eta": eta, "use_clipped_model_output": clip and clipped_eps}
    same(got, theirs_ddim(scheduler, range(49, -1, -1), network, **how))


def test_schedulers_as_they_come():
    """Their float32 schedule moves the fifty steps by a few millionths."""
    network, scheduler = Waves(), scheduler_of(diffusers.DDPMScheduler)
    want = theirs_ddpm(scheduler, range(49, -1, -1), network)
    same(ours(DDPMSampler(clamp=False), network, 50, t_star=50), want, tolerance=1e-4)


def test_a_chain_that_clips_and_one_that_keeps_its_noise_differ():
    """What is compared above makes a difference."""
    chains = [
        ours(DDIMSampler(clip=clip, clipped_eps=anew, clamp=False), Waves(), 50, t_star=50)
        for clip, anew in ((False, True), (True, True), (True, False))
    ]
    for n, chain in enumerate(chains):
        for other in chains[:n]:
            assert (chain - other).abs().max() > 1e-3


# --- grids over the whole schedule --------------------------------------------------------------


@pytest.mark.parametrize(("spacing", "steps", "offset"), GRIDS)
@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
def test_grids_are_the_schedulers(scheduler, spacing, steps, offset):
    for length in (60, 1000):
        config = {"timestep_spacing": spacing, "steps_offset": offset}
        theirs = getattr(diffusers, scheduler)(num_train_timesteps=length, **config)
        if spacing == "trailing" and length % steps:
            continue
        theirs.set_timesteps(steps)
        assert list(reverse_indices(length, steps, None, spacing, offset)) == [*theirs.timesteps]


def test_the_end_of_a_grid_is_a_stride_from_t_star():
    """As the image-to-image pipelines of diffusers use a grid over the whole schedule."""
    for spacing, offset, t_star in (("leading", 1, 82), ("leading", 0, 81), ("trailing", 0, 100)):
        config = {"timestep_spacing": spacing, "steps_offset": offset}
        scheduler = diffusers.DDIMScheduler(**config)
        scheduler.set_timesteps(50)
        assert list(reverse_indices(t_star, None, 20)) == [*scheduler.timesteps[-5:]]


@pytest.mark.parametrize(("spacing", "steps", "offset"), GRIDS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_ddpm_over_grids(spacing, steps, offset, variance):
    """In the last jump, to the image, ours never adds noise.

    Nor do theirs from index 0, nor with the small variance; from another index their other two
    variances do.
    """
    network = Waves(learned=variance == "learned_range")
    config = {"timestep_spacing": spacing, "steps_offset": offset, "variance_type": variance}
    scheduler = scheduler_of(diffusers.DDPMScheduler, SHORT_SCHEDULE, **SHORT, **config)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    want = theirs_ddpm(scheduler, timesteps, network)
    sampler = DDPMSampler(
        variance=VARIANCES[variance], steps=steps, spacing=spacing, offset=offset, clamp=False
    )
    got = ours(sampler, network, steps, t_star=60, schedule=SHORT_SCHEDULE)
    last = timesteps[-1]
    if variance == "fixed_large" and last > 0:
        abar = float(scheduler.alphas_cumprod[last])
        want = want - (1.0 - abar) ** 0.5 * normals(steps)[-1]
    if variance != "learned_range" or last == 0:
        same(got, want, tolerance=1e-9)  # they limit a variance of 0 to 1e-20
    else:
        assert (got - want).abs().max() > 1e-12


@pytest.mark.parametrize(("spacing", "steps", "offset"), GRIDS[:2] + GRIDS[3:5])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_over_grids(spacing, steps, offset, eta):
    """Theirs jumps floor(N / n) indices whatever its grid: grids of other jumps are left out."""
    network = Waves()
    config = {"timestep_spacing": spacing, "steps_offset": offset}
    scheduler = scheduler_of(diffusers.DDIMScheduler, SHORT_SCHEDULE, **SHORT, **config)
    scheduler.set_timesteps(steps)
    sampler = DDIMSampler(
        eta=eta, steps=steps, spacing=spacing, offset=offset, clipped_eps=False, clamp=False
    )
    got = ours(sampler, network, steps, t_star=60, schedule=SHORT_SCHEDULE)
    same(got, theirs_ddim(scheduler, scheduler.timesteps.tolist(), network, eta=eta))


def test_a_leading_grid_beyond_t_star_is_refused():
    sampler = DDPMSampler(steps=12, spacing="leading", offset=5)
    with pytest.raises(ValidationError, match=r"offset 5 begin at index 60, .* t_star is 59"):
        diffusion_card(sampler, schedule=SHORT_SCHEDULE, t_star=60)
    for unspaced in ({}, {"stride": 5}):  # every index, or a stride: they have no use for either
        sampler = DDIMSampler(spacing="leading", offset=5, **unspaced)
        assert diffusion_card(sampler, schedule=SHORT_SCHEDULE, t_star=60)
