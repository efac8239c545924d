"""The worst and the best images of an attack, chosen and purified once more."""

import numpy as np
import pytest
from subjects import CPU, DIGITS, grey_images

from purify_audit.attacks.example_images import MOST, example_images
from purify_audit.models.purifiers.transforms import TransformPurifier, parse_transform
from purify_audit.models.runner import Runner
from purify_audit.statistics.attack_rows import AttackSamples, Scored, load_attacks, save_attacks

N = 24


def samples(fooling_radius, margins=None):
    images = grey_images(N)
    n = len(fooling_radius)
    labels = images.labels[:n]
    nothing = np.zeros((n, 1))
    attacked = np.clip(images.pixels[:n] + 0.1, 0, 1).astype(np.float32)
    main = Scored(
        "aligned", 0.1, attacked, (labels[:, None] + 1) % 10, np.zeros((n, 0), np.int64),
        nothing, np.ones(n), nothing, np.ones(n), np.array(fooling_radius), np.full(n, -1),
    )  # fmt: skip
    margins = np.zeros(n) if margins is None else np.array(margins)
    return images, AttackSamples(
        images.ids[:n], labels, labels[:, None], margins[:, None], np.zeros((n, 0), np.int64),
        labels, (main,),
    )  # fmt: skip


def runner(name="identity"):
    return Runner(TransformPurifier(parse_transform(name, DIGITS)), CPU, 0, 8)


def of(fooling_radius, margins=None, name="identity"):
    images, found = samples(fooling_radius, margins)
    return images, found, example_images(runner(name), images.pixels[: len(fooling_radius)], found)


def test_the_first_to_fall_and_the_widest_margins_are_chosen():
    falls = [0.05, np.inf, 0.01, 0.0, np.inf, 0.03]
    images, _, made = of(falls, margins=[0, 1, 0, 0, 5, 0])
    assert made.ids.tolist() == images.ids[[2, 5, 0, 4, 1]].tolist()
    assert made.worst.tolist() == [True, True, True, False, False]


def test_no_more_than_so_many_of_each():
    falls = [0.01 * (n + 1) if n % 2 else np.inf for n in range(N)]
    _, _, made = of(falls)
    assert made.worst.sum() == MOST
    assert (~made.worst).sum() == MOST


def test_pixels_are_those_of_the_images_and_their_purifications():
    images, found, made = of([0.05, np.inf], name="median:size=3")
    purify = runner("median:size=3")
    draws = np.zeros(2, np.int64)
    rows = [0, 1]
    assert (made.clean == images.pixels[rows]).all()
    assert (made.attacked == found.scored[0].images).all()
    assert (made.anchor == purify(images.pixels[rows], made.ids, draws)).all()
    assert (made.purified == purify(found.scored[0].images, made.ids, draws)).all()
    assert (made.anchor != made.clean).any()
    assert made.predicted.tolist() == found.scored[0].aligned[:, 0].tolist()


@pytest.mark.parametrize("falls", [[0.0, 0.0], [0.0]])
def test_images_that_were_wrong_anyway_are_neither(falls):
    assert of(falls)[2] is None


def test_without_the_main_attack_there_are_none():
    images, found = samples([0.1])
    empty = AttackSamples(
        **{n: getattr(found, n) for n in ("ids", "labels", "clean_aligned", "clean_margins",
                                          "clean_held_out", "bare_clean")}, scored=())  # fmt: skip
    assert example_images(runner(), images.pixels[:1], empty) is None


def test_they_survive_being_saved(tmp_path):
    _, found, made = of([0.05, np.inf])
    whole = AttackSamples(**{n: getattr(found, n) for n in ("ids", "labels", "clean_aligned",
                          "clean_margins", "clean_held_out", "bare_clean", "scored")},
                          example_images=made)  # fmt: skip
    save_attacks(tmp_path / "a.safetensors", whole)
    again = load_attacks(tmp_path / "a.safetensors").example_images
    for name in ("ids", "worst", "clean", "attacked", "anchor", "purified", "predicted"):
        assert (getattr(again, name) == getattr(made, name)).all()
