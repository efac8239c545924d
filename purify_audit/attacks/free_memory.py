"""Free memory of a process, shared with the other processes of the same launch."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

_SYSTEM = Path("/")
_COUNTS = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "WORLD_SIZE", "SLURM_NTASKS")


def free_memory(
    device: torch.device,
    environment: Mapping[str, str] = os.environ,
    system: Path = _SYSTEM,
) -> int:
    """Free bytes, shared between the processes that were launched together on this machine.

    CUDA: free on the device, or reserved by torch and unused. Elsewhere: Linux's `MemAvailable`,
    within the limits of the process's control groups (version 2); without it, the installed
    memory; 0 if that is unknown too.

    Args:
        device: of the tensors.
        environment: variables in which torchrun and SLURM report the number of processes.
        system: root of the file system that is read.
    """
    count = _processes(environment)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + unused) // -(
            -count // torch.cuda.device_count()
        )
    return max(0, min((_available(system), *_within_groups(system)))) // count


def _processes(environment: Mapping[str, str]) -> int:
    """Processes of this machine; of all machines if their distribution is not reported."""
    for name in _COUNTS:
        value = environment.get(name, "")
        if value.isdecimal() and int(value) > 0:
            return int(value)
    return 1


def _available(system: Path) -> int:
    try:
        lines = (system / "proc/meminfo").read_text(encoding="ascii").splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return _installed()


def _installed() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # no such call, no such name
        return 0


def _within_groups(system: Path) -> Iterator[int]:
    """Free bytes in each control group of the process and its ancestors."""
    root = system / "sys/fs/cgroup"
    try:
        lines = (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::"):
            own = root / line.removeprefix("0::").lstrip("/")
            for group in (own, *own.parents):
                try:
                    limit, used = (
                        int((group / f"memory.{name}").read_text(encoding="ascii"))
                        for name in ("max", "current")
                    )
                except (OSError, ValueError):  # no such group, or "max": no limit
                    continue
                yield limit - used
