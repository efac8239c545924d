"""From a published file to a native one and to reports, through the command line."""

import json
import re
from pathlib import Path

import numpy as np
import published as made
import pytest
import torch

from purify_audit.models.checkpoint import load_tensors, read_checkpoint, save_checkpoint
from purify_audit.models.convert import convert
from purify_audit.models.networks import build_network
from purify_audit.report.schema import read_report
from purify_audit.spec.card import parse_card
from purify_audit.spec.load_options import LoadOptions

N = 4
QUICK = ("--images", N, "--draws", 2, "--directions", 2, "--probe", "sign", "--microbatch", 8)
QUICK += ("--eps", 0.05, "--quiet", "--measure-anyway")
ATTACK = ("--attack", "--steps", 1, "--draws", 1, "--held-out", 1, "--microbatch", 8, "--quiet")
ATTACK += ("--images", 2, "--eps", 0.05, "--measure-anyway")
SAID = ("--assume", "image=3x16x16", "--t-star", 3)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of this test's own, with colour images and a classifier of them."""
    monkeypatch.chdir(tmp_path)
    for name, side in (("images.npz", 16), ("cifar.npz", 32)):
        values = np.random.default_rng(0).random((N, 3, side, side), dtype=np.float32)
        np.savez(name, x=values, y=np.arange(N))
    card = {
        "name": "judge",
        "family": "classifier",
        "image": made.IMAGE.model_dump(),
        "provenance": {"data": "none", "command": "none", "licence": "Apache-2.0"},
        "network": {"arch": "cnn", "widths": [4], "hidden": 4},
        "classes": 10,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    judge = parse_card(json.dumps(card), "judge")
    state = made.trained(build_network(judge)).state_dict()
    save_checkpoint("judge.safetensors", judge, state)
    return tmp_path


def options(file):
    """The answers of a file that need no help from images, as options of `convert`."""
    answers, told = file.answers, []
    told += ["--preset", answers["preset"]] if "preset" in answers else []
    told += ["--weights", answers["weights"]] if "weights" in answers else []
    for name, value in answers["assume"].items():
        told += ["--assume", f"{name}={value}"]
    return told


def report(name="report.json"):
    return read_report(Path(name))


def estimates(name):
    return [e.model_dump() for e in report(name).estimates]


# --- convert ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", made.LAYOUTS)
def test_every_layout_becomes_a_native_file(layout, here, run_cli):
    file = made.LAYOUTS[layout](here)
    code, out, err = run_cli("convert", file.path, "out.safetensors", *options(file))
    assert (code, err) == (0, "")
    assert out.startswith(f"recognised  {file.format}, {file.container}\n")
    native = read_checkpoint("out.safetensors")
    wanted = file.network.state_dict()
    assert native.parameters == sum(tensor.numel() for tensor in wanted.values())
    assert out.endswith(f"out.safetensors: {native.card.name}, {native.parameters:,} parameters\n")
    tensors = load_tensors(native)
    assert {t.dtype for t in tensors.values()} <= {torch.float32, torch.int64}
    assert all(torch.equal(tensors[name], wanted[name].float()) for name in wanted)
    assert native.recognised is None


def test_the_published_cifar10_purifier_from_file_to_report(here, run_cli):
    """convert --preset, inspect and compress agree bit for bit with compress --as."""
    source = made.score_sde(here).path
    preset = ("--preset", "diffpure-cifar10")
    code, _, err = run_cli("convert", source, "native.safetensors", *preset, *SAID)
    assert (code, err) == (0, "")
    code, shown, _ = run_cli("inspect", "native.safetensors", "--json")
    card = json.loads(shown)["card"]
    assert (code, card["t_star"], card["sampler"]["kind"]) == (0, 3, "vp-sde")
    assert card["provenance"]["source"].startswith("Nie et al. 2022 (DiffPure)")
    code, shown, _ = run_cli(
        "inspect", source, "--as", "diffpure-cifar10", *SAID[:2], *TEXT, "--json"
    )
    assert code == 0
    shown = json.loads(shown)
    assert shown["card"] | {"name": card["name"]} == card
    assert shown["recognised"]["format"] == "score_sde"
    data = ("--data", "images.npz", "--classifier", "judge.safetensors")
    run_cli("compress", "native.safetensors", *data, *QUICK, "--out", "n.json")
    run_cli("compress", source, "--as", "diffpure-cifar10", *SAID, *data, *QUICK, "--out", "s.json")
    assert len(estimates("n.json")) > 10
    assert estimates("n.json") == estimates("s.json")


TEXT = ("--assume", "t_star=3")


@pytest.mark.parametrize(
    "layout", ["diffusers folder", "lucidrains trainer", "KAIR DRUNet", "score_sde VE checkpoint"]
)
def test_a_native_file_audits_as_its_source_does(layout, here, run_cli):
    file = made.LAYOUTS[layout](here)
    run_cli("convert", file.path, "native.safetensors", *options(file))
    told = [option.replace("--preset", "--as") for option in options(file)]
    data = ("--data", "images.npz")
    codes = [
        run_cli("compress", "native.safetensors", *data, *QUICK, "--out", "n.json")[0],
        run_cli("compress", file.path, *told, *data, *QUICK, "--out", "s.json")[0],
    ]
    assert codes[0] == codes[1] in (0, 3)
    assert estimates("n.json") == estimates("s.json")


def test_a_published_classifier_judges_as_its_native_file_does(here, run_cli):
    source = made.dm_wideresnet(here).path
    told = ("--preset", "robustbench-deepmind")
    assert run_cli("convert", source, "judge2.safetensors", *told)[0] == 0
    shared = ("compress", "median:size=3", "--data", "cifar.npz", *QUICK)
    run_cli(*shared, "--classifier", "judge2.safetensors", "--out", "n.json")
    named = ("--classifier", source, "--classifier-as", "robustbench-deepmind")
    run_cli(*shared, *named, "--out", "s.json")
    assert estimates("n.json") == estimates("s.json")
    assert any(e["metric"] == "clean_accuracy" for e in estimates("n.json"))
    made_of = report("s.json")
    assert made_of.classifier.recognised.format == "dm-wideresnet"
    assert made_of.plan.classifier_load_options.preset == "robustbench-deepmind"


def test_options_of_convert_are_answers(here, run_cli):
    file = made.ddpm(here)
    told = ("--as", "ddpm-cifar10", *SAID, "--sampler", "ddim:steps=2")
    assert run_cli("convert", file.path, "out.safetensors", *told)[0] == 0
    card = read_checkpoint("out.safetensors").card
    assert (card.t_star, card.sampler.kind, card.sampler.steps) == (3, "ddim", 2)


def test_ties_are_undone(here):
    """Two names of one tensor, which safetensors does not store."""
    file = made.dncnn(here)
    state = made.state_of(file.network)
    state["model.4.bias"] = state["model.2.bias"]
    torch.save(state, file.path)
    convert(str(file.path), Path("out.safetensors"), LoadOptions(**file.answers))
    tensors = load_tensors(read_checkpoint("out.safetensors"))
    assert torch.equal(tensors["model.4.bias"], tensors["model.2.bias"])


def test_what_cannot_be_converted(here, refused, run_cli):
    file = made.ddpm(here)
    assert refused("convert", "none.pt", "out.safetensors") == "none.pt: no such file"
    told = refused("convert", file.path, "out.safetensors")
    assert "but does not specify image, t_star, sampler" in told
    told = refused("convert", "jpeg", "out.safetensors")
    assert told == "jpeg: has no weights to convert; use it directly with `compress` and `verify`"
    assert "is a folder, not a file to write" in refused("convert", file.path, ".")
    told = refused("convert", file.path, file.path, "--as", "ddpm-cifar10", *SAID)
    assert told == f"{file.path}: is the source itself; give the new file another name"
    assert torch.load(file.path)
    told = refused("convert", file.path, "out.safetensors", "--weights", "best")
    assert "weights" in told
    told = refused("convert", file.path, "out.safetensors", "--assume", "t_star")
    assert told == "--assume 't_star' is not KEY=VALUE"
    assert not Path("out.safetensors").exists()


def test_a_native_file_is_copied(here, run_cli, stored):
    path = stored("feedforward")
    assert run_cli("convert", path, "copy.safetensors")[0] == 0
    assert read_checkpoint("copy.safetensors").card == read_checkpoint(path).card


# --- reports that name published files ----------------------------------------------------------


@pytest.fixture
def audited(here, run_cli):
    """A report of a published file, with how it was read."""
    source = made.score_sde(here).path
    told = ("--as", "diffpure-cifar10", "--weights", "raw", *SAID)
    code, _, err = run_cli("compress", source, *told, "--data", "images.npz", *QUICK)
    assert code == 3, err  # random weights do not denoise
    return report()


def test_a_report_says_how_a_file_was_read(audited):
    reading = audited.plan.load_options
    assert (reading.preset, reading.weights) == ("diffpure-cifar10", "raw")
    assert reading.assume == {"image": "3x16x16"}
    assert audited.plan.t_star == 3
    recognised = audited.checkpoint.recognised
    notes = {note.what: (note.value, note.source) for note in recognised.assumptions}
    assert notes["weights"] == ("raw", "given by the user")
    assert notes["t_star"] == ("3", "given by the user")
    assert "Nie et al. 2022" in notes["sampler"][1]
    assert not recognised.unpickled


def test_its_cells_are_computed_again(audited, run_cli):
    code, out, err = run_cli("verify", "report.json", "--cells", 3)
    assert (code, err) == (0, "")
    assert out.startswith("3 of 3 cells reproduce, bit for bit")
    code, out, _ = run_cli("replay", "report.json", "--image", 2, "--draw", 1)
    assert code == 0
    assert "the same number, bit for bit" in out


def test_another_file_under_its_name_is_refused(audited, refused):
    whole = torch.load(audited.plan.checkpoint)
    torch.save(whole | {"step": 1}, audited.plan.checkpoint)
    told = refused("verify", "report.json")
    assert told.endswith("is not the checkpoint of the report (its digest)")


def test_a_published_file_is_verified_at_once(here, run_cli):
    source = made.score_sde(here).path
    told = ("--as", "diffpure-cifar10", *SAID, "--data", "images.npz")
    told += ("--classifier", "judge.safetensors")
    code, _, err = run_cli("verify", source, *told, *ATTACK)
    assert code in (0, 3), err
    made_of = report("verify.json")
    assert made_of.attack is not None
    assert made_of.checkpoint.recognised.format == "score_sde"
    assert any(e.metric == "aligned_robust_accuracy" for e in made_of.estimates)


def test_a_published_classifier_is_named_with_a_report(here, run_cli):
    """--classifier-as goes with --classifier, also where a report brings the rest."""
    source = made.wideresnet(here).path
    run_cli("compress", "median:size=3", "--data", "cifar.npz", *QUICK)
    told = ("--classifier", source, "--classifier-as", "robustbench-standard")
    code, _, err = run_cli("verify", "report.json", *ATTACK, *told)
    assert code in (0, 3), err
    plan = report("verify.json").plan
    assert plan.classifier_load_options.preset == "robustbench-standard"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--as", "diffpure-cifar10"), ("--weights", "ema"), ("--assume", "a=1"), ("--arg", "a=1")],
)
def test_a_report_fixes_how_its_file_is_read(option, value, audited, refused):
    told = refused("verify", "report.json", "--attack", option, value)
    assert told == f"{option} cannot be changed: the report fixes it"


# --- t* and the sampler answer too --------------------------------------------------------------


def test_t_star_alone_answers_a_folder(here, run_cli, refused):
    """A diffusers folder says all but t*; no other answer is needed."""
    source = made.diffusers_folder(here).path
    data = ("--data", "images.npz", *QUICK)
    told = refused("compress", source, *data)
    assert told.endswith("does not specify t_star; use --assume t_star=… (or --t-star)")
    code, _, err = run_cli("compress", source, "--t-star", 3, *data)
    assert code == 3, err
    made_of = report()
    assert made_of.plan.load_options is None
    assert made_of.checkpoint.card.t_star == 3
    assert run_cli("verify", "report.json", "--cells", 2)[0] == 0


def test_the_plans_sampler_answers_too(here, run_cli):
    source = made.edm(here).path
    told = ("--assume", "network.preconditioning=vp", "--assume", "schedule.kind=linear")
    told += ("--t-star", 3, "--sampler", "ddim:steps=2", "--data", "images.npz")
    code, _, err = run_cli("compress", source, *told, *QUICK)
    assert code == 3, err
    card = report().checkpoint.card
    assert (card.sampler.kind, card.sampler.steps, card.t_star) == ("ddim", 2, 3)


def test_what_has_no_t_star_is_told_so(here, refused):
    source = made.dncnn(here).path
    np.savez("grey.npz", x=np.zeros((2, 1, 16, 16), np.float32))
    told = refused("compress", source, "--as", "kair-gray-25", "--t-star", 3, "--data", "grey.npz")
    assert told.endswith("is no diffusion model; it has no t* and no sampler")


# --- unpickling ---------------------------------------------------------------------------------


@pytest.fixture
def pickled(here):
    """A file that only a full unpickle can read, and options that say the rest."""
    file = made.ddpm(here)
    torch.save({"model": made.state_of(file.network), "args": Path("data")}, file.path)
    return file.path, ("--as", "ddpm-cifar10", *SAID, "--data", "images.npz", *QUICK)


def test_leave_to_unpickle_is_in_the_report(pickled, run_cli, refused):
    source, told = pickled
    assert "that can run any code" in refused("compress", source, *told)
    code, _, err = run_cli("compress", source, *told, "--allow-pickle")
    assert code == 3, err
    made_of = report()
    assert made_of.checkpoint.recognised.unpickled
    assert made_of.plan.load_options.allow_pickle
    code, out, _ = run_cli("convert", source, "out.safetensors", *told[:2], *SAID, "--allow-pickle")
    assert code == 0
    assert "unpickled   yes: code in the file may have run" in out


@pytest.mark.parametrize(
    "command", [("verify", "report.json"), ("replay", "report.json", "--image", 0)]
)
def test_a_report_does_not_permit_unpickling(command, pickled, run_cli, refused):
    """The author of a report may also be the author of the pickle that it names."""
    source, told = pickled
    run_cli("compress", source, *told, "--allow-pickle")
    assert refused(*command) == (
        "the report's models were unpickled, which can execute any code; give --allow-pickle too if"
        " you trust their author"
    )
    code, out, err = run_cli(*command, "--allow-pickle")
    assert code == 0, err
    assert "bit for bit" in out


def test_leave_to_unpickle_a_classifier_is_no_answer_to_a_native_purifier(here, run_cli, stored):
    judge = made.wideresnet(here).path
    path = stored("feedforward", image={"channels": 3, "height": 32, "width": 32})
    told = ("--classifier", judge, "--classifier-as", "robustbench-standard", "--allow-pickle")
    code, _, err = run_cli("compress", path, *told, "--data", "cifar.npz", *QUICK)
    assert code in (0, 3), err
    assert not report().classifier.recognised.unpickled


# --- inspect ------------------------------------------------------------------------------------


def test_inspect_tells_what_was_assumed_and_on_whose_word(here, run_cli):
    file = made.lucidrains_trainer(here)
    told = [option.replace("--preset", "--as") for option in options(file)]
    code, out, err = run_cli("inspect", file.path, *told)
    assert (code, err) == (0, "")
    assert re.search(r"^parameters  48,\d+ in \d+ tensors$", out, re.M)
    assert "recognised  lucidrains, zip pickle" in out
    assert "assumed     weights = ema  (denoising-diffusion-pytorch 2.x" in out
    assert "assumed     t_star = 3  (given by the user)" in out
    assert 'assumed     time_conditioning = "index"  (no tensor tells' in out


def test_inspect_does_not_ignore_answers(stored, refused):
    told = refused("inspect", stored("feedforward"), "--as", "ddpm-cifar10")
    assert told.endswith("has a card, which defines how to run it; leave out --as")


def test_the_revision_of_a_hub_model_is_recorded(tmp_path, monkeypatch):
    from purify_audit.models.open import open_checkpoint
    from purify_audit.spec.load_options import LoadOptions

    found = made.LAYOUTS["diffusers folder"](tmp_path)
    revision = found.path.rename(tmp_path / "0123abc")
    monkeypatch.setattr("purify_audit.models.open.download", lambda text: revision)
    opened = open_checkpoint("hub:somebody/ddpm", None, LoadOptions(**found.answers))
    assert opened.source == "hub:somebody/ddpm"
    first = opened.recognised.assumptions[0]
    assert (first.what, first.value) == ("revision", "0123abc")
