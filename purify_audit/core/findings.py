"""Findings: what is wrong with the audited purifier, or with what was measured of it.

`docs/findings.md` is generated from `CODES`.
"""

from dataclasses import dataclass
from typing import Literal

from purify_audit.core.records import Record

Severity = Literal["error", "warning", "info"]
Evidence = dict[str, float | int | str | list[int] | list[float] | list[str]]


class Finding(Record):
    """One thing found, with what shows it.

    Attributes:
        code: a key of `CODES`.
        severity: `error`: the estimates cannot be trusted; `warning`: read them with this in mind.
        sentence: what was found.
        evidence: the numbers behind it.
        advice: what to do next.
    """

    code: str
    severity: Severity
    sentence: str
    evidence: Evidence
    advice: str


@dataclass(frozen=True, slots=True)
class Code:
    """What a finding code stands for."""

    name: str
    severity: Severity
    meaning: str
    advice: str


CODES: dict[str, Code] = {
    "PA101": Code(
        "not-repeatable",
        "error",
        "The same images under the same draws give different outputs, so randomness is not aligned"
        " and a rate mixes compression with noise.",
        "Take every random number from the noise argument, switch dropout off, and keep no state"
        " between calls.",
    ),
    "PA102": Code(
        "rows-coupled",
        "error",
        "The output for an image depends on the other images in its batch.",
        "Put batch normalisation in eval mode; use no statistics and no memory across rows.",
    ),
    "PA103": Code(
        "not-finite",
        "error",
        "The output holds NaN or infinity.",
        "Look at the images named in the evidence; their rows are left out of every estimate.",
    ),
    "PA104": Code(
        "wrong-shape",
        "error",
        "The output is not an image of the shape and type that went in.",
        "Return float32 [n, channels, height, width], as given.",
    ),
    "PA105": Code(
        "out-of-range",
        "warning",
        "Output pixels leave [0, 1], so the classifier sees images it was not made for.",
        "Clamp the output, or check that the data range on the card is the one used in training.",
    ),
    "PA106": Code(
        "does-not-denoise",
        "error",
        "The network predicts the noise in images worse than shrinking their pixels to grey does,"
        " or than it does itself when told another time or taken to predict something else.",
        "Check the card: data range, clock (what time is fed), prediction (eps, x0, v or score),"
        " and whether these are the averaged (EMA) weights.",
    ),
    "PA107": Code(
        "hidden-randomness",
        "error",
        "A purification used a global random generator, whose numbers have no address.",
        "Take every random number from the noise argument.",
    ),
    "PA108": Code(
        "jumps",
        "warning",
        "A change of the input at the size of rounding moves the output by far more than it should:"
        " the purifier is discontinuous, or hashes its input into its noise.",
        "If the purifier quantises on purpose, expect gradients to be useless; else look for noise"
        " that depends on the image.",
    ),
    "PA109": Code(
        "draw-mismatch",
        "warning",
        "The output does not depend on the draw although the purifier claims to be randomised,"
        " or depends on it although it claims not to be.",
        "Correct the claim, or use the noise argument.",
    ),
    "PA110": Code(
        "collapsed",
        "warning",
        "Different images come out nearly the same, so a low rate means that information is lost,"
        " not that an attack is.",
        "Give a classifier and look at the anchor accuracy.",
    ),
    "PA111": Code(
        "unaligned-randomness",
        "error",
        "The purifier's own code draws random numbers that cannot be given addresses, so its"
        " randomness cannot be aligned and its output is not used.",
        "Draw them with an operator that can be aligned (`docs/user-code.md` lists them), or switch"
        " the dropout of that operator off.",
    ),
    "PA112": Code(
        "shared-draws",
        "info",
        "The purifier's own code draws numbers for a whole batch, so its rows are purified in"
        " smaller groups, each with numbers of its own; this costs time and changes no number.",
        "Draw one number for each image (`torch.randn_like(x)`, `torch.randint(…, (len(x),))`).",
    ),
    "PA113": Code(
        "in-training-mode",
        "warning",
        "Modules of the purifier are in training mode: dropout makes it random, and batch"
        " normalisation makes images depend on one another.",
        "Call `.eval()` in the factory, unless this is how the purifier is used.",
    ),
    "PA201": Code(
        "near-numeric-floor",
        "warning",
        "The measured rate is near what rounding alone would give at this radius.",
        "Use a larger radius or a higher precision, or read the rate as an upper bound.",
    ),
    "PA202": Code(
        "rows-not-finite",
        "error",
        "Some purifications made NaN or infinity during the measurement; their images are left out,"
        " and what is left is not a fair sample.",
        "Purify the images named in the evidence one by one.",
    ),
    "PA203": Code(
        "does-not-replay",
        "error",
        "A cell computed again at the end of the run is not the number it was.",
        "Look for state kept between calls.",
    ),
    "PA204": Code(
        "anchors-lose-their-class",
        "warning",
        "The classifier is wrong on many purified clean images, so a low compression rate does not"
        " mean robustness here.",
        "Read the rate together with the anchor accuracy; lower t* if it is the cause.",
    ),
    "PA205": Code(
        "tolerance-not-reached",
        "info",
        "The interval is still wider than the tolerance at the last look.",
        "Give more images.",
    ),
    "PA301": Code(
        "gradient-mismatch",
        "error",
        "The gradient that the attack followed is not the derivative of what the defence computes:"
        " it differs from unrolled autograd, or from central differences of the whole loss.",
        "Look for detached tensors, straight-through estimators and noise that depends on the"
        " image; attack with --optimiser square or --gradient none meanwhile.",
    ),
    "PA302": Code(
        "gradient-useless",
        "error",
        "The gradient is zero, not finite, vanishingly small, or the same for every image, so a"
        " gradient attack tells nothing.",
        "Quantisation and saturation do this. Attack with --optimiser square or --gradient none.",
    ),
    "PA303": Code(
        "attack-does-not-replay",
        "error",
        "The defence, run again on the attacked images under the attack's draws, does not give the"
        " numbers that the attack saw.",
        "Look for randomness outside the noise argument, or state kept between calls.",
    ),
    "PA304": Code(
        "loss-does-not-rise",
        "error",
        "The loss at the end of the attack is no higher than at its start.",
        "A loss that gradient steps cannot raise is masked, or the steps are far too large.",
    ),
    "PA305": Code(
        "unbounded-attack-fails",
        "error",
        "Even with a radius that lets any image become plain grey the attack leaves many images"
        " standing, which only a defence that ignores its input, or a failing attack, explains.",
        "Read the robust accuracy as a failure of the attack (Carlini et al. 2019, section 4).",
    ),
    "PA306": Code(
        "weaker-attack-wins",
        "error",
        "An attack without the true gradient fools more images than the main attack.",
        "The gradient is masked, or the main attack needs more steps; do not report its figure.",
    ),
    "PA307": Code(
        "not-converged",
        "warning",
        "The second half of the steps, or the last restart, still lowered the robust accuracy.",
        "Give more --steps or --restarts; the robust accuracy is an upper bound.",
    ),
    "PA308": Code(
        "outside-the-ball",
        "error",
        "An attacked image lies outside the ball or outside [0, 1].",
        "This is a fault of the attack; report it.",
    ),
    "PA309": Code(
        "randomness-inflates",
        "warning",
        "The usual protocol, which attacks and scores under fresh draws, reports a higher robust"
        " accuracy than an attack that shares its draws with the defence.",
        "Report the aligned figure; the difference is hidden by randomness, not defended.",
    ),
    "PA310": Code(
        "approximate-gradient",
        "warning",
        "The attack did not follow the exact gradient, so its robust accuracy is an upper bound.",
        "Where the purifier is differentiable, attack with --gradient exact too.",
    ),
    "PA311": Code(
        "not-certified",
        "error",
        "The run ended before the attack was held against others, so its figure is unchecked.",
        "Give it more time.",
    ),
    "PA312": Code(
        "stands-without-compressing",
        "info",
        "Some images stand although the purifier stretches the space around them more than around"
        " most; if it is not their margin that protects them, the gradient may be masked there.",
        "Attack these images with more restarts, or with --optimiser square.",
    ),
    "PA313": Code(
        "cells-differ",
        "error",
        "Cells of the report, computed again, are not the numbers that it holds.",
        "Compare the two environments; `purify-audit replay` shows one cell in detail.",
    ),
}


def finding(
    code: str, sentence: str, evidence: Evidence, severity: Severity | None = None
) -> Finding:
    """A finding with its code's usual severity and advice."""
    about = CODES[code]
    return Finding(
        code=code,
        severity=severity or about.severity,
        sentence=sentence,
        evidence=evidence,
        advice=about.advice,
    )
