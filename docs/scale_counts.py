"""Results about network evaluations: audit and attack, a given precision, a published protocol."""

from typing import Any

from attack_pages import markdown

Row = dict[str, Any]


def counts_section(f: Row) -> str:
    """Section 15 of the results.

    Args:
        f: figures from `benchmarks/scale.py`.
    """
    return f"""## 15. Network evaluations: the audit, the attack, and a published protocol

Planned, for the digits DDPM as shipped (a backward pass counted as one evaluation; compression with 4 draws and 8 directions of each probe):

{_presets(f["presets"])}
{_small(f["small_case"])}

**To know the compression rate to ±0.01 (95%).** {_components(f["to_reach"])}

{_designs(f["to_reach"])}
{_design_text(f["to_reach"])}

{_reached(f["reached"])}

{_diffpure(f["diffpure"])}"""


def spread(v: Row, digits: int = 2) -> str:
    """A median with minimum and maximum."""
    low, high = min(v["all"]), max(v["all"])
    return f"{v['median']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _presets(presets: Row) -> str:
    table = [["`attack` preset", "images", "compression", "attack", "attack over compression"]]
    for name, p in presets.items():
        counts = [f"{p[key]:,}" for key in ("images", "compress", "attack")]
        table.append([name, *counts, f"{p['attack_over_compress']:.1f}"])
    return markdown(table)


def _small(s: Row) -> str:
    return (
        f"Measured on a small case (`smoke`, {s['images']} images, {s['steps']} steps, no padding): {s['attack_over_compress']:.1f} times"
        f" the planned evaluations, {spread(s['time'], 1)} times the time. (A backward pass takes longer than a forward pass, and"
        " preflight is included in the time of the audit.)"
    )


def _components(t: Row) -> str:
    parts = ", ".join(f"{name} {1e3 * v:.2f}" for name, v in t["components"].items())
    return (
        f"Variance components of the l2 rate of random signs (mean {t['rate']:.3f}), from {t['images']} images, {t['draws']} draws,"
        f" {t['directions']} directions, `ddpm` with {t['steps']} steps, in thousandths: {parts}. With K draws and Q pairs of directions v, −v"
        " the variance of an image's mean is σ²(image) + σ²(draw)/K + σ²(pair)/Q + σ²(draw × pair)/(KQ) for K(1 + 2Q) purifications (the"
        " anchor is shared, and terms odd in v cancel); with m perturbations, each with its own draw, direction and anchor, it is"
        " σ²(image) + (σ²(draw) + σ²(pair) + σ²(draw × pair) + σ²(odd))/m for 2m. Images needed: the smallest n with t(n−1)·√(variance/n) ≤ 0.01."
    )


def _designs(t: Row) -> str:
    table = [["design", "images", "network evaluations"]]
    for name, d in t["designs"].items():
        table.append([name, f"{d['images']:,}", f"{d['evaluations']:,}"])
    return markdown(table)


def _design_text(t: Row) -> str:
    ours, plain = (
        t["designs"][n] for n in ("ours, 4 draws, 8 directions", "plain, 32 perturbations an image")
    )
    fewest = min(t["designs"], key=lambda name: t["designs"][name]["evaluations"])
    saved = plain["evaluations"] / ours["evaluations"]
    return (
        f"With equally many perturbations per image, pairs and shared anchors need {saved:.2f} times fewer evaluations than plain Monte Carlo,"
        f" though {ours['images'] / plain['images']:.2f} times the images. The fewest evaluations of all: {fewest}. **With many images"
        " available, many draws and directions per image are not the cheapest way to the mean rate**: the defaults also give the randomness"
        " share, the spread over draws and an interval from few images. `--draws 1 --directions 1` is plain Monte Carlo with one"
        " perturbation per image."
    )


def _reached(r: Row) -> str:
    default, chosen = r["default"], r["allocated"]
    spent = chosen["evaluations"] + r["pilot_evaluations"]
    designs = [
        f"{name}: {v['draws']} draws, {v['directions']} directions, {v['images']} images, {v['evaluations']:,} evaluations,"
        f" {v['rate']:.3f} ± {v['half_width']:.4f}"
        for name, v in (("by default", default), ("with `--allocate`", chosen))
    ]
    return (
        f"**Actual runs** (`--tolerance 0.01` on all 1,797 digits, `ddpm` with {r['steps']} steps, stopping at the first sufficiently narrow look):"
        f" {'; '.join(designs)}, after a pilot of {r['pilot_evaluations']:,}. Including the pilot, allocation took"
        f" {default['evaluations'] / spent:.1f} times fewer evaluations."
    )


def _diffpure(d: Row) -> str:
    hours = {name: d[name] * d["example_seconds"] / 3600 for name in ("compress", "attack")}
    cheap = "compress, 1 draw, 2 directions"
    return f"""**DiffPure's ImageNet protocol, estimated.** {d["images"]} images, t* = {
        d["t_star"]
    }, so {d["t_star"]} evaluations per purification, APGD of {d["steps"]} steps with EOT {
        d["draws"]
    }
(Nie et al. 2022). Evaluations according to the plans of this tool:

{
        markdown(
            [
                ["", "network evaluations"],
                ["compression, default probes", f"{d['compress']:,}"],
                ["compression, random signs, 1 draw, 2 directions", f"{d[cheap]:,}"],
                ["one APGD attack, gradients alone", f"{d['one attack alone']:,}"],
                ["`attack`: aligned and fresh attack, checks, evaluation", f"{d['attack']:,}"],
            ]
        )
    }
With s seconds per evaluation, hours = evaluations × s / 3600, divided by the number of processes. *Calculated, not measured:*
at {1000 * d["example_seconds"]:.0f} ms per evaluation, compression takes {
        hours["compress"]:.0f} hours and the attack {hours["attack"]:,.0f}. We have not run it."""
