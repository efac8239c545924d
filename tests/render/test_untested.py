"""What an audit did not test: every gap is said, and none that is not there."""

import pytest
from render_support import (
    ATTACK,
    ATTACKED,
    COMPRESSION,
    HOSTILE,
    finding,
    hostile_report,
    model,
    report,
)

from purify_audit.render.untested import LAST, untested
from purify_audit.spec.card import Provenance, TransformCard


def told(**changes):
    return " ".join(untested(report(**changes)))


def test_an_attack_is_bounded_by_what_it_was():
    text = told()
    assert "Only portfolio of 10 steps, 9 targets, EOT over 2 draws" in text
    assert "ℓ∞ at radius 0.15 was run;" in text
    assert "robust accuracy was not measured" not in text
    assert "Accuracies are those of one classifier" in text
    assert "Only 2 images of digits were used" in text
    assert "for the probes sign, power in ℓ∞ at radii 8/255, 0.15;" in text
    assert "rates are estimated from 2 draws of each image" in text


def test_without_an_attack():
    text = told(attacked=False)
    assert "Nothing was attacked, so robust accuracy was not measured." in text
    assert "There was no classifier, so no accuracy was measured" in text
    assert "one classifier" not in text


def test_a_prediction_is_no_attack():
    plan = report().plan
    attack = ATTACK.model_copy(update={"predict_only": True})
    text = told(plan=plan.model_copy(update={"attack": attack}))
    assert "was predicted by a short transfer attack" in text
    assert "One attack was tried" not in text


def test_an_attack_that_did_not_end():
    text = told(estimates=COMPRESSION)
    assert "No attack was completed, so robust accuracy was not measured." in text


def test_a_measurement_that_did_not_happen():
    text = told(estimates=ATTACKED)
    assert "Compression was not measured." in text
    assert "by the probes" not in text


def test_a_partial_audit():
    assert untested(report(status="partial"))[0] == (
        "The audit ended early: its estimates use at most 32 of the 32 images planned."
    )
    assert "ended early" not in told()


def test_a_file_of_perturbed_images_has_no_radius():
    given = COMPRESSION[0].model_copy(update={"eps": None, "probe": "file"})
    text = told(estimates=(given,))
    assert "for the probes file in ℓ∞ at their given size;" in text


@pytest.mark.parametrize("code", ["PA307", "PA310", "PA311"])
def test_doubts_of_the_attack(code):
    assert f"({code})" in told(findings=(finding(code, "warning"),))
    assert f"({code})" not in told()


def test_a_purifier_without_randomness():
    card = TransformCard(
        name="p",
        image=report().checkpoint.card.image,
        provenance=Provenance(data="d", command="c", licence="l"),
        transform={"kind": "identity"},
    )
    assert "each image." not in told(checkpoint=model().model_copy(update={"card": card}))


@pytest.mark.parametrize("made", [report(), report(attacked=False), hostile_report()])
def test_never_more_than_a_measurement(made):
    assert untested(made)[-1] == LAST
    assert untested(made) == untested(made)
    assert all(sentence.isprintable() and sentence.endswith(".") for sentence in untested(made))


def test_hostile_text_is_visible():
    assert HOSTILE[:20] in " ".join(untested(hostile_report()))
