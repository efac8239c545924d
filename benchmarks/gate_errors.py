"""Error rates of the gate in simulated audits: `python benchmarks/gate_errors.py`.

Per-image values are drawn from distributions with a known mean, and a rule's threshold is put
exactly there, where every decision but INCONCLUSIVE is at the edge of being wrong and errors are
most frequent. Nominal: PASS and FAIL each in at most (1 − confidence) / 2 of the audits.
"""

import platform
import time
from collections.abc import Callable, Iterator

import numpy as np
from common import parser, provenance, write

from purify_audit.gate.decide import decide
from purify_audit.gate.paired import Column, pair
from purify_audit.statistics.estimates import Estimate
from purify_audit.statistics.intervals import mean_interval, proportion_interval

Draw = Callable[[np.random.Generator, int], np.ndarray]
Interval = Callable[[np.ndarray, float], tuple[float, float | None, float | None]]

RATES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda g, n: g.normal(0.4, 0.1, n), 0.4),
    "gamma, shape 4": (lambda g, n: g.gamma(4.0, 0.1, n), 0.4),
    "lognormal, sigma 0.5": (lambda g, n: g.lognormal(0.0, 0.5, n), float(np.exp(0.125))),
    "lognormal, sigma 1": (lambda g, n: g.lognormal(0.0, 1.0, n), float(np.exp(0.5))),
}
SHARES: dict[str, tuple[Draw, float]] = {
    "verdicts, 0.5": (lambda g, n: (g.uniform(size=n) < 0.5).astype(float), 0.5),
    "verdicts, 0.1": (lambda g, n: (g.uniform(size=n) < 0.1).astype(float), 0.1),
    "verdicts, 0.97": (lambda g, n: (g.uniform(size=n) < 0.97).astype(float), 0.97),
    "mean of 4 draws, 0.6": (lambda g, n: g.binomial(4, g.beta(3, 2, n)) / 4, 0.6),
}
SIZES = (16, 64, 256)


def errors(decisions: Iterator[str]) -> dict[str, float]:
    """Shares of PASS and of FAIL."""
    found = list(decisions)
    return {word: round(found.count(word) / len(found), 5) for word in ("pass", "fail")}


def one_look(
    draw: Draw, mean: float, interval: Interval, n: int, confidence: float
) -> Callable[[np.random.Generator], str]:
    """An audit of n images."""

    def audit(g: np.random.Generator) -> str:
        _, lower, upper = interval(draw(g, n), confidence)
        return decide(lower, upper, "<=", mean)

    return audit


def several_looks(
    draw: Draw, mean: float, interval: Interval, n: int, confidence: float
) -> Callable[[np.random.Generator], str]:
    """An audit that may end at n/8, n/4, n/2 and n images, from 16 on, once it is decided."""
    looks = [look for look in (n // 8, n // 4, n // 2, n) if look >= 16]
    level = 1 - (1 - confidence) / len(looks)

    def audit(g: np.random.Generator) -> str:
        values = draw(g, n)
        for look in looks:
            _, lower, upper = interval(values[:look], level)
            decision = decide(lower, upper, "<=", mean)
            if decision != "inconclusive":
                return decision
        return "inconclusive"

    return audit


def regression(changed: float, n: int, confidence: float) -> Callable[[np.random.Generator], str]:
    """Verdicts of two purifiers that differ on a share of the images, as often either way."""
    e = Estimate(
        metric="aligned_robust_accuracy", value=0, lower=None, upper=None, level=confidence,
        method="", n_images=n,
    )  # fmt: skip
    ids = np.arange(n)

    def audit(g: np.random.Generator) -> str:
        old = (g.uniform(size=n) < 0.5).astype(float)
        flip = g.uniform(size=n) < changed
        new = np.where(flip, (g.uniform(size=n) < 0.5).astype(float), old)
        found = pair(e, Column(ids, new), Column(ids, old), confidence)
        change = found.change
        decision = decide(change.lower, change.upper, ">=", 0.0)
        return "inconclusive" if decision == "fail" and not found.surely_differs else decision

    return audit


def studies(confidence: float) -> Iterator[tuple[dict[str, object], Callable[..., str]]]:
    """Every audit that is simulated."""
    kinds: list[tuple[dict[str, tuple[Draw, float]], Interval]] = [
        (RATES, mean_interval),
        (SHARES, proportion_interval),
    ]
    for values, interval in kinds:
        for name, (draw, mean) in values.items():
            for n in SIZES:
                what = {"values": name, "images": n, "confidence": confidence}
                yield what | {"looks": 1}, one_look(draw, mean, interval, n, confidence)
                if n >= 64:
                    yield (
                        what | {"looks": "several"},
                        several_looks(draw, mean, interval, n, confidence),
                    )
    for changed in (0.1, 0.5):
        for n in SIZES:
            what = {"values": f"paired verdicts, {changed:g} drawn again", "images": n}
            yield what | {"confidence": confidence, "looks": 1}, regression(changed, n, confidence)


def main() -> None:
    """Simulate, print, and write the JSON beside this file."""
    flags = parser(__doc__, "gate_errors.json")
    flags.add_argument("--audits", type=int, default=4000)
    flags.add_argument("--seed", type=int, default=0)
    options = flags.parse_args()
    start, rows = time.monotonic(), []
    for confidence in (0.9, 0.95):
        for what, audit in studies(confidence):
            g = np.random.default_rng(options.seed)
            rows.append(what | errors(audit(g) for _ in range(options.audits)))
            print(rows[-1], flush=True)
    command = f"python benchmarks/gate_errors.py --audits {options.audits} --seed {options.seed}"
    origin = provenance(command, f"{platform.machine()}, numpy {np.__version__}", start)
    write(options.out, origin | {"audits": options.audits, "rows": rows})


if __name__ == "__main__":
    main()
