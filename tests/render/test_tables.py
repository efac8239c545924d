"""One row per image: the means of its columns are the report's estimates."""

import csv
import io
import math

import numpy as np
import pytest
from cheats import Cheat
from render_support import ATTACK, HOSTILE, NOTHING_FOUND
from safetensors.numpy import load_file
from subjects import grey_images, run

from purify_audit.render.tables import csv_text, per_image_rows, save_per_image
from purify_audit.statistics.attack import attack_estimates
from purify_audit.statistics.attack_rows import AttackSamples, Scored

IMAGES = grey_images(6)


@pytest.fixture(scope="module")
def measured():
    return run(Cheat(), IMAGES, probes=({"kind": "sign"}, {"kind": "power"}), eps=(0.02, 0.05))


def scored(name, eps, n, seed):
    rng = np.random.default_rng(seed)
    return Scored(
        name=name, eps=eps, images=np.zeros((n, 1, 8, 8), np.float32),
        aligned=rng.integers(0, 3, (n, 2)), held_out=rng.integers(0, 3, (n, 4)),
        change_l2=np.ones((n, 2)), delta_l2=np.ones(n), change_linf=np.ones((n, 2)),
        delta_linf=np.ones(n), fooling_radius=np.full(n, np.inf), made_by=np.zeros(n, np.int64),
    )  # fmt: skip


@pytest.fixture(scope="module")
def attacked(measured):
    """The same report with an attack, and the attack's rows."""
    n, ids = len(IMAGES), IMAGES.ids
    rng = np.random.default_rng(1)
    samples = AttackSamples(
        ids=ids, labels=rng.integers(0, 3, n), clean_aligned=rng.integers(0, 3, (n, 2)),
        clean_margins=np.ones((n, 2)), clean_held_out=rng.integers(0, 3, (n, 4)),
        bare_clean=rng.integers(0, 3, n),
        scored=(scored("aligned", 0.15, n, 2), scored("fresh", 0.15, n, 3)),
    )  # fmt: skip
    plan = measured.report.plan.model_copy(update={"attack": ATTACK, "classifier": "c"})
    verdicts = [v.model_copy(update={"image": int(i)})
                for v, i in zip(NOTHING_FOUND.images, ids[[3, 1]])]  # fmt: skip
    info = NOTHING_FOUND.model_copy(update={"images": tuple(verdicts)})
    estimates = (*measured.report.estimates, *attack_estimates(samples, plan))
    changes = {"plan": plan, "attack": info, "estimates": estimates}
    return measured.report.model_copy(update=changes), samples


def column(rows, *parts):
    return np.array([row["/".join(parts)] for row in rows], np.float64)


def mean_of(e, values):
    return math.sqrt(np.mean(values**2)) if e.metric == "rms_gain" else np.mean(values)


def test_every_estimate_is_the_mean_of_a_column(measured, attacked):
    report, samples = attacked
    rows = per_image_rows(report, measured.samples, samples)
    assert len(rows) == 6
    for e in report.estimates:
        eps = None if e.eps is None else repr(e.eps)
        values = column(rows, *(p for p in (e.metric, e.norm, e.probe, eps) if p))
        assert mean_of(e, values) == pytest.approx(e.value, rel=1e-12), e
    of_estimates = len(report.estimates)
    assert len(rows[0]) == of_estimates + 4  # image, label, margin, fooling_radius
    assert of_estimates > 50


def test_rows_are_in_the_report_s_order_and_labelled(measured, attacked):
    report, samples = attacked
    turned = report.data.model_copy(update={"ids": tuple(reversed(report.data.ids))})
    rows = per_image_rows(report.model_copy(update={"data": turned}), measured.samples, samples)
    assert [row["image"] for row in rows] == list(reversed(report.data.ids))
    again = {row["image"]: row for row in per_image_rows(report, measured.samples, samples)}
    assert all(again[row["image"]] == row for row in rows)
    labels = dict(zip(samples.ids.tolist(), samples.labels.tolist()))
    known = {v.image: v.label for v in report.attack.images}
    assert {row["image"]: row["label"] for row in rows} == labels | known


def test_where_an_image_falls(measured, attacked):
    report, samples = attacked
    rows = {row["image"]: row for row in per_image_rows(report, measured.samples, samples)}
    fell, stood = (rows[v.image] for v in report.attack.images)
    assert (fell["fooling_radius"], fell["margin"]) == (0.125, 1.5)
    assert (stood["fooling_radius"], stood["margin"]) == (math.inf, 2.5)
    assert [rows[i]["fooling_radius"] for i in report.data.ids].count(None) == 4


def test_without_an_attack_and_without_rows(measured):
    rows = per_image_rows(measured.report, measured.samples, None)
    assert {row["label"] for row in rows} == {None}
    assert "fooling_radius" not in rows[0]
    bare = per_image_rows(measured.report, None, None)
    assert bare == [{"image": i, "label": None} for i in measured.report.data.ids]


def test_an_image_that_was_left_out_has_no_value(measured):
    report = measured.report
    more = report.data.model_copy(update={"ids": (*report.data.ids, 999)})
    row = per_image_rows(report.model_copy(update={"data": more}), measured.samples, None)[-1]
    assert row["image"] == 999
    assert {value for name, value in row.items() if name != "image"} == {None}


def test_csv_reads_back(measured, attacked):
    report, samples = attacked
    rows = per_image_rows(report, measured.samples, samples)
    text = csv_text(rows)
    assert text == csv_text(per_image_rows(report, measured.samples, samples))
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(found) == 6
    for row, read in zip(rows, found):
        back = {name: None if v == "" else float(v) for name, v in read.items()}
        assert back == row
    assert csv_text([]) == ""


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", HOSTILE])
def test_no_cell_is_a_formula(text):
    rows = list(csv.reader(io.StringIO(csv_text([{text: text, "n": -1}]), newline="")))
    assert rows == [[f"'{text}", "n"], [f"'{text}", "-1"]]


def test_plain_text_stays():
    assert csv_text([{"a": 'x,"y"', "b": None}]) == 'a,b\r\n"x,""y""",\r\n'


def test_tensors(measured, attacked, tmp_path):
    report, samples = attacked
    rows = per_image_rows(report, measured.samples, samples)
    save_per_image(tmp_path / "a.safetensors", rows)
    save_per_image(tmp_path / "b.safetensors", rows)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == rows[0].keys()
    assert found["image"].dtype == np.int64
    for name, values in found.items():
        want = [math.nan if row[name] is None else row[name] for row in rows]
        np.testing.assert_array_equal(values, want)


def test_tensors_hold_no_text(tmp_path):
    rows = [{"image": 1, "label": None, "name": "x"}, {"image": 2, "label": None, "name": "y"}]
    save_per_image(tmp_path / "t.safetensors", rows)
    assert load_file(tmp_path / "t.safetensors").keys() == {"image"}
    save_per_image(tmp_path / "none.safetensors", [])
    assert load_file(tmp_path / "none.safetensors") == {}
