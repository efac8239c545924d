"""Perturbations of probes, and perturbed images clipped to [0, 1]."""

import numpy as np
from scipy.fft import idctn

from purify_audit.core.noise import Noise, Stream
from purify_audit.spec.norms import Norm
from purify_audit.spec.probes import LowFrequencyProbe, Probe, SignProbe, SphereProbe, UniformProbe

_STEPS = {"sign": 0, "uniform": 1, "sphere": 2, "lowfreq": 3}  # part of the address of directions


def directions(
    probe: Probe, shape: tuple[int, int, int], ids: np.ndarray, count: int, seed: int
) -> np.ndarray:
    """Directions of a random probe, unscaled, in antithetic pairs (v, −v).

    Args:
        probe: sign, uniform, sphere or lowfreq.
        shape: (channels, height, width).
        ids: image ids [n]; each image has its own directions, the same for all draws.
        count: directions of each image.
        seed: the audit's seed.

    Returns:
        float32 [n, count, channels, height, width].
    """
    pairs = -(-count // 2)
    noise = Noise(
        seed,
        tuple(int(i) for i in ids for _ in range(pairs)),
        tuple(range(pairs)) * len(ids),
        Stream.DIRECTION,
    )
    step = _STEPS[probe.kind]
    match probe:
        case SignProbe():
            v = noise.signs(step, shape).numpy()
        case UniformProbe():
            v = 2.0 * noise.uniform(step, shape).numpy() - 1.0
        case SphereProbe():
            v = noise.normal(step, shape).numpy()
        case LowFrequencyProbe(band=band):
            side = min(shape[1:])
            band = min(band or max(2, side // 4), side)
            low = np.zeros((len(noise), *shape), np.float32)
            low[..., :band, :band] = noise.normal(step, (shape[0], band, band)).numpy()
            v = idctn(low, axes=(-2, -1), norm="ortho")
        case _:
            raise AssertionError(f"{probe.kind} is not a random probe")
    signed = np.stack((v, -v), 1).reshape(len(ids), 2 * pairs, *shape)
    return np.ascontiguousarray(signed[:, :count])


def scale_to_ball(v: np.ndarray, kind: str, norm: Norm, eps: float) -> np.ndarray:
    """Scale directions [..., c, h, w] to a ball's radius.

    `sign` and `uniform` fill the l-inf ball without rescaling; every other combination is scaled
    to the ball's surface. A direction of zeros stays zero.
    """
    if norm == "linf" and kind in ("sign", "uniform"):
        return np.asarray(eps * v, np.float32)
    flat = v.reshape(*v.shape[:-3], -1).astype(np.float64)
    if norm == "linf":
        size = np.abs(flat).max(-1)
    else:
        size = np.sqrt((flat**2).sum(-1)) if norm == "l2" else np.abs(flat).sum(-1)
    factor = np.divide(eps, size, out=np.zeros_like(size), where=size > 0)
    return np.asarray(factor[..., None, None, None] * v, np.float32)


def apply(x: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """X + delta, clipped to [0, 1]: float32, x [n, c, h, w] and delta [n, m, c, h, w]."""
    return np.asarray(np.clip(x[:, None] + delta, np.float32(0.0), np.float32(1.0)))
