"""The page of measured results, from the JSON files written by `benchmarks/`."""

import json
from pathlib import Path
from typing import Any

from attack_pages import attack_sections, figures, markdown
from curves_section import attack_strength_section, curves_figure
from engine_section import engine_section
from gate_section import gate_section
from scale_section import scale_section
from third_party_page import third_party_section

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COVERAGE = {"clustered": "94.1%", "naive": "27.6%", "looks": "96.7%", "date": "2026-11-22"}
"""Output of `make test-slow`."""


def results_page() -> str:
    """The page: tables, counts and verdicts are computed from the files."""
    d, c, o = (_load(name) for name in ("digits_sweep", "cifar_transforms", "overhead"))
    rates, places, rows = _rate_table(d["rows"]), _place_table(d["rows"]), d["rows"]
    transforms = _transform_table(c["rows"])
    clean = _accuracy(c["rows"][0]["clean_accuracy"])
    speeds = ", ".join(f"{n}: {v:.3f}" for n, v in o["milliseconds_per_image_and_pass"].items())
    ratios = ", ".join(f"{v:.3f}" for v in o["audit_over_bare"]["all"])
    shares = [r["randomness_share"][0] for r in rows]
    farther = [_name(r) for r in rows if _verdict(r, "l2") == "farther"]
    everywhere = sum(_verdict(r, "linf") == "farther" for r in rows)
    dominated = [_name(r) for r in rows if r["randomness_share"][1] > 0.5]
    return (
        f"""# Results

Every number was measured by the command given with it, on a CPU; the commands' JSON output is in `benchmarks/`. Intervals
are 95%. Nothing here was measured on a GPU. Terms are defined in [Method](method.md#1-terms).

## 1. The digits DDPM over t*

`{d["command"]}` ({d["date"]}, {d["machine"]}, {d["seconds"]} s): {d["images"]} held-out digits,
{d["draws"]} draws, ε = {d["eps_linf"]} (l∞), 8 directions. `ddpm` uses every index, `ddim` takes 20 steps.
Without the purifier, the classifier is correct on all of these digits.

{rates}
{places}
‖δ‖ is {_plus_minus(rows[0]["delta_l2"])} in l2 and {rows[0]["delta_linf"][0]:.2f} in l∞.

**Is the purified image farther from x than the attacked one?** (Liu and Wei's first finding.)
In l∞ yes, for {everywhere} of these {len(rows)} settings. In l2 only for {", ".join(farther)}: with small t* the
purifier removes more of a random δ than the distance that it adds.

**Which fraction of the output's variance is randomness?** (Their second finding.) From {min(shares):.0%} to {max(shares):.0%}, increasing with t*. It is significantly
more than half for {", ".join(dominated)}.

**Limits of a single rate.** The rate of random signs is lowest around t* = 60 to 100 and does not decrease
further; the gain along the direction of power iteration is above 1 everywhere and increases with t* (for `ddpm` up to
200), while anchors become misclassified. In l∞ even random perturbations are amplified. A single number hides this;
`compress` therefore reports several probes and the anchor accuracy by default.

## 2. Input transformations before a CIFAR-10 classifier

`{c["command"]}` ({c["date"]}, {c["machine"]}, {c["seconds"]} s), with the
first 1,000 test images and a published ResNet-20 (`examples/cifar10-resnet20.json`), ε = 8/255, 2 directions.
Clean accuracy {clean}.

{transforms}
Quantising transformations amplify small perturbations that cross a quantisation step: their rate exceeds 1. Low frequencies
pass through smoothing almost unchanged, and so would a low-frequency attack. Additive noise has rate 1: under one draw
it shifts an image and its neighbour equally. None of these is a robustness claim.

## 3. Cost

`{o["command"]}` ({o["date"]}, {o["machine"]}, torch {o["torch"]}): a whole audit of 64 digits with
the default settings (micro-batches of {o["microbatch_of_the_audit"]}), relative to the bare forward passes of its network at
their best batch size ({o["best_batch"]}), measured alternately in one process.

- time of an audit relative to its {o["network_passes"]:,} forward passes: **{o["audit_over_bare"]["median"]:.3f}** (median of {ratios})
- time to generate a step's noise relative to a forward pass: {o["noise_over_pass_own_addresses"]:.2%} if every row has its own
  address, {o["noise_over_pass_shared_by_probes"]:.2%} if eight directions share theirs, as in an audit
- milliseconds per image and pass, by batch size: {speeds}

## 4. Coverage of the intervals

`make test-slow` ({COVERAGE["date"]}): 2,000 audits of 16 new images, 4 draws, 8 directions, of a purifier whose
true rate is known. Nominal 95% intervals covered it in **{COVERAGE["clustered"]}**; intervals that treat rows as independent in
{COVERAGE["naive"]}. With `--tolerance` and looks (1,000 audits) {COVERAGE["looks"]}.
"""
        + attack_sections(*(_load(name) for name in ("attack_sweep", "attack_cost", "predictor")))
        + third_party_section(_load("third_party"), _load("capture_study"))
        + gate_section(_load("gate_errors"), _load("gate_speed"))
        + scale_section(_load("scale"))
        + "\n"
        + engine_section(_load("engines"))
        + attack_strength_section(
            *(_load(name) for name in ("attack_curves", "rival_attacks", "attack_checks"))
        )
    )


def figure(name: str) -> str:
    """SVG of one figure."""
    if name == "attack_curves.svg":
        return curves_figure(_load("attack_curves"), _load("rival_attacks"))
    return figures(_load("predictor"))[name]


def _load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def _rate_table(rows: list[dict[str, Any]]) -> str:
    columns = {
        "rate l2, sign": "rate_sign_l2",
        "rate l∞, sign": "rate_sign_linf",
        "rate l2, low freq.": "rate_lowfreq_l2",
        "rate l2, power": "rate_power_l2",
        "fresh draw l2": "unaligned_l2",
        "randomness": "randomness_share",
    }
    table = [["sampler", "t*", *columns, "anchor accuracy"]]
    for r in rows:
        cells = [_plus_minus(r[column]) for column in columns.values()]
        table.append([r["sampler"], str(r["t_star"]), *cells, _accuracy(r["anchor_accuracy"])])
    return markdown(table)


def _place_table(rows: list[dict[str, Any]]) -> str:
    table = [["sampler", "t*"]]
    for norm in ("l2", "l∞"):
        table[0] += [f"‖P(x)−x‖ {norm}", f"‖P(x+δ)−x‖ {norm}", f"against ‖δ‖ {norm}"]
    for r in rows:
        table.append([r["sampler"], str(r["t_star"])])
        for norm in ("l2", "linf"):
            table[-1] += [_plus_minus(r[f"{which}_{norm}"]) for which in ("anchor", "purified")]
            table[-1].append(_verdict(r, norm))
    return markdown(table)


def _transform_table(rows: list[dict[str, Any]]) -> str:
    table = [["transformation", "anchor accuracy"]]
    table[0] += ["rate l2, sign", "rate l∞, sign", "rate l2, low freq."]
    for r in rows:
        rates = [r[name] for name in ("rate_sign_l2", "rate_sign_linf", "rate_lowfreq_l2")]
        cells = [_accuracy(r["anchor_accuracy"]), *(_plus_minus(rate, 3) for rate in rates)]
        table.append([f"`{r['transformation']}`", *cells])
    return markdown(table)


def _verdict(row: dict[str, Any], norm: str) -> str:
    """Comparison of two distances by their intervals."""
    moved, delta = row[f"purified_{norm}"], row[f"delta_{norm}"]
    if moved[1] > delta[2]:
        return "farther"
    return "nearer" if moved[2] < delta[1] else "about as far"


def _name(row: dict[str, Any]) -> str:
    return f"{row['sampler']} {row['t_star']}"


def _plus_minus(v: list[float], digits: int = 2) -> str:
    return f"{v[0]:.{digits}f} ± {(v[2] - v[1]) / 2:.{digits}f}"


def _accuracy(v: list[float]) -> str:
    return f"{v[0]:.1%} ({v[1]:.1%} to {v[2]:.1%})"
