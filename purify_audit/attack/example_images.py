"""The images that fared worst and best under the attack, purified once more to be looked at."""

import numpy as np

from purify_audit.models.runner import Runner
from purify_audit.statistics.attack_rows import AttackSamples, ExampleImages, Scored

MOST = 8
"""Of the worst, and of the best."""


def example_images(
    runner: Runner, clean: np.ndarray, samples: AttackSamples
) -> ExampleImages | None:
    """The worst and the best images of the aligned attack at its first radius.

    Args:
        runner: purifies.
        clean: the attacked images before the attack, float32 [n, c, h, w], in the order of
            `samples`.
        samples: what the attacks saw.

    Returns:
        None where there is no aligned attack, or no image of either kind.
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
    """Rows of the images that fall first, and of those that stand with the largest margins.

    Images whose anchors are wrong before any attack are neither.
    """
    fallen = np.flatnonzero(np.isfinite(main.fooling_radius) & (main.fooling_radius > 0))
    standing = np.flatnonzero(np.isinf(main.fooling_radius))
    worst = fallen[np.argsort(main.fooling_radius[fallen], kind="stable")][:MOST]
    best = standing[np.argsort(-margins[standing], kind="stable")][:MOST]
    return worst, best
