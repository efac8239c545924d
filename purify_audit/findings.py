"""Findings: what is wrong with the audited purifier, or with what was measured of it.

`docs/findings.md` is generated from `CODES`.
"""

from dataclasses import dataclass
from typing import Literal

from purify_audit.record import Record

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
        "The network predicts the noise in noisy images no better than predicting zero.",
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
    "PA201": Code(
        "near-numeric-floor",
        "warning",
        "The measured rate is near what rounding alone would give at this radius.",
        "Use a larger radius, or read the rate as an upper bound.",
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
