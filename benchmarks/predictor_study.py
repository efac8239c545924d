"""Data for predictors of aligned robust accuracy: many digits purifiers, attacked and measured.

    python benchmarks/predictor_study.py [--classifier FILE] [--out FILE] [--images 128]

For every purifier and image, under one draw: the verdict of PGD-100 with exact gradients, of
PGD-40 from a warm start, and everything cheap that might predict them. Writes one safetensors
file of arrays named `<purifier>/<column>`, of which `predictor_fit.py` makes the tables.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, command_line, parser, provenance, torch_machine
from safetensors.numpy import load_file, save_file
from torch import Tensor

from purify_audit.attacks.attack import one_step
from purify_audit.attacks.ball import Ball
from purify_audit.attacks.objective import Defence, Objective
from purify_audit.attacks.pgd import pgd
from purify_audit.compression.measure import measure_compression
from purify_audit.core.noise import Noise
from purify_audit.images.image_set import ImageSet, choose, load_images
from purify_audit.models.checkpoint import read_checkpoint, transform_checkpoint
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.protocols import Classifier, Purifier
from purify_audit.models.purifiers.transforms import TransformPurifier, parse_transform
from purify_audit.models.runner import Runner, deterministic
from purify_audit.spec.attack_plan import PREDICTION_STEPS, PREDICTION_STEPS_DIRECT
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.card import DiffusionCard, FeedforwardCard, ImageSpec
from purify_audit.spec.samplers import parse_sampler

MODELS = ROOT / "models"
IMAGE = ImageSpec(channels=1, height=8, width=8)
CPU = torch.device("cpu")
CHAINS = {
    "ddpm": (20, 40, 60, 80, 100, 130, 160, 200, 250, 300),
    "ddim": (40, 100, 200, 300),
    "diffpure-sde": (40, 100, 200),
    "diffpure-ode": (40, 100, 200),
    "one-step": (20, 60, 100, 200),
}
SIGMAS = (0.0, 0.1, 0.2)
TRANSFORMS = (
    "identity",
    "gaussian-smoothing:sigma=0.5",
    "gaussian-smoothing:sigma=0.8",
    "median:size=2",
    "gaussian-noise:sigma=0.1",
    "gaussian-noise:sigma=0.2",
)
LEFT_OUT = (  # on the second classifier
    "ddpm 40", "ddpm 80", "ddpm 130", "ddpm 160", "ddpm 250", "ddim 100", "ddim 300",
    "diffpure-sde 40", "diffpure-sde 200", "diffpure-ode 40", "diffpure-ode 200",
)  # fmt: skip
SHOWN = ("attacked", "warm", "transfer", "transfer_none", "transfer_own")
CHEAP_STEPS = (1.0, 1.0, 0.5, 0.5, 0.25)  # step sizes over eps


def purifiers() -> Iterator[tuple[str, Purifier]]:
    """Names and purifiers."""
    checkpoint = read_checkpoint(MODELS / "digits-ddpm.safetensors")
    for preset, times in CHAINS.items():
        settings = {} if preset == "one-step" else {"steps": "10"}
        for t_star in times:
            assert isinstance(checkpoint.card, DiffusionCard)
            changes = {"t_star": t_star, "sampler": parse_sampler(preset, dict(settings))}
            card = DiffusionCard.model_validate(checkpoint.card.model_dump() | changes)
            yield f"{preset} {t_star}", load_purifier(checkpoint, CPU, card)
    encoder = read_checkpoint(MODELS / "digits-autoencoder.safetensors")
    for sigma in SIGMAS:
        assert isinstance(encoder.card, FeedforwardCard)
        noisy = encoder.card.model_copy(update={"sigma": sigma})
        yield f"autoencoder {sigma:g}", load_purifier(encoder, CPU, noisy)
    for text in TRANSFORMS:
        card_ = transform_checkpoint(text, parse_transform(text, IMAGE)).card
        yield text, TransformPurifier(card_)  # type: ignore[arg-type]


def margins_of(classifier: Classifier, y: Tensor, labels: Tensor) -> Tensor:
    """Margins of images as they are."""
    from purify_audit.attacks.losses import margins

    with torch.no_grad():
        return margins(classifier(y), labels)


def distances(classifier: Classifier, y: Tensor, labels: Tensor, norm: str) -> np.ndarray:
    """The classifier's own distance to the boundary around y: bisection over PGD-15 balls."""
    identity = TransformPurifier(parse_transform("identity", IMAGE))
    defence = Defence(identity, classifier, CPU, 0, len(y))
    objective = Objective(defence, tuple(range(len(y))), labels, lambda step: (0,))
    low, high = torch.zeros(len(y)), torch.full((len(y),), 1.0 if norm == "linf" else 6.0)
    for _ in range(7):
        middle = (low + high) / 2
        x, best = y, margins_of(classifier, y, labels)
        for step in range(15):
            g = objective.loss_and_grad(x, step).gradient
            assert g is not None
            size = middle[:, None, None, None]
            if norm == "linf":
                x = y + (x + size * 0.5 * g.sign() - y).clamp(-size, size)
            else:
                x = (
                    x
                    + size
                    * 0.5
                    * g
                    / g.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
                )
                away = x - y
                length = away.flatten(1).norm(dim=1)[:, None, None, None]
                x = y + away * (size / length.clamp(min=1e-12)).clamp(max=1.0)
            best = torch.minimum(best, margins_of(classifier, x, labels))
        fell = best <= 0
        high, low = torch.where(fell, middle, high), torch.where(fell, low, middle)
    return ((low + high) / 2).numpy()


def rates(purifier: Purifier, images: ImageSet, eps: float) -> dict[str, np.ndarray]:
    """Compression rates (l2 and l-inf) of every image under draw 0."""
    plan = AuditPlan.model_validate(
        {
            "checkpoint": "-",
            "data": "digits",
            "images": len(images),
            "norm": "linf",
            "eps": (eps,),
            "draws": 1,
            "directions": 4,
            "seed": 0,
            "microbatch": 64,
            "probes": ({"kind": "sign"}, {"kind": "lowfreq"}, {"kind": "power", "block": 1}),
        }
    )
    rows = measure_compression(Runner(purifier, CPU, 0, 64), images, plan).probes
    found = {}
    for place, name in enumerate(("sign", "lowfreq", "power")):
        for norm in ("l2", "linf"):
            mask = rows.probe == place
            ratio = getattr(rows, f"change_{norm}")[mask] / getattr(rows, f"delta_{norm}")[mask]
            found[f"rate_{name}_{norm}"] = np.array(
                [ratio[rows.image[mask] == i].mean() for i in images.ids]
            )
    return found


def ascent(objective: Objective, ball: Ball) -> tuple[np.ndarray, Tensor]:
    """Margins [n, 1 + steps] at the start and after each step of a short ascent."""
    x, seen = ball.x, []
    for step, share in enumerate(CHEAP_STEPS):
        view = objective.loss_and_grad(x, step)
        seen.append(view.margins[:, 0])
        assert view.gradient is not None
        x = ball.project(x + share * ball.eps * ball.steepest_ascent(view.gradient))
    seen.append(objective.evaluate(x, len(CHEAP_STEPS)).margins[:, 0])
    return torch.stack(seen, 1).numpy(), x


def transfers(
    objective: Callable[[Purifier, str], Objective], purifier: Purifier, ball: Ball
) -> dict[str, np.ndarray]:
    """Margins after an attack on the one-step version of a purifier, scored by the purifier.

    Where there is no shorter version, after a short attack on the purifier itself.
    """
    short, found = one_step(purifier), {}
    for kind, name in (("exact", "transfer"), ("none", "transfer_none")):
        steps = PREDICTION_STEPS_DIRECT if short is None else PREDICTION_STEPS
        size = 2.0 * ball.eps if short is None else ball.eps
        made = pgd(objective(short or purifier, kind), ball, ball.x, steps, size)
        found[name] = objective(purifier, kind).evaluate(made.x, 0).margins[:, 0].numpy()
        found[f"{name}_own"] = made.margins[:, 0].numpy()
    return found


def warm(
    objective: Callable[[Purifier, str], Objective], purifier: Purifier, ball: Ball
) -> np.ndarray:
    """Margins of PGD-40 with exact gradients from a warm start, or from the image."""
    short, start = one_step(purifier), ball.x
    if short is not None:
        start = pgd(objective(short, "exact"), ball, ball.x, 20, ball.eps).x
    margins: np.ndarray = pgd(
        objective(purifier, "exact"), ball, start, 40, ball.eps
    ).margins.numpy()
    return margins[:, 0]


def measure(
    purifier: Purifier, classifier: Classifier, images: ImageSet, options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """All columns of one purifier."""
    x = torch.from_numpy(images.pixels.copy())
    assert images.labels is not None
    labels, ids = torch.from_numpy(images.labels.copy()), tuple(images.ids.tolist())
    ball = Ball(x, "linf", options.eps)
    reach = 0.25 * options.eps * x[0].numel() ** 0.5

    def of(purifier: Purifier, gradient: str) -> Objective:
        defence = Defence(purifier, classifier, CPU, 0, 64)
        kind: Any = gradient
        return Objective(defence, ids, labels, lambda step: (0,), "margin", kind, None, reach)

    def objective(gradient: str) -> Objective:
        return of(purifier, gradient)

    late = transfers(of, purifier, ball)
    if options.extend:
        return late
    late["warm"] = warm(of, purifier, ball)
    attacked = pgd(objective("exact"), ball, x, options.steps, options.eps)
    noise = Noise(0, ids, (0,) * len(ids))
    with torch.no_grad():
        anchor, moved = purifier(x, noise), purifier(attacked.x, noise)
    columns = {"attacked": attacked.margins[:, 0].numpy()}
    columns["secant"], _ = ascent(objective("none"), ball)
    columns["exact"], _ = ascent(objective("exact"), ball)
    for kind in ("none", "bpda"):
        found = pgd(objective(kind), ball, x, options.weak_steps, options.eps)
        columns[f"pgd_{kind}"] = found.margins[:, 0].numpy()
    for norm in ("linf", "l2"):
        columns[f"distance_{norm}"] = distances(classifier, anchor, labels, norm)
        change, delta = (moved - anchor).flatten(1), (attacked.x - x).flatten(1)
        p = float("inf") if norm == "linf" else 2
        columns[f"rate_attack_{norm}"] = (change.norm(p, 1) / delta.norm(p, 1)).numpy()
    columns["halfway"] = np.array(
        [1 - attacked.fooled[options.steps // 2], 1 - attacked.fooled[-1]]
    )
    columns["evaluations"] = np.array([purifier.evaluations])
    return columns | late | rates(purifier, images, options.eps)


def main() -> None:
    """Collect and write."""
    flags = parser(__doc__, "predictor_study.safetensors")
    flags.add_argument("--classifier", type=Path, default=MODELS / "digits-classifier.safetensors")
    flags.add_argument("--images", type=int, default=128)
    flags.add_argument("--steps", type=int, default=100)
    flags.add_argument("--weak-steps", type=int, default=15)
    flags.add_argument(
        "--extend", action="store_true", help="only make the transfers in --out again"
    )
    flags.add_argument("--few", action="store_true", help="fewer chains")
    flags.add_argument("--eps", type=float, default=0.2)
    options = flags.parse_args()
    classifier = load_classifier(read_checkpoint(options.classifier), CPU)
    images = choose(load_images("digits"), options.images, 0)
    start = time.monotonic()
    columns = load_file(options.out) if options.extend else dict[str, np.ndarray]()
    for name, purifier in purifiers():
        if options.few and name in LEFT_OUT:
            continue
        with deterministic(gradients=True):
            made = measure(purifier, classifier, images, options)
        columns |= {f"{name}/{key}": np.asarray(v, np.float32) for key, v in made.items()}
        found = {key.removeprefix(f"{name}/"): v for key, v in columns.items() if name in key}
        shares = {key: round(float((found[key] > 0).mean()), 3) for key in SHOWN}
        print(f"{time.monotonic() - start:5.0f} s  {name:30} {shares}", flush=True)
    about = {
        **provenance(command_line(), torch_machine(), start),
        "eps": options.eps,
        "steps": options.steps,
        "images": options.images,
        "classifier": options.classifier.name,
    }
    save_file(columns, options.out, {"about": json.dumps(about)})


if __name__ == "__main__":
    main()
