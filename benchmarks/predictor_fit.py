"""Accuracy of cheap predictors of robust accuracy: tables of the study, leave-one-out.

    python benchmarks/predictor_fit.py [--out benchmarks/predictor.json]

Reads what `predictor_study.py` wrote for two classifiers. Everything that is fitted is fitted on
the first classifier's other purifiers; the second classifier is never fitted on.
"""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from common import command_line, parser, write
from safetensors import safe_open
from safetensors.numpy import load_file

from purify_audit.statistics.correlation import correlations

FOLDER = Path(__file__).parent
STUDIES = {"fitted": "predictor_study", "held out": "predictor_study_small"}
TRUTHS = ("attacked", "warm")
Columns = dict[str, np.ndarray]
Study = dict[str, Columns]


def read(name: str) -> tuple[Study, dict[str, object]]:
    """Purifiers, each with its columns, and how they were measured."""
    path, study = FOLDER / f"{name}.safetensors", Study()
    for key, values in load_file(path).items():
        purifier, _, column = key.rpartition("/")
        study.setdefault(purifier, {})[column] = values
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["about"])
    return study, about


def group(name: str) -> str:
    """The family of a purifier."""
    family = name.split(" ")[0].split(":")[0]
    if family in ("identity", "gaussian-smoothing", "gaussian-noise", "median"):
        return "transformations"
    return family.removeprefix("diffpure-").upper() if family.startswith(("d", "D")) else family


def standing(margins: np.ndarray) -> float:
    """Share of images with a positive margin."""
    return float((margins > 0).mean())


def anchors(c: Columns) -> np.ndarray:
    """Margins of the purified clean images."""
    return c["secant"][:, 0]


PREDICTORS: dict[str, tuple[Callable[[Columns], np.ndarray], Callable[[float], float]]] = {
    "one-step transfer": (lambda c: c["transfer"], lambda e: (10 * 3 + e) if e > 1 else 37),
    "one-step transfer, forward only": (
        lambda c: c["transfer_none"],
        lambda e: (10 * 2 + e) if e > 1 else 25,
    ),
    "J g ascent, 1 step": (lambda c: c["secant"][:, :2].min(1), lambda e: 3 * e),
    "J g ascent, 2 steps": (lambda c: c["secant"][:, :3].min(1), lambda e: 5 * e),
    "J g ascent, 15 steps": (lambda c: c["pgd_none"], lambda e: 31 * e),
    "BPDA, 15 steps": (lambda c: c["pgd_bpda"], lambda e: 16 * e),
    "exact, 2 steps": (lambda c: c["exact"][:, :3].min(1), lambda e: 7 * e),
    "anchor distance - rate (sign) x eps": (
        lambda c: np.where(anchors(c) > 0, c["distance_l2"] - c["rate_sign_l2"] * c["l2"], -1),
        lambda e: 5 * e,
    ),
    "anchor distance - rate (power) x eps": (
        lambda c: np.where(anchors(c) > 0, c["distance_l2"] - c["rate_power_l2"] * c["l2"], -1),
        lambda e: 8 * e,
    ),
}
"""Margins whose sign predictable a verdict, and network evaluations by those of the chain."""


def calibrated(name: str, study: Study, truth: str, left_out: str | None) -> float:
    """The share c of its anchor margin below which an image counts as fallen, best on the others.

    One number: the c with the smallest mean absolute error over purifiers.
    """
    grid = np.linspace(-0.3, 0.9, 61)
    errors = np.zeros(len(grid))
    for purifier, c in study.items():
        if purifier != left_out:
            share = PREDICTORS[name][0](c) / np.maximum(np.abs(anchors(c)), 1e-9)
            stands = (share[:, None] > grid) & (anchors(c) > 0)[:, None]
            errors += np.abs(stands.mean(0) - standing(c[truth]))
    return float(grid[errors.argmin()])


def verdict(name: str, columns: Columns, c: float) -> float:
    """Robust accuracy that a predictor predictable, with a calibration."""
    share = PREDICTORS[name][0](columns) / np.maximum(np.abs(anchors(columns)), 1e-9)
    return float(((share > c) & (anchors(columns) > 0)).mean())


def summary(predicted: np.ndarray, measured: np.ndarray) -> dict[str, object]:
    """Errors, and rank correlation with its interval."""
    spearman, error = correlations(predicted, measured, 0)[0], np.abs(predicted - measured)
    return {
        "mae": float(error.mean()),
        "worst": float(error.max()),
        "bias": float((predicted - measured).mean()),
        "spearman": [spearman.value, spearman.lower, spearman.upper],
    }


def judge(studies: dict[str, Study]) -> list[dict[str, object]]:
    """Every predictor against every truth, as it is and with one number fitted."""
    found = []
    fitted, held = studies["fitted"], studies["held out"]
    for name, (_, cost) in PREDICTORS.items():
        spent = sum(cost(float(c["evaluations"][0])) for c in fitted.values())
        attack = sum(301 * float(c["evaluations"][0]) for c in fitted.values())
        for truth in TRUTHS:
            row: dict[str, object] = {"predictor": name, "truth": truth, "cost": spent / attack}
            for which, study in studies.items():
                measured = np.array([standing(c[truth]) for c in study.values()])
                plain = np.array([verdict(name, c, 0.0) for c in study.values()])
                row[f"{which}, plain"] = summary(plain, measured)
            own = [verdict(name, c, calibrated(name, fitted, truth, p)) for p, c in fitted.items()]
            measured = np.array([standing(c[truth]) for c in fitted.values()])
            row["fitted, leave-one-out"] = summary(np.array(own), measured)
            c_all = calibrated(name, fitted, truth, None)
            other = np.array([verdict(name, c, c_all) for c in held.values()])
            measured = np.array([standing(c[truth]) for c in held.values()])
            row["held out, fitted on the first"] = summary(other, measured)
            row["calibration"] = c_all
            found.append(row)
    return found


def table(study: Study) -> list[dict[str, object]]:
    """What the page shows of each purifier."""
    rows = []
    for name, c in study.items():
        rows.append(
            {
                "purifier": name,
                "group": group(name),
                "evaluations": int(c["evaluations"][0]),
                "anchor": standing(anchors(c)),
                "attacked": standing(c["attacked"]),
                "warm": standing(c["warm"]),
                **{key: standing(get(c)) for key, (get, _) in PREDICTORS.items()},
                **{k: float(np.nanmean(v)) for k, v in c.items() if k.startswith("rate_")},
            }
        )
    return rows


def rate_correlations(rows: list[dict[str, object]], chosen: str) -> list[dict[str, object]]:
    """Spearman of cheap numbers with the robust accuracy of PGD-100."""
    kept = [r for r in rows if chosen == "all" or float(str(r["anchor"])) >= 0.95]
    measured = [float(str(r["attacked"])) for r in kept]
    found = []
    for key in ("rate_sign_l2", "rate_lowfreq_l2", "rate_power_l2", "rate_attack_l2", "anchor"):
        c = correlations([float(str(r[key])) for r in kept], measured, 0)[0]
        ends = [c.value, c.lower, c.upper]
        found.append({"of": key, "purifiers": chosen, "n": c.n, "spearman": ends})
    return found


def main() -> None:
    """Fit and write."""
    flags = parser(__doc__, "predictor.json")
    options = flags.parse_args()
    studies, abouts = dict[str, Study](), {}
    for which, name in STUDIES.items():
        studies[which], abouts[which] = read(name)
        for c in studies[which].values():  # a typical length of the attack's perturbation
            c["l2"] = np.float32(0.85 * 8 * float(str(abouts[which]["eps"])))
    rows = table(studies["fitted"])
    result = {
        "command": command_line(),
        "date": date.today().isoformat(),
        "studies": abouts,
        "rows": rows,
        "held_out_rows": table(studies["held out"]),
        "predictors": judge(studies),
        "rates": rate_correlations(rows, "all") + rate_correlations(rows, "anchors of 95%"),
    }
    write(options.out, result)
    for row in result["predictors"]:
        told = {k: (round(v["mae"], 3), v["spearman"][0]) for k, v in row.items() if "," in k}
        print(row["predictor"], row["truth"], f"1/{1 / row['cost']:.0f}", told)


if __name__ == "__main__":
    main()
