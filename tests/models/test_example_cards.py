"""The cards in examples/, with the published weights they are for.

The weights and images are no part of the project: a test is skipped where they are absent.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from purify_audit.core.noise import Noise
from purify_audit.models.checkpoint import read_header
from purify_audit.models.convert import attach_card
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.networks import build_network
from purify_audit.spec.card import parse_card

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = Path(__file__).parents[3] / "shared" / "data"
CPU = torch.device("cpu")

# Card -> weights.
PUBLISHED = {
    "cifar10-resnet20": "cifar10_resnet20",
    "cifar10-resnet56": "cifar10_resnet56",
    "mnist-lenet5": "mnist_lenet5_clntrained",
    "mnist-conv-small": "mnist_conv_small_nat",
    "dncnn-25-gray-cifar10": "dncnn_25_gray",
    "cifar10-autoencoder": "cifar10_autoencoder_chenjie",
}


def present(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return path


@pytest.fixture
def attached(tmp_path):
    """Card -> the native checkpoint that `purify-audit attach` makes of it and its weights."""

    def attach(card):
        weights = present(f"{PUBLISHED[card]}.safetensors")
        return attach_card(weights, EXAMPLES / f"{card}.json", tmp_path / "out.safetensors", CPU)

    return attach


def cifar_test(start, end):
    """float32 pixels in [0, 1] and labels of official test images."""
    with np.load(present("cifar10_test_lossless_1178.npz")) as data:
        x, y = data["x"][start:end], data["y"][start:end]
    x = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255.0
    return x, torch.from_numpy(y.astype(np.int64))


def mnist_test(count):
    """The same of the first MNIST test images, 28 x 28; idx files have headers of 16 and 8."""
    pixels = gzip.decompress(present("mnist_t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress(present("mnist_t10k-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(pixels, np.uint8, count * 28 * 28, 16).reshape(count, 1, 28, 28)
    y = np.frombuffer(labels, np.uint8, count, 8).astype(np.int64)
    return torch.from_numpy(x.astype(np.float32) / 255.0), torch.from_numpy(y)


def right(checkpoint, x, y):
    """How many images a checkpoint classifies as they are labelled."""
    classifier = load_classifier(checkpoint, CPU)
    with torch.inference_mode():
        logits = torch.cat([classifier(part) for part in x.split(200)])
    return int((logits.argmax(1) == y).sum())


def mean_square(a, b):
    return float((a - b).square().mean())


def test_every_example_is_listed_here():
    assert {path.stem for path in EXAMPLES.glob("*.json")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_examples_are_cards_of_their_names(name):
    text = (EXAMPLES / f"{name}.json").read_text()
    card = parse_card(text, name)
    assert card.name == name
    assert card.provenance.source
    assert "/work" not in text
    with torch.device("meta"):
        build_network(card)


@pytest.mark.parametrize("name", PUBLISHED)
def test_licence_and_source_are_those_of_the_weights(name):
    metadata = read_header(present(f"{PUBLISHED[name]}.safetensors"))["__metadata__"]
    provenance = json.loads((EXAMPLES / f"{name}.json").read_text())["provenance"]
    assert provenance["licence"] == metadata["licence"]
    assert provenance["source"] == metadata["origin"].partition("@")[0]


# Images classified as labelled, of the first 200 and of all 1,178.
@pytest.mark.parametrize(("name", "count"), [("cifar10-resnet20", 182), ("cifar10-resnet56", 188)])
def test_cifar_classifiers(name, count, attached):
    assert right(attached(name), *cifar_test(0, 200)) == pytest.approx(count, abs=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"), [("cifar10-resnet20", 0.916), ("cifar10-resnet56", 0.930)]
)
def test_cifar_classifiers_on_all_images(name, share, attached):
    assert right(attached(name), *cifar_test(0, 1178)) / 1178 == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize(("name", "count"), [("mnist-lenet5", 495), ("mnist-conv-small", 492)])
def test_mnist_classifiers(name, count, attached):
    assert count >= 0.97 * 500
    assert right(attached(name), *mnist_test(500)) == pytest.approx(count, abs=1)


def test_dncnn_removes_most_of_the_noise_it_was_made_for(attached):
    """0.0097 before, a quarter of it after, though it was trained on grey photographs."""
    purifier = load_purifier(attached("dncnn-25-gray-cifar10"), CPU)
    assert purifier.card.sigma == 25 / 255
    assert purifier.evaluations == 3
    (x, _), noise = cifar_test(0, 16), Noise(0, tuple(range(16)), (0,) * 16)
    noisy = x + 25 / 255 * noise.normal(0, (3, 32, 32))
    with torch.inference_mode():
        clean = purifier(x, noise)
    assert mean_square(noisy, x) == pytest.approx((25 / 255) ** 2, rel=0.03)
    assert mean_square(clean, x) == pytest.approx(0.00233, rel=0.02)


def test_the_autoencoder_reconstructs(attached):
    """A tenth of the squared distance to each image's own mean colour is left."""
    purifier = load_purifier(attached("cifar10-autoencoder"), CPU)
    assert not purifier.randomised
    x, _ = cifar_test(0, 200)
    with torch.inference_mode():
        y = purifier(x, Noise(0, (0,) * 200, (0,) * 200))
    assert mean_square(y, x) == pytest.approx(0.00464, rel=0.02)
    assert mean_square(y, x) < 0.11 * mean_square(x.mean((2, 3), keepdim=True), x)
