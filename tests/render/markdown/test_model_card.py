"""Model-card metadata read back by PyYAML and by the Hub's own client."""

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import given
from hypothesis import strategies as st
from render_support import COMPRESSION, DIGEST, HOSTILE, estimate, hostile_report, report, started

from purify_audit.render.markdown.model_card import eval_results, model_index


def read(text):
    """The metadata before a model card's text."""
    start, body, rest = text.split("---\n")
    assert (start, rest) == ("", "")
    return yaml.safe_load(body)


def metrics(made):
    return read(model_index(made))["model-index"][0]["results"][0]["metrics"]


def test_the_hub_reads_it():
    name, results = model_index_to_eval_results(read(model_index(report()))["model-index"])
    assert name == "purifier"
    first = results[0]
    assert (first.task_type, first.dataset_name) == ("image-classification", "digits")
    assert (first.metric_type, first.metric_value) == ("aligned_robust_accuracy", 0.25)
    assert first.metric_name == (
        "aligned_robust_accuracy (linf, aligned, 0.15), 95% interval 0.125 to 0.5"
    )
    assert first.metric_args == {
        "norm": "linf", "probe": "aligned", "eps": 0.15, "lower": 0.125, "upper": 0.5,
        "level": 0.95, "method": "t on images", "n_images": 32,
    }  # fmt: skip


def test_an_estimate_without_an_interval():
    found = metrics(report(estimates=(COMPRESSION[2],)))
    assert found[0]["name"] == "compression_rate (l2, power, 8/255), no interval"
    assert found[0]["args"]["eps"] == 8 / 255
    assert "lower" not in found[0]["args"]


def test_no_attack_and_no_numbers():
    types = {m["type"] for m in metrics(report(attacked=False))}
    assert types == {"compression_rate", "unaligned_ratio", "anchor_accuracy"}
    assert metrics(report(estimates=())) == []
    assert yaml.safe_load(eval_results(report(estimates=()))) == []


def test_eval_results_are_the_hub_s():
    entries = parse_eval_result_entries(yaml.safe_load(eval_results(report())))
    first = entries[0]
    assert (first.dataset_id, first.task_id, first.value) == (
        "digits",
        "aligned_robust_accuracy",
        0.25,
    )
    assert first.date == "2027-01-31T12:00:00+00:00"
    assert first.notes == (
        "linf, aligned, 0.15, 95% interval 0.125 to 0.5, 32 images;"
        f" purify-audit 0.1.0, report {DIGEST[:12]}"
    )
    anchor = next(e for e in entries if e.task_id == "anchor_accuracy")
    assert anchor.notes.startswith("no perturbation, 95% interval 0.75 to 1, ")


@pytest.mark.parametrize("run", [None, started("c", "yesterday")])
def test_a_date_that_is_not_known_is_left_out(run):
    entries = parse_eval_result_entries(yaml.safe_load(eval_results(report(run=run))))
    assert {e.date for e in entries} == {None}


@pytest.mark.parametrize("value", [1e-05, 1e22, -0.0, 0.1 + 0.2, 5e-324, 1.0])
def test_numbers_read_back_exactly(value):
    found = metrics(report(estimates=(estimate(value=value),)))
    assert found[0]["value"] == value
    assert isinstance(found[0]["value"], float)


@pytest.mark.parametrize(
    "text",
    [HOSTILE, "yes", "null", "1e3", "2027-01-31", "~", "a: b", "- a", "# a", "\x85\u2028\ufeff",
     "---\n", "\U0001f98a\U000e0001", " a ", "&a *a !!x %Y"],
)  # fmt: skip
def test_text_reads_back_exactly(text):
    made = report(data=report().data.model_copy(update={"source": text}))
    assert read(model_index(made))["model-index"][0]["results"][0]["dataset"]["name"] == text
    assert yaml.safe_load(eval_results(made))[0]["dataset"]["id"] == text


def test_hostile_text_everywhere():
    made = hostile_report()
    assert read(model_index(made))["model-index"][0]["name"] == HOSTILE
    assert model_index(made) == model_index(made)
    assert eval_results(made) == eval_results(made)


def test_no_path_of_this_machine():
    made = report(data=report().data.model_copy(update={"source": "/home/me/cifar.npz"}))
    assert "/home" not in model_index(made) + eval_results(made)
    assert yaml.safe_load(eval_results(made))[0]["dataset"]["id"] == "cifar.npz"


@given(st.text(min_size=1), st.floats(allow_nan=False, allow_infinity=False))
def test_anything_reads_back(name, value):
    found = metrics(report(estimates=(estimate(value=value, method=name),)))[0]
    assert (found["args"]["method"], found["value"]) == (name, value)
