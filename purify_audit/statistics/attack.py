"""Robust accuracy under every protocol, and per-image attack results, with intervals. No torch."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.norms import Norm
from purify_audit.statistics.attack_rows import RUNS, AttackSamples, CapRows, Scored
from purify_audit.statistics.compression import (
    QUANTILES,
    PerImageValues,
    estimate,
    probe_names,
)
from purify_audit.statistics.compression_rows import CompressionSamples
from purify_audit.statistics.correlation import spearman_interval
from purify_audit.statistics.estimates import (
    CapPoint,
    Correlation,
    Estimate,
    Fuzziness,
    ImageVerdict,
)
from purify_audit.statistics.intervals import proportion_interval

PROTOCOLS = ("aligned", "heldout", "mean", "worst_of_k", "vote")
"""How predictions under several draws are aggregated into the correctness of one image.

`aligned`: mean over the draws that the attack optimised; `heldout`: one draw that it did not use;
`mean`, `worst_of_k` and `vote` (strict plurality for the true class): over all scoring draws."""

_FOOLED = 0.5  # share of the aligned draws


def attack_estimates(samples: AttackSamples, plan: AuditPlan) -> Iterator[Estimate]:
    """Every robust accuracy, its clean control, the excess over it, and the inflation."""
    return (estimate(data, plan) for data in attack_values(samples, plan))


def attack_values(samples: AttackSamples, plan: AuditPlan) -> Iterator[PerImageValues]:
    """Per-image correctness under every protocol, for every attack."""
    labels = samples.labels
    for attack in samples.scored:
        if attack.name in ("aligned", "fresh"):
            yield from _matrix(samples, attack, plan)
        elif attack.name == "bare":
            right = attack.aligned[:, 0] == labels
            yield _values("bare_robust_accuracy", samples, attack, plan, right, 1)
            clean = samples.bare_clean == labels
            yield _values("bare_robust_accuracy_control", samples, attack, plan, clean, 1)
        elif attack.name == "predicted":
            correct, draws = (attack.aligned == labels[:, None]).mean(1), attack.aligned.shape[1]
            values = _values("predicted_robust_accuracy", samples, attack, plan, correct, draws)
            yield replace(values, probe=None)
        if attack.name == "fresh":
            aligned = samples.find("aligned", attack.eps)
            assert aligned is not None, "a fresh attack is run beside an aligned one"
            fresh = _correct("mean", attack.aligned, attack.held_out, labels)
            own = _correct("aligned", aligned.aligned, aligned.held_out, labels)
            yield _values("randomness_inflation", samples, attack, plan, fresh - own, None)


def attack_norm(plan: AuditPlan) -> Norm:
    """The ball of a plan's attack."""
    assert plan.attack is not None, "a plan with attack rows has an attack"
    return plan.attack.norm


_AIMED = {"vote": "fresh-vote", "worst_of_k": "fresh-worst"}
"""The attack under fresh draws that aims at a protocol, where not at the mean."""


def _matrix(samples: AttackSamples, main: Scored, plan: AuditPlan) -> Iterator[PerImageValues]:
    for protocol in PROTOCOLS:
        aimed = _AIMED.get(protocol, "") if main.name == "fresh" else ""
        attack = replace(samples.find(aimed, main.eps) or main, name=main.name)
        if protocol != "aligned" and not attack.held_out.shape[1]:
            continue
        attacked = _correct(protocol, attack.aligned, attack.held_out, samples.labels)
        control = _correct(protocol, samples.clean_aligned, samples.clean_held_out, samples.labels)
        count = {"aligned": attack.aligned, "heldout": attack.held_out[:, :1]}.get(
            protocol, attack.held_out
        ).shape[1]
        name = f"{protocol}_robust_accuracy"
        yield _values(name, samples, attack, plan, attacked, count)
        yield _values(f"{name}_control", samples, attack, plan, control, count)
        yield _values(f"{name}_excess", samples, attack, plan, control - attacked, None)


def _values(
    metric: str,
    samples: AttackSamples,
    attack: Scored,
    plan: AuditPlan,
    values: np.ndarray,
    draws: int | None,
) -> PerImageValues:
    whole = np.asarray(values, np.float64)
    return PerImageValues(
        metric, attack_norm(plan), attack.name, attack.eps, samples.ids, whole, draws
    )


def _correct(
    protocol: str, aligned: np.ndarray, held_out: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Correctness of each image under a protocol, float64 [n] in [0, 1]."""
    right = held_out == labels[:, None]
    match protocol:
        case "aligned":
            correct = (aligned == labels[:, None]).mean(1)
        case "heldout":
            correct = right[:, 0]
        case "mean":
            correct = right.mean(1)
        case "worst_of_k":
            correct = right.all(1)
        case _:
            classes = np.arange(max(held_out.max(), labels.max()) + 1)
            votes = (held_out[:, :, None] == classes).sum(1)
            own = votes[np.arange(len(labels)), labels]
            votes[np.arange(len(labels)), labels] = -1
            correct = own > votes.max(1)
    return np.asarray(correct, np.float64)


def fooling_rates(samples: AttackSamples) -> list[Fuzziness]:
    """Per-image fooling rates over scoring draws: of clean images and of the main attacks.

    Empty where no scoring draws were used.
    """
    if not samples.clean_held_out.shape[1]:
        return []
    attacks: list[tuple[str, float | None, np.ndarray]] = [
        ("clean", None, samples.clean_held_out),
        *((s.name, s.eps, s.held_out) for s in samples.scored if s.name in ("aligned", "fresh")),
    ]
    rates = []
    for name, eps, labels in attacks:
        wrong = (labels != samples.labels[:, None]).mean(1)
        low, lower, middle, upper, high = np.quantile(wrong, QUANTILES).tolist()
        rates.append(
            Fuzziness(
                attack=name,
                eps=eps,
                quantiles=(low, lower, middle, upper, high),
                fool_none=int((wrong == 0).sum()),
                fool_some=int(((wrong > 0) & (wrong < 1)).sum()),
                fool_all=int((wrong == 1).sum()),
            )
        )
    return rates


def cap_points(rows: CapRows | None, level: float) -> list[CapPoint]:
    """The share of random directions that change the predicted label, by radius."""
    if rows is None:
        return []
    return [
        CapPoint(
            radius=float(radius),
            bare=proportion_interval(rows.bare[:, n], level),
            purified=proportion_interval(rows.purified[:, n], level),
        )
        for n, radius in enumerate(rows.radii)
    ]


def image_verdicts(
    samples: AttackSamples, rows: CompressionSamples | None, plan: AuditPlan
) -> list[ImageVerdict]:
    """Per image: compression rates, and the outcome of the attack at its first radius."""
    aligned = [s for s in samples.scored if s.name in ("aligned", "unbounded")]
    if not aligned:
        return []
    main = aligned[0]
    radii = np.full(len(samples.ids), np.inf)
    for attack in aligned:
        n = len(attack.fooling_radius)
        radii[:n] = np.minimum(radii[:n], attack.fooling_radius)
    rates = {} if rows is None else _rates(rows, plan, samples.ids)
    ratio = main.change_l2 / np.maximum(main.delta_l2, 1e-30)[:, None]
    rates["attack"] = np.where(main.delta_l2 > 0, ratio.mean(1), np.nan)
    robust = (main.aligned == samples.labels[:, None]).mean(1)
    return [
        ImageVerdict(
            image=int(samples.ids[n]),
            label=int(samples.labels[n]),
            margin=float(samples.clean_margins[n].mean()),
            robust=float(robust[n]),
            fooling_radius=float(radii[n]) if math.isfinite(radii[n]) else None,
            rates={k: float(v[n]) for k, v in rates.items() if math.isfinite(v[n])},
            broken_by=_broken_by(main, n) if robust[n] <= _FOOLED else None,
        )
        for n in range(len(samples.ids))
    ]


def _broken_by(main: Scored, row: int) -> str | None:
    place = int(main.made_by[row])
    return RUNS[place] if place >= 0 else None


def _rates(samples: CompressionSamples, plan: AuditPlan, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Mean compression rate (l2) of every image by probe, at the plan's first radius."""
    rows, rates = samples.probes, {}
    for place, names in enumerate(probe_names(plan)):
        mask = (rows.probe == place) & (rows.radius == 0) & (rows.delta_l2 > 0)
        if len(names) > 1:
            mask &= rows.direction == 0
        ratio, image = rows.change_l2[mask] / rows.delta_l2[mask], rows.image[mask]
        rates[names[0]] = np.array(
            [ratio[image == i].mean() if (image == i).any() else np.nan for i in ids]
        )
    return rates


def rank_correlations(verdicts: list[ImageVerdict], plan: AuditPlan) -> dict[str, Correlation]:
    """Spearman correlation of each compression rate with the fooling radius, over images.

    Images without a fooling radius rank above all others; images that are misclassified without
    an attack are left out. It is negative where stronger compression means more robustness.
    """
    kept = [v for v in verdicts if v.fooling_radius != 0.0]
    names = dict.fromkeys(name for v in kept for name in v.rates)
    highest = max((v.fooling_radius for v in kept if v.fooling_radius is not None), default=0.0)
    found = {}
    for name in names:
        pairs = [
            (v.rates[name], 2 * highest + 1 if v.fooling_radius is None else v.fooling_radius)
            for v in kept
            if name in v.rates
        ]
        x, y = np.array(pairs).T
        found[name] = spearman_interval(x, y, plan.seed, plan.level)
    return found


def disagreements(verdicts: list[ImageVerdict]) -> tuple[list[int], list[int]]:
    """Ids of images whose compression rate and attack outcome disagree.

    By the strongest probe's rate (power, else the first): images of the lowest quarter that are
    fooled at the first radius, lowest rate first; and images of the highest quarter that are
    robust, highest rate first.
    """
    names = list(dict.fromkeys(name for v in verdicts for name in v.rates if name != "attack"))
    name = "power" if "power" in names else next(iter(names), "attack")
    rated = [v for v in verdicts if name in v.rates and v.fooling_radius != 0.0]
    if len(rated) < 4:
        return [], []
    low, high = np.quantile([v.rates[name] for v in rated], (0.25, 0.75))
    order = sorted(rated, key=lambda v: v.rates[name])
    fooled = [v.image for v in order if v.rates[name] <= low and v.robust <= _FOOLED]
    robust = [v.image for v in reversed(order) if v.rates[name] >= high and v.robust > _FOOLED]
    return fooled, robust
