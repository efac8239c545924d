"""Factories: how they are named, called, and told what is wrong with them."""

import importlib
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from purify_audit.core.noise import Noise
from purify_audit.models.user_code import importing
from purify_audit.models.user_code.arguments import FactoryError, convert_arguments, is_factory
from purify_audit.models.user_code.errors import UserCodeError
from purify_audit.models.user_code.factory import (
    classifier_from_factory,
    code_checkpoint,
    load_code_classifier,
    load_code_purifier,
    purifier_from_factory,
)
from purify_audit.models.user_code.importing import code_sha256, load_factory
from purify_audit.spec.architectures import CodeArgs
from purify_audit.spec.card import ClassifierCard, CodeCard, ImageSpec

CPU = torch.device("cpu")
DIGITS = ImageSpec(channels=1, height=8, width=8)
SOURCE = """
import torch
from torch import nn


class Shrink(nn.Module):
    image_shape = (1, 8, 8)

    def __init__(self, scale: float = 0.5, sigma: float = 0.0):
        super().__init__()
        self.scale, self.sigma = scale, sigma

    def forward(self, x):
        return 0.5 + self.scale * (x - 0.5) + self.sigma * torch.randn_like(x)


def make(scale: float = 0.5, sigma: float = 0.0):
    return Shrink(scale, sigma)


def ranged(low: float = -1.0):
    made = Shrink(0.5)
    made.data_range = (low, 1.0)
    made.evaluations = 7
    return made


def shapeless():
    return lambda x: 0.5 * x


def nothing():
    return None


def breaks():
    raise FileNotFoundError("weights.pt")


def leaves():
    raise SystemExit(3)


def judge(classes: int = 10, dropout: float = 0.0):
    return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, classes))


def random_judge():
    linear = nn.Linear(64, 10)
    return lambda x: linear(x.flatten(1)) + torch.randn(len(x), 10)


def pictures():
    return lambda x: x


ready = Shrink(0.25)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Importable as `factory_module`, and the path of its file."""
    path = tmp_path / "factory_module.py"
    path.write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    importing._call_factory.cache_clear()
    yield path
    importing._call_factory.cache_clear()
    sys.modules.pop("factory_module", None)


def args(factory, **arguments):
    return CodeArgs(factory=factory, arguments=arguments)


X = torch.linspace(0.2, 0.8, 128).reshape(2, 1, 8, 8)
NOISE = Noise(1, (1, 2), (0, 0))


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("package.module:function", True),
        ("module:Class.method", True),
        ("somewhere/else.py:function", True),
        ("jpeg:quality=75", False),
        ("model.safetensors", False),
        ("folder/model.pt", False),
        ("jpeg", False),
        ("a b:c", False),
    ],
)
def test_what_looks_like_a_factory(text, is_one):
    assert is_factory(text) is is_one


def test_a_file_of_that_name_is_no_factory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a:b").touch()
    assert not is_factory("a:b")


@pytest.mark.parametrize("how", ["factory_module", "{}"])
def test_a_module_and_a_file_are_both_found(module, how):
    made = load_factory(f"{how.format(module)}:make", {"scale": "0.25"})
    torch.testing.assert_close(made(X), 0.5 + 0.25 * (X - 0.5))


def test_classes_and_objects_may_be_named(module):
    assert load_factory("factory_module:Shrink", {"scale": "2"}).scale == 2.0
    assert load_factory("factory_module:ready", {}).scale == 0.25
    with pytest.raises(FactoryError, match="is an object and not a factory"):
        load_factory("factory_module:ready", {"scale": "1"})


def test_a_registered_name_is_found(module, monkeypatch):
    from importlib.metadata import EntryPoint, EntryPoints

    entry = EntryPoint("shrink", "factory_module:make", "purify_audit.purifiers")
    for where in ("arguments", "importing"):
        monkeypatch.setattr(
            f"purify_audit.models.user_code.{where}.entry_points",
            lambda group: EntryPoints([entry] if group == entry.group else []),
        )
    assert is_factory("shrink")
    assert not is_factory("shrnk")
    assert load_factory("shrink", {"scale": "0.125"}).scale == 0.125
    with pytest.raises(FactoryError, match=r"registers.*did you mean shrink"):
        load_factory("shrnk", {})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_package:make", "there is no module 'no_such_package'"),
        ("factory_module.inner:make", "there is no module 'factory_module.inner'|not a package"),
        ("factory_module:mak", "there is no 'mak' in it; it has make"),
        ("nowhere/at_all.py:make", "there is no file"),
        ("factory_module:nothing", "returned a NoneType, which cannot be called"),
    ],
)
def test_what_is_not_there_is_named(module, name, said):
    with pytest.raises((FactoryError, UserCodeError), match=said):
        load_factory(name, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_thing", r"ModuleNotFoundError at broken\w*.py:1: No module named"),
        ("x = 1\nx.y", r"AttributeError at broken\w*.py:2: "),
        ("def f(:", r"SyntaxError at broken\w*.py:1: "),
        ("raise SystemExit(2)", r"SystemExit at broken\w*.py:1: 2"),
    ],
)
def test_what_an_import_does_wrong_is_told_with_its_line(tmp_path, monkeypatch, text, said):
    name = f"broken{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for spec in (f"{name}:make", f"{name}.py:make"):
        with pytest.raises(UserCodeError, match=said) as told:
            load_factory(spec, {})
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [("breaks", "FileNotFoundError at .*: weights.pt"), ("leaves", "SystemExit at .*: 3")],
)
def test_what_a_factory_does_wrong_is_told(module, name, said):
    with pytest.raises(UserCodeError, match=f"^factory_module:{name}: {said}"):
        load_factory(f"factory_module:{name}", {})


# --- arguments ----------------------------------------------------------------------------------


def typed(
    n: int,
    path: Path,
    rate: float = 0.1,
    flag: bool = False,
    name: str = "x",
    kind: Literal["a", "b"] = "a",
    maybe: int | None = None,
    guessed=3,
    device: torch.device | None = None,
):
    return None


def test_arguments_have_the_types_of_the_signature():
    given = {
        "n": "3",
        "path": "a/b",
        "rate": "1e-3",
        "flag": "true",
        "name": "5",
        "kind": "b",
        "maybe": "none",
        "guessed": "7",
    }
    found = convert_arguments("f", typed, given, CPU)
    assert found == {
        "n": 3,
        "path": Path("a/b"),
        "rate": 1e-3,
        "flag": True,
        "name": "5",
        "kind": "b",
        "maybe": None,
        "guessed": 7,
        "device": CPU,
    }
    assert isinstance(found["guessed"], int)


def test_a_device_is_text_where_text_is_wanted():
    def factory(device: str = "cpu"):
        return None

    assert convert_arguments("f", factory, {}, torch.device("cpu", 0)) == {"device": "cpu:0"}
    assert convert_arguments("f", factory, {"device": "meta"}, CPU) == {"device": "meta"}


def test_any_keyword_is_taken_by_a_factory_of_keywords():
    def factory(**kwargs):
        return None

    assert convert_arguments("f", factory, {"anything": "1"}) == {"anything": "1"}


def listed(sizes: list[int] = ()):
    return None


def positional(x, /):
    return None


@pytest.mark.parametrize(
    ("factory", "given", "said"),
    [
        (typed, {"n": "1.5", "path": "x"}, "'n' = '1.5': .*valid integer"),
        (typed, {"n": "1"}, "needs an argument 'path'"),
        (typed, {"n": "1", "path": "x", "rat": "1"}, "no argument 'rat'; did you mean rate"),
        (typed, {"n": "1", "path": "x", "zz": "1"}, "no argument 'zz'; there are n, path"),
        (typed, {"n": "1", "path": "x", "kind": "c"}, "is not one of a, b"),
        (typed, {"n": "1", "path": "x", "flag": "maybe"}, "valid boolean"),
        (typed, {"n": "1", "path": "x", "device": "cpu"}, "cannot be given as text"),
        (listed, {"sizes": "1"}, r"is of type list\[int\], which cannot be given as text"),
        (positional, {}, "needs an argument 'x'.*name a function that returns it"),
        (lambda: None, {"a": "1"}, "takes no argument 'a'; it takes none"),
    ],
)
def test_arguments_that_do_not_fit_are_named(factory, given, said):
    with pytest.raises(FactoryError, match=said):
        convert_arguments("f", factory, given)


# --- purifiers ----------------------------------------------------------------------------------


def test_a_purifier_is_made_and_its_card_says_how(module):
    card, purifier = purifier_from_factory(args("factory_module:make", sigma="0.1"), CPU)
    assert isinstance(card, CodeCard)
    assert card.randomised
    assert card.image == DIGITS
    assert card.network.arguments == {"sigma": "0.1"}
    assert purifier.card == card
    expected = 0.5 + 0.5 * (X - 0.5) + 0.1 * NOISE.normal(0, (1, 8, 8))
    torch.testing.assert_close(purifier(X, NOISE), expected)
    again = load_code_purifier(card, CPU)
    assert torch.equal(again(X, NOISE), purifier(X, NOISE))


def test_whether_it_is_random_is_seen_by_running_it(module):
    card, _ = purifier_from_factory(args("factory_module:make"), CPU)
    assert not card.randomised


def test_the_attributes_of_the_object_are_believed(module):
    card, purifier = purifier_from_factory(args("factory_module:ranged"), CPU)
    assert card.evaluations == 7
    low = (2 * X - 1 - 0.5) * 0.5 + 0.5
    torch.testing.assert_close(purifier(X, NOISE), (low + 1) / 2)


def test_images_come_from_the_object_or_from_the_data(module):
    card, _ = purifier_from_factory(args("factory_module:shapeless"), CPU, DIGITS)
    assert card.image == DIGITS
    with pytest.raises(FactoryError, match="does not say which images it takes"):
        purifier_from_factory(args("factory_module:shapeless"), CPU)
    other = ImageSpec(channels=3, height=32, width=32)
    with pytest.raises(FactoryError, match=r"takes images of shape \[1, 8, 8\].*not \[3, 32, 32\]"):
        purifier_from_factory(args("factory_module:make"), CPU, other)


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("image_shape", (1, 8), "image_shape: "),
        ("image_shape", 8, "image_shape: "),
        ("image_shape", (1, 0, 8), "image_shape: field 'height'"),
        ("data_range", (1.0, 0.0), "data_range: .*not increasing"),
        ("evaluations", 0, "field 'evaluations'"),
        ("randomised", "often", "field 'randomised'"),
    ],
)
def test_attributes_that_make_no_sense_are_named(module, monkeypatch, attribute, value, said):
    importlib.import_module("factory_module")
    monkeypatch.setattr(sys.modules["factory_module"].Shrink, attribute, value, raising=False)
    with pytest.raises(FactoryError, match=f"^factory_module:make: {said}"):
        purifier_from_factory(args("factory_module:make"), CPU)


# --- classifiers --------------------------------------------------------------------------------


def test_a_classifier_is_made_in_eval_mode_and_its_logits_counted(module):
    card, classifier = classifier_from_factory(
        args("factory_module:judge", classes="7", dropout="0.5"), CPU, DIGITS
    )
    assert isinstance(card, ClassifierCard)
    assert (card.classes, classifier.classes, classifier.image) == (7, 7, DIGITS)
    assert torch.equal(classifier(X), classifier(X))
    assert classifier(X.double()).dtype == torch.float64
    torch.testing.assert_close(classifier(X.double()).float(), classifier(X))
    assert torch.equal(load_code_classifier(card, CPU)(X), classifier(X))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("random_judge", "is random .at .*factory_module.py:"),
        ("pictures", r"does not return logits \[n, classes\]"),
    ],
)
def test_what_is_no_classifier_is_refused(module, name, said):
    with pytest.raises((FactoryError, UserCodeError), match=said):
        classifier_from_factory(args(f"factory_module:{name}"), CPU, DIGITS)


def test_logits_of_another_shape_are_refused_later(module):
    card, _ = classifier_from_factory(args("factory_module:judge"), CPU, DIGITS)
    wrong = load_code_classifier(card.model_copy(update={"classes": 9}), CPU)
    with pytest.raises(UserCodeError, match=r"returned \[2, 10\], not logits of shape \[2, 9\]"):
        wrong(X)


# --- as checkpoints -----------------------------------------------------------------------------


def test_code_is_a_checkpoint_without_tensors(module):
    made = code_checkpoint("factory_module:make", {"sigma": "0.1"}, DIGITS)
    assert made.source == "factory_module:make"
    assert made.tensors == {}
    assert isinstance(made.card, CodeCard)
    judge = code_checkpoint("factory_module:judge", {}, DIGITS, classifier=True)
    assert isinstance(judge.card, ClassifierCard)


def test_the_digest_covers_source_arguments_and_files(module, tmp_path):
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"1")
    network = args("factory_module:make", scale="0.5", weights=str(weights))
    first = code_sha256(network)
    assert first == code_sha256(network)
    assert first != code_sha256(args("factory_module:make", scale="0.6", weights=str(weights)))
    weights.write_bytes(b"2")
    second = code_sha256(network)
    assert second != first
    module.write_text(SOURCE + "\n")
    assert code_sha256(network) not in (first, second)


def test_networks_are_moved_to_the_device(module):
    moved = []

    class Watched(nn.Module):
        image_shape = (1, 8, 8)
        randomised = False

        def to(self, device):
            moved.append(device)
            return super().to(device)

        def forward(self, x):
            return x

    importlib.import_module("factory_module")
    sys.modules["factory_module"].watched = Watched()
    purifier_from_factory(args("factory_module:watched"), CPU)
    assert moved == [CPU]
