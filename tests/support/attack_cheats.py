"""Purifiers that mislead an attack, and the findings that they must earn."""

import cheats

from purify_audit.images.image_set import choose, load_images


def digits(n=32):
    """The first images that an attack of the tests is made on."""
    return choose(load_images("digits"), n, 0)


CHEATS = [
    (cheats.Quantised, {"PA302", "PA305"}),
    (cheats.Detached, {"PA301", "PA302", "PA305"}),
    (cheats.HalfDetached, {"PA302", "PA305"}),
    (cheats.Shattered, {"PA302"}),
    (cheats.Saturated, {"PA302"}),
    (cheats.HashedInput, {"PA301"}),
    (cheats.StraightThrough, {"PA301"}),
    (cheats.NegatedGradient, {"PA301", "PA305"}),
    (cheats.ShuffledGradient, {"PA301", "PA305"}),
    (cheats.ConstantGradient, {"PA301", "PA302", "PA305"}),
    (cheats.OtherInGradMode, {"PA301", "PA305"}),
    (cheats.TrueInDouble, {"PA301", "PA305"}),
    (cheats.TrueInSmallBatches, {"PA301", "PA305"}),
    (lambda: cheats.LooksUp(digits()), {"PA305"}),
    (cheats.CountsCalls, {"PA301", "PA303"}),
    (cheats.GlobalNoise, {"PA301", "PA303"}),
    (cheats.Constant, {"PA302", "PA304"}),
]
