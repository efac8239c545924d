"""Published checkpoints: recognised, completed by presets and answers, or refused in a sentence."""

import contextlib
import json
import random
from pathlib import Path

import published as made
import pytest
import torch
from safetensors.torch import load_file, save_file

from purify_audit.core.errors import CardError, CheckpointError, InputError, PlanError
from purify_audit.core.noise import Noise
from purify_audit.models.checkpoint import load_tensors
from purify_audit.models.formats import hub
from purify_audit.models.formats.complete_card import presets_for
from purify_audit.models.formats.presets import PRESETS
from purify_audit.models.formats.recognise import FORMATS
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.open import open_checkpoint
from purify_audit.models.purifiers.classifier import NormalisedClassifier
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.purifiers.feedforward import FeedforwardPurifier
from purify_audit.spec.card import ClassifierCard, DiffusionCard, ImageSpec
from purify_audit.spec.load_options import LoadOptions

CPU = torch.device("cpu")
DIFFUSION = [n for n in made.LAYOUTS if not any(w in n for w in ("KAIR", "ResNet", "DRUNet"))]
LISTS = {"score_sde checkpoint", "score_sde VE checkpoint"}
BOTH = [*sorted(LISTS), "ddim repository's training list", "lucidrains trainer"]


def opened(file, **changes):
    """A file as it is read with the answers that leave nothing to say, some of them changed."""
    return open_checkpoint(str(file.path), None, LoadOptions(**(file.answers | changes)))


def refusal(file, kind=InputError, image=None, **answers):
    """The one sentence that a file is refused with."""
    with pytest.raises(kind) as raised:
        loaded(open_checkpoint(str(file.path), image, LoadOptions(**answers)))
    told = str(raised.value)
    assert "\n" not in told
    assert str(file.path) in told
    return told.removeprefix(f"{file.path}: ")


def loaded(checkpoint):
    load = load_classifier if checkpoint.card.family == "classifier" else load_purifier
    return load(checkpoint, CPU)


def images(image, n=2):
    generator = torch.Generator().manual_seed(5)
    return torch.rand(n, *image.shape, generator=generator)


def run(model, image):
    x = images(image)
    if isinstance(model, NormalisedClassifier):
        return model(x)
    with torch.inference_mode():
        return model(x, Noise(3, (0, 1), (0, 4)))


def directly(card, network):
    """What runs a network as a card says, built without any file."""
    if isinstance(card, DiffusionCard):
        return DiffusionPurifier(card, network)
    if isinstance(card, ClassifierCard):
        mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (card.mean, card.std))
        return NormalisedClassifier(card, network, mean, std)
    return FeedforwardPurifier(card, network)


def holds(card, fields):
    """Whether a card has these fields; a field that is a group may have more."""
    told = card if isinstance(card, dict) else card.model_dump()
    for name, value in fields.items():
        value = value.model_dump() if hasattr(value, "model_dump") else value
        if isinstance(value, dict):
            holds(told[name], value)
        else:
            assert told[name] == value, name


def rewrite(file, change):
    """The same file, every dict and list in it given to `change`, which may alter it."""

    def walk(node):
        if isinstance(node, dict | list):
            change(node)
            for child in node.values() if isinstance(node, dict) else node:
                walk(child)

    for path in [file.path] if file.path.is_file() else file.path.rglob("diffusion_pytorch*"):
        if path.suffix == ".safetensors":
            tree = load_file(path)
            walk(tree)
            save_file(tree, path)
        else:
            tree = torch.load(path, weights_only=False)
            walk(tree)
            torch.save(tree, path)


# --- what a file is taken for, and what runs ----------------------------------------------------


@pytest.mark.parametrize("layout", made.LAYOUTS)
def test_a_layout_is_recognised_and_runs_like_the_network_itself(layout, tmp_path):
    file = made.LAYOUTS[layout](tmp_path)
    checkpoint = opened(file)
    recognised = checkpoint.recognised
    assert (recognised.format, recognised.container) == (file.format, file.container)
    assert not recognised.unpickled
    assert len(checkpoint.sha256) == 64
    holds(checkpoint.card, file.card)
    stored, wanted = load_tensors(checkpoint), file.network.state_dict()
    assert stored.keys() == wanted.keys()
    assert all(torch.equal(stored[name].float(), wanted[name].float()) for name in wanted)
    image = checkpoint.card.image
    result = run(loaded(checkpoint), image)
    assert torch.equal(result, run(directly(checkpoint.card, file.network), image))
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("layout", made.LAYOUTS)
def test_whatever_was_taken_for_granted_has_a_source(layout, tmp_path):
    file = made.LAYOUTS[layout](tmp_path)
    notes = {note.what: note for note in opened(file).recognised.assumptions}
    preset = PRESETS.get(file.answers.get("preset"))
    for name in file.answers.get("assume", {}):
        assert notes[name].source == "given by the user"
    for name in preset.fields if preset else ():
        if name not in file.answers["assume"]:
            assert notes[name].source == preset.source
    if file.raw is not None:
        assert notes["weights"].value == "ema"
    elif layout in DIFFUSION and layout != "moving average alone" and file.format != "diffusers":
        assert "does not say whether they are a moving average" in notes["weights"].source


ARCHITECTURES = [
    (made.score_sde, {"multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (1,), "width": 4}),
    (made.score_sde, {"multipliers": (1, 1, 2), "blocks": 1, "attention": ()}),
    (made.score_sde, {"multipliers": (1, 2, 3), "blocks": 1, "attention": (0, 2)}),
    (made.score_sde, {"multipliers": (2,), "blocks": 3, "attention": ()}),
    (made.score_sde, {"multipliers": (1,), "blocks": 2, "attention": (0,)}),
    (made.score_sde, {"scales": 11}),
    (made.score_sde_ve, {"multipliers": (1, 2, 2), "attention": (1, 2)}),
    (
        made.guided_diffusion,
        {"multipliers": (1, 1, 2), "attention": (0, 2), "blocks": 2, "head_channels": 32},
    ),
    (made.guided_diffusion, {"multipliers": (2, 4), "attention": (), "resblock_updown": False}),
    (made.guided_diffusion, {"multipliers": (1, 2, 2, 4), "attention": (2, 3)}),
    (made.guided_diffusion, {"scale_shift": False, "attention": ()}),
    (made.improved_diffusion, {"multipliers": (1, 2, 2, 2), "blocks": 3, "attention": (1, 2)}),
    (made.improved_diffusion, {"multipliers": (2,), "attention": ()}),
    (made.ddpm, {"multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (1,)}),
    (made.ddpm, {"multipliers": (1, 1, 2), "attention": (0, 1, 2)}),
    (made.ddpm, {"multipliers": (2,), "attention": (), "blocks": 3}),
    (made.ddpm, {"width": 64, "multipliers": (1,), "attention": (0,)}),
    (made.edm, {"multipliers": (2, 2, 2), "blocks": 2, "augment": 0}),
    (made.edm, {"multipliers": (1, 2), "attention": (0, 1), "preconditioning": "edm"}),
    (made.edm, {"multipliers": (1,), "attention": (), "width": 12}),
    (made.lucidrains_diffusion, {"multipliers": (1, 2, 4), "full_attention": (2,), "heads": 4}),
    (made.lucidrains_diffusion, {"multipliers": (1, 2, 4, 8), "full_attention": (1, 3)}),
    (made.lucidrains_diffusion, {"multipliers": (2,), "full_attention": (), "head_channels": 8}),
    (made.lucidrains_diffusion, {"groups": 8, "width": 16, "full_attention": ()}),
    (made.lucidrains_trainer, {"memory": 2}),
    (made.dncnn, {"width": 6, "depth": 4, "channels": 3}),
    (made.dncnn, {"width": 64, "depth": 17}),
    (made.ffdnet, {"width": 6, "depth": 4, "channels": 1}),
    (made.drunet, {"widths": (4, 6), "blocks": 1, "channels": 1}),
    (made.wideresnet, {"depth": 16, "width": 2}),
    (made.dm_wideresnet, {"depth": 16, "width": 2, "buffers": False}),
    (made.cifar_resnet, {"depth": 14}),
]


@pytest.mark.parametrize(("make", "changes"), ARCHITECTURES)
def test_the_arguments_of_a_network_are_those_that_built_it(make, changes, tmp_path):
    file = make(tmp_path, **changes)
    checkpoint = opened(file)
    told, built = checkpoint.card.network.model_dump(), file.card["network"].model_dump()
    if len(changes.get("multipliers", (1, 2))) == 1:  # with nothing to resample, how is not seen
        built |= {name: told[name] for name in ("resblock_updown",) if name in built}
    assert told == built
    image = checkpoint.card.image
    direct = directly(checkpoint.card, file.network)
    assert torch.equal(run(loaded(checkpoint), image), run(direct, image))


def test_a_first_level_that_is_wider_than_the_time(tmp_path):
    """Guided diffusion's first convolution has the channels of the first level."""
    file = made.guided_diffusion(tmp_path, multipliers=(2, 4))
    assert opened(file).card.network.width == 32


# --- which weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", BOTH)
def test_the_average_is_the_average_and_raw_is_raw(layout, tmp_path):
    file = made.LAYOUTS[layout](tmp_path)
    made_with = {}
    for weights, network in (("ema", file.network), ("raw", file.raw)):
        checkpoint = opened(file, weights=weights)
        (note,) = (n for n in checkpoint.recognised.assumptions if n.what == "weights")
        assert (note.value, note.source) == (weights, "given by the user")
        made_with[weights] = run(loaded(checkpoint), checkpoint.card.image)
        direct = run(directly(checkpoint.card, network), checkpoint.card.image)
        assert torch.equal(made_with[weights], direct)
    assert not torch.equal(made_with["ema"], made_with["raw"])


@pytest.mark.parametrize("layout", BOTH)
def test_two_sets_of_weights_are_not_chosen_between(layout, tmp_path):
    file = made.LAYOUTS[layout](tmp_path)
    told = refusal(file, PlanError, assume=file.answers["assume"])
    assert told == (
        "contains trained weights and their moving average; choose --weights ema (from"
        " which publications sample) or --weights raw"
    )


def test_weights_that_are_not_there(tmp_path):
    file = made.ddpm(tmp_path)
    assert refusal(file, **file.answers, weights="ema") == "contains no ema weights, only raw"
    file = made.ema_only(tmp_path)
    assert refusal(file, **file.answers, weights="raw") == "contains no raw weights, only ema"


def test_two_sets_of_one_kind(tmp_path):
    file = made.ddpm(tmp_path)
    state, other = (made.state_of(made.ddpm_unet(seed)) for seed in (0, 1))
    torch.save({"best": state, "last": other}, file.path)
    told = refusal(file, **file.answers)
    assert told == "has weights at best, last; save those to audit in a separate file"
    torch.save({"best": state, "last": dict(state)}, file.path)
    assert len(opened(file).tensors) == len(state)


@pytest.mark.parametrize("place", ["net_ema", "ema.model", "model_ema", "state_dict_ema", "EMA"])
def test_places_that_say_average(place, tmp_path):
    file = made.ddpm(tmp_path)
    whole = {place: made.state_of(file.network), "other": made.state_of(made.ddpm_unet(1))}
    torch.save(whole, file.path)
    tensors = load_tensors(opened(file, weights="ema"))
    assert all(torch.equal(tensors[n], t) for n, t in file.network.state_dict().items())


@pytest.mark.parametrize("place", ["remainder", "supremal", "model"])
def test_places_that_do_not(place, tmp_path):
    file = made.ddpm(tmp_path)
    torch.save({place: made.state_of(file.network)}, file.path)
    assert opened(file, weights="raw").recognised.format == "ddpm"


def spoil_average(tree_change, file):
    def change(node):
        if isinstance(node, dict) and "shadow_params" in node:
            tree_change(node["shadow_params"])

    rewrite(file, change)
    return refusal(file, CheckpointError, **file.answers)


def swap(shadow):
    """Two neighbours of different shapes."""
    n = next(n for n in range(len(shadow)) if shadow[n].shape != shadow[n + 1].shape)
    shadow[n], shadow[n + 1] = shadow[n + 1], shadow[n]


def test_a_nameless_average_is_held_against_every_shape(tmp_path):
    file = made.score_sde(tmp_path)
    count = len(made.trained_order(list(file.network.state_dict())))
    told = spoil_average(lambda shadow: shadow.pop(), file)
    assert told == f"the moving average holds {count - 1} tensors and the network trains {count}"
    told = spoil_average(lambda shadow: shadow.clear(), made.score_sde(tmp_path))
    assert told == f"the moving average holds 0 tensors and the network trains {count}"
    told = spoil_average(lambda shadow: shadow.append(torch.zeros(2)), made.score_sde(tmp_path))
    assert told == f"the moving average holds {count + 1} tensors and the network trains {count}"
    told = spoil_average(swap, made.score_sde(tmp_path))
    assert told.startswith("tensor 0 of the moving average has shape [32]; 'all_modules.0.weight'")
    told = spoil_average(
        lambda shadow: shadow.__setitem__(9, shadow[9][None]), made.score_sde(tmp_path)
    )
    assert told.startswith("tensor 9 of the moving average has shape [1, ")


def test_an_average_beside_damaged_weights(tmp_path):
    def change(node):
        if isinstance(node, dict) and "module.all_modules.2.bias" in node:
            del node["module.all_modules.2.bias"]

    file = made.score_sde(tmp_path)
    rewrite(file, change)
    told = refusal(file, CheckpointError, **file.answers)
    assert told == "the trained weights have no tensor 'all_modules.2.bias' of [8]"


# --- what is left to say ------------------------------------------------------------------------

MISSING = {
    "score_sde checkpoint": (
        "score_sde, but does not specify image, prediction, time_conditioning, schedule,"
        " data_range, t_star, sampler, network.fir, network.scale_by_sigma; use --as"
        " diffpure-cifar10 or diffpure-cifar10-l2, or --assume image=… (or --t-star)"
    ),
    "score_sde VE checkpoint": (
        "score_sde, but does not specify image, prediction, time_conditioning, schedule,"
        " data_range, t_star, sampler, network.scale_by_sigma, network.centered; use --as"
        " diffpure-cifar10 or diffpure-cifar10-l2, or --assume image=… (or --t-star)"
    ),
    "guided-diffusion": (
        "adm, but does not specify image, schedule, data_range, t_star, sampler, network.heads or"
        " network.head_channels, network.new_attention_order; use --as diffpure-imagenet"
        " or guided-diffusion or improved-diffusion-cifar10, or --assume image=… (or --t-star)"
    ),
    "Ho et al.'s DDPM": (
        "ddpm, but does not specify image, t_star, sampler; use --as ddpm-cifar10 or"
        " diffpure-celeba, or --assume image=… (or --t-star)"
    ),
    "EDM, converted": (
        "edm, but does not specify schedule, t_star, sampler, network.preconditioning; use"
        " --as edm-cifar10-vp or edm-cifar10, or --assume schedule=… (or --t-star)"
    ),
    "lucidrains GaussianDiffusion": (
        "lucidrains, but does not specify image, prediction, data_range, t_star, sampler; use"
        " --as lucidrains or lucidrains-eps, or --assume image=… (or --t-star)"
    ),
    "lucidrains U-Net, safetensors": (
        "lucidrains, but does not specify image, prediction, schedule, data_range, t_star, sampler;"
        " use --as lucidrains or lucidrains-eps, or --assume image=… (or --t-star)"
    ),
    "diffusers folder": (
        "diffusers, but does not specify t_star; use --assume t_star=… (or --t-star)"
    ),
    "KAIR DnCNN": (
        "dncnn, but does not specify image, sigma; use --as kair-gray-25, or --assume image=…"
    ),
    "KAIR FFDNet": (
        "ffdnet, but does not specify image, level; use --as kair-ffdnet-25, or --assume image=…"
    ),
    "KAIR DRUNet": (
        "drunet, but does not specify image, level; use --as kair-ffdnet-25, or --assume image=…"
    ),
    "RobustBench WideResNet": (
        "wideresnet, but does not specify image, mean, std; use --as robustbench-standard, or"
        " --assume image=…"
    ),
    "RobustBench DeepMind WideResNet": (
        "dm-wideresnet, but does not specify image; use --as robustbench-deepmind, or"
        " --assume image=…"
    ),
    "CIFAR ResNet": (
        "cifar-resnet, but does not specify image, mean, std; use --as akamaster-cifar10, or"
        " --assume image=…"
    ),
}


@pytest.mark.parametrize("layout", MISSING)
def test_what_a_file_does_not_say_is_listed_in_one_sentence(layout, tmp_path):
    file = made.LAYOUTS[layout](tmp_path)
    weights = {"weights": "ema"} if layout in BOTH else {}
    assert refusal(file, PlanError, **weights) == f"is {MISSING[layout]}"


def test_what_a_preset_leaves_open_is_not_asked_with_more_presets(tmp_path):
    file = made.ddpm(tmp_path)
    told = refusal(file, PlanError, preset="ddpm-cifar10", assume={"image": "3x16x16"})
    assert told == ("is ddpm, but does not specify t_star; use --assume t_star=… (or --t-star)")


def test_a_schedule_of_other_lengths_asks_how_time_is_told(tmp_path):
    """Improved diffusion's 4000 steps were told as if they were 1000: its rescale_timesteps."""
    file = made.improved_diffusion(tmp_path)
    assume = made.TINY | {
        "schedule": '{"kind": "cosine", "steps": 4000}',
        "data_range": "-1,1",
        "sampler": "ddpm",
        "network.heads": "4",
        "network.new_attention_order": "false",
    }
    told = refusal(file, PlanError, assume=assume)
    assert told.startswith("is adm, but does not specify network.time_scale; use --as")
    answers = {"preset": None, "assume": assume | {"network.time_scale": "0.25"}}
    assert opened(file, **answers).card.network.time_scale == 0.25
    assert opened(file).card.network.time_scale == 0.25
    assert opened(file).card.schedule.steps == 4000


def test_images_may_say_their_size(tmp_path):
    file = made.ddpm(tmp_path)
    reading = LoadOptions(preset="lucidrains", assume={"t_star": "3"})
    file = made.lucidrains_diffusion(tmp_path)
    checkpoint = open_checkpoint(str(file.path), made.IMAGE, reading)
    assert checkpoint.card.image == made.IMAGE
    (note,) = (n for n in checkpoint.recognised.assumptions if n.what == "image")
    assert (note.value, note.source) == ("3x16x16", "the images")


# --- answers that cannot be right ---------------------------------------------------------------

CONTRADICTIONS = [
    ("score_sde checkpoint", {"network.width": "16"}, "'network.width' is 16", "contains 8"),
    ("score_sde checkpoint", {"network.blocks": "2"}, "'network.blocks' is 2", "contains 1"),
    ("score_sde VE checkpoint", {"network.fir": "false"}, "'network.fir' is false", "true"),
    ("guided-diffusion", {"learned_variance": "false"}, "is false", "contains true"),
    ("guided-diffusion", {"network.attention": "[0]"}, "is [0]", "contains [1]"),
    ("guided-diffusion", {"family": "classifier"}, '"classifier"', 'contains "diffusion"'),
    ("EDM, converted", {"prediction": "eps"}, '"eps"', 'contains "x0"'),
    ("EDM, converted", {"time_conditioning": "index"}, '"index"', 'contains "sigma"'),
    ("EDM, converted", {"image": "3x32x32"}, '"height": 32', '"height": 16'),
    ("lucidrains GaussianDiffusion", {"schedule.kind": "linear"}, '"linear"', 'contains "table"'),
    ("lucidrains GaussianDiffusion", {"schedule": '{"kind":"vp"}'}, '"vp"', '"kind": "table"'),
    ("diffusers folder", {"prediction": "v"}, '"v"', 'contains "eps"'),
    ("diffusers folder", {"schedule.beta_end": "0.03"}, "0.03", "contains 0.02"),
    ("KAIR DnCNN", {"network.depth": "17"}, "is 17", "contains 5"),
    ("RobustBench WideResNet", {"classes": "100"}, "is 100", "contains 10"),
    ("RobustBench DeepMind WideResNet", {"mean": "0.5,0.5,0.5"}, "[0.5, 0.5", "contains [0.49"),
]


@pytest.mark.parametrize(("layout", "assume", "given", "known"), CONTRADICTIONS)
def test_what_the_file_says_may_not_be_contradicted(layout, assume, given, known, tmp_path):
    file = made.LAYOUTS[layout](tmp_path)
    answers = file.answers | {"assume": file.answers["assume"] | assume}
    told = refusal(file, CardError, **answers)
    assert told.startswith("given by the user: ")
    assert given in told.partition("but the file contains")[0]
    assert known.removeprefix("contains ") in told.partition("but the file contains")[2]


def test_what_only_the_layout_says_may_be_answered_otherwise(tmp_path):
    """A network of Ho's layout may have been trained to predict x0 on another schedule."""
    file = made.ddpm(tmp_path)
    assume = made.TINY | {"prediction": "x0", "schedule.kind": "cosine", "data_range": "0,1"}
    checkpoint = opened(file, assume=assume)
    card = checkpoint.card
    assert (card.prediction, card.schedule.kind, card.data_range) == ("x0", "cosine", (0.0, 1.0))
    notes = {n.what: n.source for n in checkpoint.recognised.assumptions}
    assert notes["prediction"] == notes["data_range"] == "given by the user"
    assert (
        notes["time_conditioning"] == "no tensor tells; every published file of this layout has it"
    )


def test_a_number_that_was_stored_as_float32_is_no_contradiction(tmp_path):
    file = made.dm_wideresnet(tmp_path)
    assert opened(file).card.mean == tuple(file.card["mean"])


ANSWERS = [
    ({"nonsense": "1"}, CardError, "the card cannot be used: field 'diffusion.nonsense'"),
    ({"network.nonsense": "1"}, CardError, "the card cannot be used: field 'diffusion.network"),
    ({"t_star": "many"}, CardError, "field 'diffusion.t_star'"),
    ({"t_star": "0"}, CardError, "field 'diffusion.t_star'"),
    ({"t_star": "1001"}, CardError, "t_star 1001 is beyond the 1000 steps"),
    ({"t_star.x": "1", "t_star": "5"}, CardError, "'t_star.x' is not inside a group"),
    ({"image": "3x16"}, PlanError, "image '3x16' is not CHANNELSxHEIGHTxWIDTH"),
    ({"image": f"3x{'9' * 5000}x1"}, PlanError, "is not CHANNELSxHEIGHTxWIDTH"),
    ({"image": "3x17x17"}, CardError, "17 x 17 pixels cannot be halved"),
    ({"image": "1x16x16"}, CardError, "the network takes 3 channels and the images have 1"),
    ({"image.height": "16"}, None, ""),
    ({"sampler": "dpm"}, PlanError, "no sampler 'dpm'"),
    ({"sampler": "ddpm:steps=x"}, PlanError, "sampler 'ddpm'"),
    ({"sampler": '{"kind": "ddim"}'}, None, ""),
    ({"data_range": "1,-1"}, CardError, "is not increasing"),
    ({"data_range": "NaN,1"}, CardError, "data_range"),
    ({"spec": "2"}, CardError, "the card is of version 2"),
    ({"name": "mine"}, None, ""),
    ({"provenance.licence": "MIT"}, None, ""),
    ({"prediction": "score\x1b[31m"}, CardError, "prediction"),
    ({"a.b.c": "1"}, CardError, "field 'diffusion.a'"),
    ({"": "1"}, CardError, "the card cannot be used"),
]


@pytest.mark.parametrize(("assume", "kind", "message"), ANSWERS)
def test_answers_that_nobody_can_use_are_refused_in_a_sentence(assume, kind, message, tmp_path):
    file = made.ddpm(tmp_path)
    answers = file.answers | {"assume": {"t_star": "3", "image": "3x16x16"} | assume}
    if "t_star.x" in assume:
        answers["assume"] = {"image": "3x16x16", "t_star": "5", "t_star.x": "1"}
    if kind is None:
        open_checkpoint(str(file.path), None, LoadOptions(**answers))
        return
    with pytest.raises(kind) as raised:
        open_checkpoint(str(file.path), None, LoadOptions(**answers))
    told = str(raised.value)
    assert message in told
    assert told.isprintable()
    assert len(told) < 6000


def test_a_name_and_a_licence_can_be_answered(tmp_path):
    file = made.ddpm(tmp_path)
    assume = made.TINY | {"name": "mine", "provenance.licence": "MIT"}
    card = opened(file, assume=assume).card
    assert (card.name, card.provenance.licence) == ("mine", "MIT")
    assert card.provenance.source == PRESETS["ddpm-cifar10"].source


def test_one_number_for_one_channel(tmp_path):
    args = made.WideResNetArgs(depth=10, width=1, layout="classic")
    network = made.trained(made.WideResNet(1, 10, args))
    path = made.save(tmp_path, "grey.pt", made.state_of(network))
    assume = {"image": "1x16x16", "mean": "0.5", "std": "[0.25]"}
    card = open_checkpoint(str(path), None, LoadOptions(assume=assume)).card
    assert (card.mean, card.std) == ((0.5,), (0.25,))


def test_presets_that_do_not_fit(tmp_path):
    file = made.ddpm(tmp_path)
    told = refusal(file, PlanError, preset="edm-cifar10")
    assert told == (
        "preset 'edm-cifar10' is for edm weights and this is ddpm; for it there are ddpm-cifar10,"
        " diffpure-celeba"
    )
    with pytest.raises(PlanError, match=r"no preset 'ddpm'; there are diffpure-cifar10, .*"):
        opened(file, preset="ddpm")
    told = refusal(made.diffusers_folder(tmp_path), PlanError, preset="ddpm-cifar10")
    assert told == "is a folder of weights; leave out --as"


def test_answers_leave_the_presets_as_they_are(tmp_path):
    file = made.score_sde(tmp_path)
    before = json.dumps({name: preset.fields for name, preset in PRESETS.items()})
    assume = {"t_star": "3", "image.height": "16", "image.width": "16", "schedule.steps": "500"}
    card = opened(file, assume=assume).card
    assert (card.image, card.schedule.steps) == (made.IMAGE, 500)
    assert json.dumps({name: preset.fields for name, preset in PRESETS.items()}) == before


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_used_by_a_layout_and_sourced(name):
    preset = PRESETS[name]
    assert preset.source
    known = {"score_sde", "adm", "ddpm", "edm", "lucidrains", "dncnn", "ffdnet", "drunet"}
    known |= {"wideresnet", "dm-wideresnet", "cifar-resnet", "spandrel"}
    assert set(preset.formats) <= known
    assert all(name in presets_for(form) for form in preset.formats)


def test_grey_restorers_take_colours_one_by_one(tmp_path):
    file = made.dncnn(tmp_path)
    told = refusal(file, CardError, preset="kair-gray-25", assume={"image": "3x16x16"})
    assert told == (
        "the network takes 1 channels and the images have 3; use --assume per_channel=true to"
        " restore each channel separately"
    )
    assume = {"image": "3x16x16", "per_channel": "true"}
    model = loaded(
        open_checkpoint(str(file.path), None, LoadOptions(**(file.answers | {"assume": assume})))
    )
    assert run(model, made.IMAGE).shape == (2, 3, 16, 16)


# --- damage -------------------------------------------------------------------------------------


def renamed(state, name):
    state[f"{name}_"] = state.pop(name)


def removed(state, name):
    del state[name]


def reshaped(state, name):
    tensor = state[name]
    state[name] = torch.cat((tensor, tensor)) if tensor.ndim else tensor.repeat(2)


WRAPPERS = ("", "module.", "model.", "ema_model.model.", "online_model.model.")
LENGTHS = ("sigmas", "map_augment.weight")  # as many as there are; or none, for augmentation


def spoil(file, name, damage):
    """Do damage to a tensor, wherever in the file it stands."""
    hits = []

    def change(node):
        for found in [f"{rest}{name}" for rest in WRAPPERS if f"{rest}{name}" in node]:
            damage(node, found)
            hits.append(found)

    rewrite(file, change)
    assert hits


@pytest.mark.parametrize("damage", [renamed, removed, reshaped])
@pytest.mark.parametrize("layout", made.LAYOUTS)
def test_one_tensor_renamed_removed_or_reshaped(layout, damage, tmp_path):
    file = made.LAYOUTS[layout](tmp_path)
    names = file.network.state_dict()
    names = [n for n in names if not n.endswith(("num_batches_tracked", *LENGTHS))]
    names = [n for n in names if ".to_" not in n]  # which old folders call otherwise
    spoil(file, random.Random(f"{layout} {damage.__name__}").choice(names), damage)
    told = refusal(file, (CheckpointError, CardError), **file.answers)
    assert len(told) < 400


def scalar(state, name):
    state[name] = state[name].flatten()[0]


@pytest.mark.parametrize("damage", [renamed, removed, reshaped, scalar])
@pytest.mark.parametrize("layout", MISSING)
def test_whichever_tensor_is_damaged_a_draft_is_made_or_refused(layout, damage, tmp_path):
    """A layout's marks and draft meet any tensor's absence or odd shape without a breakdown."""
    state = made.LAYOUTS[layout](tmp_path).network.state_dict()
    forms = [form for form in FORMATS if form.matches(state)]
    for name in state:
        spoiled = dict(state)
        damage(spoiled, name)
        for form in forms:
            if form.matches(spoiled):
                with contextlib.suppress(CheckpointError):
                    form.draft(spoiled)


# --- class-conditional networks -----------------------------------------------------------------


def test_class_conditional_networks(tmp_path):
    file = made.guided_diffusion(tmp_path)
    state = made.state_of(file.network) | {"label_emb.weight": torch.zeros(1000, 128)}
    torch.save(state, file.path)
    assert refusal(file, **file.answers) == (
        "looks like a guided-diffusion or improved-diffusion U-Net, but the network is"
        " class-conditional (label_emb.weight), and a purifier has no class labels"
    )
    file = made.edm(tmp_path)
    torch.save(
        made.state_of(file.network) | {"model.map_label.weight": torch.zeros(8, 10)}, file.path
    )
    assert refusal(file, **file.answers) == (
        "looks like an EDM network (SongUNet), but the network is class-conditional"
        " (map_label.weight), and a purifier has no class labels"
    )


# --- files that are something else --------------------------------------------------------------


def test_tensors_of_no_known_layout(tmp_path):
    path = made.save(tmp_path, "other.pt", {"encoder\x1b.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="its tensor names are of no known format") as raised:
        open_checkpoint(str(path), None, LoadOptions())
    assert str(raised.value).isprintable()
    assert str(raised.value).startswith(f"{path}: ")
    path = made.save(tmp_path, "none.pt", {"step": 3})
    with pytest.raises(CheckpointError, match="format \\(there are none, …\\)"):
        open_checkpoint(str(path), None, LoadOptions())
    with pytest.raises(CheckpointError, match="there are none"):
        open_checkpoint(str(path), None, LoadOptions(preset="spandrel"))


def test_two_formats_in_one_file(tmp_path):
    both = {"unet": made.state_of(made.ddpm_unet()), "judge": made.state_of(made.adm(heads=4))}
    path = made.save(tmp_path, "both.pt", both)
    with pytest.raises(CheckpointError, match=r"weights of several formats \(adm, ddpm\)"):
        open_checkpoint(str(path), None, LoadOptions())


def test_wrappers_in_wrappers(tmp_path):
    file = made.ddpm(tmp_path)
    for prefix in ("model.unet.", "module.model.", "model._orig_mod.", "net.module.network."):
        torch.save({"state_dict": made.state_of(file.network, prefix)}, file.path)
        assert opened(file).card.network == file.card["network"]
    torch.save({"model." * 20_000 + "weight": torch.zeros(1)}, file.path)
    assert refusal(file).startswith("its tensor names are of no known format")


def test_names_with_and_without_a_prefix(tmp_path):
    state = made.state_of(made.ddpm_unet()) | {"module.conv_in.weight": torch.zeros(1)}
    path = made.save(tmp_path, "mixed.pt", state)
    with pytest.raises(CheckpointError, match=r"with and without 'module\.'") as raised:
        open_checkpoint(str(path), None, LoadOptions())
    assert str(raised.value).startswith(f"{path}: ")


def test_an_ircnn_is_no_dncnn(tmp_path):
    file = made.dncnn(tmp_path, width=64, depth=7)
    assert refusal(file, CheckpointError, **file.answers) == (
        "looks like a DnCNN denoiser, but so does an IRCNN, whose dilations its tensors do not"
        " contain"
    )


def test_a_network_conditioned_on_its_own_estimate(tmp_path):
    file = made.lucidrains_bare(tmp_path)
    state = made.state_of(file.network)
    state["init_conv.weight"] = torch.zeros(8, 6, 7, 7)
    save_file(state, file.path)
    assert "self-conditioning is not supported" in refusal(file, **file.answers)


def test_whole_numbers_are_no_weights(tmp_path):
    def change(node):
        if isinstance(node, dict) and "conv_in.weight" in node:
            node["conv_in.weight"] = node["conv_in.weight"].to(torch.int32)

    file = made.ddpm(tmp_path)
    rewrite(file, change)
    assert "is of type I32; weights are floating-point numbers" in refusal(file, **file.answers)


def test_weights_that_are_not_finite(tmp_path):
    def change(node):
        if isinstance(node, dict) and "conv_in.weight" in node:
            node["conv_in.weight"][0, 0, 0, 0] = float("nan")

    file = made.ddpm(tmp_path)
    rewrite(file, change)
    assert "'conv_in.weight' has 1 NaN or infinite values" in refusal(file, **file.answers)


def test_what_needs_a_full_unpickle_needs_leave_and_is_recorded(tmp_path):
    file = made.ddpm(tmp_path)
    whole = {"model": made.state_of(file.network), "args": Path("/data")}
    torch.save(whole, file.path)
    told = refusal(file, CheckpointError, **file.answers)
    assert "can run any code" in told
    assert "--allow-pickle" in told
    checkpoint = opened(file, allow_pickle=True)
    assert checkpoint.recognised.unpickled
    assert run(loaded(checkpoint), made.IMAGE).shape == (2, 3, 16, 16)


# --- answers where none are taken ---------------------------------------------------------------

UNUSED = [
    ("jpeg", {"preset": "diffpure-cifar10"}, "jpeg: is a transformation; leave out --as"),
    ("jpeg", {"assume": {"t_star": "3"}}, "jpeg: is a transformation; leave out --assume"),
    (
        "some.module:factory",
        {"preset": "x", "weights": "ema", "assume": {"a": "1"}, "arguments": {"b": "2"}},
        "some.module:factory: is code; leave out --as and --weights and --assume",
    ),
]


@pytest.mark.parametrize(("text", "answers", "message"), UNUSED)
def test_answers_that_nothing_reads_are_refused(text, answers, message):
    with pytest.raises(PlanError) as raised:
        open_checkpoint(text, made.IMAGE, LoadOptions(**answers))
    assert str(raised.value) == message


def test_a_card_takes_no_answers_and_leave_to_unpickle_is_none(stored, tmp_path):
    path = stored("feedforward")
    with pytest.raises(
        PlanError, match=r"has a card, which defines how to run it; leave out --as$"
    ):
        open_checkpoint(str(path), None, LoadOptions(preset="ddpm-cifar10"))
    with pytest.raises(PlanError, match=r"leave out --arg$"):
        open_checkpoint(str(path), None, LoadOptions(arguments={"x": "1"}))
    assert open_checkpoint(str(path), None, LoadOptions(allow_pickle=True)).recognised is None
    file = made.ddpm(tmp_path)
    told = refusal(file, PlanError, **file.answers, arguments={"x": "1"})
    assert told == "is a file of weights; leave out --arg"


# --- folders of diffusers -----------------------------------------------------------------------


def test_folders_have_their_weights_in_either_place_and_form(tmp_path):
    for n, how in enumerate(({}, {"root": True}, {"stored": "bin"}, {"old": True})):
        (tmp_path / str(n)).mkdir()
        file = made.diffusers_folder(tmp_path / str(n), **how)
        checkpoint = opened(file)
        assert checkpoint.recognised.container == file.container
        result = run(loaded(checkpoint), made.IMAGE)
        assert torch.equal(result, run(directly(checkpoint.card, file.network), made.IMAGE))


def test_a_folder_is_the_files_that_were_read(tmp_path):
    file = made.diffusers_folder(tmp_path)
    before = opened(file).sha256
    (file.path / "README.md").write_text("new")
    assert opened(file).sha256 == before
    made.write_json(file.path / "scheduler/scheduler_config.json", made.SCHEDULER | {"x": 1})
    assert opened(file).sha256 != before


SCHEDULES = [
    ({"beta_schedule": "squaredcos_cap_v2"}, {"schedule": {"kind": "cosine", "steps": 1000}}),
    ({"trained_betas": [0.1, 0.2, 0.3]}, {"schedule": {"kind": "table", "betas": (0.1, 0.2, 0.3)}}),
    ({"prediction_type": "v_prediction"}, {"prediction": "v"}),
    ({"prediction_type": "sample"}, {"prediction": "x0"}),
    ({"variance_type": "fixed_small_log"}, {"sampler": {"variance": "fixed-small"}}),
    ({"clip_sample": False}, {"sampler": {"clip": False}}),
    ({"timestep_spacing": "trailing"}, {"sampler": {"spacing": "trailing"}}),
    (
        {"_class_name": "DDIMScheduler", "clip_sample": True},
        {"sampler": {"kind": "ddim", "eta": 0.0, "clip": True, "clipped_eps": False}},
    ),
]


@pytest.mark.parametrize(("change", "card"), SCHEDULES)
def test_what_a_scheduler_says_is_kept(change, card, tmp_path):
    file = made.diffusers_folder(tmp_path, scheduler=made.SCHEDULER | change)
    holds(opened(file).card, card)


def test_a_scaled_linear_schedule_is_that_of_diffusers(tmp_path):
    from diffusers import DDPMScheduler

    settings = made.SCHEDULER | {"beta_schedule": "scaled_linear", "num_train_timesteps": 100}
    file = made.diffusers_folder(tmp_path, scheduler=settings)
    theirs = DDPMScheduler(100, 1e-4, 2e-2, "scaled_linear").betas.double()
    ours = torch.tensor(opened(file).card.schedule.betas, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_a_scheduler_without_a_counterpart_leaves_the_sampler_open(tmp_path):
    file = made.diffusers_folder(
        tmp_path, scheduler=made.SCHEDULER | {"_class_name": "PNDMScheduler"}
    )
    told = refusal(file, PlanError, **file.answers)
    assert told == "is diffusers, but does not specify sampler; use --assume sampler=…"
    ve = {"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 2000, "sigma_max": 1348}
    file = made.diffusers_folder(tmp_path, scheduler=ve)
    told = refusal(file, PlanError, **file.answers)
    assert told.startswith("is diffusers, but does not specify prediction, schedule, sampler; ")


def test_a_samplers_settings_may_be_changed(tmp_path):
    file = made.diffusers_folder(tmp_path)
    card = opened(file, assume={"t_star": "3", "sampler": "ddim:steps=2"}).card
    assert (card.sampler.kind, card.sampler.steps) == ("ddim", 2)
    card = opened(file, assume={"t_star": "3", "sampler.clip": "false"}).card
    assert (card.sampler.kind, card.sampler.clip) == ("ddpm", False)


BAD_SCHEDULERS = [
    ({"thresholding": True}, "'thresholding' is not supported"),
    ({"rescale_betas_zero_snr": True}, "'rescale_betas_zero_snr' is not supported"),
    ({"prediction_type": "flow"}, "prediction_type flow is not supported"),
    ({"prediction_type": ["epsilon"]}, "prediction_type ['epsilon'] is not supported"),
    ({"variance_type": "learned"}, "variance_type learned is not supported"),
    ({"variance_type": "fixed_large_log"}, "variance_type fixed_large_log is not supported"),
    ({"variance_type": {}}, "variance_type {} is not supported"),
    ({"beta_schedule": "sigmoid"}, "beta_schedule sigmoid is not supported"),
    ({"beta_schedule": ["linear"]}, "beta_schedule ['linear'] is not supported"),
    ({"num_train_timesteps": "1000"}, "num_train_timesteps 1000 is not a number of steps"),
    ({"beta_start": "0.1"}, "beta_start and beta_end must be between 0 and 1"),
    ({"beta_end": 1.5}, "beta_start and beta_end must be between 0 and 1"),
    ({"clip_sample_range": 2.0}, "a clip_sample_range other than 1 is not supported"),
    (
        {"_class_name": "DDIMScheduler", "set_alpha_to_one": False},
        "set_alpha_to_one false is not supported",
    ),
    ({"variance_type": "learned_range"}, "needs a network with learned_variance"),
    ({"timestep_spacing": "log"}, "spacing"),
    ({"trained_betas": "x"}, "betas"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SCHEDULERS)
def test_what_a_scheduler_does_and_no_sampler_here_is_refused(change, message, tmp_path):
    file = made.diffusers_folder(tmp_path, scheduler=made.SCHEDULER | change)
    with pytest.raises(InputError) as raised:
        opened(file)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(file.path))


BAD_CONFIGS = [
    ({"_class_name": "UNet2DConditionModel"}, "its network is a UNet2DConditionModel; only"),
    ({"_class_name": None}, "its network is a None"),
    ({"num_class_embeds": 10}, "network is class-conditional ('num_class_embeds' is set)"),
    ({"class_embed_type": "timestep"}, "network is class-conditional ('class_embed_type' is set)"),
    ({"sample_size": None}, "config.json does not give sample_size"),
    ({"sample_size": [16, 16, 16]}, "config.json does not give sample_size"),
    ({"in_channels": None}, "None input channels do not fit 3 output channels"),
    ({"in_channels": "3"}, "3 input channels do not fit 3 output channels"),
    ({"out_channels": {}}, "3 input channels do not fit {} output channels"),
    ({"out_channels": 4}, "3 input channels do not fit 4 output channels"),
    ({"block_out_channels": []}, "config.json"),
    ({"block_out_channels": [32, 10**9]}, "config.json"),
    ({"down_block_types": ["Nothing", "AttnDownBlock2D"]}, "Nothing"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS)
def test_configurations_that_no_purifier_has(change, message, tmp_path):
    file = made.diffusers_folder(tmp_path)
    path = file.path / "unet/config.json"
    made.write_json(path, json.loads(path.read_text()) | change)
    with pytest.raises(InputError) as raised:
        loaded(opened(file))
    assert message in str(raised.value)
    assert str(file.path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_network_that_doubles_pixels_by_itself_does_not_say_its_range(tmp_path):
    file = made.diffusers_folder(tmp_path, config={"center_input_sample": True})
    told = refusal(file, PlanError, **file.answers)
    assert told == "is diffusers, but does not specify data_range; use --assume data_range=…"


def test_folders_that_are_none(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder without a diffusers model"):
        open_checkpoint(str(tmp_path), None, LoadOptions())
    file = made.diffusers_folder(tmp_path)
    (weights,) = file.path.rglob("*.safetensors")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"has a config\.json, but neither"):
        opened(file)
    for text, message in (("{", "is not usable JSON"), ("[]", "is not a JSON object")):
        (file.path / "unet/config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            opened(file)
    (file.path / "unet/config.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(CheckpointError, match="a name is repeated"):
        opened(file)


def test_a_folders_file_holds_one_set_of_weights(tmp_path):
    file = made.diffusers_folder(tmp_path, stored="bin")
    (path,) = file.path.rglob("*.bin")
    state = made.state_of(file.network)
    torch.save({"a": state, "b": state}, path)
    assert refusal(file, **file.answers) == "its file contains 2 sets of weights, not one"
    torch.save({"step": 1}, path)
    assert refusal(file, **file.answers) == "its file contains 0 sets of weights, not one"
    first = next(name for name in state if ".to_q." in name)
    both = state | {first.replace("to_q", "query"): state[first]}
    torch.save(both, path)
    assert "are the same weight under its old and its new name" in refusal(file, **file.answers)


def test_links_out_of_a_folder(tmp_path):
    file = made.diffusers_folder(tmp_path)
    (weights,) = file.path.rglob("*.safetensors")
    outside = weights.rename(tmp_path / "outside.safetensors")
    weights.symlink_to(outside)
    with pytest.raises(CheckpointError, match="is a link that leads out of the folder"):
        opened(file)


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    file = made.diffusers_folder(tmp_path)
    monkeypatch.chdir(file.path)
    card = open_checkpoint(".", None, LoadOptions(**file.answers)).card
    assert card.name == file.path.name


# --- the hub ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hub:", "hub:gpt2", "hub:a/b/c", "hub:a/b@", "hub:a b/c", "hub:a:b"]
)
def test_names_that_the_hub_does_not_have(name):
    with pytest.raises(CheckpointError, match=r"is not hub:OWNER/NAME or hub:OWNER/NAME@REVISION$"):
        open_checkpoint(name, None, LoadOptions())


def test_a_model_of_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    file = made.diffusers_folder(tmp_path)
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(file.path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    checkpoint = open_checkpoint("hub:google/ddpm-cifar10-32@v1", None, LoadOptions(**file.answers))
    assert checkpoint.recognised.format == "diffusers"
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("google/ddpm-cifar10-32", "v1")
    assert not any(pattern.endswith("*") or ".py" in pattern for pattern in patterns)
    assert {"config.json", "unet/diffusion_pytorch_model.bin"} <= set(patterns)


def test_the_hub_out_of_reach(monkeypatch):
    import huggingface_hub

    def offline(*asked, **more):
        raise ConnectionError("no route to\x1b[31m the hub\nand a second line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError) as raised:
        hub.download("hub:a/b")
    assert str(raised.value).startswith("hub:a/b: cannot be downloaded: no route to")
    assert str(raised.value).isprintable()


def test_the_hub_without_its_library(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"needs huggingface_hub; install purify-audit\["):
        hub.download("hub:a/b")


def test_images_of_another_size_than_the_file_says(tmp_path):
    """The file's size counts; that they do not fit is told where images and purifier meet."""
    file = made.edm(tmp_path)
    spec = ImageSpec(channels=3, height=32, width=32)
    assert (
        open_checkpoint(str(file.path), spec, LoadOptions(**file.answers)).card.image == made.IMAGE
    )
