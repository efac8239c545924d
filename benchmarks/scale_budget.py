"""Network evaluations of an audit and an attack, for a given interval, and a published protocol.

Counts are those of the plans; only the variance components and the small case's times are measured.
"""

import math
from functools import partial
from typing import Any

from scale_baselines import CPU, ROOT
from scale_timing import compared, rounded

from purify_audit.audit.attack_report import run_attack
from purify_audit.audit.compression_run import AuditResult, run_compression
from purify_audit.audit.cost import planned_evaluations
from purify_audit.audit.result import Progress
from purify_audit.audit.subject import Subject, prepare
from purify_audit.audit.tuning.pilot import DIRECTIONS, DRAWS, IMAGES, allocated
from purify_audit.compression.measure import rows_per_image
from purify_audit.spec.attack_plan import PRESETS
from purify_audit.spec.tuning import Components
from purify_audit.statistics.allocation import components, images_needed, variance

DIGITS = str(ROOT / "models" / "digits-ddpm.safetensors")
LEVEL, HALF_WIDTH = 0.95, 0.01
DIFFPURE = {"images": 512, "steps": 100, "draws": 20, "t_star": 150}
"""ImageNet, l∞ 4/255 (Nie et al. 2022): APGD of 100 steps with EOT 20 on 512 images, t* = 150."""
EXAMPLE_SECONDS = 0.01


def subject(
    attack: dict[str, object], audit_: dict[str, object], **plan_options: object
) -> Subject:
    """The digits DDPM with an attack planned."""
    return prepare({"checkpoint": DIGITS, "attack": attack} | audit_ | plan_options, CPU)


def planned(of: Subject) -> dict[str, Any]:
    """Evaluations of a compression audit and of an attack on the same images."""
    n, each = len(of.images), of.purifier.evaluations
    compress, attacked = n * rows_per_image(of.plan) * each, planned_evaluations(of)
    counts = {"images": n, "compress": compress, "attack": attacked}
    return counts | {"attack_over_compress": rounded(attacked / compress)}


def presets() -> dict[str, Any]:
    """Of every preset of `verify`, with a compression audit of the default draws and directions."""
    found = {}
    for name, preset in PRESETS.items():
        settings = {"images": preset["audit"]["images"], "data": "digits:all"}
        found[name] = planned(subject(dict(preset["attack"]), settings))
    return found


def small_case(images: int, steps: int, rounds: int) -> dict[str, Any]:
    """The smoke preset on few images and a short chain: planned evaluations and measured times."""
    sampler = {"kind": "ddim", "steps": steps}
    # Micro-batches are padded: with fewer rows than one holds, time would be that of padding.
    attack_ = PRESETS["smoke"]["attack"] | {"microbatch": images}
    of = subject(attack_, {"images": images}, sampler=sampler)
    outcome: AuditResult = run_compression(of, Progress())
    attack = partial(run_attack, of, outcome)
    return planned(of) | {"steps": steps, "time": compared(rounds, attack, partial(_audit, of))}


def _audit(of: Subject) -> None:
    run_compression(of, Progress())


def plain_variance(parts: Components, each: int) -> float:
    """Variance of an image's mean over perturbations with a draw and a direction of their own."""
    within = parts.draw + parts.pair + parts.both + parts.odd
    return parts.image + within / each


def to_reach(images: int, draws: int, directions: int, steps: int) -> dict[str, Any]:
    """Evaluations until the compression rate (l2, random signs) is known to ±0.01."""
    plan_options: dict[str, object] = {
        "checkpoint": DIGITS,
        "images": images,
        "probes": ({"kind": "sign"},),
    }
    plan_options |= {"draws": draws, "directions": directions, "t_star": 60}
    of = prepare(plan_options | {"sampler": {"kind": "ddpm", "steps": steps}}, CPU)
    samples = run_compression(of, Progress()).samples
    assert samples is not None
    rows = samples.probes
    rates = (rows.change_l2 / rows.delta_l2).reshape(images, draws, directions // 2, 2)
    parts, each = components(rates), of.purifier.evaluations
    designs = {
        "ours, 4 draws, 8 directions": (variance(parts, 4, 4), 4 * (1 + 8)),
        "ours, 2 draws, 4 directions": (variance(parts, 2, 2), 2 * (1 + 4)),
        "ours, 1 draw, 2 directions": (variance(parts, 1, 1), 1 + 2),
        "plain, 32 perturbations an image": (plain_variance(parts, 32), 2 * 32),
        "plain, 1 perturbation an image": (plain_variance(parts, 1), 2),
    }
    table = {}
    for name, (spread, purifications) in designs.items():
        n = images_needed(spread, HALF_WIDTH, LEVEL, 10**9)
        assert n is not None
        table[name] = {"images": n, "evaluations": n * purifications * each}
    told = {name: rounded(v) for name, v in parts.model_dump().items()}
    about = {"images": images, "draws": draws, "directions": directions, "steps": steps}
    return about | {"rate": rounded(float(rates.mean())), "components": told, "designs": table}


def reached(steps: int) -> dict[str, Any]:
    """Real runs that end at the first look where the same rate is known to ±0.01."""
    found = {}
    for name in ("default", "allocated"):
        plan_options: dict[str, object] = {
            "checkpoint": DIGITS,
            "data": "digits:all",
            "preset_images": math.inf,
        }
        plan_options |= {"probes": ({"kind": "sign"},), "tolerance": HALF_WIDTH}
        of = prepare(plan_options | {"sampler": {"kind": "ddpm", "steps": steps}}, CPU)
        if name == "allocated":
            of, pilot = allocated(of)
            assert pilot is not None
        spent = [0]

        def tick(rows: int, spent: list[int] = spent) -> None:
            spent[0] += rows

        report = run_compression(of, Progress(tick)).report
        rate = next(e for e in report.estimates if (e.metric, e.norm) == ("compression_rate", "l2"))
        assert rate.lower is not None
        assert rate.upper is not None
        found[name] = {
            "draws": of.plan.draws,
            "directions": of.plan.directions,
            "images": len(report.data.ids),
            "evaluations": spent[0] * of.purifier.evaluations,
            "rate": rounded(rate.value),
            "half_width": rounded((rate.upper - rate.lower) / 2),
        }
    each = of.purifier.evaluations
    return found | {"pilot_evaluations": IMAGES * DRAWS * (1 + DIRECTIONS) * each, "steps": steps}


def diffpure() -> dict[str, Any]:
    """Evaluations of DiffPure's ImageNet protocol. Counts do not depend on the network."""
    n, t_star = DIFFPURE["images"], DIFFPURE["t_star"]
    attack: dict[str, object] = {"steps": DIFFPURE["steps"], "draws": DIFFPURE["draws"]}
    attack |= {"restarts": 1, "held_out": 20, "square_queries": 1000, "optimiser": "apgd"}
    sampler = {"kind": "vp-sde", "clamp": False}
    settings: dict[str, object] = {"images": n, "data": "digits:all"}
    of = subject(attack, settings, sampler=sampler, t_star=t_star)
    counts = planned(of)
    cheap = prepare(
        {"checkpoint": DIGITS, "probes": ({"kind": "sign"},), "draws": 1, "directions": 2}
        | settings
        | {"sampler": sampler, "t_star": t_star},
        CPU,
    )
    counts["compress, 1 draw, 2 directions"] = n * rows_per_image(cheap.plan) * t_star
    gradient = n * DIFFPURE["steps"] * DIFFPURE["draws"] * 3 * t_star
    return DIFFPURE | counts | {"one attack alone": gradient, "example_seconds": EXAMPLE_SECONDS}
