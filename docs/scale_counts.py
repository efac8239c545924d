"""What counts of network evaluations say: audit and attack, a wanted precision, a protocol."""

from typing import Any

from attack_pages import markdown

Row = dict[str, Any]


def counts_section(f: Row) -> str:
    """Section 15 of the results.

    Args:
        f: the figures that `benchmarks/scale.py` wrote.
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
    """A median, its lowest and its highest value."""
    low, high = min(v["all"]), max(v["all"])
    return f"{v['median']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _presets(presets: Row) -> str:
    table = [["`verify` preset", "images", "compression", "attack", "attack over compression"]]
    for name, p in presets.items():
        counts = [f"{p[key]:,}" for key in ("images", "compress", "attack")]
        table.append([name, *counts, f"{p['attack_over_compress']:.1f}"])
    return markdown(table)


def _small(s: Row) -> str:
    return (
        f"Measured on a small case (`smoke`, {s['images']} images, {s['steps']} steps, no padding): {s['attack_over_compress']:.1f} times"
        f" the evaluations by plan, {spread(s['time'], 1)} times the time. (A backward pass takes longer than a forward pass, and the"
        " audit's preflight counts in its time.)"
    )


def _components(t: Row) -> str:
    parts = ", ".join(f"{name} {1e3 * v:.2f}" for name, v in t["components"].items())
    return (
        f"Variance components of the l2 rate of random signs (mean {t['rate']:.3f}), from {t['images']} images, {t['draws']} draws,"
        f" {t['directions']} directions, `ddpm` with {t['steps']} steps, in thousandths: {parts}. With K draws and Q pairs of directions v, −v"
        " an image's mean varies by σ²(image) + σ²(draw)/K + σ²(pair)/Q + σ²(draw × pair)/(KQ) for K(1 + 2Q) purifications (the"
        " anchor is shared, and what is odd in v cancels); with m perturbations that have a draw, a direction and an anchor of their own,"
        " by σ²(image) + (σ²(draw) + σ²(pair) + σ²(draw × pair) + σ²(odd))/m for 2m. Images needed: the smallest n with t(n−1)·√(variance/n) ≤ 0.01."
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
        f"With as many perturbations an image, pairs and shared anchors need {saved:.2f} times fewer evaluations than plain Monte Carlo,"
        f" though {ours['images'] / plain['images']:.2f} times the images. The fewest evaluations of all: {fewest}. **Where images are"
        " plentiful, many draws and directions of each are not the cheapest way to the mean rate**: the defaults buy the randomness"
        " share, the spread over draws and an interval from few images. Plain Monte Carlo with one perturbation an image is what"
        " `--draws 1 --directions 1` does."
    )


def _reached(r: Row) -> str:
    default, chosen = r["default"], r["allocated"]
    spent = chosen["evaluations"] + r["pilot_evaluations"]
    told = [
        f"{name}: {v['draws']} draws, {v['directions']} directions, {v['images']} images, {v['evaluations']:,} evaluations,"
        f" {v['rate']:.3f} ± {v['half_width']:.4f}"
        for name, v in (("by default", default), ("with `--allocate`", chosen))
    ]
    return (
        f"**Really run** (`--tolerance 0.01` on all 1,797 digits, `ddpm` with {r['steps']} steps, ending at the first look that is narrow enough):"
        f" {'; '.join(told)}, after a pilot of {r['pilot_evaluations']:,}. So the pilot and what it chose took"
        f" {default['evaluations'] / spent:.1f} times fewer evaluations."
    )


def _diffpure(d: Row) -> str:
    hours = {name: d[name] * d["example_seconds"] / 3600 for name in ("compress", "attack")}
    cheap = "compress, 1 draw, 2 directions"
    return f"""**DiffPure's ImageNet protocol, on paper.** {d["images"]} images, t* = {
        d["t_star"]
    }, so {d["t_star"]} evaluations a purification, APGD of {d["steps"]} steps with EOT {d["draws"]}
(Nie et al. 2022). Counted by the tool's own plans:

{
        markdown(
            [
                ["", "network evaluations"],
                ["compression, default probes", f"{d['compress']:,}"],
                ["compression, random signs, 1 draw, 2 directions", f"{d[cheap]:,}"],
                ["one APGD attack, gradients alone", f"{d['one attack alone']:,}"],
                ["`verify`: aligned and fresh attack, checks and scores", f"{d['attack']:,}"],
            ]
        )
    }
With s seconds an evaluation, hours = evaluations × s / 3600, divided by the number of processes. *Arithmetic, not a measurement:*
at {1000 * d["example_seconds"]:.0f} ms an evaluation, compression takes {
        hours["compress"]:.0f} hours and `verify` {hours["attack"]:,.0f}. We have not run it."""
