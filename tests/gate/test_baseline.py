"""Baselines: kept, read, compared, refused."""

import json

import pytest
from judged import TODAY, policy_file

from purify_audit.core.errors import ReportError
from purify_audit.gate.baseline import compare, open_baseline, save_baseline, values_of
from purify_audit.gate.judge import judge
from purify_audit.report.schema import read_report

SMALL = ("--data", "digits", "--images", 20, "--directions", 2, "--draws", 2, "--quiet")
SMALL += ("--probe", "sign")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def reports(folder, cli_in):
    """Reports of the same images under the same draws: weaker and stronger noise, and others."""
    made = {}

    def make(name, command, *arguments):
        out = folder / f"{name}.json"
        result = cli_in(folder, command, *arguments, "--out", out.name)
        assert out.is_file(), result.stderr
        made[name] = out

    make("weak", "compress", "gaussian-noise:sigma=0.05", *SMALL)
    make("strong", "compress", "gaussian-noise:sigma=0.4", *SMALL)
    make("blur", "compress", "median:size=3", *SMALL)
    make("few", "compress", "median:size=3", *SMALL, "--images", 17)
    make("seed", "compress", "median:size=3", *SMALL, "--seed", 9)
    make("batch", "compress", "median:size=3", *SMALL, "--microbatch", 16)
    make("eps", "compress", "median:size=3", *SMALL, "--eps", 0.1)
    make("apart", "compress", "median:size=3", *SMALL, "--ids", "0:100")
    make("other", "compress", "median:size=3", *SMALL, "--ids", "1000:")
    return made


def change(reports, new, old, metric="compression_rate", norm="l2"):
    one, two = (values_of(read_report(reports[n]), reports[n].parent) for n in (new, old))
    comparison = compare(one, two)
    e = next(e for e in one.report.estimates if (e.metric, e.norm) == (metric, norm))
    return comparison(e, 0.95)


def test_a_report_against_itself_has_not_changed(reports):
    found = change(reports, "weak", "weak").change
    assert (found.value, found.lower, found.upper) == (0.0, 0.0, 0.0)


def test_a_change_is_the_difference_of_two_estimates(reports):
    both = [read_report(reports[n]) for n in ("blur", "weak")]
    rates = [next(e.value for e in r.estimates if e.metric == "compression_rate") for r in both]
    found = change(reports, "blur", "weak")
    assert found.change.value == pytest.approx(rates[0] - rates[1])
    assert found.baseline == pytest.approx(rates[1])
    assert found.change.upper < 0


def test_a_baseline_file_says_what_its_report_said(reports, tmp_path):
    whole = values_of(read_report(reports["blur"]), reports["blur"].parent)
    save_baseline(tmp_path / "b.safetensors", whole)
    again = open_baseline(tmp_path / "b.safetensors")
    assert again.report == whole.report
    assert again.report.digest == whole.report.digest
    assert again.columns.keys() == whole.columns.keys()
    for key, column in whole.columns.items():
        assert (again.columns[key].images == column.images).all()
        assert (again.columns[key].values == column.values).all()
    assert open_baseline(reports["blur"]).columns.keys() == whole.columns.keys()


def test_fewer_images_are_compared_on_those_in_common(reports):
    assert change(reports, "few", "blur").change.n_images == 17


@pytest.mark.parametrize(
    ("new", "old", "message"),
    [
        ("blur", "seed", "seed is 0, in the baseline 9"),
        ("blur", "batch", "microbatch is 128, in the baseline 16"),
        ("blur", "eps", "eps is [0.15], in the baseline [0.1]"),
        ("apart", "other", "fewer than two images in common"),
    ],
)
def test_what_is_not_the_same_measurement_is_refused(reports, new, old, message):
    with pytest.raises(ReportError, match="the baseline cannot be compared with: ") as raised:
        change(reports, new, old)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("environment", {"threads": 99}, "threads"),
        ("environment", {"torch": "1.0"}, "torch"),
        ("noise_spec", "other", "noise "),
    ],
)
def test_other_arithmetic_is_refused(reports, field, value, message):
    one = values_of(read_report(reports["blur"]), reports["blur"].parent)
    new = {**one.report.environment, **value} if isinstance(value, dict) else value
    changed = one.report.model_copy(update={field: new})
    with pytest.raises(ReportError, match=message):
        compare(one, type(one)(changed, one.columns))


def test_other_pixels_under_the_same_id_are_refused(reports):
    one = values_of(read_report(reports["blur"]), reports["blur"].parent)
    digests = ("0" * 16, *one.report.data.image_digests[1:])
    data = one.report.data.model_copy(update={"image_digests": digests})
    other = type(one)(one.report.model_copy(update={"data": data}), one.columns)
    with pytest.raises(ReportError, match=f"same id, e.g. {one.report.data.ids[0]}"):
        compare(one, other)


def test_a_metric_that_the_baseline_lacks_is_refused(reports):
    one = values_of(read_report(reports["blur"]), reports["blur"].parent)
    comparison = compare(one, type(one)(one.report, {}))
    with pytest.raises(ReportError, match="the baseline has no compression_rate"):
        comparison(one.report.estimates[0], 0.95)


def test_a_file_that_is_none(tmp_path):
    path = tmp_path / "b.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ReportError, match="is neither a baseline nor a report"):
        open_baseline(path)
    with pytest.raises(ReportError, match="cannot be read"):
        open_baseline(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("rule", "decision"),
    [
        ("max_increase = 0.05", "pass"),
        ("max_decrease = 0.01", "fail"),
        ("max_decrease = 2", "pass"),
    ],
)
def test_regression_rules(reports, tmp_path, rule, decision):
    text = f'[[gate.rule]]\nid = "a"\nmetric = "compression_rate"\nnorm = "l2"\n{rule}\n'
    new, old = (values_of(read_report(reports[n]), reports[n].parent) for n in ("blur", "weak"))
    judgement = judge(new.report, policy_file(tmp_path, text), TODAY, compare(new, old))
    result = judgement.rules[0]
    assert result.decision == decision
    assert result.baseline is not None
    assert "against the baseline" in result.requirement


def test_the_commands(reports, cli_in, folder):
    saved = cli_in(folder, "baseline", "save", "blur.json", "b.safetensors")
    assert saved.returncode == 0, saved.stderr
    again = cli_in(folder, "baseline", "save", "weak.json", "b.safetensors")
    assert again.returncode == 2
    assert "--force replaces it by" in " ".join(again.stderr.split())
    assert (
        cli_in(folder, "baseline", "save", "blur.json", "b.safetensors", "--force").returncode == 0
    )
    shown = cli_in(folder, "baseline", "show", "b.safetensors")
    assert "median" in shown.stdout
    diff = cli_in(folder, "baseline", "diff", "b.safetensors", "weak.json")
    assert "compression_rate" in diff.stdout
    assert "20" in diff.stdout
    refused = cli_in(folder, "baseline", "diff", "b.safetensors", "seed.json")
    assert refused.returncode == 2
    rule = '[[gate.rule]]\nid = "a"\nmetric = "compression_rate"\nmax_increase = 0.01\n'
    (folder / "p.toml").write_text('[gate]\nbaseline = "b.safetensors"\n' + rule)
    (folder / "sub").mkdir()
    for where, expected in (("weak.json", 1), ("blur.json", 0), ("few.json", 0)):
        found = cli_in(folder, "gate", where, "--policy", "p.toml", "--json")
        assert found.returncode == expected, found.stdout
        assert json.loads(found.stdout)["rules"][0]["baseline"] is not None
    named = cli_in(folder, "gate", "weak.json", "--policy", "p.toml", "--baseline", "weak.json")
    assert named.returncode == 0
