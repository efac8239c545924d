"""Train the shipped CIFAR-10 purifiers, from images given by path.

    python models/train_cifar10.py ddpm --jpeg JPEG.npz --train TRAIN.npz
    python models/train_cifar10.py autoencoder --jpeg JPEG.npz --train TRAIN.npz
    python models/train_cifar10.py measure --test TEST.npz --classifier RESNET.safetensors

JPEG.npz holds JPEG files (`data` uint8, `offsets` int64): enough of them to learn from, but with
artefacts that a purifier should not learn to draw; so the last part of the training reads mostly
the lossless images of TRAIN.npz (`x` uint8 [n, 32, 32, 3]). Seeded; one thread, so that the same
torch build on the same kind of processor gives the same weights.
"""

import argparse
import io
import platform
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from training import Images, Recipe, train_autoencoder_on, train_denoiser

from purify_audit.core.noise import Noise
from purify_audit.images.image_set import load_images
from purify_audit.models.checkpoint import load_tensors, read_checkpoint, save_checkpoint
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.spec.architectures import AutoencoderArgs, UNetArgs
from purify_audit.spec.card import DiffusionCard, FeedforwardCard, ImageSpec, Provenance
from purify_audit.spec.samplers import DDIMSampler, LinearSchedule

SEED = 0
HERE = Path(__file__).parent
IMAGE = ImageSpec(channels=3, height=32, width=32)
BATCH = 64
NOISIEST = 300  # the network is trained, and denoises, up to this index of the schedule


def provenance(name: str) -> Provenance:
    return Provenance(
        data="CIFAR-10 training images (Krizhevsky 2009): 50,000 as JPEG, 7,728 of them lossless",
        command=f"python models/train_cifar10.py {name} --jpeg JPEG.npz --train TRAIN.npz",
        licence="Apache-2.0",
        source="trained for purify-audit",
    )


def ddpm_card() -> DiffusionCard:
    return DiffusionCard(
        name="cifar10-ddpm",
        image=IMAGE,
        provenance=provenance("ddpm"),
        network=UNetArgs(width=64, multipliers=(1, 2), blocks=2, patch=2),
        prediction="eps",
        time_conditioning="index",
        schedule=LinearSchedule(),
        data_range=(-1.0, 1.0),
        t_star=75,
        sampler=DDIMSampler(steps=5),  # picked on training images
    )


def autoencoder_card() -> FeedforwardCard:
    return FeedforwardCard(
        name="cifar10-autoencoder",
        image=IMAGE,
        provenance=provenance("autoencoder"),
        network=AutoencoderArgs(widths=(32, 64)),
    )


def read_jpegs(path: Path) -> Tensor:
    """uint8 [n, 3, 32, 32]."""
    with np.load(path, allow_pickle=False) as stored:
        data, offsets = stored["data"], stored["offsets"].tolist()
    files = (data[a:b].tobytes() for a, b in pairwise(offsets))
    images = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def batches(jpeg: Path, train: Path, iterations: int) -> Images:
    """One lossless image in five at first, and 85% of them in the last two fifths; mirrored."""
    many = read_jpegs(jpeg)
    with np.load(train, allow_pickle=False) as stored:
        good = torch.from_numpy(stored["x"].transpose(0, 3, 1, 2).copy())

    def batch(step: int) -> Tensor:
        lossless = torch.rand(BATCH) < (0.2 if step < 0.6 * iterations else 0.85)
        of_many, of_good = torch.randint(len(many), (BATCH,)), torch.randint(len(good), (BATCH,))
        x = torch.where(lossless[:, None, None, None], good[of_good], many[of_many])
        mirrored = torch.rand(BATCH)[:, None, None, None] < 0.5
        return torch.where(mirrored, x.flip(3), x).float() / 255.0

    return batch


def train_ddpm(jpeg: Path, train: Path, iterations: int) -> None:
    """Times up to t* = 300, small ones more often: that is where purifiers work."""
    card = ddpm_card()
    weights = train_denoiser(
        card,
        Recipe(iterations, rate=1e-3, clip=1.0, bfloat16=True),
        batches(jpeg, train, iterations),
        lambda count: (NOISIEST * torch.rand(count) ** 1.5).long(),
    )
    save_checkpoint(HERE / "cifar10-ddpm.safetensors", card, weights)


def train_autoencoder(jpeg: Path, train: Path, iterations: int) -> None:
    card = autoencoder_card()
    weights = train_autoencoder_on(
        card,
        Recipe(iterations, rate=1e-3, bfloat16=True),
        batches(jpeg, train, iterations),
        highest_sigma=0.15,
    )
    save_checkpoint(HERE / "cifar10-autoencoder.safetensors", card, weights)


def attach_ddpm() -> None:
    """Write the card anew, after a change of its sampler, and keep the weights."""
    path = HERE / "cifar10-ddpm.safetensors"
    save_checkpoint(path, ddpm_card(), load_tensors(read_checkpoint(path)))


@torch.inference_mode()
def measure(test: Path, judge: Path) -> None:
    """Print anchor accuracy on official test images 0 to 999, one draw each."""
    cpu = torch.device("cpu")
    images = load_images(str(test)).select(list(range(1000)))
    assert images.labels is not None
    x, y = torch.from_numpy(images.pixels.copy()), torch.from_numpy(images.labels.copy())
    classifier = load_classifier(read_checkpoint(judge), cpu)
    print(f"{judge.name}, unpurified: {(classifier(x).argmax(1) == y).float().mean():.4f}")
    for name in ("cifar10-ddpm", "cifar10-autoencoder"):
        checkpoint = read_checkpoint(HERE / f"{name}.safetensors")
        print(f"{name}: {checkpoint.parameters} parameters, sha256 {checkpoint.sha256}")
        card = checkpoint.card
        assert isinstance(card, DiffusionCard | FeedforwardCard)
        for t_star in (25, 50, 75, 100, 150, 200, 300) if isinstance(card, DiffusionCard) else (0,):
            changed = card.model_copy(update={"t_star": t_star}) if t_star else card
            purifier = load_purifier(checkpoint, cpu, changed)
            out = torch.cat(
                [
                    purifier(x[i : i + 250], Noise(SEED, tuple(range(i, i + 250)), (0,) * 250))
                    for i in range(0, len(x), 250)
                ]
            )
            right = (classifier(out).argmax(1) == y).float().mean()
            error = F.mse_loss(out, x).sqrt()
            print(
                f"  t* {t_star}: anchor accuracy {right:.4f}, rms distance {error:.4f}", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("ddpm", "autoencoder", "attach", "measure"))
    for name in ("jpeg", "train", "test", "classifier"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--iterations", type=int)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    start = time.monotonic()
    match args.what:
        case "ddpm":
            train_ddpm(args.jpeg, args.train, args.iterations or 9_000)
        case "autoencoder":
            train_autoencoder(args.jpeg, args.train, args.iterations or 4_000)
        case "attach":
            attach_ddpm()
        case _:
            measure(args.test, args.classifier)
    print(
        f"{time.monotonic() - start:.0f} s, one thread, {platform.machine()},"
        f" torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
