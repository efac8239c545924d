"""Networks that spandrel detects: what is asked of it, and what is refused.

Spandrel needs a torchvision that fits torch, so most tests bring a module of that name which has
the few members that are used; one runs with the real one where it can be imported.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from network_checks import check_gradients, check_rows_apart, images
from torch import nn

from purify_audit.core.errors import CardError, CheckpointError
from purify_audit.models.networks.restoration import DnCNN
from purify_audit.models.networks.spandrel_model import spandrel_network
from purify_audit.spec.architectures import DnCNNArgs

SHAPE = (3, 6, 7)


class Descriptor:
    """As spandrel's: runs without gradients, may do more than its model, and clamps."""

    def __init__(self, model, scale=1, channels=(3, 3), call=None):
        self.model, self.scale = model, scale
        self.input_channels, self.output_channels = channels
        self.architecture = SimpleNamespace(name="Test\nNet")
        self.call = call or (lambda model, image: model(image))

    @torch.inference_mode()
    def __call__(self, image):
        return self.call(self.model, image).clamp_(0, 1)


@pytest.fixture
def detects(monkeypatch):
    """descriptor or exception -> the states that spandrel was given, once it has been asked."""

    def install(found):
        given = []

        class ModelLoader:
            def __init__(self, device=None):
                assert device == "cpu"

            def load_from_state_dict(self, state):
                given.append(state)
                torch.rand(3)  # weights drawn before they are replaced
                if isinstance(found, Exception):
                    raise found
                return found

        module = ModuleType("spandrel")
        module.ModelLoader = ModelLoader
        monkeypatch.setitem(sys.modules, "spandrel", module)
        return given

    return install


def conv(inputs=3, outputs=3, **sizes):
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **sizes})


def test_the_model_itself_is_taken(detects):
    model, state = nn.Sequential(conv(), nn.Dropout(0.5)).train(), {"0.weight": torch.ones(1)}
    given = detects(Descriptor(model))
    network = spandrel_network(state, SHAPE, "weights.safetensors")
    assert given == [state]
    assert network is model
    assert not network.training
    assert not [p for p in network.parameters() if p.requires_grad]
    x = images(3, SHAPE) * 4.0 - 2.0
    assert network(x).min() < 0.0  # a descriptor clamps
    check_rows_apart(network, x)
    check_gradients(network.requires_grad_(True), network, x)


def test_no_random_state_is_used_up(detects):
    detects(Descriptor(conv()))
    before = torch.get_rng_state()
    spandrel_network({}, SHAPE, "w")
    assert torch.equal(torch.get_rng_state(), before)


def fault(error=CheckpointError, shape=SHAPE):
    with pytest.raises(error) as raised:
        spandrel_network({}, shape, "w.safetensors")
    message = str(raised.value)
    assert raised.value.exit_code == 2
    assert message.startswith("w.safetensors: ")
    assert message.isprintable()
    return message.removeprefix("w.safetensors: ")


def test_tensors_that_spandrel_does_not_know(detects):
    detects(RuntimeError("unsupported\x1b[31m\nmore"))
    assert fault() == (
        r"spandrel cannot use these tensors (RuntimeError: unsupported\x1b[31m); name their"
        " architecture on the card, or wrap it in a factory of your own"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 4}, "has scale 4 and maps 3 channels to 3,"),
        ({"channels": (1, 3)}, "has scale 1 and maps 1 channels to 3,"),
        ({"channels": (3, 1)}, "has scale 1 and maps 3 channels to 1,"),
        ({"channels": (1, 1)}, "has scale 1 and maps 1 channels to 1,"),
    ],
)
def test_what_maps_images_to_others(changes, message, detects):
    detects(Descriptor(conv(), **changes))
    found = fault()
    assert found.startswith(rf"the Test\nNet network that spandrel detects {message}")
    assert found.endswith(
        "where the card needs scale 1 and 3 to 3; correct the card's channels or per_channel, or"
        " take other weights"
    )


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Halves(nn.Module):
    """Takes only what can be halved."""

    def forward(self, x):
        return nn.functional.pixel_shuffle(nn.functional.pixel_unshuffle(x, 2), 2)


@pytest.mark.parametrize(
    ("model", "call"),
    [
        (conv(4), lambda model, x: model(torch.cat((x, x[:, :1]), 1))),  # a level of its own choice
        (conv(), lambda model, x: x - model(x)),
        (conv(), lambda model, x: model(x) + 1e-2),
        (Pair(), lambda model, x: model(x)[0]),
        (conv(padding=2), lambda model, x: model(x)[..., 1:-1, 1:-1]),
        (Halves(), lambda model, x: model(nn.functional.pad(x, (0, 1)))[..., :-1]),
    ],
)
def test_a_descriptor_that_does_more_than_its_model(model, call, detects):
    detects(Descriptor(model, call=call))
    assert fault() == (
        r"the Test\nNet network that spandrel detects does not map images of 3 x 6 x 7 to images"
        " by itself; name its architecture on the card, or wrap it in a factory of your own"
    )


def test_sizes_that_the_model_takes_by_itself(detects):
    detects(Descriptor(Halves()))
    assert isinstance(spandrel_network({}, (3, 6, 8), "w"), Halves)
    fault(shape=(3, 6, 7))


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_without_spandrel_it_says_what_to_install(error, monkeypatch):
    """Absent, or with a torchvision that was built for another torch."""

    class Broken:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "spandrel":
                raise error("no torchvision::nms\nhere")

    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    assert fault(CardError) == (
        "its network is detected by spandrel, which cannot be imported"
        f" ({error.__name__}: no torchvision::nms);"
        " install purify-audit[restoration]"
    )


def test_the_real_spandrel():
    try:
        import spandrel  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"spandrel cannot be imported: {error}")
    torch.manual_seed(0)
    own = DnCNN(1, DnCNNArgs(width=64, depth=17)).eval()
    network = spandrel_network(own.state_dict(), (1, 16, 16), "own")
    x = images(2, (1, 16, 16))
    with torch.no_grad():
        torch.testing.assert_close(network(x), own(x), rtol=0, atol=1e-5)
