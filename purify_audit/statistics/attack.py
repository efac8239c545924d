"""From attack rows to robust accuracies under every protocol, with intervals. No torch."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.special import ndtri

from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.norms import Norm
from purify_audit.statistics.attack_rows import AttackSamples, CapRows, Scored
from purify_audit.statistics.compression import (
    QUANTILES,
    PerImage,
    probe_names,
    proportion_interval,
    told,
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
from purify_audit.statistics.metrics import metric_info

PROTOCOLS = ("aligned", "heldout", "mean", "worst_of_k", "vote")
"""How the verdicts of draws become one: `aligned`: mean over the attack's own draws; `heldout`:
one draw it never saw; `mean`, `worst_of_k` and `vote` (the true class alone has most votes): of
all scoring draws."""

_FALLEN = 0.5  # share of the aligned draws


def attack_estimates(samples: AttackSamples, plan: AuditPlan) -> Iterator[Estimate]:
    """Every robust accuracy, its clean control, the excess over it, and the inflation."""
    looks = len(plan.attack_looks)
    level = 1.0 - (1.0 - plan.level) / looks
    for data in attack_values(samples, plan):
        if metric_info(data.metric).kind == "share":
            found, method = proportion_interval(data.values, level), "clopper-pearson on images"
        else:
            ends = paired_interval(data.values, level)
            found, method = (float(data.values.mean()), *ends), "bonett-price on images"
        yield told(data, plan, found, method, looks)


def attack_values(samples: AttackSamples, plan: AuditPlan) -> Iterator[PerImage]:
    """What every protocol says of every image, for every attack."""
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
            stands, draws = (attack.aligned == labels[:, None]).mean(1), attack.aligned.shape[1]
            told = _values("predicted_robust_accuracy", samples, attack, plan, stands, draws)
            yield replace(told, probe=None)
        if attack.name == "fresh":
            aligned = samples.find("aligned", attack.eps)
            assert aligned is not None, "a fresh attack comes with an aligned one"
            usual = _verdict("mean", attack.aligned, attack.held_out, labels)
            own = _verdict("aligned", aligned.aligned, aligned.held_out, labels)
            yield _values("randomness_inflation", samples, attack, plan, usual - own, None)


def attack_norm(plan: AuditPlan) -> Norm:
    """The ball of a plan's attack."""
    assert plan.attack is not None, "a plan with attack rows has an attack"
    return plan.attack.norm


def _matrix(samples: AttackSamples, attack: Scored, plan: AuditPlan) -> Iterator[PerImage]:
    for protocol in PROTOCOLS:
        if protocol != "aligned" and not attack.held_out.shape[1]:
            continue
        attacked = _verdict(protocol, attack.aligned, attack.held_out, samples.labels)
        control = _verdict(protocol, samples.clean_aligned, samples.clean_held_out, samples.labels)
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
) -> PerImage:
    whole = np.asarray(values, np.float64)
    return PerImage(metric, attack_norm(plan), attack.name, attack.eps, samples.ids, whole, draws)


def _verdict(
    protocol: str, aligned: np.ndarray, held_out: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """What a protocol says of each image [n], in [0, 1]."""
    right = held_out == labels[:, None]
    match protocol:
        case "aligned":
            verdict = (aligned == labels[:, None]).mean(1)
        case "heldout":
            verdict = right[:, 0]
        case "mean":
            verdict = right.mean(1)
        case "worst_of_k":
            verdict = right.all(1)
        case _:
            classes = np.arange(max(held_out.max(), labels.max()) + 1)
            votes = (held_out[:, :, None] == classes).sum(1)
            own = votes[np.arange(len(labels)), labels]
            votes[np.arange(len(labels)), labels] = -1
            verdict = own > votes.max(1)
    return np.asarray(verdict, np.float64)


def paired_interval(d: np.ndarray, level: float) -> tuple[float, float]:
    """Interval of the mean of paired differences of verdicts, d [n] in [−1, 1].

    Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", 2012: one is added to both discordant counts. Differences between −1
    and 1 count as their parts, which is conservative: verdicts spread most.
    """
    n = len(d)
    up, down = ((np.maximum(s * d, 0).sum() + 1) / (n + 2) for s in (1, -1))
    middle = up - down
    half = float(ndtri(0.5 + level / 2)) * math.sqrt((up + down - middle**2) / (n + 2))
    return max(-1.0, float(middle) - half), min(1.0, float(middle) + half)


def fuzziness(samples: AttackSamples) -> list[Fuzziness]:
    """For clean images and every scored attack; none where nothing was scored by fresh draws."""
    if not samples.clean_held_out.shape[1]:
        return []
    of: list[tuple[str, float | None, np.ndarray]] = [("clean", None, samples.clean_held_out)]
    of += [(s.name, s.eps, s.held_out) for s in samples.scored if s.name in ("aligned", "fresh")]
    found = []
    for name, eps, labels in of:
        wrong = (labels != samples.labels[:, None]).mean(1)
        low, lower, middle, upper, high = np.quantile(wrong, QUANTILES).tolist()
        found.append(
            Fuzziness(
                attack=name,
                eps=eps,
                quantiles=(low, lower, middle, upper, high),
                fool_none=int((wrong == 0).sum()),
                fool_some=int(((wrong > 0) & (wrong < 1)).sum()),
                fool_all=int((wrong == 1).sum()),
            )
        )
    return found


def cap_points(rows: CapRows | None, level: float) -> list[CapPoint]:
    """The share of flipped decisions by radius."""
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
    """Image by image: what compression says, and what the attack did at its first radius."""
    aligned = [s for s in samples.scored if s.name in ("aligned", "unbounded")]
    if not aligned:
        return []
    main = aligned[0]
    falls = np.full(len(samples.ids), np.inf)
    for attack in aligned:
        n = len(attack.fooling_radius)
        falls[:n] = np.minimum(falls[:n], attack.fooling_radius)
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
            fooling_radius=float(falls[n]) if math.isfinite(falls[n]) else None,
            rates={k: float(v[n]) for k, v in rates.items() if math.isfinite(v[n])},
        )
        for n in range(len(samples.ids))
    ]


def _rates(samples: CompressionSamples, plan: AuditPlan, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Mean compression rate (l2) of every image by probe, at the plan's first radius."""
    rows, found = samples.probes, {}
    for place, names in enumerate(probe_names(plan)):
        mask = (rows.probe == place) & (rows.radius == 0) & (rows.delta_l2 > 0)
        if len(names) > 1:
            mask &= rows.direction == 0
        ratio, image = rows.change_l2[mask] / rows.delta_l2[mask], rows.image[mask]
        found[names[0]] = np.array(
            [ratio[image == i].mean() if (image == i).any() else np.nan for i in ids]
        )
    return found


def rank_correlations(verdicts: list[ImageVerdict], plan: AuditPlan) -> dict[str, Correlation]:
    """Spearman correlation of each rate with the radius at which an image falls.

    Images that never fell rank above all that did; images whose anchors are wrong anyway are left
    out. Compression that protects makes it negative.
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
    """Images that compression and attack see differently, by id.

    Judged by the strongest rate there is (power, else the first), against the other images:
    those of the lowest quarter that fall at the first radius, lowest rate first; and those of
    the highest quarter that stand, highest rate first.
    """
    names = list(dict.fromkeys(name for v in verdicts for name in v.rates if name != "attack"))
    name = "power" if "power" in names else next(iter(names), "attack")
    rated = [v for v in verdicts if name in v.rates and v.fooling_radius != 0.0]
    if len(rated) < 4:
        return [], []
    low, high = np.quantile([v.rates[name] for v in rated], (0.25, 0.75))
    order = sorted(rated, key=lambda v: v.rates[name])
    fallen = [v.image for v in order if v.rates[name] <= low and v.robust <= _FALLEN]
    standing = [v.image for v in reversed(order) if v.rates[name] >= high and v.robust > _FALLEN]
    return fallen, standing
