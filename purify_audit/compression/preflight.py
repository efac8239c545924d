"""Checks before a measurement: is P deterministic, row-wise, finite, in range; does it denoise?

Each check is one function that returns a finding or none. Together they cost six micro-batches of
16 images, four more in a lower precision, and for a diffusion network at most five passes over 64
images and eight times as many over 16 (`compression.denoising`).
"""

import math
import random  # noqa: TID251 - only to see whether the purifier touched its state
from dataclasses import dataclass, replace

import numpy as np
import torch

from purify_audit.compression.denoising import check_denoising
from purify_audit.core.findings import Finding, finding
from purify_audit.images.image_set import ImageSet
from purify_audit.models.protocols import Purifier
from purify_audit.models.purifiers.engine import in_float32
from purify_audit.models.runner import Runner
from purify_audit.models.user_code.purifier import UserPurifier
from purify_audit.spec.audit_plan import AuditPlan

_IMAGES = 8
_FEWEST_ROWS = 4  # of a micro-batch: a single row cannot be coupled with others
_BESIDE = 0.05  # of a real perturbation, on every pixel
_ROUNDING = 2.0**-24  # the spacing of float32 just below 1
_ROW_TOLERANCE = 1e-4  # kernels may differ in the last bits; a coupled row differs in the first


@dataclass(frozen=True, slots=True)
class Preflight:
    """Results of the checks before a measurement.

    Attributes:
        findings: what is wrong with the purifier.
        floor: by norm (l2, linf), the change of the output by rounding errors, in pixel units;
            divided by ‖δ‖ it is the numeric floor of a rate. Empty without a usable output, and
            without a norm in which it is infinite.
    """

    findings: list[Finding]
    floor: dict[str, float]


def preflight(runner: Runner, images: ImageSet, plan: AuditPlan | None = None) -> Preflight:
    """Check a purifier on at most 8 of the audited images.

    A fault that makes later checks meaningless (wrong shape, not finite) ends the checks.

    Args:
        runner: runs the purifier.
        images: the audited images.
        plan: the numeric floor of a lower precision is measured at its smallest radius; without a
            plan, at an l-inf radius of 0.05.
    """
    size = max(_FEWEST_ROWS, min(runner.microbatch, 2 * _IMAGES))
    runner = replace(runner, microbatch=size, tick=lambda rows: None)
    probe = images.select(list(range(min(len(images), max(1, runner.microbatch // 2), _IMAGES))))
    x, beside = probe.pixels, _perturbed(probe.pixels, _BESIDE)
    before = _generator_states()
    near = _call(runner, beside, probe.ids, 0)
    found = _shape(near, probe)
    if found:
        return Preflight([found], {})
    if refused := [f for f in _foreign(runner) if f.severity == "error"]:
        return Preflight(refused, {})
    # Other images in between, and another order the second time, reveal state between calls.
    _call(runner, 1.0 - x, probe.ids, 0)
    y = _call(runner, x, probe.ids, 0)
    # In one call: a change of rounding size under the same draw, and the image under another draw.
    nudged, redrawn = _call_two(runner, _perturbed(x, _ROUNDING), x, probe.ids)
    near_again = _call(runner, beside, probe.ids, 0)
    checks: list[Finding | None] = [
        _finite((y, near, nudged, redrawn), probe),
        _repeatable(near, near_again),
        _hidden_randomness(before, _generator_states()),
    ]
    if checks[0] is not None:
        return Preflight([check for check in checks if check is not None], {})
    exact = in_float32(runner.purifier)
    checks += [
        _rows_alone(runner, probe, y),
        _in_range(x, y),
        _smooth(y, near, nudged) if exact is None else None,  # the floor covers its rounding
        _draw_matters(runner, y, redrawn),
        _collapsed(probe, y),
        check_denoising(runner, images),
    ]
    findings = [check for check in checks if check is not None] + _foreign(runner)
    floor = _numeric_floor(y, nudged)
    if exact is not None:
        lower = _floor_of_precision(runner, exact, probe, _smallest_step(plan, x))
        floor = {norm: max(size, lower[norm]) for norm, size in floor.items()}
    return Preflight(findings, {norm: size for norm, size in floor.items() if np.isfinite(size)})


def _numeric_floor(y: np.ndarray, nudged: np.ndarray) -> dict[str, float]:
    """Two parts, added in squares, each a mean over images.

    What a nudge of 2⁻²⁴ of the input does, and the spacing of float32 at the output (uniform
    errors of variance spacing²/12, on both sides of a difference).
    """
    change = (nudged.astype(np.float64) - y).reshape(len(y), -1)
    spacing = np.spacing(np.abs(y)).astype(np.float64).reshape(len(y), -1)
    l2 = np.sqrt((change**2).sum(1) + (spacing**2).sum(1) / 6).mean()
    linf = np.sqrt(np.abs(change).max(1) ** 2 + spacing.max(1) ** 2 / 6).mean()
    return {"l2": float(l2), "linf": float(linf)}


def _smallest_step(plan: AuditPlan | None, x: np.ndarray) -> float:
    """What ±step on every pixel has the plan's smallest radius."""
    if plan is None:
        return _BESIDE
    d = float(x[0].size)
    return min(plan.eps) / {"linf": 1.0, "l2": math.sqrt(d), "l1": d}[plan.norm]


def _floor_of_precision(
    runner: Runner, exact: Purifier, probe: ImageSet, step: float
) -> dict[str, float]:
    """By how much a lower precision is wrong about a change, a mean over images.

    Args:
        runner: of the purifier in that precision.
        exact: the same in float32.
        probe: some images.
        step: the change is that of ±step on every pixel, under the same draw.
    """
    moved = _perturbed(probe.pixels, step)

    def change(runner: Runner) -> np.ndarray:
        both = (_call(runner, x, probe.ids, 0) for x in (moved, probe.pixels))
        after, before = (y.astype(np.float64).reshape(len(y), -1) for y in both)
        return np.asarray(after - before)

    wrong = change(runner) - change(replace(runner, purifier=exact))
    norms = {"l2": np.sqrt((wrong**2).sum(1)), "linf": np.abs(wrong).max(1)}
    return {norm: float(sizes.mean()) for norm, sizes in norms.items()}


def _call(runner: Runner, x: np.ndarray, ids: np.ndarray, draw: int) -> np.ndarray:
    """One micro-batch; an output that is not an image array is returned as it is."""
    return runner.batch(x, ids, np.full(len(ids), draw))


def _call_two(
    runner: Runner, first: np.ndarray, second: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One micro-batch, or two where one is too small: `first` under draw 0, `second` under 1."""
    out = runner(np.concatenate((first, second)), np.tile(ids, 2), np.repeat((0, 1), len(ids)))
    return out[: len(ids)], out[len(ids) :]


def _perturbed(x: np.ndarray, size: float) -> np.ndarray:
    """X plus a checkerboard of ±size, clipped to [0, 1]."""
    sign = 1.0 - 2.0 * (np.indices(x.shape).sum(0) % 2)
    return np.asarray(np.clip(x + size * sign, 0.0, 1.0), np.float32)


def _foreign(runner: Runner) -> list[Finding]:
    """What somebody's own code has shown of itself while it was run."""
    purifier = runner.purifier
    if not isinstance(purifier, UserPurifier):
        return []
    return purifier.findings()


def _shape(y: np.ndarray, images: ImageSet) -> Finding | None:
    want = (len(images), *images.image_shape)
    if y.shape == want and y.dtype == np.float32:
        return None
    return finding(
        "PA104",
        f"The output is {y.dtype} of shape {list(y.shape)}, not float32 of shape {list(want)}.",
        {"shape": list(y.shape), "expected": list(want), "dtype": str(y.dtype)},
    )


def _finite(outputs: tuple[np.ndarray, ...], images: ImageSet) -> Finding | None:
    bad = np.any([~np.isfinite(y).reshape(len(y), -1).all(1) for y in outputs], 0)
    if not bad.any():
        return None
    return finding(
        "PA103",
        f"The output is NaN or infinite for {bad.sum()} of {len(bad)} images.",
        {"image_ids": images.ids[bad].tolist()},
    )


def _repeatable(first: np.ndarray, second: np.ndarray) -> Finding | None:
    gap = _largest_gap(first, second)
    if gap == 0.0:
        return None
    return finding(
        "PA101",
        f"The same call gave outputs that differ by up to {gap:.3g}.",
        {"largest_difference": gap},
    )


def _rows_alone(runner: Runner, images: ImageSet, y: np.ndarray) -> Finding | None:
    """Images at other indices of a batch, beside other images and their own perturbed copies."""
    size, n = runner.microbatch, min(4, len(images), runner.microbatch // 2)
    strangers = 1.0 - images.pixels[np.arange(size - 2 * n) % len(images)]
    x = np.concatenate((strangers, _perturbed(images.pixels[:n], 0.05), images.pixels[:n]))
    others = (images.ids[0] + 1 + np.arange(size - n)) % 2**32
    last = _call(runner, x, np.concatenate((others, images.ids[:n])), 0)[-n:]
    gap = _largest_gap(last, y[:n])
    if gap <= _ROW_TOLERANCE:
        return None
    return finding(
        "PA102",
        f"With other images beside it, an image's output moved by up to {gap:.3g}.",
        {"largest_difference": gap, "tolerance": _ROW_TOLERANCE},
    )


def _in_range(x: np.ndarray, y: np.ndarray) -> Finding | None:
    """Pixels outside [0, 1]; an error when the whole image is on another scale than its input."""
    low, high = float(y.min()), float(y.max())
    if low >= -1e-3 and high <= 1.0 + 1e-3:
        return None
    slope = float(np.cov(x.ravel(), y.ravel())[0, 1] / max(float(x.var()), 1e-12))
    outside = float(((y < 0.0) | (y > 1.0)).mean())
    other_scale = f" The output is about {slope:.3g} times the input: another data range?"
    return finding(
        "PA105",
        f"Output pixels range from {low:.3g} to {high:.3g}; {outside:.1%} lie outside [0, 1]."
        + (other_scale if slope > 1.5 else ""),
        {"lowest": low, "highest": high, "share_outside": outside, "slope": slope},
        severity="error" if slope > 1.5 else None,
    )


def _smooth(y: np.ndarray, near: np.ndarray, nudged: np.ndarray) -> Finding | None:
    """A change of 2⁻²⁴ must not have a thousand times the relative effect of a perturbation."""
    jump, move = _largest_gap(nudged, y), _largest_gap(near, y)
    limit = max(1e-2, 1e3 * _ROUNDING * max(1.0, move / 0.05))
    if jump <= limit:
        return None
    return finding(
        "PA108",
        f"Nudging every pixel by 6e-8 moved an output pixel by {jump:.3g}.",
        {"nudge": _ROUNDING, "largest_change": jump, "limit": limit},
    )


def _draw_matters(runner: Runner, y: np.ndarray, redrawn: np.ndarray) -> Finding | None:
    gap = _largest_gap(redrawn, y)
    claimed = runner.purifier.randomised
    if gap > 0.0 if claimed else gap <= _ROW_TOLERANCE:
        return None
    said = "claims to be randomised, yet two draws give the same output"
    if not claimed:
        said = f"claims to be deterministic, yet two draws differ by up to {gap:.3g}"
    return finding(
        "PA109",
        f"The purifier {said}.",
        {"claimed_randomised": str(claimed), "largest_difference": gap},
        severity=None if claimed else "error",
    )


def _collapsed(images: ImageSet, y: np.ndarray) -> Finding | None:
    if len(images) < 2:
        return None
    before, after = (float(v.std(0).mean()) for v in (images.pixels, y))
    if before == 0.0 or after >= 0.05 * before:
        return None
    return finding(
        "PA110",
        f"Pixels vary {after / before:.2%} as much between purified images as between clean ones.",
        {"spread_before": before, "spread_after": after},
    )


def _hidden_randomness(before: dict[str, bytes], after: dict[str, bytes]) -> Finding | None:
    used = [name for name, state in after.items() if state != before[name]]
    if not used:
        return None
    return finding("PA107", f"A purification drew from {' and '.join(used)}.", {"generators": used})


def _generator_states() -> dict[str, bytes]:
    """The states of the global generators, which a purifier must not use."""
    states = {
        "torch's global generator": torch.get_rng_state().numpy().tobytes(),
        "numpy's global generator": repr(
            np.random.get_state()  # noqa: NPY002, TID251 - only looked at
        ).encode(),
        "Python's random module": repr(random.getstate()).encode(),
    }
    if torch.cuda.is_available():
        for n, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"the generator of cuda:{n}"] = state.numpy().tobytes()
    return states


def _largest_gap(a: np.ndarray, b: np.ndarray) -> float:
    """Largest absolute difference; infinite where one is not finite and the other differs."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    gap = np.where(same, 0.0, np.abs(a.astype(np.float64) - b))
    return float(np.nan_to_num(gap, nan=np.finfo(np.float64).max).max())
