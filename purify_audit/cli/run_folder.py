"""The run folder that the options and the launcher's environment ask for."""

from pathlib import Path
from typing import TYPE_CHECKING

from purify_audit.core.errors import PlanError
from purify_audit.spec.shard import Shard, parse_shard, shard_of

if TYPE_CHECKING:
    from purify_audit.audit.run import RunFolder


def run_folder(run_dir: Path | None, shard: str | None, out: Path) -> "RunFolder":
    """Where to store the finished work of a run whose report goes to `out`.

    Without `--shard`, a process takes the part that its launcher gives it (torchrun, SLURM,
    Kubernetes, GitLab) and shares the run's folder with the others. Part 0/1 is the whole run,
    whatever the launcher says.

    Raises:
        PlanError: a part without a folder, or no part.
    """
    from purify_audit.audit.run import RunFolder

    named = None if shard is None else parse_shard(shard)
    if named == Shard():
        return RunFolder(run_dir)
    if named is not None:
        if run_dir is None:
            raise PlanError("--shard stores its part in a folder: give --run-dir")
        return RunFolder(run_dir, named, alone=True)
    part = shard_of()
    if part.count > 1 and run_dir is None:
        run_dir = out.with_suffix(".run")
    return RunFolder(run_dir, part)
