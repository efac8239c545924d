"""Everything an audit needs: loaded, with defaults that suit it, or refused in one sentence."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from purify_audit.audit.defaults import attack_plan
from purify_audit.audit.subject import BUNDLED, load_subject, open_checkpoint, prepare
from purify_audit.core.errors import CheckpointError, ImageError, InputError, PlanError
from purify_audit.images.image_set import load_images
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.samplers import DDIMSampler

CPU = torch.device("cpu")
COLOUR = {"channels": 3, "height": 8, "width": 8}


def asked(checkpoint, **settings):
    """Settings as the command line passes them: paths are text."""
    settings = {"checkpoint": checkpoint} | settings
    return {name: str(v) if isinstance(v, Path) else v for name, v in settings.items()}


def kinds(subject):
    return [probe.kind for probe in subject.plan.probes]


def fault(error=PlanError, **settings):
    """The sentence that refuses a subject."""
    with pytest.raises(error) as raised:
        prepare(asked(**settings), CPU)
    assert type(raised.value) is error
    assert isinstance(raised.value, InputError)
    assert raised.value.exit_code == 2
    assert str(raised.value).isprintable()
    return str(raised.value)


@pytest.fixture
def images(tmp_path):
    """Save images as a file: (shape of one, labels or none, ids or none) -> its path."""

    def save(shape=(1, 8, 8), labels=None, ids=None, n=12, name="images"):
        arrays = {"x": np.linspace(0, 1, n * np.prod(shape), dtype=np.float32).reshape(n, *shape)}
        arrays |= {} if labels is None else {"y": np.resize(np.asarray(labels), n)}
        arrays |= {} if ids is None else {"ids": np.asarray(ids)}
        save_file(arrays, tmp_path / f"{name}.safetensors")
        return str(tmp_path / f"{name}.safetensors")

    return save


# --- defaults -----------------------------------------------------------------------------------

ATTACK = {"steps": 2, "restarts": 1, "held_out": 2, "square_queries": 5}


@pytest.mark.parametrize(
    ("images", "draws", "named", "rows"),
    [
        (16, 1, None, 16),
        (2, 3, None, 6),
        (16, 3, None, 16),
        (100, 2, None, 16),
        (1, 1, None, 1),
        (4, 1, 64, 64),
    ],
)
def test_an_attacks_micro_batch_has_no_more_rows_than_there_are_unless_it_is_named(
    images, draws, named, rows
):
    attack = ATTACK | {"draws": draws, "microbatch": named}
    plan = prepare(asked("gaussian-noise:sigma=0.1", images=images, attack=attack), CPU).plan
    assert plan.attack.microbatch == rows
    added = attack_plan(plan, {"attack": attack}, (1, 8, 8), CPU)
    assert added.attack.microbatch == rows


def test_the_rows_of_a_deterministic_purifier_are_its_images():
    attack = ATTACK | {"draws": 3}
    assert prepare(asked("median", images=9, attack=attack), CPU).plan.attack.microbatch == 9


def test_defaults_of_a_random_purifier(stored):
    path = stored("diffusion")
    subject = prepare(asked(path), CPU)
    assert subject.plan == AuditPlan(
        checkpoint=str(path),
        data="digits",
        images=64,
        norm="linf",
        eps=(0.15,),
        probes=({"kind": "sign"}, {"kind": "lowfreq"}, {"kind": "power"}),
        draws=4,
        directions=8,
        seed=0,
        microbatch=256,
    )
    assert subject.checkpoint == read_checkpoint(path)
    assert subject.card == subject.checkpoint.card == subject.purifier.card
    assert (len(subject.images), subject.available) == (64, 450)
    assert (subject.user_images, subject.classifier, subject.device) == (None, None, CPU)


def test_defaults_of_the_l2_ball(stored):
    subject = prepare(asked(stored("diffusion"), norm="l2"), CPU)
    assert subject.plan.eps == (1.0,)
    assert kinds(subject) == ["sphere", "lowfreq", "power"]


@pytest.mark.parametrize(
    ("family", "changes", "draws"),
    [("feedforward", {}, 1), ("feedforward", {"sigma": 0.1}, 4), ("diffusion", {}, 4)],
)
def test_a_deterministic_purifier_is_drawn_once(family, changes, draws, stored):
    assert prepare(asked(stored(family, **changes)), CPU).plan.draws == draws


@pytest.mark.parametrize(("name", "draws"), [("median", 1), ("gaussian-noise:sigma=0.1", 4)])
def test_a_deterministic_transformation_is_drawn_once(name, draws):
    subject = prepare(asked(name), CPU)
    assert (subject.plan.draws, subject.plan.data) == (draws, "digits")
    assert subject.checkpoint.source == name
    assert subject.card.image.shape in BUNDLED


def test_what_is_asked_for_is_done():
    settings = {
        "checkpoint": "median:size=3",
        "data": "digits:train",
        "first_id": 10,
        "last_id": 500,
        "images": 5,
        "norm": "l2",
        "eps": (0.1, 0.2),
        "probes": ({"kind": "sign"},),
        "draws": 2,
        "directions": 3,
        "seed": 7,
        "microbatch": 9,
        "level": 0.9,
        "tolerance": 0.1,
    }
    subject = prepare(settings | {"t_star": None, "sampler": None, "classifier": None}, CPU)
    assert subject.plan == AuditPlan.model_validate(settings)
    assert len(subject.images) == 5
    assert all(10 <= number < 500 and number % 4 for number in subject.images.ids)


def test_fewer_images_than_the_default(images):
    subject = prepare(asked("identity", data=images(n=12)), CPU)
    assert (subject.plan.images, subject.available) == (12, 12)


@pytest.mark.parametrize(("first", "last", "n"), [(None, 20, 5), (1700, None, 25), (4, 8, 1)])
def test_only_some_ids(first, last, n):
    subject = prepare(asked("identity", first_id=first, last_id=last), CPU)
    assert subject.available == len(subject.images) == n
    assert all((first or 0) <= i < (last or 1797) for i in subject.images.ids)


def test_the_plan_says_all_that_is_needed(stored):
    settings = {"classifier": stored("cnn"), "t_star": 10, "images": 9, "first_id": 400}
    subject = prepare(asked(stored("diffusion"), **settings), CPU)
    again = load_subject(subject.plan, CPU)
    assert again.plan == subject.plan
    assert again.card == subject.card
    assert again.images.digest == subject.images.digest
    assert again.available == subject.available
    assert again.classifier[0] == subject.classifier[0]


# --- checkpoints and transformations ------------------------------------------------------------


def test_a_file_wins_over_a_transformation(stored, tmp_path, monkeypatch):
    stored("feedforward").rename(tmp_path / "jpeg")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("jpeg", None).card.family == "feedforward"
    assert open_checkpoint("median", None).card.family == "transform"


def test_a_transformation_fits_the_images_it_gets(images):
    subject = prepare(asked("jpeg", data=images((3, 8, 16))), CPU)
    assert subject.card.image.shape == (3, 8, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jpg", r"^no transform 'jpg': choose from identity, .*; did you mean 'jpeg'\?$"),
        ("medain", r"; did you mean 'median'\?$"),
        ("jpge:quality=5", r"^no transform 'jpge': .*; did you mean 'jpeg'\?$"),
        ("purifier", r"^no transform 'purifier': choose from identity, bit-depth, jpeg, median"),
        ("", r"^'' names nothing"),
        ("jpeg:quality=0", r"^transform 'jpeg:quality=0': field 'quality': .*jpeg takes quality$"),
        ("jpeg:size=3", r"^transform 'jpeg:size=3': field 'size': Extra inputs"),
        ("identity:x=1", r"; identity takes no setting$"),
    ],
)
def test_unknown_transformations(text, message, refused):
    assert re.search(message, fault(checkpoint=text))
    assert re.search(message, refused("compress", text))


@pytest.mark.parametrize("text", ["model.safetensors", "folder/model", "./jpeg", "n" * 300 + ".st"])
def test_a_path_to_nothing_is_no_transformation(text):
    message = fault(CheckpointError, checkpoint=text)
    assert re.search(r": (no such file|cannot be read: File name too long)$", message)


def test_images_too_large_for_a_card(images):
    path = images((1, 1, 8193), n=1)
    message = f"{path}: images too large: field 'width': Input should be less than or equal to 8192"
    assert fault(checkpoint="identity", data=path) == message


# --- parts that do not fit ----------------------------------------------------------------------


def test_bundled_images_are_only_used_where_they_fit(stored, refused):
    path = stored("feedforward", image=COLOUR)
    message = (
        f"{path}: takes images of shape [3, 8, 8] and none of that shape are bundled; name some"
        " with --data (docs/data.md lists the formats)"
    )
    assert fault(checkpoint=path) == message
    assert refused("compress", path) == message


def test_other_shapes_than_those_bundled(stored, images):
    subject = prepare(asked(stored("feedforward", image=COLOUR), data=images((3, 8, 8))), CPU)
    assert subject.images.image_shape == (3, 8, 8)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 16), (1, 16, 8)])
def test_images_of_another_shape_than_the_purifiers(shape, stored, images, refused):
    path, data = stored("diffusion"), images(shape)
    message = (
        f"{path}: takes images of shape [1, 8, 8] (channels, height, width); those of {data} are"
        f" {list(shape)}"
    )
    assert fault(checkpoint=path, data=data) == message
    assert refused("compress", path, "--data", data) == message


def test_images_of_another_shape_than_the_classifiers(stored, images):
    data = images((3, 8, 8), labels=range(10))
    path = stored("cnn")
    message = fault(checkpoint="identity", data=data, classifier=path)
    assert message.startswith(f"{path}: takes images of shape [1, 8, 8] (channels, height, width);")
    assert message.endswith(f"those of {data} are [3, 8, 8]")


def test_images_without_labels_cannot_be_judged(stored, images):
    data = images()
    message = f"{data}: has no labels, so accuracy cannot be measured on it"
    assert fault(checkpoint="identity", data=data, classifier=stored("cnn")) == message
    assert prepare(asked("identity", data=data), CPU).classifier is None


def test_labels_that_the_classifier_does_not_know(stored, images):
    path = stored("cnn")
    data = images(labels=[9, 10])
    message = f"{data}: has label 10, but {path} has only 10 classes"
    assert fault(checkpoint="identity", data=data, classifier=path) == message
    subject = prepare(asked("identity", data=images(labels=[0, 9]), classifier=path), CPU)
    assert subject.classifier[1].classes == 10
    assert subject.classifier[0] == read_checkpoint(path)


def test_more_images_than_there_are(images, refused):
    message = "digits: 451 images were requested; choose between 1 and 450"
    assert fault(ImageError, checkpoint="identity", images=451) == message
    assert refused("compress", "identity", "--images", 451) == message
    message = r"13 images were requested; choose between 1 and 12$"
    assert re.search(message, fault(ImageError, checkpoint="identity", data=images(), images=13))


def test_a_classifier_is_no_purifier(stored):
    path = stored("cnn")
    message = f"{path}: is a classifier, not a purifier"
    assert fault(CheckpointError, checkpoint=path) == message
    assert fault(CheckpointError, checkpoint=path, images=3, draws=2) == message
    path = stored("cnn", image=COLOUR, mean=[0.5] * 3, std=[0.25] * 3)
    assert fault(CheckpointError, checkpoint=path) == message


def test_a_purifier_is_no_classifier(stored):
    path = stored("diffusion")
    message = f"{path}: is a purifier, not a classifier"
    assert fault(CheckpointError, checkpoint=path, classifier=path) == message


def test_no_transformation_is_a_classifier():
    assert fault(CheckpointError, checkpoint="jpeg", classifier="jpeg") == "jpeg: no such file"


def test_images_that_are_not_there(stored):
    message = "nowhere.npz: no such file or folder; the bundled images are named 'digits'"
    assert fault(ImageError, checkpoint=stored("diffusion"), data="nowhere.npz") == message


# --- t* and sampler -----------------------------------------------------------------------------


def test_t_star_and_sampler_are_overridden(stored):
    sampler = DDIMSampler(steps=2)
    subject = prepare(asked(stored("diffusion"), t_star=50, sampler=sampler), CPU)
    assert (subject.card.t_star, subject.card.sampler) == (50, sampler)
    assert subject.purifier.card == subject.card
    assert (subject.checkpoint.card.t_star, subject.checkpoint.card.sampler.kind) == (20, "ddpm")


@pytest.mark.parametrize("settings", [{"t_star": 5}, {"sampler": {"kind": "one-step"}}])
@pytest.mark.parametrize("checkpoint", ["identity", "feedforward"])
def test_only_a_diffusion_model_has_t_star_and_a_sampler(checkpoint, settings, stored):
    source = "identity" if checkpoint == "identity" else str(stored("feedforward"))
    message = f"{source}: is no diffusion model; it has no t* and no sampler"
    assert fault(checkpoint=source, **settings) == message


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"t_star": 101}, ["--t-star", 101], "t_star 101 is beyond the 100 steps"),
        ({"t_star": 2}, ["--t-star", 2], "3 is more steps or stride than t_star 2"),
        (
            {"sampler": {"kind": "ddim", "steps": 21}},
            ["--sampler", "ddim:steps=21"],
            "21 is more steps or stride than t_star 20",
        ),
        (
            {"sampler": {"kind": "ddpm", "variance": "learned-range"}},
            ["--sampler", "ddpm-learned"],
            "variance learned-range needs a network with learned_variance",
        ),
        (
            {"sampler": {"kind": "vp-sde", "steps": 2**24}},
            ["--sampler", f"diffpure-sde:steps={2**24}"],
            "1 rounds of 16777217 steps outrun the noise",
        ),
    ],
)
def test_overrides_that_contradict_the_card(settings, arguments, message, stored, refused):
    path = stored("diffusion")
    found = fault(checkpoint=path, **settings)
    assert found.startswith(f"{path}: ")
    assert found.endswith(message)
    assert refused("compress", path, *arguments) == found


def test_a_continuous_sampler_of_a_cosine_schedule(stored):
    path = stored("diffusion", schedule={"kind": "cosine"})
    message = fault(checkpoint=path, sampler={"kind": "vp-ode"})
    assert message.endswith("the vp-ode sampler needs a linear or vp schedule")


# --- perturbed images of the user ----------------------------------------------------------------


def file_probe(path):
    return ({"kind": "file", "path": path},)


def test_brought_images_are_matched_by_id(images):
    data = images(ids=range(100, 112))
    order = [111, 3, *range(100, 111), 4]
    user_images = images(ids=order, n=14, name="attacked")
    subject = prepare(asked("identity", data=data, probes=file_probe(user_images)), CPU)
    assert subject.user_images.ids.tolist() == subject.images.ids.tolist()
    pixels = load_images(user_images).pixels
    for row, number in enumerate(subject.images.ids):
        assert np.array_equal(subject.user_images.pixels[row], pixels[order.index(number)])


def test_brought_images_that_are_missing(images, refused):
    data, user_images = images(ids=range(12)), images(ids=range(3, 15), name="attacked")
    message = (
        f"{user_images}: has no perturbed version of 3 audited images, among them id 0; audit only"
        " those it has, with --ids"
    )
    settings = {"checkpoint": "identity", "data": data, "probes": file_probe(user_images)}
    assert fault(**settings) == message
    assert (
        refused("compress", "identity", "--data", data, "--probe", f"file:{user_images}") == message
    )
    subject = prepare(settings | {"first_id": 3}, CPU)
    assert subject.user_images.ids.tolist() == subject.images.ids.tolist()


def test_brought_images_of_another_shape(images):
    user_images = images((1, 8, 16), name="attacked")
    message = f"{user_images}: its images are [1, 8, 16], the audited ones [1, 8, 8]"
    settings = {"checkpoint": "identity", "data": images(), "probes": file_probe(user_images)}
    assert fault(**settings) == message


def test_brought_images_that_are_not_there(images):
    settings = {"checkpoint": "identity", "data": images(), "probes": file_probe("nowhere.npz")}
    assert fault(ImageError, **settings).startswith("nowhere.npz: no such file or folder")


# --- plans that cannot be made ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": (0.1, 0.1)}, "a radius is given twice"),
        ({"eps": (1.5,)}, "an l-inf radius of 1.5 is more than the pixel range"),
        ({"norm": "l0"}, "field 'norm': Input should be 'l1', 'l2' or 'linf'"),
        ({"level": 0.2}, "field 'level': Input should be greater than 0.5"),
        ({"colour": "red"}, "field 'colour': Extra inputs are not permitted"),
    ],
)
def test_plans_that_contradict_themselves(settings, message):
    found = fault(checkpoint="identity", **settings)
    assert found.startswith("the plan cannot be carried out: ")
    assert message in found


@pytest.mark.parametrize(
    ("precision", "probes"),
    [("float32", ["sign", "lowfreq", "power"]), ("bfloat16", ["sign", "lowfreq"])],
)
def test_power_iteration_is_no_default_in_a_low_precision(precision, probes, stored):
    asked_for = asked(stored("diffusion"), engine={"precision": precision})
    assert kinds(prepare(asked_for, CPU)) == probes
    named = prepare(asked_for | {"probes": [{"kind": "power"}]}, CPU)
    assert kinds(named) == ["power"]


@pytest.mark.parametrize("data", [None, "digits"])
def test_a_checkpoint_is_opened_once(stored, monkeypatch, data):
    """Opening hashes and scans the file, which takes long for a large one."""
    opened = []
    monkeypatch.setattr(
        "purify_audit.audit.subject.open_checkpoint",
        lambda *given: opened.append(given) or open_checkpoint(*given),
    )
    prepare({"checkpoint": str(stored("diffusion")), "data": data}, CPU)
    assert len(opened) == 1
