"""From a checkpoint to a model that runs: strict, frugal, and clear about what differs."""

import json
import re
import resource

import pytest
import torch
from conftest import FAMILIES
from effort import calls
from safetensors.torch import save_file

from purify_audit.core.errors import CardError, CheckpointError, InputError, PlanError
from purify_audit.core.noise import Noise
from purify_audit.models.checkpoint import (
    load_tensors,
    read_checkpoint,
    save_checkpoint,
    transform_checkpoint,
)
from purify_audit.models.convert import attach_card
from purify_audit.models.load import load_classifier, load_purifier, purifier_card
from purify_audit.models.networks import build_network
from purify_audit.models.runner import choose_device
from purify_audit.spec.card import FeedforwardCard

CPU = torch.device("cpu")
IMAGES = torch.linspace(0, 1, 2 * 64).reshape(2, 1, 8, 8)


def load(path):
    checkpoint = read_checkpoint(path)
    if checkpoint.card.family == "classifier":
        return load_classifier(checkpoint, CPU)
    return load_purifier(checkpoint, CPU)


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.fixture
def fault(refused):
    """Path of a readable file -> the sentence that refuses to load it, less the file's name."""

    def refuse(path, error=CheckpointError):
        checkpoint = read_checkpoint(path)
        with pytest.raises(error) as raised:
            load(path)
        message = str(raised.value)
        assert type(raised.value) is error
        assert message.isprintable()
        if checkpoint.card.family != "classifier":
            assert refused("compress", path) == message
        assert message.startswith(f"{path}: ")
        return message.removeprefix(f"{path}: ")

    return refuse


# --- models that load ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["diffusion", "feedforward"])
def test_a_purifier_runs_with_the_weights_of_the_file(family, stored):
    path = stored(family)
    purifier = load(path)
    assert purifier.card == read_checkpoint(path).card
    assert purifier.image.shape == (1, 8, 8)
    noise = Noise(0, (0, 1), (0, 0))
    cleaned = purifier(IMAGES, noise)
    assert cleaned.shape == IMAGES.shape
    assert cleaned.isfinite().all()
    assert torch.equal(cleaned, load(path)(IMAGES, noise))
    for name, tensor in load_tensors(read_checkpoint(path)).items():
        assert torch.equal(purifier.network.state_dict()[name], tensor)


@pytest.mark.parametrize("family", ["cnn", "cifar-resnet"])
def test_a_classifier_normalises_and_gives_logits(family, stored):
    classifier = load(stored(family, mean=[0.25], std=[0.5]))
    assert (classifier.classes, classifier.image.shape) == (10, (1, 8, 8))
    logits = classifier(IMAGES)
    assert logits.shape == (2, 10)
    assert torch.equal(logits, classifier.network((IMAGES - 0.25) / 0.5))


def test_a_transformation_loads_without_a_file(make_card):
    card = make_card("transform")
    assert load_purifier(transform_checkpoint("median", card), CPU).card == card


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_network_is_at_rest(family, stored):
    network = load(stored(family)).network
    assert not any(module.training for module in network.modules())
    for tensor in network.state_dict(keep_vars=True).values():
        assert not tensor.requires_grad
        assert tensor.device == CPU
        assert tensor.dtype == (torch.float32 if tensor.is_floating_point() else torch.int64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_floats_become_float32(family, dtype, stored):
    def convert(tensors):
        return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}

    path = stored(family, convert)
    state = load(path).network.state_dict()
    for name, tensor in load_tensors(read_checkpoint(path)).items():
        if tensor.is_floating_point():
            assert (tensor.dtype, state[name].dtype) == (dtype, torch.float32)
            assert torch.equal(state[name], tensor.float())


def test_other_settings_may_be_run_with_the_same_weights(stored, make_card):
    checkpoint = read_checkpoint(stored("diffusion"))
    card = make_card("diffusion", t_star=7)
    assert load_purifier(checkpoint, CPU, card).card.t_star == 7
    assert checkpoint.card.t_star == 20


def test_counters_of_batches_are_optional(stored):
    def drop(tensors):
        return {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}

    def drop_some(tensors):
        return {n: t for n, t in tensors.items() if n != "bn1.num_batches_tracked"}

    logits = load(stored("cifar-resnet"))(IMAGES)
    assert "bn1.num_batches_tracked" in read_checkpoint(stored("cifar-resnet")).tensors
    for change in (drop, drop_some):
        path = stored("cifar-resnet", change)
        assert "bn1.num_batches_tracked" not in read_checkpoint(path).tensors
        assert torch.equal(load(path)(IMAGES), logits)


# --- weights that do not fit --------------------------------------------------------------------


def test_a_missing_tensor(stored, fault):
    assert fault(stored("diffusion", without("conv_in.bias"))) == (
        "1 tensors that the card's network needs are missing: conv_in.bias"
    )


def test_all_tensors_missing(stored, fault):
    found = fault(stored("diffusion", lambda _: {}))
    assert re.fullmatch(
        r"\d\d tensors that the card's network needs are missing: conv_in.bias, conv_in.weight,"
        r" conv_out.bias, …",
        found,
    )


def test_a_renamed_tensor_is_pointed_out(stored, fault):
    def prefix(tensors):
        return {f"module.{name}": tensor for name, tensor in tensors.items()}

    found = fault(stored("feedforward", prefix))
    assert "missing: decoder.1.bias, decoder.1.weight, decoder.3.bias, …" in found
    assert found.endswith("; it contains 'module.decoder.1.bias'")


@pytest.mark.parametrize("name", ["extra", "conv_in.num_batches_tracked", "num_batches_tracked"])
def test_an_extra_tensor(name, stored, fault):
    path = stored("diffusion", lambda tensors: tensors | {name: torch.tensor(1)})
    assert fault(path) == f"1 tensors are not part of the card's network: {name}"


def test_extra_tensors_with_hostile_names(stored, fault):
    names = ["a\nTraceback", "b\x1b[2J", "c" * 10**5, "d", "e"]
    found = fault(stored("cnn", lambda t: t | {name: torch.zeros(1) for name in names}))
    assert found.startswith(r"5 tensors are not part of the card's network: a\nTraceback, b\x1b[2J")
    assert found.endswith("c…, …")


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("diffusion", "conv_in.weight", [4, 2, 3, 3]),
        ("diffusion", "conv_out.bias", []),
        ("feedforward", "encoder.0.bias", [2, 1]),
        ("cnn", "linear.weight", [4, 10]),
        ("cifar-resnet", "bn1.running_mean", [0]),
        ("cifar-resnet", "bn1.num_batches_tracked", [1]),
    ],
)
def test_a_wrongly_shaped_tensor(family, name, shape, stored, fault):
    needed = list(load(stored(family)).network.state_dict().get(name, torch.tensor(0)).shape)
    path = stored(family, lambda tensors: tensors | {name: torch.zeros(shape)})
    message = f"tensor '{name}' has shape {shape}; the card's network needs {needed}"
    assert fault(path) == message


def test_weights_of_a_wider_network(stored, fault, make_card, random_tensors):
    wider = make_card("cnn", network={"arch": "cnn", "widths": [4, 3], "hidden": 4})
    path = stored("cnn", lambda _: random_tensors(wider))
    assert fault(path) == ("tensor 'features.0.bias' has shape [4]; the card's network needs [2]")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.uint8])
def test_weights_of_whole_numbers(dtype, stored, fault):
    name = {torch.int8: "I8", torch.int64: "I64", torch.bool: "BOOL", torch.uint8: "U8"}[dtype]
    path = stored("feedforward", lambda t: t | {"encoder.0.bias": torch.ones(2, dtype=dtype)})
    assert fault(path) == (
        f"tensor 'encoder.0.bias' is of type {name}; weights are floating-point numbers"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_not_finite(family, stored, fault):
    def spoil(tensors):
        name = min(tensors)
        return tensors | {name: torch.full_like(tensors[name], float("nan"))}

    path = stored(family, spoil)
    name = min(read_checkpoint(path).tensors)
    assert fault(path).startswith(f"tensor '{name}' has ")


# --- the wrong kind -----------------------------------------------------------------------------


def test_a_classifier_is_no_purifier(stored, refused):
    path = stored("cnn")
    message = f"{path}: is a classifier, not a purifier"
    for refuse in (purifier_card, lambda checkpoint: load_purifier(checkpoint, CPU)):
        with pytest.raises(CheckpointError, match=f"^{message}$"):
            refuse(read_checkpoint(path))
    assert refused("compress", path) == message


@pytest.mark.parametrize("family", ["diffusion", "feedforward"])
def test_a_purifier_is_no_classifier(family, stored, refused):
    path = stored(family)
    with pytest.raises(CheckpointError, match=f"^{path}: is a purifier, not a classifier$"):
        load_classifier(read_checkpoint(path), CPU)
    message = f"{path}: is a purifier, not a classifier"
    assert refused("compress", "identity", "--classifier", path) == message


# --- hostile cards ------------------------------------------------------------------------------

HUGE_IMAGE = {"channels": 64, "height": 8192, "width": 8192}
HUGE = {
    "diffusion": {
        "network": {
            "arch": "unet",
            "width": 4096,
            "multipliers": [64] * 8,
            "blocks": 16,
            "attention": list(range(8)),
            "groups": 4096,
        },
        "schedule": {"kind": "linear", "steps": 100_000, "beta_start": 1e-9, "beta_end": 1e-6},
        "t_star": 100_000,
        "sampler": {"kind": "ddpm", "rounds": 100},
    },
    "feedforward": {"network": {"arch": "autoencoder", "widths": [4096] * 8}},
    "cnn": {"network": {"arch": "cnn", "widths": [4096] * 8, "hidden": 4096}},
    "wide cnn": {"network": {"arch": "cnn", "widths": [4096], "hidden": 4096}},
    "cifar-resnet": {"network": {"arch": "cifar-resnet", "depth": 1202}},
}


@pytest.mark.parametrize("family", HUGE)
def test_the_largest_network_a_card_may_ask_for_costs_nothing(family, tmp_path, make_card):
    changes = {"image": HUGE_IMAGE} | HUGE[family]
    if "cnn" in family or "resnet" in family:
        changes |= {"classes": 100_000, "mean": [0.0] * 64, "std": [1.0] * 64}
    path = tmp_path / "huge.safetensors"
    save_checkpoint(path, make_card(family.split()[-1], **changes), {"w": torch.ones(2)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"\d+ tensors that the card's network needs are mi"):
        load(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**17  # KiB


def test_similar_names_are_sought_among_few(tmp_path, make_card):
    names = [f"decoder.9.bias{n}" for n in range(20_000)]
    tensors = dict.fromkeys(names, torch.zeros(0))
    path = tmp_path / "many.safetensors"
    save_file(tensors, path, {"purify_audit": make_card("feedforward").model_dump_json()})

    def refused():
        with pytest.raises(CheckpointError, match=r"it contains 'decoder\.9\.bias"):
            load(path)

    assert calls(refused)[1] < 100 * 20_000


@pytest.mark.parametrize(
    ("schedule", "sampler", "leaves"),
    [
        ({"kind": "linear", "beta_start": 0.9, "beta_end": 0.9}, "ddpm", "0.1 .* and 0 at"),
        ({"kind": "vp", "beta_max": 1e6}, "ddim", "and 0 at t_star"),
        ({"kind": "vp", "beta_max": 1e6}, "vp-sde", "and 0 at t_star"),
        ({"kind": "vp", "beta_max": 1e308}, "vp-ode", "and 0 at t_star"),
        ({"kind": "linear", "beta_start": 1e-20}, "one-step", "leaves 1 of"),
        ({"kind": "vp", "beta_min": 1e-20, "beta_max": 1e-20}, "vp-sde", "leaves 1 of"),
        ({"kind": "cosine", "offset": 1e300}, "ddpm", "leaves 1 of"),
    ],
)
def test_schedules_that_would_divide_by_zero(schedule, sampler, leaves, stored, fault):
    path = stored("diffusion", schedule=schedule, t_star=1000, sampler={"kind": sampler})
    found = fault(path, CardError)
    assert re.match(r"the noise schedule leaves \S+ of the image's variance at first and", found)
    assert re.search(leaves, found)
    assert found.endswith("at t_star; it must fall from less than 1 to more than 0")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "vp"])
@pytest.mark.parametrize("t_star", [1, 1000])
def test_the_usual_schedules_load(schedule, t_star, stored):
    sampler = {"kind": "one-step"}
    path = stored("diffusion", schedule={"kind": schedule}, t_star=t_star, sampler=sampler)
    assert load(path)(IMAGES, Noise(0, (0, 1), (0, 0))).isfinite().all()


# --- devices ------------------------------------------------------------------------------------


def test_devices():
    assert choose_device("cpu") == CPU
    assert choose_device("cpu:0").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    "name", ["", "gpu", "tpu", "CPU", "cpu:", "cpu:x", "cpu:-1", "cuda:²", "cuda:0:0"]
)
def test_names_of_no_device(name):
    with pytest.raises(PlanError, match=r"^device '.*' is not auto, cpu, cuda or cuda:N$"):
        choose_device(name)


def test_devices_that_are_not_here(monkeypatch, refused):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(PlanError, match=r"^device 'cuda:1': this machine has 1 CUDA devices$"):
        choose_device("cuda:1")
    with pytest.raises(PlanError, match=r"^device 'cpu:1': this machine has 1 CPU devices$"):
        choose_device("cpu:1")
    message = refused("compress", "identity", "--device", "cuda:9999")
    assert message == "device 'cuda:9999': this machine has 1 CUDA devices"


# --- attach -------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path, make_card, random_tensors):
    """family -> paths of weights without a card, of a card, and of the file to be."""

    def write(family, tensors=None, **changes):
        card = make_card(family, **changes)
        weights, card_file = tmp_path / "plain.safetensors", tmp_path / "card.json"
        save_file(random_tensors(card) if tensors is None else tensors, weights, {"format": "pt"})
        card_file.write_text(card.model_dump_json(indent=2))
        return weights, card_file, tmp_path / "native.safetensors"

    return write


@pytest.fixture
def not_attached(tmp_path, refused):
    """Paths -> the sentence that refuses to attach; nothing may have been written."""

    def refuse(weights, card_file, out):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(InputError) as raised:
            attach_card(weights, card_file, out, CPU)
        assert refused("attach", weights, card_file, out) == str(raised.value)
        assert sorted(tmp_path.iterdir()) == before
        return str(raised.value)

    return refuse


@pytest.mark.parametrize("family", FAMILIES)
def test_a_card_is_attached(family, plain, make_card, tmp_path):
    weights, card_file, out = plain(family)
    checkpoint = attach_card(weights, card_file, out, CPU)
    assert checkpoint == read_checkpoint(out)
    assert checkpoint.card == make_card(family)
    assert len(list(tmp_path.iterdir())) == 3
    assert load(out).network is not None
    before, after = (load_tensors(c) for c in (checkpoint, read_checkpoint(out)))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_attach_on_the_command_line(plain, run_cli):
    weights, card_file, out = plain("feedforward")
    code, printed, err = run_cli("attach", weights, card_file, out)
    assert (code, err) == (0, "")
    count = read_checkpoint(out).parameters
    assert printed == f"{out}: tiny feedforward, {count:,} parameters\n"
    assert run_cli("inspect", out)[0] == 0


def test_weights_keep_their_precision_when_a_card_is_attached(plain, make_card, random_tensors):
    tensors = {n: t.half() for n, t in random_tensors(make_card("feedforward")).items()}
    checkpoint = attach_card(*plain("feedforward", tensors), CPU)
    assert {info.dtype for info in checkpoint.tensors.values()} == {"F16"}


def test_a_card_is_replaced_in_place(stored, plain):
    weights = stored("feedforward", name="old")
    _, card_file, _ = plain("feedforward", name="new")
    assert attach_card(weights, card_file, weights, CPU).card.name == "new"
    assert isinstance(read_checkpoint(weights).card, FeedforwardCard)


def test_attach_is_strict(plain, make_card, not_attached):
    tensors = build_network(make_card("cnn")).state_dict()
    paths = plain("cnn", tensors | {"extra": torch.ones(1)})
    assert not_attached(*paths) == (
        f"{paths[0]}: 1 tensors are not part of the card's network: extra"
    )
    tensors["linear.bias"] = torch.full((10,), float("nan"))
    paths = plain("cnn", tensors)
    assert "tensor 'linear.bias' has 10 NaN" in not_attached(*paths)
    del tensors["linear.bias"]
    assert "missing: linear.bias" in not_attached(*plain("cnn", tensors))


def test_attach_refuses_cards(plain, not_attached):
    weights, card_file, out = plain("feedforward")
    card = json.loads(card_file.read_text())
    card_file.write_text(json.dumps(card | {"colour": "red"}))
    message = f"{card_file}: the card cannot be used: field 'feedforward.colour': Extra inputs are"
    assert not_attached(weights, card_file, out).startswith(message)
    card_file.write_bytes(b"\xff\xfe")
    assert "Invalid JSON" in not_attached(weights, card_file, out)
    card_file.unlink()
    message = f"{card_file}: cannot be read: No such file or directory"
    assert not_attached(weights, card_file, out) == message
    card_file.mkdir()
    assert not_attached(weights, card_file, out).endswith("cannot be read: Is a directory")


def test_attach_refuses_weights(plain, not_attached, make_card):
    weights, card_file, out = plain("feedforward")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not_attached(weights, card_file, out).endswith("truncated or damaged")
    weights.unlink()
    assert not_attached(weights, card_file, out) == f"{weights}: no such file"
    weights, card_file, out = plain("feedforward")
    card_file.write_text(make_card("transform").model_dump_json())
    message = f"{card_file}: an input transformation has no weights to attach"
    assert not_attached(weights, card_file, out) == message


def test_attach_says_where_it_cannot_write(plain, not_attached, tmp_path):
    weights, card_file, _ = plain("feedforward")
    out = tmp_path / "nowhere" / "native.safetensors"
    message = f"{out}: cannot be written: No such file or directory"
    assert not_attached(weights, card_file, out) == message
    assert not_attached(weights, card_file, tmp_path).startswith(f"{tmp_path}: cannot be written: ")
