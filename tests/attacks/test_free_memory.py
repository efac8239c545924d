"""What is free, as Linux, control groups and launchers tell it."""

import os

import pytest
import torch

from purify_audit.attacks.free_memory import free_memory

CPU = torch.device("cpu")
AVAILABLE = 8_000_000 * 1024


def machine(root, available="8000000 kB", own="0::/", groups=()):
    (root / "proc/self").mkdir(parents=True)
    if available:
        told = f"MemTotal: 9000000 kB\nMemAvailable:    {available}\n"
        (root / "proc/meminfo").write_text(told)
    if own is not None:
        (root / "proc/self/cgroup").write_text(f"1:name=x:/y\n{own}\n")
    for place, limit, used in groups:
        folder = root / "sys/fs/cgroup" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
    return root


def test_it_is_what_linux_calls_available(tmp_path):
    assert free_memory(CPU, {}, machine(tmp_path)) == AVAILABLE


@pytest.mark.parametrize("groups", [[("", 5000, 1000)], [("", "max", 1000)], []])
def test_within_the_limit_of_its_control_group(tmp_path, groups):
    free = free_memory(CPU, {}, machine(tmp_path, groups=groups))
    assert free == (4000 if groups and groups[0][1] == 5000 else AVAILABLE)


def test_within_the_limits_of_all_that_hold_it(tmp_path):
    groups = [("job/step", "max", 1), ("job", 9000, 2000), ("", 8000, 3000), ("other", 10, 9)]
    assert free_memory(CPU, {}, machine(tmp_path, own="0::/job/step", groups=groups)) == 5000


def test_a_group_over_its_limit_leaves_nothing(tmp_path):
    assert free_memory(CPU, {}, machine(tmp_path, groups=[("", 100, 200)])) == 0


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, 4),
        ({"SLURM_NTASKS_PER_NODE": "2", "SLURM_NTASKS": "6"}, 2),
        ({"SLURM_NTASKS_PER_NODE": "2(x3)", "SLURM_NTASKS": "6"}, 6),
        ({"WORLD_SIZE": "8"}, 8),
        ({"LOCAL_WORLD_SIZE": "0"}, 1),
        ({"LOCAL_WORLD_SIZE": "²"}, 1),
    ],
    ids=str,
)
def test_processes_of_one_machine_share_it(tmp_path, environment, count):
    assert free_memory(CPU, environment, machine(tmp_path)) == AVAILABLE // count


@pytest.mark.parametrize("available", ["", "much", "-"])
def test_where_nothing_is_called_available_it_is_all_there_is(tmp_path, available):
    free = free_memory(CPU, {}, machine(tmp_path, available, own=None))
    assert free == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_where_nothing_is_told_it_is_nothing(tmp_path, monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    assert free_memory(CPU, {}, tmp_path) == 0


def test_this_machine_has_some():
    assert free_memory(CPU, {}) > 2**20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_devices_memory_counts_what_torch_holds_unused():
    device = torch.device("cuda", 0)
    before = free_memory(device, {})
    block = torch.empty(2**28, dtype=torch.uint8, device=device)
    held = free_memory(device, {})
    del block
    assert before - held >= 2**28 - 2**24
    assert free_memory(device, {}) - held >= 2**28 - 2**24
