"""Division of a run's work units between processes."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from purify_audit.core.errors import PlanError

LAUNCHERS = (  # variables: index, count, first index
    ("RANK", "WORLD_SIZE", 0),  # torchrun
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("SLURM_PROCID", "SLURM_NTASKS", 0),
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS", 0),  # Kubernetes Indexed Job; the count is ours
    ("CI_NODE_INDEX", "CI_NODE_TOTAL", 1),  # GitLab `parallel:`
)

_ON_THIS_MACHINE = ("LOCAL_RANK", "SLURM_LOCALID")  # torchrun, srun


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of `count`, counted from 0.

    Attributes:
        index: which.
        count: of how many.
    """

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        """In the notation of `--shard`."""
        return f"{self.index}/{self.count}"

    def order(self, places: int) -> Iterator[int]:
        """Indices of units: this part's own, then the others', which may have no worker.

        Other parts are visited backwards, because their own worker starts at the front.
        """
        yield from range(self.index, places, self.count)
        for step in range(1, self.count):
            yield from reversed(range((self.index + step) % self.count, places, self.count))


def parse_shard(text: str) -> Shard:
    """A part written as `i/n`, i from 0 to n − 1.

    Raises:
        PlanError: not such a text.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match or not int(match[1]) < int(match[2]):
        raise PlanError(f"--shard '{text}' is not I/N with I from 0 to N - 1, such as 0/4")
    return Shard(int(match[1]), int(match[2]))


def shard_of(environment: Mapping[str, str] = os.environ) -> Shard:
    """This process's part from its launcher's variables; everything without a launcher.

    Raises:
        PlanError: the launcher's variables contradict one another.
    """
    for index, count, first in LAUNCHERS:
        if index not in environment or count not in environment:
            continue
        start = environment.get(first, "0") if isinstance(first, str) else first
        try:
            place = int(environment[index]) - int(start)
            return parse_shard(f"{place}/{int(environment[count])}")
        except (ValueError, PlanError):
            raise PlanError(
                f"{index}={environment[index]} and {count}={environment[count]} name no part of a"
                " run; give --shard I/N"
            ) from None
    return Shard()


def place_on_machine(environment: Mapping[str, str] = os.environ) -> int:
    """This process's local rank on its machine; 0 without a launcher."""
    ranks = (environment.get(name, "") for name in _ON_THIS_MACHINE)
    return next((int(text) for text in ranks if re.fullmatch(r"\d+", text)), 0)
