"""`sweep` and `compare` as a person runs them, and the settings between."""

import json
import math
import signal
from pathlib import Path

import pytest
from subjects import CPU

from purify_audit.audit.cost import planned_evaluations
from purify_audit.audit.defaults import plan_settings
from purify_audit.audit.result import Progress
from purify_audit.audit.sweep import run_sweep, settings, subjects
from purify_audit.cli.progress import Reporter
from purify_audit.core.errors import PlanError
from purify_audit.report.curve import Curve, Setting, curve_point
from purify_audit.report.schema import read_report
from purify_audit.statistics.attack_rows import load_attacks

ROOT = Path(__file__).parents[2]
DDPM, AUTOENCODER, CLASSIFIER, SMALL = (
    ROOT / "models" / f"digits-{name}.safetensors"
    for name in ("ddpm", "autoencoder", "classifier", "classifier-small")
)
pytestmark = pytest.mark.skipif(not DDPM.is_file(), reason="the shipped models are not here")

QUICK = ("--images", 4, "--steps", 1, "--quiet")


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    """A sweep cannot be told its micro-batches, which are padded: four images need no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "purify_audit.compression.microbatches._ROWS_ATTACKED", {"cpu": (1, 4), "cuda": (1, 4)}
        )
        patch.setattr("purify_audit.compression.microbatches._MOST_ROWS", 16)
        yield


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def at(t_star=None, sampler=None, eps=None):
    return Setting(t_star=t_star, sampler=sampler, eps=eps)


# The grid.


def test_every_combination_samplers_outermost():
    grid = settings((1, 2), ("ddpm", "ddim:eta=0.5"), (0.1,))
    assert grid == [
        at(1, "ddpm", 0.1),
        at(2, "ddpm", 0.1),
        at(1, "ddim:eta=0.5", 0.1),
        at(2, "ddim:eta=0.5", 0.1),
    ]
    assert settings((), (), (0.1, 0.2)) == [at(eps=0.1), at(eps=0.2)]
    assert settings((3,), (), ()) == [at(3)]
    assert len(settings((1, 2, 3), ("a", "b"), (0.1, 0.2))) == 12


def test_titles_are_names_of_files():
    grid = settings((20, 40), ("ddim:steps=5,eta=0.5", "one-step"), (8 / 255, 0.1))
    titles = [point.title for point in grid]
    assert titles[0] == "ddim-steps=5-eta=0.5-t20-eps0.031372549"
    assert titles[-1] == "one-step-t40-eps0.1"
    assert len(set(titles)) == 8
    assert not any(set(title) & set(':/\\,* "') for title in titles)
    assert at(5).title == "t5"


@pytest.mark.parametrize(
    ("swept", "message"),
    [
        (((), (), ()), "nothing to sweep"),
        (((1, 1), (), ()), "given twice"),
        (((), ("ddpm", "ddpm"), ()), "given twice"),
        (((), (), (0.1, 0.1)), "given twice"),
    ],
)
def test_grids_that_make_no_sense_are_refused(swept, message):
    with pytest.raises(PlanError, match=message):
        settings(*swept)


def test_subjects_are_what_the_points_say_and_the_rest_is_shared():
    asked = plan_settings({"checkpoint": str(DDPM), "images": 3, "seed": 5, "steps": 2})
    grid = settings((2, 3), ("one-step", "ddim:steps=2"), (0.1,))
    loaded = subjects(asked, grid, CPU)
    assert [point for point, _ in loaded] == grid
    assert [s.plan.t_star for _, s in loaded] == [2, 3, 2, 3]
    assert [s.plan.sampler.kind for _, s in loaded] == ["one-step"] * 2 + ["ddim"] * 2
    assert [s.purifier.evaluations for _, s in loaded] == [1, 1, 2, 2]
    assert {s.plan.attack.eps for _, s in loaded} == {s.plan.eps for _, s in loaded} == {(0.1,)}
    assert {s.plan.seed for _, s in loaded} == {5}
    assert len({s.images.digest for _, s in loaded}) == 1


def test_the_cost_of_a_point_is_never_exceeded():
    asked = plan_settings({"checkpoint": str(DDPM), "images": 2, "steps": 1, "microbatch": 4})
    asked["attack"]["square_queries"] = 3
    asked["probes"] = [{"kind": "sign"}]
    for attack in (True, False):
        if not attack:
            del asked["attack"], asked["preset_images"]
        for _, subject in subjects(asked, settings((2,), (), ()), CPU):
            ticked = []
            ((_, made),) = run_sweep([(at(2), subject)], Progress(ticked.append))
            planned = planned_evaluations(subject)
            assert planned / 4 < sum(ticked) <= planned if attack else sum(ticked) == planned
            assert (made.report.attack is not None) == (made.attacks is not None) == attack


# The command.


@pytest.fixture(scope="module")
def swept(small_batches, tmp_path_factory):
    from test_verify import run

    folder = tmp_path_factory.mktemp("sweep")
    arguments = (DDPM, *QUICK, "--sampler", "one-step", "--t-star", "2,30", "--out", "curve")
    code, out = run(folder, "sweep", *arguments)
    assert code == 0
    return folder / "curve", out


def test_one_report_for_each_setting(swept):
    folder, out = swept
    names = {f"one-step-t{t}" for t in (2, 30)}
    ends = (".json", ".rows.safetensors", ".attack.safetensors")
    wanted = {name + end for name in names for end in ends}
    assert {path.name for path in folder.iterdir()} == wanted | {"sweep.json"}
    for t in (2, 30):
        report = read_report(folder / f"one-step-t{t}.json")
        assert report.status == "complete"
        assert (report.plan.t_star, report.plan.sampler.kind) == (t, "one-step")
        assert report.checkpoint.card.t_star == t
        assert (len(report.data.ids), report.plan.attack.steps) == (4, 1)
        rows = load_attacks(folder / f"one-step-t{t}.attack.safetensors")
        assert rows.ids.tolist() == list(report.data.ids)
    lines = out.splitlines()
    assert any("one-step-t2 " in line for line in lines)
    assert any("one-step-t30 " in line for line in lines)
    assert "aligned" in out
    assert "usual" in out


def test_the_curve_is_what_the_reports_say(swept):
    folder, _ = swept
    curve = [Curve.model_validate(c) for c in json.loads((folder / "sweep.json").read_text())]
    assert [c.setting for c in curve] == [at(2, "one-step"), at(30, "one-step")]
    for point in curve:
        report = read_report(folder / point.report)
        assert point == curve_point(point.setting, point.report, report)
        values = {(e.metric, e.probe): e for e in report.estimates if e.norm != "linf"}
        for probe, rate in point.rates.items():
            assert rate == values["compression_rate", probe]
        assert point.anchor == values["anchor_accuracy", None]
        at_linf = {(e.metric, e.probe): e for e in report.estimates if e.norm == "linf"}
        assert point.robust == at_linf["aligned_robust_accuracy", "aligned"]
        assert point.usual == at_linf["mean_robust_accuracy", "fresh"]
        assert set(point.findings) <= {f.code for f in report.findings}
    # one that hardly purifies keeps perturbations whole
    assert curve[0].rates["sign"].value > 0.85 > curve[1].rates["sign"].value


def test_a_sweep_without_an_attack(run_cli, here):
    arguments = (DDPM, *QUICK, "--t-star", "1,2", "--eps", "0.1", "--no-attack")
    code, out, err = run_cli("sweep", *arguments)
    assert (code, err) == (0, "")
    curve = json.loads((here / "sweep" / "sweep.json").read_text())
    assert [c["robust"] for c in curve] == [None, None]
    assert [c["setting"]["eps"] for c in curve] == [0.1, 0.1]
    assert not list((here / "sweep").glob("*.attack.*"))
    report = read_report(here / "sweep" / "t2-eps0.1.json")
    assert report.attack is report.plan.attack is None
    assert "aligned" not in out


def test_as_many_images_as_asked_for_without_an_attack(run_cli, here):
    assert run_cli("sweep", "identity", *QUICK, "--eps", "0.1", "--no-attack")[0] == 0
    assert read_report(here / "sweep" / "eps0.1.json").plan.images == 4


def test_a_sweep_over_radii_needs_no_diffusion_model(run_cli, here):
    code, _, err = run_cli("sweep", AUTOENCODER, *QUICK, "--eps", "0.05,0.3", "--out", "s")
    assert (code, err) == (0, "")
    robust = [c["robust"] for c in json.loads((here / "s" / "sweep.json").read_text())]
    assert [r["eps"] for r in robust] == [0.05, 0.3]
    assert robust[0]["value"] >= robust[1]["value"]


def test_a_dry_run_tells_the_cost_and_writes_nothing(run_cli, here):
    arguments = ("sweep", DDPM, *QUICK, "--t-star", "2,3", "--dry-run")
    code, out, err = run_cli(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith("2 settings, ")
    assert " network evaluations, about " in out
    assert list(here.iterdir()) == []
    code, out, _ = run_cli(*arguments, "--no-attack")
    assert code == 0
    assert out.endswith(" network evaluations\n")
    assert list(here.iterdir()) == []


def test_the_dry_runs_cost_is_never_exceeded(swept, run_cli, here):
    arguments = (DDPM, *QUICK, "--sampler", "one-step", "--t-star", "2,30", "--dry-run")
    told = run_cli("sweep", *arguments)[1].split()[2]
    _, out = swept
    spent = out.rpartition(", ")[2].split()[0]
    assert int(told.replace(",", "")) >= int(spent.replace(",", ""))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((DDPM,), "nothing to sweep: give several of --t-star, --sampler or --eps"),
        ((DDPM, "--t-star", "3,3"), "a value to sweep over is given twice"),
        ((DDPM, "--eps", "0.1,1/10"), "a value to sweep over is given twice"),
        (
            (DDPM, "--sampler", "ddpm", "--sampler", "ddpm"),
            "a value to sweep over is given twice",
        ),
        ((DDPM, "--t-star", "20,x"), "--t-star '20,x' is not a list of whole numbers"),
        ((DDPM, "--t-star", "2.5"), "is not a list of whole numbers"),
        ((DDPM, "--t-star", "2,,3"), "is not a list of whole numbers"),
        ((DDPM, "--t-star", "20,2000"), "t_star 2000 is beyond the 1000 steps"),
        ((DDPM, "--t-star", "0,20"), "t_star"),
        ((DDPM, "--sampler", "euler"), "no sampler 'euler'"),
        ((DDPM, "--sampler", "ddim:eta=2"), "eta"),
        ((DDPM, "--eps", "x"), "--eps 'x' is not a list of numbers"),
        ((DDPM, "--eps", "0.1,2"), "more than the pixel range"),
        ((DDPM, "--t-star", "2", "--preset", "huge"), "no preset 'huge'"),
        ((DDPM, "--t-star", "2", "--classifier", DDPM), "is a purifier, not a classifier"),
        ((DDPM, "--t-star", "2", "--images", "9999"), "450"),
        ((DDPM, "--t-star", "2", "--device", "tpu"), "device 'tpu'"),
        ((AUTOENCODER, "--t-star", "2,3"), "is no diffusion model; it has no t* and no sampler"),
        (("jpeg", "--sampler", "ddim"), "is no diffusion model"),
        (("nowhere.safetensors", "--t-star", "2"), "nowhere.safetensors"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(arguments, message, refused, here):
    assert message in refused("sweep", *arguments)
    assert list(here.iterdir()) == []


class Impatient(Reporter):
    """Asks to stop once, when a share of the work is done."""

    share, way = 0.5, None

    def tick(self, evaluations):
        if self.done >= self.share * self._total and self.way is not None:
            way, type(self).way = self.way, None
            way(self)
        super().tick(evaluations)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (lambda reporter: setattr(reporter, "_max_seconds", 0.0), 3),
        (lambda reporter: signal.raise_signal(signal.SIGINT), 130),
    ],
    ids=["time", "SIGINT"],
)
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_wish_to_end_in_the_middle(way, expected, share, run_cli, here, monkeypatch):
    """Point by point: the first is kept as far as it came, the third is never begun."""
    monkeypatch.setattr("purify_audit.cli.progress.Reporter", Impatient)
    monkeypatch.setattr(Impatient, "way", staticmethod(way))
    monkeypatch.setattr(Impatient, "share", share)
    code, _, err = run_cli("sweep", "identity", *QUICK, "--eps", "0.1,0.2,0.3")
    assert code == expected, err
    curve = json.loads((here / "sweep" / "sweep.json").read_text())
    reports = [read_report(here / "sweep" / c["report"]) for c in curve]
    assert len(curve) == (1 if share < 0.1 else 2)
    assert [r.status for r in reports] == ["complete"] * (len(curve) - 1) + ["partial"]


def test_a_last_point_that_ended_early_is_no_success(run_cli, here):
    arguments = (DDPM, *QUICK, "--t-star", "2", "--max-seconds", 0.001)
    code, _, _ = run_cli("sweep", *arguments)
    assert read_report(here / "sweep" / "t2.json").status == "partial"
    assert code == 3


def test_no_report_overwrites_another(run_cli, here):
    arguments = ("identity", *QUICK, "--eps", "0.10001,0.10002", "--no-attack")
    assert run_cli("sweep", *arguments)[0] == 0
    curve = json.loads((here / "sweep" / "sweep.json").read_text())
    assert len({c["report"] for c in curve}) == len(curve)


def test_a_file_where_the_folder_should_be_is_refused(refused, here):
    Path("taken").write_text("", encoding="utf-8")
    refused("sweep", "identity", "--eps", "0.1", "--out", "taken")


def test_a_folder_that_cannot_hold_the_curve_is_refused(refused, here):
    Path("taken/sweep.json").mkdir(parents=True)
    assert "is a folder" in refused("sweep", "identity", "--eps", "0.1", "--out", "taken")


# The comparison of what a sweep wrote.


def test_reports_of_a_sweep_are_compared(swept, run_cli):
    folder, _ = swept
    paths = [folder / f"one-step-t{t}.json" for t in (2, 30)]
    code, out, err = run_cli("compare", *paths)
    assert (code, err) == (0, "")
    for text in ("ranked by aligned robust accuracy", "Compression rate", "Cautions"):
        assert text in out
    for path in paths:
        assert path.name in out
    assert "with fewer than 4 no correlation is reported" in out
    code, out, _ = run_cli("compare", *paths, "--json")
    found = json.loads(out)
    assert code == 0
    assert [row["name"] for row in found["rows"]] == sorted(
        (p.name for p in paths), key=lambda name: (-robust(folder / name), -anchor(folder / name))
    )
    assert found["associations"] == []
    assert (found["seed"], found["level"]) == (0, 0.95)


def robust(path):
    found = read_report(path).estimates
    return next(e.value for e in found if e.metric == "aligned_robust_accuracy")


def anchor(path):
    return next(e.value for e in read_report(path).estimates if e.metric == "anchor_accuracy")


def test_four_attacked_reports_get_correlations(run_cli, here):
    arguments = ("identity", *QUICK, "--eps", "0.05,0.1,0.2,0.3", "--out", "s")
    assert run_cli("sweep", *arguments)[0] == 0
    reports = sorted(Path("s").glob("eps*.json"))
    code, out, err = run_cli("compare", *reports, "--seed", 3)
    assert (code, err) == (0, "")
    assert "Correlation with aligned robust accuracy" in out
    found = json.loads(run_cli("compare", *reports, "--json", "--seed", 3)[1])
    quantities = {(a["quantity"], a["probe"]) for a in found["associations"]}
    assert ("anchor_accuracy", None) in quantities
    assert ("compression_rate", "sign") in quantities
    for association in found["associations"]:
        for c in association["correlations"]:
            assert c["n"] == 4
            assert c["value"] is None or math.isfinite(c["value"])
    again = json.loads(run_cli("compare", *reports, "--json", "--seed", 3)[1])
    assert again == found


def test_reports_that_cannot_be_compared_are_refused(swept, refused, here):
    folder, _ = swept
    one = folder / "one-step-t2.json"
    assert refused("compare", one) == "a comparison needs at least two reports, not 1"
    assert "are the same report: give it once" in refused("compare", one, one)
    assert "none.json: cannot be read" in refused("compare", one, "none.json")
    assert "sweep.json: is not a report" in refused("compare", one, folder / "sweep.json")
    text = one.read_text(encoding="utf-8").replace('"seed": 0', '"seed": 1')
    Path("forged.json").write_text(text, encoding="utf-8")
    assert "was changed after it was written" in refused("compare", one, "forged.json")


def test_a_level_that_is_none_is_refused(swept, refused):
    folder, _ = swept
    refused("compare", *sorted(folder.glob("one*.json")), "--level", 2)
