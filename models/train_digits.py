"""Train the shipped digits models: `python models/train_digits.py NAME`.

Seeded and rerunnable; one thread, so that the same torch build gives the same weights. Each model
is trained on the 1,347 digits of `digits:train` and measured on the 450 of `digits`, which it
never sees. Writes models/digits-<name>.safetensors and prints what was measured.
"""

import platform
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from training import Recipe, train_autoencoder_on, train_denoiser

from purify_audit.core.noise import Noise
from purify_audit.images.image_set import load_images
from purify_audit.models.checkpoint import read_checkpoint, save_checkpoint
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.networks import build_network
from purify_audit.spec.architectures import AutoencoderArgs, CnnArgs, UNetArgs
from purify_audit.spec.card import (
    ClassifierCard,
    DiffusionCard,
    FeedforwardCard,
    ImageSpec,
    Provenance,
)
from purify_audit.spec.samplers import DDPMSampler, LinearSchedule

SEED = 0
HERE = Path(__file__).parent
IMAGE = ImageSpec(channels=1, height=8, width=8)


def provenance(name: str) -> Provenance:
    return Provenance(
        data="digits:train (1,347 of the UCI handwritten digits, 8x8)",
        command=f"python models/train_digits.py {name}",
        licence="Apache-2.0",
        source="trained for purify-audit",
    )


def pixels(source: str) -> tuple[Tensor, Tensor]:
    images = load_images(source)
    assert images.labels is not None
    return torch.from_numpy(images.pixels.copy()), torch.from_numpy(images.labels.copy())


def train_ddpm() -> None:
    card = DiffusionCard(
        name="digits-ddpm",
        image=IMAGE,
        provenance=provenance("ddpm"),
        network=UNetArgs(width=32, multipliers=(1, 2), blocks=1),
        prediction="eps",
        time_conditioning="index",
        schedule=LinearSchedule(),
        data_range=(-1.0, 1.0),
        t_star=60,
        sampler=DDPMSampler(),
    )
    x = pixels("digits:train")[0]
    steps = card.schedule.steps
    weights = train_denoiser(
        card,
        Recipe(iterations=20_000, rate=2e-3, clip=1.0),
        lambda step: x[torch.randint(len(x), (128,))],
        lambda count: torch.randint(steps, (count,)),
    )
    save_checkpoint(HERE / "digits-ddpm.safetensors", card, weights)


def train_autoencoder() -> None:
    card = FeedforwardCard(
        name="digits-autoencoder",
        image=IMAGE,
        provenance=provenance("autoencoder"),
        network=AutoencoderArgs(widths=(32, 64)),
    )
    x = pixels("digits:train")[0]
    weights = train_autoencoder_on(
        card,
        Recipe(iterations=6_000, rate=2e-3),
        lambda step: x[torch.randint(len(x), (128,))],
        highest_sigma=0.3,
    )
    save_checkpoint(HERE / "digits-autoencoder.safetensors", card, weights)


CLASSIFIERS = {  # network, and the standard deviation of the noise it is trained with
    "classifier": (CnnArgs(widths=(32, 64, 64), hidden=64), 0.05),
    "classifier-small": (CnnArgs(widths=(16, 32), hidden=32), 0.0),
}


def train_classifier(name: str) -> None:
    iterations, batch = 4_000, 128
    args, sigma = CLASSIFIERS[name]
    card = ClassifierCard(
        name=f"digits-{name}",
        image=IMAGE,
        provenance=provenance(name),
        network=args,
        classes=10,
        mean=(0.5,),
        std=(0.5,),
    )
    x, y = pixels("digits:train")
    network = build_network(card)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=iterations)
    for step in range(iterations):
        rows = torch.randint(len(x), (batch,))
        noisy = x[rows] + sigma * torch.randn(batch, *IMAGE.shape)
        loss = F.cross_entropy(network((noisy - 0.5) / 0.5), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        if step % 1000 == 999:
            print(f"step {step + 1}: loss {loss.item():.5f}", flush=True)
    save_checkpoint(HERE / f"digits-{name}.safetensors", card, network.state_dict())


@torch.inference_mode()
def measure(name: str) -> None:
    """Print what the model's card page states."""
    cpu = torch.device("cpu")
    x, y = pixels("digits")
    checkpoint = read_checkpoint(HERE / f"digits-{name}.safetensors")
    print(f"{checkpoint.parameters} parameters, sha256 {checkpoint.sha256}")
    own = name in CLASSIFIERS
    judge_file = HERE / f"digits-{name if own else 'classifier'}.safetensors"
    if not judge_file.exists():
        return
    classifier = load_classifier(read_checkpoint(judge_file), cpu)
    print(f"classifier on held-out digits: {(classifier(x).argmax(1) == y).float().mean():.4f}")
    if own:
        return
    noise = Noise(SEED, tuple(range(len(x))), (0,) * len(x))
    for t_star in (20, 60, 100, 200, 300) if name == "ddpm" else (0,):
        card = checkpoint.card.model_copy(update={"t_star": t_star}) if t_star else checkpoint.card
        purifier = load_purifier(checkpoint, cpu, card)  # type: ignore[arg-type]
        purified = purifier(x, noise)
        right = (classifier(purified).argmax(1) == y).float().mean()
        error = F.mse_loss(purified, x).sqrt()
        print(f"t* {t_star}: anchor accuracy {right:.4f}, rms distance to the clean {error:.4f}")


def main() -> None:
    train = {"ddpm": train_ddpm, "autoencoder": train_autoencoder}
    train |= {name: partial(train_classifier, name) for name in CLASSIFIERS}
    if len(sys.argv) != 2 or sys.argv[1] not in train:
        sys.exit(f"usage: python models/train_digits.py {'|'.join(train)}")
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    start = time.monotonic()
    train[sys.argv[1]]()
    seconds = time.monotonic() - start
    print(
        f"trained in {seconds:.0f} s, {platform.machine()}, one thread, torch {torch.__version__}"
    )
    measure(sys.argv[1])


if __name__ == "__main__":
    main()
