"""Findings: faults of the audited purifier, or of the measurement, by code.

`docs/findings.md` is generated from `CODES`.
"""

from dataclasses import dataclass
from typing import Literal

from purify_audit.core.records import Record

Severity = Literal["error", "warning", "info"]
Evidence = dict[str, float | int | str | list[int] | list[float] | list[str]]


class Finding(Record):
    """A fault, with its evidence.

    Attributes:
        code: a key of `CODES`.
        severity: `error`: the estimates are invalid; `warning`: they need care in interpretation.
        sentence: what is wrong.
        evidence: the numbers that show it.
        advice: what to do next.
    """

    code: str
    severity: Severity
    sentence: str
    evidence: Evidence
    advice: str


@dataclass(frozen=True, slots=True)
class Code:
    """The meaning of a finding code."""

    name: str
    severity: Severity
    meaning: str
    advice: str


CODES: dict[str, Code] = {
    "PA101": Code(
        "not-repeatable",
        "error",
        "Identical images under identical draws give different outputs. Randomness is therefore not"
        " aligned, and the compression rate mixes compression with noise.",
        "Take all random numbers from the noise argument, disable dropout, and keep no state"
        " between calls.",
    ),
    "PA102": Code(
        "rows-coupled",
        "error",
        "The output for an image depends on the other images in its batch.",
        "Put batch normalisation in eval mode; do not share statistics or state between rows.",
    ),
    "PA103": Code(
        "not-finite",
        "error",
        "The output contains NaN or infinity.",
        "Inspect the images listed in the evidence; they are excluded from every estimate.",
    ),
    "PA104": Code(
        "wrong-shape",
        "error",
        "The output does not have the shape and type of the input images.",
        "Return float32 [n, channels, height, width], like the input.",
    ),
    "PA105": Code(
        "out-of-range",
        "warning",
        "Output pixels leave [0, 1], so the classifier receives images outside its input range.",
        "Clamp the output, or check that the data range on the card is the one used in training.",
    ),
    "PA106": Code(
        "does-not-denoise",
        "error",
        "The network predicts the noise in images less accurately than shrinking their pixels to"
        " grey does, or than it does itself under other time conditioning or another prediction"
        " target.",
        "Check the card: data range, clock (time conditioning), prediction (eps, x0, v or score),"
        " and whether these are the averaged (EMA) weights.",
    ),
    "PA107": Code(
        "hidden-randomness",
        "error",
        "A purification drew from a global random generator, whose numbers cannot be addressed.",
        "Take all random numbers from the noise argument.",
    ),
    "PA108": Code(
        "discontinuous",
        "warning",
        "An input change the size of a rounding error moves the output far more than expected: the"
        " purifier is discontinuous, or derives its noise from the input.",
        "If the purifier quantises on purpose, expect useless gradients; otherwise check for noise"
        " that depends on the image.",
    ),
    "PA109": Code(
        "draw-mismatch",
        "warning",
        "The output does not depend on the draw although the purifier is declared randomised, or"
        " depends on it although the purifier is declared deterministic.",
        "Correct the declaration, or use the noise argument.",
    ),
    "PA110": Code(
        "collapsed",
        "warning",
        "Different images are purified to nearly the same output, so a low compression rate may"
        " reflect loss of information rather than robustness.",
        "Provide a classifier and check the anchor accuracy.",
    ),
    "PA111": Code(
        "unaligned-randomness",
        "error",
        "The user code draws random numbers with an unsupported operator, so its randomness cannot"
        " be aligned and its output is not used.",
        "Use an operator that can be aligned (listed in `docs/user-code.md`), or disable the"
        " operator's dropout.",
    ),
    "PA112": Code(
        "shared-draws",
        "info",
        "The user code draws numbers that all rows of a batch share, so it is called with fewer"
        " rows at a time, each group with its own numbers. This costs time and changes no result.",
        "Draw numbers per image (`torch.randn_like(x)`, `torch.randint(…, (len(x),))`).",
    ),
    "PA113": Code(
        "in-training-mode",
        "warning",
        "Modules of the purifier are in training mode: dropout makes the output random, and batch"
        " normalisation couples the images of a batch.",
        "Call `.eval()` in the factory, unless the purifier is deployed in training mode.",
    ),
    "PA201": Code(
        "near-numeric-floor",
        "warning",
        "The measured rate is close to the rate that rounding errors alone cause at this radius.",
        "Use a larger radius or a higher precision, or read the rate as an upper bound.",
    ),
    "PA202": Code(
        "rows-not-finite",
        "error",
        "Some purifications produced NaN or infinity during the measurement. Their images are"
        " excluded, so the remaining sample is biased.",
        "Purify the images listed in the evidence one by one.",
    ),
    "PA203": Code(
        "does-not-replay",
        "error",
        "A cell recomputed at the end of the run differs from its first value.",
        "Check for state kept between calls.",
    ),
    "PA204": Code(
        "anchors-misclassified",
        "warning",
        "The classifier misclassifies many purified clean images, so a low compression rate does"
        " not imply robustness.",
        "Read the rate together with the anchor accuracy; reduce t* if it is the cause.",
    ),
    "PA205": Code(
        "tolerance-not-reached",
        "info",
        "At the last look, the confidence interval is still wider than the tolerance.",
        "Use more images.",
    ),
    "PA301": Code(
        "gradient-mismatch",
        "error",
        "The attack gradient is not the derivative of the defence: it differs from unrolled"
        " autograd, or from central differences of the whole loss.",
        "Check for detached tensors, straight-through estimators and noise that depends on the"
        " image; until this is fixed, attack with --optimiser square or --gradient none.",
    ),
    "PA302": Code(
        "gradient-useless",
        "error",
        "The gradient is zero, not finite, vanishingly small, or identical for every image, so"
        " gradient-based attacks are uninformative.",
        "Quantisation and saturation are common causes. Attack with --optimiser square or"
        " --gradient none.",
    ),
    "PA303": Code(
        "attack-does-not-replay",
        "error",
        "Evaluated again on the attacked images under the attack's draws, the defence does not"
        " reproduce the margins that the attack recorded.",
        "Check for randomness outside the noise argument, and for state kept between calls.",
    ),
    "PA304": Code(
        "loss-does-not-rise",
        "error",
        "The loss at the end of the attack is no higher than at its start.",
        "Either the gradient is masked, or the step size is far too large.",
    ),
    "PA305": Code(
        "unbounded-attack-fails",
        "error",
        "With a radius large enough to turn any image into plain grey, many images still resist the"
        " attack. Either the defence ignores its input, or the attack fails.",
        "Read the robust accuracy as a failure of the attack (Carlini et al. 2019, section 4).",
    ),
    "PA306": Code(
        "weaker-attack-wins",
        "error",
        "A comparison attack fools images that the main attack does not. They count as fooled. An"
        " error where it is significantly stronger, for information otherwise.",
        "If it is stronger on many images, the gradient is masked or the main attack needs more"
        " steps: read the robust accuracy as an upper bound.",
    ),
    "PA307": Code(
        "not-converged",
        "warning",
        "An independent attack, from other random points and with runs twice as long, broke images"
        " that the main attack had left. They count as fooled.",
        "Increase --steps or --restarts; the robust accuracy is an upper bound.",
    ),
    "PA308": Code(
        "outside-the-ball",
        "error",
        "An attacked image lies outside the perturbation ball or outside [0, 1].",
        "This is a bug in the attack; please report it.",
    ),
    "PA309": Code(
        "randomness-inflates",
        "warning",
        "Unaligned evaluation, in which attack and scoring use different draws, reports a higher"
        " robust accuracy than an attack that shares its draws with the defence.",
        "Report the aligned robust accuracy; the difference is due to randomness alone.",
    ),
    "PA310": Code(
        "approximate-gradient",
        "warning",
        "The attack did not use the exact gradient, so its robust accuracy is an upper bound.",
        "If the purifier is differentiable, also attack with --gradient exact.",
    ),
    "PA311": Code(
        "sanity-checks-missing",
        "error",
        "The run ended before the comparison attacks, so the robust accuracy is unchecked.",
        "Allow the run more time.",
    ),
    "PA312": Code(
        "robust-without-compression",
        "info",
        "Some images resist the attack although the purifier compresses less around them than"
        " around most others. Unless a large margin protects them, the gradient may be masked.",
        "Attack these images with more restarts, or with --optimiser square.",
    ),
    "PA313": Code(
        "cells-differ",
        "error",
        "Recomputed cells differ from the values in the report.",
        "Compare the two environments; `purify-audit replay` shows one cell in detail.",
    ),
}


def finding(
    code: str, sentence: str, evidence: Evidence, severity: Severity | None = None
) -> Finding:
    """A finding with the advice of its code, and the code's severity unless another is given."""
    entry = CODES[code]
    return Finding(
        code=code,
        severity=severity or entry.severity,
        sentence=sentence,
        evidence=evidence,
        advice=entry.advice,
    )
