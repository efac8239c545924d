"""Results about the strength of the attack: curves by budget, and the power of its checks."""

import math
from html import escape
from typing import Any

from attack_pages import markdown

Row = dict[str, Any]

_FAMILIES = {  # by the beginning of an attack's name: label and colour, in the order of the legend
    "portfolio": ("purify-audit, portfolio", "#c8553d"),
    "PGD, two restarts": ("purify-audit, former default", "#8a5fa8"),
    "adv-lib": ("adversarial-library (APGD, targeted APGD, FMN)", "#1b6ca8"),
    "torchattacks": ("torchattacks (PGD, APGD, APGDT, AutoAttack)", "#3a7d44"),
    "AutoAttack": ("AutoAttack, standard", "#c9962b"),
    "foolbox": ("foolbox (PGD)", "#5b6770"),
}
_WIDTH, _HEIGHT, _ACROSS, _TOP = 250, 190, 3, 74
_LEFT, _BOTTOM, _RIGHT, _HEAD = 40, 30, 24, 24
_LOGS = (0.0, 4.0)  # of evaluations over those of one purification


def attack_strength_section(ours: Row, rivals: Row, checks: Row) -> str:
    """Section 17 of the results.

    Args:
        ours: output of `benchmarks/attack_curves.py`.
        rivals: output of `benchmarks/rival_attacks.py`.
        checks: output of `benchmarks/attack_checks.py`.
    """
    compared = [c for p in ours["purifiers"] for c in _compared(p, _rival(rivals, p["name"]))]
    above = [c for c in compared if c["gap"] > 0]
    versions = ", ".join(f"{k} {v}" for k, v in rivals["libraries"].items() if k != "torch")
    broke = sum(p["independent"]["broke_of_ours"] for p in ours["purifiers"])
    images = sum(p["images"] for p in ours["purifiers"])
    return f"""
## 17. Strength of the attack

`{ours["command"]}` ({ours["date"]}, {ours["machine"]}, {ours["seconds"]} s), and for the other libraries
`{rivals["command"]}` ({rivals["date"]}, {rivals["machine"]}, {rivals["seconds"]} s; {versions}), in an environment of their own
(`benchmarks/rivals-constraints.txt`). Every attack sees the same images and one aligned draw; theirs through a wrapper that gives
every row the noise of its image, and whose logits and gradients are checked against ours. Budgets are network evaluations of
an image, three for a gradient of a step of the chain, counted as they are asked for. An image is robust if the purified image and
the purified adversarial image are both classified correctly. The portfolio's curve is one run of {ours["steps"]} steps, a restart.

![robust accuracy by budget](attack_curves.svg)

{_curve_table(ours["purifiers"], rivals)}
At equal or smaller budget the portfolio leaves at most as many images as the other library's attack at **{len(compared) - len(above)} of
{len(compared)}** points. {_exceptions(above)}

**What an independent attack still finds.** Signed steps towards each of the other classes from random points, 20 for each,
written without the package's optimisers, break {broke} of the {images} images that the portfolio was run on and left; per purifier
at most {max(p["independent"]["broke_of_ours"] for p in ours["purifiers"])}. The portfolio breaks
{sum(p["independent"]["ours_broke_of_its"] for p in ours["purifiers"])} that the independent attack leaves.

**Power of the checks.** `{checks["command"]}` ({checks["date"]}, {checks["machine"]}, {checks["seconds"]} s): {checks["images"]} digits,
{checks["rows"][0]["repeats"]} repeats with other images, draws and starts. "Detected": a warning or an error of the attack's checks
(PA301 to PA308); "told": also for information, as a single image that another attack breaks is; the first row is the rate of false alarms.

{_power_table(checks["rows"])}
A weak attack under fresh draws (too few of them, or steps) has no check of its own: the report prints its budget.
"""


def curves_figure(ours: Row, rivals: Row) -> str:
    """An SVG page with a panel for each purifier."""
    panels = ours["purifiers"]
    height = _TOP + -(-len(panels) // _ACROSS) * _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_ACROSS * _WIDTH} {height}"'
        ' font-family="sans-serif" font-size="10">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for n, (label, colour) in enumerate(_FAMILIES.values()):
        x, y = 14 + (n % 2) * 330, 16 + 18 * (n // 2)
        parts.append(f'<path d="M{x} {y - 4}h18" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="{x + 24}" y="{y}" font-size="12">{escape(label)}</text>')
    for n, purifier in enumerate(panels):
        corner = ((n % _ACROSS) * _WIDTH, _TOP + (n // _ACROSS) * _HEIGHT)
        parts += _panel(purifier, _rival(rivals, purifier["name"]), corner)
    return "\n".join([*parts, "</svg>", ""])


def _panel(purifier: Row, rival: Row | None, corner: tuple[int, int]) -> list[str]:
    """Axes, and the lowest robust accuracy reached so far, by family."""
    each, (left, top) = purifier["network_evaluations"], corner
    right, low, high = left + _WIDTH - _RIGHT, top + _HEIGHT - _BOTTOM, top + _HEAD
    left += _LEFT
    parts = [
        f'<text x="{left}" y="{top + 14}" font-weight="bold">{escape(purifier["name"])}:'
        " robust accuracy</text>"
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = low - share * (low - high)
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{left - 4}" y="{y + 3:.1f}" text-anchor="end">{share:.0%}</text>')

    def across(evaluations: float) -> float:
        log = math.log10(max(evaluations / each, 10 ** _LOGS[0]))
        return left + (min(log, _LOGS[1]) - _LOGS[0]) / (_LOGS[1] - _LOGS[0]) * (right - left)

    for power in range(int(_LOGS[0]), int(_LOGS[1]) + 1):
        x = across(each * 10.0**power)
        parts.append(f'<path d="M{x:.1f} {high}V{low}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x:.1f}" y="{low + 12}" text-anchor="middle">{10**power:,}</text>')
    parts.append(
        f'<text x="{(left + right) / 2}" y="{low + 24}" text-anchor="middle">evaluations of an image'
        " / those of a purification</text>"
    )
    points = purifier["points"] + ([] if rival is None else _whole(rival, purifier["images"]))
    for family, (_, colour) in reversed(_FAMILIES.items()):
        own = sorted(
            (p["evaluations_per_image"], p["robust_accuracy"])
            for p in points
            if p["attack"].startswith(family)
        )
        path, least = "", 1.0
        for evaluations, robust in own:
            x, y = across(evaluations), low - min(robust, least) * (low - high)
            path += f"H{x:.1f}V{y:.1f}" if path else f"M{x:.1f} {y:.1f}"
            least = min(robust, least)
        if path:
            width = 2.5 if family == "portfolio" else 1.5
            parts.append(
                f'<path d="{path}H{right}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
            )
    return parts


def _rival(rivals: Row, name: str) -> Row | None:
    return next((p for p in rivals["purifiers"] if p["name"] == name), None)


def _whole(rival: Row, images: int) -> list[Row]:
    """The points on all of the images."""
    return [p for p in rival["points"] if p["images"] == images]


def _compared(purifier: Row, rival: Row | None) -> list[Row]:
    """Every point of another library beside the portfolio at equal or smaller budget."""
    own = [p for p in purifier["points"] if p["attack"] == "portfolio"]
    rows = []
    for point in [] if rival is None else _whole(rival, purifier["images"]):
        budget = point["evaluations_per_image"]
        reached = [p["robust_accuracy"] for p in own if p["evaluations_per_image"] <= budget]
        if reached:
            gap = min(reached) - point["robust_accuracy"]
            rows.append({"purifier": purifier["name"], "gap": gap, **point})
    return rows


def _exceptions(above: list[Row]) -> str:
    if not above:
        return "It does nowhere leave more."
    texts = [
        f"{c['purifier']}, {c['attack']} {c['steps'] or ''} (+{100 * c['gap']:.1f} points at"
        f" {c['evaluations_per_image']:,.0f} evaluations)"
        for c in sorted(above, key=lambda c: -c["gap"])
    ]
    return "It leaves more against " + "; ".join(texts) + "."


def _curve_table(purifiers: list[Row], rivals: Row) -> str:
    rows = []
    for p in purifiers:
        own = [q for q in p["points"] if q["attack"] == "portfolio"]
        old = [q for q in p["points"] if q["attack"] != "portfolio"]
        rival = _rival(rivals, p["name"])
        others = [] if rival is None else _whole(rival, p["images"])
        least = min(others, key=lambda q: (q["robust_accuracy"], q["evaluations_per_image"]))
        reached = (q for q in own if q["robust_accuracy"] <= least["robust_accuracy"])
        first = next(reached, None)
        rows.append(
            (
                p["name"],
                str(p["images"]),
                _at(old[-1]),
                f"{_at(least)}, {least['attack']} {least['steps'] or ''}",
                "not reached" if first is None else f"{first['evaluations_per_image']:,.0f}",
                _at(own[-1]),
                f"{100 * p['independent']['robust_accuracy']:.1f}%",
                str(p["independent"]["broke_of_ours"]),
            )
        )
    columns = (
        "purifier",
        "images",
        "former default, PGD-100",
        "lowest of the other libraries",
        "portfolio: evaluations to the same",
        "portfolio, whole",
        "independent attack",
        "images of ours it breaks",
    )
    return markdown([list(columns), *map(list, rows)])


def _at(point: Row) -> str:
    return f"{100 * point['robust_accuracy']:.1f}% @ {point['evaluations_per_image']:,.0f}"


def _power_table(rows: list[Row]) -> str:
    columns = ("planted", "detected", "by", "told", "main attack alone", "after all attacks")
    cells = [
        [
            r["weakness"],
            f"{r['detected']} of {r['repeats']}",
            ", ".join(f"{code} {n}" for code, n in r["warnings"].items()) or "—",
            f"{max(r['told'].values(), default=0)} of {r['repeats']}",
            f"{100 * r['robust_accuracy_of_the_main_attack']:.1f}%",
            f"{100 * r['robust_accuracy']:.1f}%",
        ]
        for r in rows
    ]
    return markdown([list(columns), *cells])
