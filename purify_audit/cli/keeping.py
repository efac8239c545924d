"""Where a run's finished work is kept, and which part of it is this process's."""

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from purify_audit.errors import PlanError
from purify_audit.shard import Shard, parse_shard, shard_of

if TYPE_CHECKING:
    from purify_audit.store import RunStore
    from purify_audit.subject import Subject

RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        help="Keep finished work here, so that the run survives whatever ends it; several"
        " processes may share it (docs/howto-cluster.md).",
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Compute only part I of N (I from 0) into --run-dir; `purify-audit merge` makes the"
        " report.",
    ),
]


@dataclass(frozen=True, slots=True)
class Keeping:
    """How a run keeps its work.

    Attributes:
        folder: where; none where nothing is kept.
        shard: this process's part.
        alone: whether the other parts are none of its business.
    """

    folder: Path | None
    shard: Shard
    alone: bool

    @property
    def reports(self) -> bool:
        """Whether this process writes the report: the first of those that share a run."""
        return not self.alone and self.shard.index == 0

    def open(self, manifest: dict[str, Any]) -> "AbstractContextManager[RunStore | None]":
        """The store of the run, if it has one.

        Raises:
            RunError: the folder is another run's, in use, or damaged.
        """
        if self.folder is None:
            return nullcontext(None)
        from purify_audit.store import open_run

        return open_run(self.folder, manifest, f"{self.shard.index}-of-{self.shard.count}")


def keeping(run_dir: Path | None, shard: str | None, out: Path) -> Keeping:
    """How to keep the work of a run whose report goes to `out`.

    Without `--shard` a process is the part that what launched it says (torchrun, SLURM, Kubernetes,
    GitLab), and shares the run's folder with the others. Part 0/1 is the whole, whatever that says.

    Raises:
        PlanError: a part without a folder, or no part.
    """
    asked = None if shard is None else parse_shard(shard)
    if asked == Shard():
        return Keeping(run_dir, asked, alone=False)
    if asked is not None:
        if run_dir is None:
            raise PlanError("--shard keeps its part in a folder: give --run-dir")
        return Keeping(run_dir, asked, alone=True)
    part = shard_of()
    if part.count > 1 and run_dir is None:
        run_dir = out.with_suffix(".run")
    return Keeping(run_dir, part, alone=False)


def manifest_of(subject: "Subject", basis: Path | None, measure_anyway: bool) -> dict[str, Any]:
    """All that decides what a run computes.

    Args:
        subject: what is audited.
        basis: a finished report that is attacked, if one is.
        measure_anyway: whether errors in preflight are passed over.
    """
    from purify_audit import __version__
    from purify_audit.noise import NOISE_SPEC
    from purify_audit.runtime import environment

    judge = subject.judge
    return {
        "version": __version__,
        "noise_spec": NOISE_SPEC,
        "plan": subject.plan.model_dump(mode="json"),
        "checkpoint": subject.checkpoint.sha256,
        "classifier": None if judge is None else judge[0].sha256,
        "images": subject.images.digest,
        "count": len(subject.images),
        "brought": None if subject.brought is None else subject.brought.digest,
        "environment": environment(subject.device, subject.plan.engine),
        "basis": None if basis is None else str(basis),
        "basis_sha256": None if basis is None else hashlib.sha256(basis.read_bytes()).hexdigest(),
        "measure_anyway": measure_anyway,
    }
