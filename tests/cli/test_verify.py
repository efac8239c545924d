"""`verify` as a person runs it: what it writes and recomputes, when it ends, what it refuses."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from subjects import CPU

from purify_audit import cli
from purify_audit.audit.attack_report import run_attack
from purify_audit.audit.comparison_attacks import other_ids
from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.cost import planned_evaluations, seconds_per_evaluation
from purify_audit.audit.defaults import plan_settings
from purify_audit.audit.replay import stored_subject
from purify_audit.audit.result import AuditResult, Progress
from purify_audit.audit.subject import prepare
from purify_audit.cli.execute import duration
from purify_audit.cli.progress import Reporter
from purify_audit.core.digests import file_sha256
from purify_audit.core.errors import PlanError
from purify_audit.core.noise import Noise
from purify_audit.images.image_set import load_images
from purify_audit.models.checkpoint import load_tensors, read_checkpoint, save_checkpoint
from purify_audit.report.schema import Report, read_report
from purify_audit.spec.project_file import find_project, project_settings
from purify_audit.statistics.attack import PROTOCOLS, attack_estimates
from purify_audit.statistics.attack_rows import load_attacks

ROOT = Path(__file__).parents[2]
DDPM, AUTOENCODER, CLASSIFIER, SMALL = (
    ROOT / "models" / f"digits-{name}.safetensors"
    for name in ("ddpm", "autoencoder", "classifier", "classifier-small")
)
pytestmark = pytest.mark.skipif(not DDPM.is_file(), reason="the shipped models are not here")

NOISE = "gaussian-noise:sigma=0.1"
QUICK = ("--images", 8, "--steps", 2, "--microbatch", 8, "--quiet")
TINY = (*QUICK, "--held-out", 2, "--sampler", "one-step", "--t-star", 3)
NOISY = (NOISE, *QUICK, "--held-out", 2)
CHECKS = {"other-ids", "continuation", "bpda", "square", "unbounded"}
FRESH = {"fresh", "fresh-vote", "fresh-worst"}


def run(folder, *arguments):
    """`purify-audit` in a folder: exit code and standard output; for fixtures of the module."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        patch.setenv("COLUMNS", "10000")
        patch.setattr(sys, "argv", ["purify-audit", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return code, out.getvalue()


def copy(folder, to):
    for path in Path(folder).iterdir():
        shutil.copy(path, to)


def codes(report, *severities):
    return {f.code for f in report.findings if not severities or f.severity in severities}


def metrics(report, probe, eps=None):
    return {e.metric for e in report.estimates if e.probe == probe and eps in (None, e.eps)}


ATTACKS = ("aligned", "fresh", "fresh-vote", "fresh-worst", "bare")
COMPARED = ("other-ids", "continuation", "bpda", "square")
MATRIX = {
    f"{protocol}_robust_accuracy{end}"
    for protocol in PROTOCOLS
    for end in ("", "_control", "_excess")
}
BARE = {"bare_robust_accuracy", "bare_robust_accuracy_control"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# The attack on a checkpoint.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The same attack twice, of the shipped model, which nobody names."""
    folder = tmp_path_factory.mktemp("verify")
    code, out = run(folder, "verify", "--attack", *TINY)
    again = run(folder, "verify", "--attack", *TINY, "--out", "again.json")[0]
    report = read_report(folder / "verify.json")
    errors = codes(report, "error")
    assert code == again == (3 if errors else 0)
    return folder, report, out


def test_the_shipped_model_is_attacked_when_none_is_named(finished):
    _, report, _ = finished
    assert report.status == "complete"
    assert report.checkpoint.source == str(DDPM)
    assert report.classifier.source == report.plan.classifier == str(CLASSIFIER)
    assert report.data.source == "digits"
    assert (len(report.data.ids), report.plan.attack.steps) == (8, 2)
    assert "PA311" not in codes(report)


def test_a_second_run_is_the_same_body_and_the_same_images(finished):
    folder, report, _ = finished
    again = read_report(folder / "again.json")
    assert report.body() == again.body()
    assert report.run.body_sha256 == again.run.body_sha256 == report.body_sha256()
    files = [load_file(folder / f"{name}.attack.safetensors") for name in ("verify", "again")]
    assert files[0].keys() == files[1].keys()
    for name, column in files[0].items():
        assert np.array_equal(column, files[1][name], equal_nan=True), name
    assert report.run.attacks_file == "verify.attack.safetensors"
    assert report.attacks_sha256 == file_sha256(folder / "verify.attack.safetensors")
    assert report.rows_sha256 == file_sha256(folder / "verify.rows.safetensors")


def test_another_seed_is_another_attack(finished, run_cli, here):
    _, report, _ = finished
    run_cli("verify", "--attack", *TINY, "--seed", 1)
    other = read_report(here / "verify.json")
    assert other.run.body_sha256 != report.run.body_sha256
    assert other.data.ids != report.data.ids


def test_the_whole_matrix_is_in_the_report(finished):
    _, report, _ = finished
    assert metrics(report, "aligned") == MATRIX
    assert metrics(report, "fresh") == MATRIX | {"randomness_inflation"}
    assert metrics(report, "bare") == BARE
    rates = {e.metric for e in report.estimates} - MATRIX - BARE - {"randomness_inflation"}
    assert {"compression_rate", "rms_gain", "anchor_accuracy", "clean_accuracy"} <= rates
    addresses = [(e.metric, e.norm, e.probe, e.eps) for e in report.estimates]
    assert len(set(addresses)) == len(addresses)
    for e in report.estimates:
        if e.metric in MATRIX | BARE:
            low = -1 if e.metric.endswith("_excess") else 0
            assert low <= e.lower <= e.value <= e.upper <= 1, e
            assert (e.norm, e.eps, e.n_images) == ("linf", 0.15, 8)


def test_an_excess_is_the_control_less_the_attacked(finished):
    _, report, _ = finished
    at = {(e.metric, e.probe): e.value for e in report.estimates}
    for probe in ("aligned", "fresh"):
        for protocol in PROTOCOLS:
            name = f"{protocol}_robust_accuracy"
            gap = at[f"{name}_control", probe] - at[name, probe]
            assert at[f"{name}_excess", probe] == pytest.approx(gap)
            assert at[f"{name}_control", "aligned"] == at[f"{name}_control", "fresh"]
    gap = at["mean_robust_accuracy", "fresh"] - at["aligned_robust_accuracy", "aligned"]
    assert at["randomness_inflation", "fresh"] == pytest.approx(gap)


def test_estimates_are_those_of_the_rows_in_the_file(finished):
    folder, report, _ = finished
    rows = load_attacks(folder / "verify.attack.safetensors")
    again = tuple(attack_estimates(rows, report.plan))
    assert report.estimates[-len(again) :] == again
    assert len(again) == len(MATRIX) * 2 + len(BARE) + 2  # and inflation, and prediction
    radii = {s.name: s.eps for s in rows.scored}
    assert len(radii) == len(rows.scored)
    main = dict.fromkeys((*ATTACKS, "predicted", *COMPARED), 0.15)
    assert radii == main | {"unbounded": 0.5}


def test_labels_in_the_file_are_what_the_defence_says(finished):
    folder, report, _ = finished
    rows = load_attacks(folder / "verify.attack.safetensors")
    subject = stored_subject(report, folder, CPU, report.plan)
    for attack in rows.scored:
        ids = tuple(int(i) for i in rows.ids[: len(attack.images)])
        if attack.name == "other-ids":
            ids = other_ids(ids, report.plan.seed)
        x = torch.from_numpy(attack.images)
        purifiers = {"bare": lambda z, noise: z}
        purify, judge = purifiers.get(attack.name, subject.purifier), subject.classifier.model
        columns = [(attack.aligned, 0)]
        columns += [(attack.held_out, 2**16)] if attack.held_out.size else []
        for labels, first in columns:
            for k in range(labels.shape[1]):
                y = purify(x, Noise(report.plan.seed, ids, (first + k,) * len(ids)))
                assert np.array_equal(judge(y).argmax(1).numpy(), labels[:, k]), attack.name


def test_attacked_images_are_in_the_ball_and_in_the_range(finished):
    folder, _, _ = finished
    rows = load_attacks(folder / "verify.attack.safetensors")
    clean = load_images("digits")
    place = [int(np.flatnonzero(clean.ids == i)[0]) for i in rows.ids]
    assert np.array_equal(rows.labels, clean.labels[place])
    for attack in rows.scored:
        delta = attack.images.astype(np.float64) - clean.pixels[place]
        assert np.abs(delta).max() <= attack.eps + 1e-6
        assert attack.images.min() >= 0
        assert attack.images.max() <= 1
        np.testing.assert_allclose(attack.delta_linf, np.abs(delta).max((1, 2, 3)), atol=1e-7)
        l2 = np.sqrt((delta**2).sum((1, 2, 3)))
        np.testing.assert_allclose(attack.delta_l2, l2, atol=1e-6)


def test_the_attack_file_is_a_set_of_images(finished, run_cli, here):
    folder, report, _ = finished
    attacked = folder / "verify.attack.safetensors"
    images = load_images(str(attacked))
    rows = load_attacks(attacked)
    assert np.array_equal(images.pixels, rows.find("aligned").images)
    assert images.ids.tolist() == list(report.data.ids)
    assert np.array_equal(images.labels, rows.labels)
    user_images = ("--probe", f"file:{attacked}", "--images", 8, "--quiet")
    code, _, err = run_cli("compress", DDPM, *user_images, "--sampler", "one-step", "--t-star", 3)
    assert code == 0, err
    assert read_report(here / "report.json").data.user_images_digest == images.digest


def test_images_are_told_one_by_one(finished):
    folder, report, _ = finished
    rows = load_attacks(folder / "verify.attack.safetensors")
    main = rows.find("aligned")
    info = report.attack
    assert [v.image for v in info.images] == list(report.data.ids)
    for n, verdict in enumerate(info.images):
        right = main.aligned[n] == verdict.label
        assert verdict.robust == right.mean()
        assert set(verdict.rates) == {"sign", "lowfreq", "power", "attack"}
        if not right.any():
            assert verdict.fooling_radius <= 0.15 + 1e-6
    assert set(info.correlations) == {"sign", "lowfreq", "power", "attack"}
    assert {f.attack for f in info.fuzziness} == {"clean", "aligned", "fresh"}
    assert all(f.fool_none + f.fool_some + f.fool_all == 8 for f in info.fuzziness)
    assert len(info.caps) == 4


def test_the_table_tells_the_headline(finished):
    _, report, out = finished
    at = {(e.metric, e.probe): e.value for e in report.estimates}
    aligned = at["aligned_robust_accuracy", "aligned"]
    usual = at["mean_robust_accuracy", "fresh"]
    sentence = (
        f"robust accuracy is {aligned:.1%} under the aligned attack and {usual:.1%} by the usual"
        " protocol (fresh attack, held-out draws)"
    )
    assert sentence in " ".join(out.split())
    assert "portfolio of 2 steps, 9 targets, 1 draw, exact gradient" in " ".join(out.split())
    assert "classifier without purifier" in out
    assert all(f.code in out for f in report.findings)


def test_json_alone_goes_to_standard_output(run_cli, here):
    code, out, err = run_cli("verify", "identity", "--attack", *QUICK, "--json")
    assert Report.model_validate_json(out) == read_report(here / "verify.json")
    assert err == ""
    assert code == (3 if codes(read_report(here / "verify.json"), "error") else 0)


def test_standard_error_tells_the_cost_before_the_run(run_cli, here):
    loud = [a for a in QUICK if a != "--quiet"]
    _, out, err = run_cli("verify", "identity", "--attack", *loud)
    report = read_report(here / "verify.json")
    (most,) = re.findall(r"at most ([\d,]+) network evaluations, about", err)
    assert int(most.replace(",", "")) >= report.run.evaluations
    assert "about" not in out.partition("verify.json")[2]


# Other attacks.


@pytest.mark.parametrize(
    ("arguments", "used"),
    [
        (("--optimiser", "square", "--steps", 5), "no gradient"),
        (("--optimiser", "apgd"), None),
        (("--gradient", "bpda"), "gradient 'bpda'"),
        (("--gradient", "none"), "gradient 'none'"),
        (("--gradient", "surrogate", "--t-star", 6, "--images", 2), "gradient 'surrogate'"),
        (("--loss", "ce", "--restarts", 2), None),
        (("--loss", "dlr", "--draws", 2), None),
    ],
)
def test_other_attacks_run_and_are_named(arguments, used, run_cli, here):
    diffusion = (
        (*TINY, "--sampler", "ddpm", "--microbatch", 2) if "surrogate" in arguments else NOISY
    )
    code, out, err = run_cli("verify", "--attack", *diffusion, *arguments)
    assert err == ""
    report = read_report(here / "verify.json")
    assert code == (3 if codes(report, "error") else 0)
    assert report.status == "complete"
    told = [f.sentence for f in report.findings if f.code == "PA310"]
    assert told == ([f"The attack used {used}."] if used else [])
    assert metrics(report, "aligned") == MATRIX
    names = {s.name for s in load_attacks(here / "verify.attack.safetensors").scored}
    wanted = CHECKS - ({"bpda"} if used else set())
    wanted -= {"square"} if "square" in arguments else set()
    wanted |= set() if "square" in arguments else FRESH  # a search by looks keeps luck
    assert names == {"aligned", "bare", "predicted"} | wanted
    how = report.plan.attack
    for name, asked in zip(arguments[::2], arguments[1::2]):
        field = name.removeprefix("--")
        assert field in ("images", "t-star") or getattr(how, field) == asked
    shown = "" if "square" in arguments else f", {how.gradient} gradient"
    named = {"portfolio": f"portfolio of {how.steps} steps"}
    text = " ".join(out.split())
    assert named.get(how.optimiser, f"{how.optimiser.upper()}-{how.steps}, ") in text
    assert shown in text


@pytest.mark.parametrize(
    "purifier",
    [AUTOENCODER, "jpeg:quality=75", "median:size=3"],
    ids=["autoencoder", "jpeg", "median"],
)
def test_a_deterministic_purifier_has_no_fresh_attack(purifier, run_cli, here):
    code, out, err = run_cli("verify", purifier, "--attack", *QUICK, "--draws", 3, "--held-out", 9)
    assert err == ""
    report = read_report(here / "verify.json")
    assert (report.plan.attack.draws, report.plan.attack.held_out) == (1, 1)
    assert metrics(report, "fresh") == set()
    assert metrics(report, "aligned") == MATRIX
    assert metrics(report, "bare") == BARE
    assert "fresh attack" not in out
    assert "usual protocol" not in out
    if purifier == "jpeg:quality=75":
        assert code == 3
        assert "PA302" in codes(report, "error")


def test_added_noise_is_attacked_both_ways(run_cli, here):
    run_cli("verify", NOISE, "--attack", *QUICK, "--held-out", 2)
    assert "randomness_inflation" in metrics(read_report(here / "verify.json"), "fresh")


def test_every_radius_is_attacked(run_cli, here):
    _, out, _ = run_cli("verify", "--attack", *NOISY, "--eps", "0.05,1/10,0.3")
    report = read_report(here / "verify.json")
    assert report.plan.eps == report.plan.attack.eps == (0.05, 0.1, 0.3)
    for eps in (0.05, 0.1, 0.3):
        assert metrics(report, "aligned", eps) == MATRIX
        assert metrics(report, "bare", eps) == BARE
        assert "randomness_inflation" in metrics(report, "fresh", eps)
    assert out.count("Robust accuracy, ℓ∞") == 3
    rows = load_attacks(here / "verify.attack.safetensors")
    main = [s for s in rows.scored if s.name == "aligned"]
    assert [s.eps for s in main] == [0.05, 0.1, 0.3]
    assert np.array_equal(load_images("verify.attack.safetensors").pixels, main[0].images)
    sizes = [float(s.delta_linf.max()) for s in main]
    assert sizes == pytest.approx([0.05, 0.1, 0.3], abs=1e-6)


def test_the_l2_ball(run_cli, here):
    run_cli("verify", "--attack", *NOISY, "--norm", "l2")
    report = read_report(here / "verify.json")
    assert (report.plan.attack.norm, report.plan.attack.eps) == ("l2", (1.0,))
    assert {e.norm for e in report.estimates if e.probe == "aligned"} == {"l2"}
    rows = load_attacks(here / "verify.attack.safetensors")
    assert all(s.delta_l2.max() <= s.eps + 1e-5 for s in rows.scored)
    assert rows.find("unbounded").eps == 4.0  # half the diagonal of 64 pixels
    assert rows.find("aligned").delta_l2.max() > 0.5


def test_more_images_than_are_checked_and_several_groups(run_cli, here):
    """70 images in micro-batches of 16: groups are joined, 64 are held against other attacks."""
    run_cli("verify", "identity", "--attack", *QUICK, "--images", 70, "--microbatch", 16)
    rows = load_attacks(here / "verify.attack.safetensors")
    report = read_report(here / "verify.json")
    assert rows.ids.tolist() == list(report.data.ids)
    sizes = {s.name: len(s.images) for s in rows.scored}
    assert sizes == dict.fromkeys(("aligned", "bare", "predicted"), 70) | (
        dict.fromkeys(CHECKS, 64) | {"square": 32, "other-ids": 32}
    )
    run_cli("verify", "identity", "--attack", *QUICK, "--images", 70, "--out", "other.json")
    other = load_attacks(here / "other.attack.safetensors")
    same = np.isclose(rows.find("aligned").images, other.find("aligned").images, atol=1e-5)
    assert same.all((1, 2, 3)).mean() > 0.9  # in micro-batches of 8: up to rounding


def test_another_classifier(run_cli, here):
    run_cli("verify", "identity", "--attack", *QUICK, "--classifier", SMALL)
    report = read_report(here / "verify.json")
    assert report.classifier.source == str(SMALL)
    assert report.classifier.card.name == "digits-classifier-small"


# Foretelling.


@pytest.mark.parametrize("purifier", [DDPM, AUTOENCODER, NOISE], ids=["ddpm", "ae", "noise"])
def test_a_prediction_alone_is_the_one_beside_the_attack(purifier, run_cli, here):
    arguments = (purifier, *QUICK[:-1], "--held-out", 2, "--eps", "0.1,0.2")
    if purifier == DDPM:
        arguments += ("--sampler", "ddim:steps=2", "--t-star", 4, "--steps", 1)
        arguments += ("--images", 3, "--microbatch", 3)
    code, out, err = run_cli("verify", *arguments, "--predict", "--quiet")
    assert (code, err) == (0, "")
    alone = read_report(here / "verify.json")
    assert alone.status == "complete"
    assert metrics(alone, "aligned") | metrics(alone, "fresh") | metrics(alone, "bare") == set()
    assert " ".join(out.split()).count("predicted by a short transfer attack") == 2
    rows = load_attacks(here / "verify.attack.safetensors")
    assert [(s.name, s.eps) for s in rows.scored] == [("predicted", 0.1), ("predicted", 0.2)]
    run_cli("verify", *arguments, "--attack", "--quiet", "--out", "both.json")
    both = read_report(here / "both.json")
    name = "predicted_robust_accuracy"
    found = [[e for e in report.estimates if e.metric == name] for report in (alone, both)]
    assert found[0] == found[1]
    assert [e.eps for e in found[0]] == [0.1, 0.2]
    for e in found[0]:  # its images are real attacks on the whole purifier
        stands = next(s for s in rows.scored if s.eps == e.eps).aligned == rows.labels[:, None]
        assert e.value == stands.mean()
        assert e.n_images == len(rows.ids)
    assert alone.run.evaluations < both.run.evaluations / 2


def test_a_report_is_foretold_on_its_own_images(compressed, run_cli, here):
    copy(compressed, here)
    code, _, err = run_cli("verify", "report.json", "--predict", *QUICK)
    assert (code, err) == (0, "")
    first, second = read_report(here / "report.json"), read_report(here / "verify.json")
    assert second.estimates[: len(first.estimates)] == first.estimates
    assert [e.metric for e in second.estimates[len(first.estimates) :]] == [
        "predicted_robust_accuracy"
    ]
    assert second.plan.attack.predict_only


# What it costs.


@pytest.mark.parametrize(
    ("checkpoint", "asked"),
    [
        (DDPM, {"t_star": 2, "images": 2, "gradient": "none", "restarts": 2}),
        (DDPM, {"t_star": 6, "images": 2, "gradient": "surrogate"}),
        (NOISE, {}),
        (NOISE, {"restarts": 2, "steps": 5}),
        (NOISE, {"gradient": "bpda", "eps": [0.1, 0.2]}),
        (NOISE, {"optimiser": "square", "restarts": 2}),
        (NOISE, {"optimiser": "apgd", "norm": "l2", "loss": "ce"}),
        (NOISE, {"images": 70, "microbatch": 64}),
        (AUTOENCODER, {"restarts": 3}),
        ("bit-depth", {}),
        (NOISE, {"predict_only": True, "draws": 2}),
        (DDPM, {"predict_only": True, "t_star": 3, "images": 4, "eps": [0.1, 0.2]}),
        pytest.param(
            *(NOISE, {"draws": 3}),
        ),
        pytest.param(
            *(DDPM, {"t_star": 6, "images": 2}),
        ),
    ],
    ids=str,
)
def test_the_planned_cost_is_never_exceeded(checkpoint, asked):
    quick = {"steps": 2, "held_out": 2, "microbatch": 8, "images": 8}
    quick |= {"microbatch": asked["images"]} if asked.get("images") == 2 else {}
    fields = plan_settings(quick | {"checkpoint": str(checkpoint)} | asked)
    fields["attack"]["square_queries"] = 9
    fields |= {"draws": 1, "directions": 2, "probes": [{"kind": "sign"}]}
    subject = prepare(fields, CPU)
    ticked = []
    found = run_attack(subject, run_compression(subject), Progress(ticked.append))
    spent = found.report.attack.evaluations
    assert spent == sum(ticked)
    planned = planned_evaluations(subject, compression=False)
    assert planned / 4 < spent <= planned  # images that fall leave


def test_a_dry_run_tells_the_cost_and_writes_nothing(finished, run_cli, here):
    _, report, _ = finished
    code, out, err = run_cli("verify", "--attack", *TINY, "--dry-run")
    assert (code, err) == (0, "")
    (most,) = re.findall(r"^at most ([\d,]+) network evaluations, about ", out)
    assert int(most.replace(",", "")) >= report.run.evaluations
    assert out.count("\n") == 1
    assert list(here.iterdir()) == []


def test_a_dry_run_of_a_report_tells_less(finished, run_cli, here):
    folder, report, _ = finished
    copy(folder, here)
    before = {p: p.read_bytes() for p in here.iterdir()}
    code, out, _ = run_cli("verify", "verify.json", "--attack", *QUICK[:-1], "--dry-run")
    assert code == 0
    (most,) = re.findall(r"^at most ([\d,]+) network evaluations", out)
    assert int(most.replace(",", "")) < report.run.evaluations * 4
    assert {p: p.read_bytes() for p in here.iterdir()} == before


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "0 s"), (119, "119 s"), (121, "2 min"), (7000, "117 min"), (7300, "2.0 h")],
)
def test_times_as_people_say_them(seconds, told):
    assert duration(seconds) == told


def test_the_time_of_an_evaluation_is_positive():
    subject = prepare(plan_settings({"checkpoint": str(AUTOENCODER), "images": 4}), CPU)
    assert 0 < seconds_per_evaluation(subject) < 1


# Ending early.


def test_a_limit_of_time_writes_what_there_is(run_cli, here):
    code, out, err = run_cli("verify", "--attack", *TINY, "--max-seconds", 0.001)
    assert (code, err) == (3, "")
    assert "PARTIAL" in out
    report = read_report(here / "verify.json")
    assert report.status == "partial"
    assert "PA311" in codes(report, "error")
    assert report.run.rows_file == "verify.rows.safetensors"


class Impatient(Reporter):
    """Asks to stop, one way or another, when a share of the work is done."""

    share, way = 0.8, None

    def tick(self, evaluations):
        if self.done >= self.share * self._total and self.way is not None:
            way, type(self).way = self.way, None
            way(self)
        super().tick(evaluations)


@pytest.mark.parametrize("share", [0.1, 0.8])
@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (lambda reporter: setattr(reporter, "_max_seconds", 0.0), 3),
        (lambda reporter: os.kill(os.getpid(), signal.SIGINT), 130),
        (lambda reporter: os.kill(os.getpid(), signal.SIGTERM), 143),
    ],
    ids=["time", "SIGINT", "SIGTERM"],
)
def test_a_wish_to_end_in_the_middle(way, expected, share, run_cli, here, monkeypatch):
    monkeypatch.setattr("purify_audit.cli.progress.Reporter", Impatient)
    monkeypatch.setattr(Impatient, "way", staticmethod(way))
    monkeypatch.setattr(Impatient, "share", share)
    before = signal.getsignal(signal.SIGINT)
    code, out, err = run_cli("verify", "--attack", *NOISY)
    assert code == expected, err
    assert signal.getsignal(signal.SIGINT) == before
    assert "PARTIAL" in out
    report = read_report(here / "verify.json")
    assert report.status == "partial"
    (told,) = (f for f in report.findings if f.code == "PA311")
    assert told.evidence == {"images": 8 if share > 0.5 else 0}
    if share > 0.5:
        assert metrics(report, "aligned") == MATRIX
        assert len(load_attacks(here / "verify.attack.safetensors").ids) == 8
    else:
        assert report.attack is None
        assert not (here / "verify.attack.safetensors").exists()


def test_a_run_that_measured_nothing_is_no_success(run_cli, here):
    many = ",".join(str(n / 100) for n in range(1, 30))
    code, _, _ = run_cli("verify", "--attack", *TINY, "--eps", many, "--max-seconds", 0.001)
    assert read_report(here / "verify.json").status == "partial"
    assert code == 3


def test_no_time_at_all_is_a_limit(run_cli, here):
    run_cli("verify", "identity", "--attack", *QUICK, "--max-seconds", 0)
    assert read_report(here / "verify.json").status == "partial"


# A report's cells, computed again.


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress")
    few = ("--images", 8, "--draws", 2, "--directions", 2, "--sampler", "one-step", "--quiet")
    assert run(folder, "compress", DDPM, *few, "--t-star", 3)[0] == 0
    return folder


@pytest.mark.parametrize("target", [("report.json",), ()], ids=["named", "in the folder"])
@pytest.mark.parametrize("cells", [1, 20])
def test_cells_reproduce(target, cells, compressed, run_cli, here):
    copy(compressed, here)
    code, out, err = run_cli("verify", *target, "--cells", cells)
    assert (code, err) == (0, "")
    assert out.startswith(f"{cells} of {cells} cells reproduce, bit for bit")
    assert "`attack` cross-checks" in out


def test_no_more_cells_than_there_are(run_cli, here):
    few = ("--images", 4, "--directions", 2, "--probe", "sign", "--quiet")
    assert run_cli("compress", "identity", *few)[0] == 0
    every = 8
    code, out, _ = run_cli("verify", "report.json", "--cells", 10 * every)
    assert code == 0
    assert out.startswith(f"{every} of {every} cells reproduce")


def test_cells_of_an_attacked_report_reproduce(finished, run_cli):
    folder, _, _ = finished
    assert run_cli("verify", folder / "verify.json")[:2] == (
        0,
        "16 of 16 cells reproduce, bit for bit (`attack` cross-checks what they mean)\n",
    )


def test_a_changed_file_of_rows_is_refused(compressed, refused, here):
    copy(compressed, here)
    rows = load_file("report.rows.safetensors")
    rows["probes.change_l2"] = rows["probes.change_l2"] * 1.01
    save_file(rows, "report.rows.safetensors")
    for arguments in (("report.json",), ("report.json", "--attack", "--quiet")):
        told = refused("verify", *arguments)
        assert told.endswith("is missing or is not the file of this report")
    (here / "report.rows.safetensors").unlink()
    assert "is missing" in refused("verify", "report.json")
    assert not (here / "verify.json").exists()


def tampered(folder, columns):
    """Rewrite columns of a report's rows, digests and all."""
    rows = folder / "report.rows.safetensors"
    save_file(load_file(rows) | columns, rows)
    report = read_report(folder / "report.json")
    changed = report.model_copy(update={"rows_sha256": file_sha256(rows)})
    ran = report.run.model_copy(update={"body_sha256": changed.body_sha256()})
    changed = changed.model_copy(update={"run": ran})
    (folder / "report.json").write_text(changed.model_dump_json(indent=1), encoding="utf-8")


def test_a_tampered_row_is_told(compressed, run_cli, here):
    """Somebody who rewrites rows, digest and all, is caught by computing cells again."""
    copy(compressed, here)
    rows = load_file("report.rows.safetensors")
    tampered(here, {"probes.change_l2": rows["probes.change_l2"] * 0.5})
    code, out, _ = run_cli("verify", "report.json", "--cells", 5)
    assert code == 3
    lines = out.splitlines()
    assert lines[5] == "0 of 5 cells reproduce, bit for bit"
    for line in lines[:5]:
        assert line.startswith("image ")
        assert " differs by 0." in line
        assert any(f"probe {kind}," in line for kind in ("sign", "lowfreq", "power"))


def test_a_tampered_report_is_not_attacked(compressed, run_cli, here):
    copy(compressed, here)
    rows = load_file("report.rows.safetensors")
    tampered(here, {"probes.change_l2": rows["probes.change_l2"] * 0.5})
    code, _, _ = run_cli("verify", "report.json", "--attack", *QUICK)
    report = read_report(here / "verify.json")
    assert (code, report.attack) == (3, None)
    (told,) = (f for f in report.findings if f.code == "PA313")
    assert told.severity == "error"
    assert told.evidence["largest_difference"] > 0.01


def test_a_forged_or_foreign_file_is_refused(compressed, refused, here):
    copy(compressed, here)
    text = Path("report.json").read_text(encoding="utf-8")
    Path("forged.json").write_text(text.replace('"seed": 0', '"seed": 1'), encoding="utf-8")
    assert refused("verify", "forged.json").startswith("forged.json: was changed after")
    Path("none.json").write_text("[]", encoding="utf-8")
    assert refused("verify", "none.json").startswith("none.json: is not a report")
    assert "cannot be read" in refused("verify", "nowhere.json")
    assert "cannot be read" in refused("verify", "nowhere.json", "--attack")


# A report's own images, attacked.


def test_a_report_is_cross_checked_on_its_own_images(compressed, run_cli, here):
    copy(compressed, here)
    before = Path("report.json").read_bytes()
    code, out, err = run_cli("verify", "report.json", "--attack", *QUICK, "--held-out", 2)
    assert err == ""
    assert Path("report.json").read_bytes() == before
    first, second = read_report(here / "report.json"), read_report(here / "verify.json")
    assert code == (3 if codes(second, "error") else 0)
    assert second.data == first.data
    assert second.rows_sha256 == first.rows_sha256 == file_sha256(here / "verify.rows.safetensors")
    assert second.estimates[: len(first.estimates)] == first.estimates
    assert metrics(second, "aligned") == MATRIX
    assert second.plan.attack.eps == first.plan.eps
    assert second.plan.attack.norm == first.plan.norm
    unlike = {"attack", "classifier"}
    assert second.plan.model_dump(exclude=unlike) == first.plan.model_dump(exclude=unlike)
    assert [v.image for v in second.attack.images] == list(first.data.ids)
    assert set(second.attack.images[0].rates) == {"sign", "lowfreq", "power", "attack"}
    assert "portfolio of 2 steps" in out


def test_fewer_images_and_another_radius_than_the_report(compressed, run_cli, here):
    copy(compressed, here)
    arguments = ("--images", 3, "--eps", "0.1,0.2")
    run_cli("verify", "report.json", "--attack", *QUICK, *arguments, "--held-out", 1)
    report = read_report(here / "verify.json")
    assert {e.n_images for e in report.estimates if e.probe == "aligned"} == {3}
    assert {e.eps for e in report.estimates if e.probe == "aligned"} == {0.1, 0.2}
    assert {e.n_images for e in report.estimates if e.metric == "compression_rate"} == {8}
    assert load_attacks(here / "verify.attack.safetensors").ids.tolist() == list(
        report.data.ids[:3]
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--data", "digits"),
        ("--seed", "0"),
        ("--t-star", "5"),
        ("--sampler", "ddim"),
        ("--ids", "0:500"),
    ],
)
def test_what_the_report_fixes_cannot_be_changed(option, value, compressed, refused, here):
    copy(compressed, here)
    told = refused("verify", "report.json", "--attack", option, value)
    assert told == f"{option} cannot be changed: the report fixes it"


def test_a_report_with_errors_is_not_attacked_unless_told(run_cli, here):
    """A card that lies about the data range: the network does not denoise (PA106)."""
    honest = read_checkpoint(str(DDPM))
    lying = honest.card.model_copy(update={"data_range": (0.0, 1.0)})
    save_checkpoint(here / "lying.safetensors", lying, load_tensors(honest))
    code, _, _ = run_cli("verify", "lying.safetensors", "--attack", *TINY)
    report = read_report(here / "verify.json")
    assert (code, report.attack, report.estimates) == (3, None, ())
    assert codes(report) == {"PA106"}
    few = ("--images", 8, "--sampler", "one-step", "--t-star", 3, "--quiet", "--measure-anyway")
    run_cli("compress", "lying.safetensors", *few)
    code, _, _ = run_cli("verify", "report.json", "--attack", *QUICK)
    assert (code, read_report(here / "verify.json").attack) == (3, None)
    code, _, _ = run_cli("verify", "report.json", "--attack", *QUICK, "--measure-anyway")
    report = read_report(here / "verify.json")
    assert code == 3
    assert metrics(report, "aligned") == MATRIX
    assert "PA106" in codes(report)


def test_another_checkpoint_under_the_same_name_is_refused(compressed, refused, run_cli, here):
    checkpoint = read_checkpoint(str(AUTOENCODER))
    save_checkpoint(here / "a.safetensors", checkpoint.card, load_tensors(checkpoint))
    assert run_cli("compress", "a.safetensors", "--images", 4, "--quiet")[0] == 0
    tensors = {name: 1.01 * tensor for name, tensor in load_tensors(checkpoint).items()}
    save_checkpoint(here / "a.safetensors", checkpoint.card, tensors)
    for attack in ((), ("--attack",)):
        told = refused("verify", "report.json", *attack)
        assert told == "a.safetensors: is not the checkpoint of the report (its digest)"


def test_the_report_names_the_classifier_that_was_fooled(compressed, run_cli, here):
    copy(compressed, here)
    run_cli("verify", "report.json", "--attack", *QUICK, "--images", 2)
    report = read_report(here / "verify.json")
    assert report.plan.classifier == str(CLASSIFIER)
    assert report.classifier is not None


def test_a_report_that_has_an_attack_gets_no_second_one_beside_it(finished, run_cli, here):
    folder, _, _ = finished
    copy(folder, here)
    code, _, _ = run_cli("verify", "verify.json", "--attack", *QUICK, "--out", "third.json")
    if code != 2:
        report = read_report(here / "third.json")
        addresses = [(e.metric, e.norm, e.probe, e.eps) for e in report.estimates]
        assert len(set(addresses)) == len(addresses)


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to verify: give a report of `compress`, or --attack"),
        ((DDPM,), "nothing to verify: give a report of `compress`, or --attack"),
        (("--attack", "--preset", "huge"), "no preset 'huge'; there are smoke, standard, paper"),
        (("--attack", "--loss", "hinge"), "attack.loss"),
        (("--attack", "--optimiser", "adam"), "attack.optimiser"),
        (("--attack", "--gradient", "true"), "attack.gradient"),
        (("--attack", "--eps", "1.5"), "an l-inf radius of 1.5 is more than the pixel range"),
        (("--attack", "--eps", "0.1,0.1"), "a radius is given twice"),
        (("--attack", "--eps", "x"), "--eps 'x' is not a list of numbers"),
        (("--attack", "--eps", "0"), "eps"),
        (("--attack", "--norm", "l3"), "norm"),
        (("--attack", "--ids", "5"), "--ids '5' is not FIRST:LAST"),
        (("--attack", "--device", "tpu"), "device 'tpu'"),
        (("--attack", "--out", "no/folder.json"), "does not exist"),
        (("--attack", "--classifier", DDPM), "is a purifier, not a classifier"),
        (("--attack", "--t-star", "2000"), "t_star 2000"),
        (("--attack", "--sampler", "euler"), "no sampler 'euler'"),
        (("--attack", "--steps", "99999999"), "attack.steps"),
        ((CLASSIFIER, "--attack"), "is a classifier, not a purifier"),
        (("jpg", "--attack"), "jpeg"),
        (("nowhere.safetensors", "--attack"), "nowhere.safetensors"),
        (
            (AUTOENCODER, "--attack", "--gradient", "surrogate"),
            "a surrogate gradient needs a diffusion purifier",
        ),
        (("median", "--attack", "--gradient", "surrogate", "--dry-run"), "needs a diffusion"),
        ((AUTOENCODER, "--attack", "--t-star", "5"), "is no diffusion model"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, refused, here):
    assert message in refused("verify", *arguments)
    assert list(here.iterdir()) == []


def test_images_without_a_classifier_that_fits_are_refused(refused, here):
    images = {
        "images": np.full((4, 3, 4, 4), 0.5, np.float32),
        "labels": np.arange(4),
        "ids": np.arange(4),
    }
    save_file(images, "colour.safetensors")
    told = refused("verify", "identity", "--attack", "--data", "colour.safetensors")
    assert "an attack needs a classifier; name one with --classifier" in told
    told = refused(
        *("verify", "identity", "--attack", "--data", "colour.safetensors"),
        *("--classifier", CLASSIFIER),
    )
    assert "takes images of shape [1, 8, 8]" in told


def test_images_without_labels_are_refused(refused, here):
    save_file({"images": np.full((4, 1, 8, 8), 0.5, np.float32)}, "bare.safetensors")
    told = refused("verify", "identity", "--attack", "--data", "bare.safetensors")
    assert "has no labels" in told


def test_a_report_without_rows_is_refused(compressed, refused, here):
    copy(compressed, here)
    report = read_report(here / "report.json")
    ran = report.run.model_copy(update={"rows_file": None})
    (here / "report.json").write_text(
        report.model_copy(update={"run": ran}).model_dump_json(indent=1), encoding="utf-8"
    )
    told = "the report has no rows: nothing was measured"
    assert refused("verify", "report.json") == told
    assert refused("verify", "report.json", "--attack", "--quiet") == told


def test_wrong_usage_is_exit_2(run_cli, here):
    for arguments in (("--steps", 0), ("--draws", "x"), ("--nonsense",), ("--cells", 0)):
        assert run_cli("verify", "--attack", *arguments)[0] == 2


# Settings from a file.

GOOD = """
checkpoint = "gaussian-noise:sigma=0.05"
images = 4
steps = 3
held-out = 2
eps = [0.1, 0.2]
norm = "linf"
seed = 7
restarts = 1
microbatch = 4
level = 0.9
device = "cpu"
"""


@pytest.mark.parametrize("where", ["purify-audit.toml", "pyproject.toml"])
def test_settings_of_the_project_are_followed_and_overridden(where, run_cli, here):
    table = "" if where == "purify-audit.toml" else "[project]\nname = 'x'\n[tool.purify-audit]"
    Path(where).write_text(table + GOOD, encoding="utf-8")
    _, _, err = run_cli("verify", "--attack", "--quiet", "--steps", 2, "--eps", "0.3")
    assert err == ""
    plan = read_report(here / "verify.json").plan
    assert plan.checkpoint == "gaussian-noise:sigma=0.05"
    assert (plan.images, plan.seed, plan.level) == (4, 7, 0.9)
    how = plan.attack
    assert (how.steps, how.held_out, how.microbatch, how.eps) == (2, 2, 4, (0.3,))
    _, _, err = run_cli("verify", "identity", "--attack", "--quiet", "--preset", "smoke")
    plan = read_report(here / "verify.json").plan
    assert (plan.checkpoint, plan.attack.eps, plan.attack.steps) == ("identity", (0.1, 0.2), 3)


def test_the_projects_own_file_comes_first(here):
    Path("pyproject.toml").write_text("[tool.purify-audit]\nsteps = 5\n", encoding="utf-8")
    assert project_settings(find_project(here)) == {"steps": 5}
    Path("purify-audit.toml").write_text("", encoding="utf-8")
    assert project_settings(find_project(here)) == {}
    Path("purify-audit.toml").unlink()
    Path("pyproject.toml").write_text("[tool.other]\nsteps = 5\n", encoding="utf-8")
    assert find_project(here) is None
    assert project_settings(find_project(here / "none")) == {}


def test_the_policy_in_the_projects_file_is_no_setting(here):
    rule = 'steps = 5\n[[gate.rule]]\nid = "a"\nmetric = "compression_rate"\nmax = 1\n'
    Path("purify-audit.toml").write_text(rule, encoding="utf-8")
    assert project_settings(find_project(here)) == {"steps": 5}


def test_who_decides_a_setting(here, run_cli, monkeypatch):
    """An option first, then the project's file, then the default."""
    asked = {}

    def prepared(settings, where):
        asked.update(settings, where=where.type)
        raise PlanError("enough")

    monkeypatch.setattr("purify_audit.cli.verify._prepared", prepared)
    text = 'steps = 5\ndevice = "cpu:0"\nleave = true\n'
    Path("purify-audit.toml").write_text(text, encoding="utf-8")
    run_cli("attack", "--eps", "0.1")
    assert (asked["steps"], asked["eps"], asked["where"]) == (5, "0.1", "cpu")
    assert asked["early_stop"] is True  # by its old name
    assert "checkpoint" not in asked
    run_cli("attack", "identity", "--steps", 2, "--no-leave")
    assert (asked["steps"], asked["checkpoint"], asked["early_stop"]) == (2, "identity", False)


def test_presets_and_what_changes_them():
    plan = plan_settings({"checkpoint": "identity", "preset": "standard", "steps": 3, "images": 9})
    assert plan["attack"]["steps"] == 3
    assert (plan["attack"]["draws"], plan["attack"]["restarts"]) == (1, 1)
    assert (plan["images"], plan["preset_images"], plan["draws"]) == (9, 128, 4)
    plain = plan_settings({"checkpoint": "identity"})
    assert plain["attack"]["steps"] == 20
    assert "images" not in plain
    with pytest.raises(PlanError, match="no preset"):
        plan_settings({"preset": "none"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "colour = 3",
            "purify-audit.toml, line 1: no setting 'colour'; there are channels_last, checkpoint, ",
        ),
        ("out = 'x'", "purify-audit.toml, line 1: no setting 'out'"),
        ("= =", "purify-audit.toml: cannot be read: "),
        ("steps = 'many'", "purify-audit.toml, line 1: 'steps' is 'many', not a whole number"),
        ("steps = true", "purify-audit.toml, line 1: 'steps' is True, not a whole number"),
        ("steps = -1", "attack.steps"),
        ("level = '1'", "'level' is '1', not a number"),
        ("eps = {a = 1}", "'eps' is {'a': 1}, not text or a number or a whole number or a list"),
        ("eps = -0.1", "eps"),
        ("eps = ['a']", "eps"),
        ("eps = '0.1,x'", "--eps '0.1,x' is not a list of numbers"),
        ("preset = 3", "'preset' is 3, not text"),
        ("device = 'tpu'", "device 'tpu'"),
        ("classifier = 3", "classifier"),
        ("gradient = 'wrong'", "attack.gradient"),
        ("norm = 'l3'", "norm"),
        ("sampler = 'ddim:eta=3'", "eta"),
        ("ids = '5'", "--ids '5' is not FIRST:LAST"),
        ("draws = 1.5", "'draws' is 1.5, not a whole number"),
    ],
)
def test_bad_settings_are_one_sentence(text, message, refused, here):
    Path("purify-audit.toml").write_text(text, encoding="utf-8")
    assert message in refused("verify", "--attack", "--dry-run")


@pytest.mark.parametrize("text", ["ids = 5", "sampler = 3"])
def test_settings_of_the_wrong_type_are_one_sentence(text, refused, here):
    Path("purify-audit.toml").write_text(text, encoding="utf-8")
    refused("verify", "--attack", "--dry-run")


def test_a_number_of_images_that_is_none_is_one_sentence(compressed, refused, here):
    copy(compressed, here)
    Path("purify-audit.toml").write_text("images = 'many'", encoding="utf-8")
    refused("verify", "report.json", "--attack", "--dry-run")


@pytest.mark.parametrize("text", ["tool = 3", "[tool]\npurify-audit = 3"])
def test_a_table_that_is_none_is_one_sentence(text, refused, here):
    Path("pyproject.toml").write_text(text, encoding="utf-8")
    refused("verify", "--attack", "--dry-run")


@pytest.mark.parametrize("text", ["seed = 3", "t_star = 5", "data = 'digits'"])
def test_settings_of_the_project_do_not_stand_in_the_way_of_a_report(
    text, compressed, run_cli, here
):
    copy(compressed, here)
    Path("purify-audit.toml").write_text(text, encoding="utf-8")
    code, _, err = run_cli("verify", "report.json", "--attack", *QUICK, "--dry-run")
    assert code == 0, err


# The same without the command line.


def test_an_attack_needs_no_rows():
    """Where there are no rows, images have no rates but the attack's own."""
    asked = {"checkpoint": str(AUTOENCODER), "images": 4, "steps": 1, "microbatch": 4}
    subject = prepare(plan_settings(asked), CPU)
    basis = run_compression(subject)
    found = run_attack(subject, AuditResult(basis.report, None))
    assert all(set(v.rates) == {"attack"} for v in found.report.attack.images)
    json.dumps(found.report.model_dump(mode="json"), allow_nan=False)


def test_an_installation_without_shipped_models_attacks_what_is_named(run_cli, here, monkeypatch):
    monkeypatch.setattr("purify_audit.models.shipped._MODELS", here)
    classifier = Path(__file__).parents[2] / "models/digits-classifier-small.safetensors"
    named = ("--classifier", classifier, "--data", "digits")
    code, _, err = run_cli("verify", "identity", "--attack", *QUICK, *named)
    assert code in (0, 3), err
    code, _, err = run_cli("verify", "--attack", *QUICK)
    assert code == 2
    assert "no shipped models" in err
