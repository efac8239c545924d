"""Example images of a report: the least and the most robust under the attack, and purified."""

import numpy as np

from purify_audit.models.runner import Runner
from purify_audit.statistics.attack_rows import AttackSamples, ExampleImages, Scored

MOST = 8
"""Examples of each kind."""


def example_images(
    runner: Runner, clean: np.ndarray, samples: AttackSamples
) -> ExampleImages | None:
    """The least and the most robust images under the aligned attack at its first radius.

    Args:
        runner: runs the purifier.
        clean: the clean images, float32 [n, c, h, w], in the order of `samples`.
        samples: results of the attacks.

    Returns:
        None without an aligned attack, or without images of either kind.
    """
    main = samples.find("aligned")
    if main is None:
        return None
    worst, best = _chosen(main, samples.clean_margins.mean(1))
    rows = np.concatenate([worst, best])
    if not len(rows):
        return None
    ids, draws = samples.ids[rows], np.zeros(len(rows), np.int64)
    anchor, purified = (runner(x[rows], ids, draws) for x in (clean, main.images))
    return ExampleImages(
        ids=ids,
        worst=np.arange(len(rows)) < len(worst),
        clean=clean[rows],
        attacked=main.images[rows],
        anchor=anchor,
        purified=purified,
        predicted=main.aligned[rows, 0],
    )


def _chosen(main: Scored, margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of images with the smallest fooling radii, and of robust ones with the largest margins.

    Images misclassified without an attack are neither.
    """
    fooled = np.flatnonzero(np.isfinite(main.fooling_radius) & (main.fooling_radius > 0))
    robust = np.flatnonzero(np.isinf(main.fooling_radius))
    worst = fooled[np.argsort(main.fooling_radius[fooled], kind="stable")][:MOST]
    best = robust[np.argsort(-margins[robust], kind="stable")][:MOST]
    return worst, best
