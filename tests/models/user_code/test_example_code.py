"""The example of a purifier in research code, on the published weights that it is written for."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from subjects import codes, pick, run

from purify_audit.core.noise import Noise
from purify_audit.images.image_set import ImageSet
from purify_audit.models.convert import attach_card
from purify_audit.models.load import load_classifier
from purify_audit.models.user_code.factory import purifier_from_factory
from purify_audit.spec.architectures import CodeArgs

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data"
WEIGHTS = DATA / "ddpm_mnist.safetensors"
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="the published weights are not here")


def images(first, last):
    """Official MNIST test images; idx files have headers of 16 and 8 bytes."""
    pixels, labels = (
        gzip.decompress((DATA / f"mnist_t10k-{name}-ubyte.gz").read_bytes())
        for name in ("images-idx3", "labels-idx1")
    )
    x = np.frombuffer(pixels, np.uint8, 784 * (last - first), 16 + 784 * first)
    y = np.frombuffer(labels, np.uint8, last - first, 8 + first).astype(np.int64)
    x = np.true_divide(x.reshape(-1, 1, 28, 28), np.float32(255), dtype=np.float32)
    return ImageSet(x, y, np.arange(first, last), "mnist")


def example(**arguments):
    given = {"weights": str(WEIGHTS)} | {name: str(value) for name, value in arguments.items()}
    spec = f"{ROOT / 'examples' / 'mnist_ddpm.py'}:purifier"
    return purifier_from_factory(CodeArgs(factory=spec, arguments=given), CPU)


@pytest.mark.parametrize(("t", "square"), [(20, 0.15), (200, 0.05), (900, 0.005)])
def test_the_network_is_the_one_that_was_trained(t, square):
    """Its mean squared error of the noise falls with the noise's share; zero has 1."""
    _, purifier = example(steps=1)
    model, some = purifier.code, images(0, 64)
    x = 2 * torch.from_numpy(some.pixels.copy()) - 1
    z = Noise(0, tuple(range(64)), (0,) * 64).normal(0, (1, 28, 28))
    with torch.no_grad():
        guess = model.eps(model.left[t].sqrt() * x + (1 - model.left[t]).sqrt() * z, t)
    assert float((guess - z).square().mean()) < square


@pytest.mark.parametrize("steps", [1, 10])
def test_digits_are_still_read_after_it(steps, tmp_path):
    """Official images 1000 … 1099; 98.5% of the first 1000 with ten steps."""
    weights, card = DATA / "mnist_lenet5_clntrained.safetensors", "examples/mnist-lenet5.json"
    classifier = load_classifier(attach_card(weights, ROOT / card, tmp_path / "c", CPU), CPU)
    _, purifier = example(t_star=200, steps=steps)
    some = images(1000, 1100)
    with torch.inference_mode():
        x = torch.from_numpy(some.pixels.copy())
        y = purifier(x, Noise(0, tuple(range(100)), (0,) * 100))
        right = (classifier(y).argmax(1).numpy() == some.labels).sum()
    assert right >= 96


def test_its_card_says_what_it_costs():
    card, purifier = example(t_star=30)
    assert (card.evaluations, card.randomised, card.image.shape) == (30, True, (1, 28, 28))
    (drawn, step) = purifier.capture_report(torch.zeros(1, 1, 28, 28))
    assert (drawn.count, step.count) == (1, 29)
    assert "mnist_ddpm.py:" in drawn.where


def test_it_is_audited_without_a_finding():
    some = images(0, 4)
    _, purifier = example(steps=2)
    aligned = run(purifier, some, draws=2, directions=2, eps=(0.1,), microbatch=12)
    assert not {"PA101", "PA102", "PA107", "PA111", "PA112", "PA113"} & set(codes(aligned))
    rate = pick(aligned, "compression_rate", "l2").value
    print(f"{rate:.3f} aligned, {pick(aligned, 'unaligned_ratio', 'l2').value:.3f} not")
    assert rate < 0.6
    assert pick(aligned, "unaligned_ratio", "l2").value > 2 * rate
