"""Measure the compression rate of a purifier around images, draw by draw.

The compression rate is that of Liu and Wei (arXiv 2505.22839): ‖P(x+δ; ξ) − P(x; ξ)‖ / ‖δ‖ with
the same draw ξ on both sides. This module returns rows; `statistics` computes estimates.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from purify_audit.compression.perturbations import apply, directions, scale_to_ball
from purify_audit.core.noise import Noise, Stream
from purify_audit.images.image_set import ImageSet
from purify_audit.models.runner import Runner, Stopped
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.probes import FileProbe, PowerProbe, Probe
from purify_audit.statistics.compression_rows import (
    AnchorRows,
    CompressionSamples,
    ProbeRows,
    VarianceRows,
)


@dataclass(frozen=True, slots=True)
class Cell:
    """The perturbed images of one probe at one radius.

    Attributes:
        probe: index of the probe in the plan.
        radius: index of the radius in the plan.
        attacked: float32 [n, m, c, h, w], or [n, draws, m, c, h, w] when draws differ (`power`).
    """

    probe: int
    radius: int
    attacked: np.ndarray


Classify = Callable[[np.ndarray], np.ndarray]
"""Images float32 [n, c, h, w] in [0, 1] to predicted labels int64 [n]."""


def measure_compression(
    runner: Runner,
    images: ImageSet,
    plan: AuditPlan,
    user_images: ImageSet | None = None,
    classify: Classify | None = None,
    draws: np.ndarray | None = None,
) -> CompressionSamples:
    """Rows for every image, draw, probe, radius and direction of a plan.

    Args:
        runner: runs the purifier.
        images: the audited images.
        plan: probes, radii, draws and directions.
        user_images: the perturbed images of a `file` probe, in the order of `images`.
        classify: predicts labels of x and P(x); none without a classifier or labels.
        draws: draw ids; none: all of the plan's.

    Raises:
        StoppedEarly: the run was stopped; it carries the finished images, with all rows of every
            probe except `power`, of which rows may be missing.
    """
    draws = np.arange(plan.draws) if draws is None else draws
    cells = random_cells(images, plan, user_images)
    # Anchors and random probes are independent: one stream of rows, padded once.
    stacked = np.concatenate([images.pixels[:, None], *(c.attacked for c in cells)], 1)
    stopped = False
    try:
        purified = _purify(runner, stacked[:, None].repeat(len(draws), 1), images.ids, draws)
    except Stopped as stop:
        purified, stopped = _whole_images(stop, len(draws), stacked.shape[1]), True
        images = images.select(list(range(len(purified))))
        cells = [replace(cell, attacked=cell.attacked[: len(purified)]) for cell in cells]
    anchors, start = purified[:, :, 0], 1
    outputs = []
    for cell in cells:
        outputs.append(purified[:, :, start : start + cell.attacked.shape[1]])
        start += cell.attacked.shape[1]
    try:
        for probe, radius in [] if stopped else _power_cells(plan):
            attacked, output = power_iteration(
                runner, images, anchors, plan, plan.probes[probe], plan.eps[radius], draws
            )
            cells.append(Cell(probe, radius, attacked))
            outputs.append(output)
    except Stopped:
        stopped = True
    rows = [
        _probe_rows(images, anchors, cell, output, draws)
        for cell, output in zip(cells, outputs, strict=True)
    ]
    samples = CompressionSamples(
        _stack_rows(rows),
        _anchor_rows(images, anchors, classify, draws),
        _variance_rows(images, cells, outputs),
    )
    if stopped:
        raise StoppedEarly(samples)
    return samples


class StoppedEarly(Stopped):
    """The run was stopped within a group of images.

    Attributes:
        samples: rows of the finished images.
    """

    def __init__(self, samples: CompressionSamples) -> None:
        """Carry the finished rows."""
        super().__init__()
        self.samples = samples


def _whole_images(stop: Stopped, draws: int, rows: int) -> np.ndarray:
    """The finished rows of whole images, [n, draws, rows, c, h, w].

    Raises:
        Stopped: no image is finished.
    """
    whole = 0 if stop.rows is None else len(stop.rows) // (draws * rows)
    if stop.rows is None or not whole:
        raise stop
    done = stop.rows[: whole * draws * rows]
    return done.reshape(whole, draws, rows, *done.shape[1:])


def _power_cells(plan: AuditPlan) -> list[tuple[int, int]]:
    """Indices of power probes and radii in a plan."""
    probes = [n for n, probe in enumerate(plan.probes) if isinstance(probe, PowerProbe)]
    return [(probe, radius) for probe in probes for radius in range(len(plan.eps))]


def phases(plan: AuditPlan) -> list[int]:
    """Purifications per image and draw in each phase; a phase depends on the one before."""
    stream, power = 1, list[int]()
    for probe in plan.probes:
        match probe:
            case PowerProbe(block=block, iterations=iterations):
                power += len(plan.eps) * (iterations + 1) * [block]
            case FileProbe():
                stream += 1
            case _:
                stream += len(plan.eps) * plan.directions
    return [stream, *power]


def rows_per_image(plan: AuditPlan) -> int:
    """Purifications per image in a plan."""
    return plan.draws * sum(phases(plan))


def padded_rows(plan: AuditPlan, images: int) -> int:
    """Purifications, including padding, when `images` images are measured together."""
    size = plan.microbatch
    return sum(-(-images * plan.draws * rows // size) * size for rows in phases(plan))


def random_cells(images: ImageSet, plan: AuditPlan, user_images: ImageSet | None) -> list[Cell]:
    """Perturbed images that do not depend on the purifier."""
    cells = []
    for place, probe in enumerate(plan.probes):
        if isinstance(probe, FileProbe):
            assert user_images is not None, "a file probe has user images"
            cells.append(Cell(place, 0, user_images.pixels[:, None]))
        elif not isinstance(probe, PowerProbe):
            shape = images.image_shape
            v = directions(probe, shape, images.ids, plan.directions, plan.seed)
            for radius, eps in enumerate(plan.eps):
                delta = scale_to_ball(v, probe.kind, plan.norm, eps)
                cells.append(Cell(place, radius, apply(images.pixels, delta)))
    return cells


def power_iteration(
    runner: Runner,
    images: ImageSet,
    anchors: np.ndarray,
    plan: AuditPlan,
    probe: Probe,
    eps: float,
    draws: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Subspace iteration v <- P(x + r v) − P(x) for every image and draw.

    Args:
        runner: runs the purifier.
        images: the n audited images.
        anchors: P(x), float32 [n, draws, c, h, w].
        plan: norm and seed.
        probe: a power probe.
        eps: the radius.
        draws: draw ids.

    Returns:
        The perturbed images and their purified versions, [n, draws, block, c, h, w], strongest
        direction first.
    """
    assert isinstance(probe, PowerProbe), "the caller selects power probes"
    n, k, *shape = anchors.shape
    size = int(np.prod(shape))
    block = min(probe.block, size)
    noise = Noise(
        plan.seed,
        tuple(int(i) for i in images.ids for _ in draws),
        tuple(draws.tolist()) * n,
        Stream.POWER,
    )
    v = noise.normal(0, (size, block)).numpy().astype(np.float64).reshape(n, k, size, block)
    attacked, output, change = (np.zeros(0, np.float32),) * 3
    for _ in range(probe.iterations + 1):
        basis, _ = np.linalg.qr(v)
        along = np.swapaxes(basis, 2, 3).reshape(n, k, block, *shape)
        delta = scale_to_ball(along, "power", plan.norm, eps)
        attacked = np.clip(images.pixels[:, None, None] + delta, np.float32(0), np.float32(1))
        output = _purify(runner, attacked, images.ids, draws)
        change = (output.astype(np.float64) - anchors[:, :, None]).reshape(n, k, block, size)
        v = np.swapaxes(np.nan_to_num(change, nan=0.0, posinf=0.0, neginf=0.0), 2, 3)
    applied = (attacked.astype(np.float64) - images.pixels[:, None, None]).reshape(change.shape)
    gain = _norm(change, "l2") / np.maximum(_norm(applied, "l2"), 1e-300)
    order = np.argsort(-np.nan_to_num(gain, nan=-1.0), axis=-1, kind="stable")
    order = order.reshape(n, k, block, *[1] * len(shape))
    return np.take_along_axis(attacked, order, 2), np.take_along_axis(output, order, 2)


def _purify(runner: Runner, x: np.ndarray, ids: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Purify x [n, draws, m, c, h, w] under each image's own address."""
    n, k, m = x.shape[:3]
    flat = np.ascontiguousarray(x.reshape(n * k * m, *x.shape[3:]))
    out = runner(flat, np.repeat(ids, k * m), np.tile(np.repeat(draws, m), n))
    return out.reshape(x.shape)


def _norm(difference: np.ndarray, norm: str) -> np.ndarray:
    """Norm over the last axis, in float64."""
    wide = difference.astype(np.float64, copy=False)
    if norm == "linf":
        return np.asarray(np.abs(wide).max(-1))
    return np.asarray(np.sqrt(np.square(wide).sum(-1)))


def _probe_rows(
    images: ImageSet, anchors: np.ndarray, cell: Cell, output: np.ndarray, draws: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns of `ProbeRows` for one probe at one radius; `output` is [n, draws, m, c, h, w]."""
    n, k, m = output.shape[:3]
    x = images.pixels.reshape(n, 1, 1, -1).astype(np.float64)
    attacked = cell.attacked if cell.attacked.ndim == 6 else cell.attacked[:, None]
    delta = attacked.reshape(n, -1, m, x.shape[-1]).astype(np.float64) - x
    purified = output.reshape(n, k, m, -1).astype(np.float64)
    aligned = anchors.reshape(n, k, 1, -1)
    rows: dict[str, np.ndarray] = {}
    for norm in ("l2", "linf"):
        rows[f"delta_{norm}"] = np.broadcast_to(_norm(delta, norm), (n, k, m))
        rows[f"change_{norm}"] = _norm(purified - aligned, norm)
        other = _norm(purified - np.roll(aligned, -1, 1), norm)
        rows[f"unaligned_{norm}"] = other if k > 1 else np.full_like(other, np.nan)
        rows[f"moved_{norm}"] = _norm(purified - x, norm)
    rows["image"] = np.broadcast_to(images.ids[:, None, None], (n, k, m))
    rows["draw"] = np.broadcast_to(draws[None, :, None], (n, k, m))
    rows["direction"] = np.broadcast_to(np.arange(m)[None, None, :], (n, k, m))
    rows["probe"] = np.full((n, k, m), cell.probe)
    rows["radius"] = np.full((n, k, m), cell.radius)
    return {name: np.ascontiguousarray(column).reshape(-1) for name, column in rows.items()}


def _stack_rows(rows: list[dict[str, np.ndarray]]) -> ProbeRows:
    return ProbeRows(**{name: np.concatenate([r[name] for r in rows]) for name in rows[0]})


def _anchor_rows(
    images: ImageSet, anchors: np.ndarray, classify: Classify | None, draws: np.ndarray
) -> AnchorRows:
    n, k = anchors.shape[:2]
    moved = (anchors.astype(np.float64) - images.pixels[:, None]).reshape(n, k, -1)
    correct = clean = np.full((n, k), -1, np.int8)
    if classify is not None and images.labels is not None:
        labels = images.labels[:, None]
        predicted = classify(anchors.reshape(n * k, *images.image_shape)).reshape(n, k)
        correct = (predicted == labels).astype(np.int8)
        clean = (classify(images.pixels)[:, None] == labels).astype(np.int8).repeat(k, 1)
    return AnchorRows(
        image=np.repeat(images.ids, k),
        draw=np.tile(draws, n),
        moved_l2=_norm(moved, "l2").reshape(-1),
        moved_linf=_norm(moved, "linf").reshape(-1),
        correct=correct.reshape(-1),
        clean_correct=clean.reshape(-1),
    )


def _variance_rows(images: ImageSet, cells: list[Cell], outputs: list[np.ndarray]) -> VarianceRows:
    """Variance components of P(x+δ; ξ), draws crossed with pairs of directions, pixels summed.

    In a pair v, −v terms odd in v cancel in the mean, and only they remain in half the difference.
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in VarianceRows.__dataclass_fields__}
    for cell, output in zip(cells, outputs, strict=True):
        n, k, m = output.shape[:3]
        pairs = m // 2
        if cell.attacked.ndim == 6 or k < 2 or pairs < 1:
            continue
        y = output[:, :, : 2 * pairs].reshape(n, k, pairs, 2, -1).astype(np.float64)
        middle, half = y.mean(3), (y[:, :, :, 0] - y[:, :, :, 1]) / 2
        by_draw, by_pair = middle.mean(2, keepdims=True), middle.mean(1, keepdims=True)
        whole = by_draw.mean(1, keepdims=True)
        between = np.square(by_draw - whole).sum((1, 2, 3)) / (k - 1)
        within = np.square(half).sum(3).mean((1, 2))
        if pairs > 1:  # even terms: their interaction with draws is not an effect of the draw
            rest = np.square(middle - by_draw - by_pair + whole).sum((1, 2, 3))
            between -= rest / ((k - 1) * (pairs - 1)) / pairs
            within += np.square(middle - by_draw).sum((1, 2, 3)) / (k * (pairs - 1))
        columns["image"].append(images.ids)
        columns["probe"].append(np.full(n, cell.probe))
        columns["radius"].append(np.full(n, cell.radius))
        columns["between_draws"].append(between)
        columns["within_draws"].append(within)
    empty = {"between_draws": np.zeros(0), "within_draws": np.zeros(0)}
    none = np.zeros(0, np.int64)
    return VarianceRows(**{c: np.concatenate([empty.get(c, none), *v]) for c, v in columns.items()})
