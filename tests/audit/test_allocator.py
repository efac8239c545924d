"""Freed memory is held: a process that frees and allocates the same blocks faults no pages."""

import ctypes
import os
import subprocess
import sys

import pytest

from purify_audit.audit import allocator
from purify_audit.audit.allocator import hold_freed_memory

FAULTS = """
import resource, sys
import numpy as np
from purify_audit.audit.allocator import hold_freed_memory

held = hold_freed_memory() if sys.argv[1] == "held" else False
def layer():
    blocks = [np.ones(2**20, np.float32) for _ in range(8)]  # 4 MiB each
for _ in range(3):
    layer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    layer()
print(held, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No setting of somebody else's, and none made by these tests in this process."""
    for name in list(os.environ):
        if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES":
            monkeypatch.delenv(name)


def faults(how):
    command = [sys.executable, "-c", FAULTS, how]
    made = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    held, count = made.stdout.split()
    return held == "True", int(count)


def test_pages_are_faulted_once():
    held, few = faults("held")
    if not held:
        pytest.skip("the allocator is not glibc's")
    _, many = faults("plain")
    assert few < 500 < 10_000 < many, "20 times 32 MiB are 163,840 pages"


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_who_sets_the_allocator_is_left_alone(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("nothing is to be asked"))
    assert not hold_freed_memory()


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not hold_freed_memory()


@pytest.mark.parametrize("fault", [AttributeError, OSError])
def test_another_c_library_is_no_fault(fault, monkeypatch):
    class Other:
        def __init__(self, name):
            if fault is OSError:
                raise OSError

    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", Other)
    assert not hold_freed_memory()


def test_a_refusal_is_told(monkeypatch):
    class Refuses:
        def __init__(self, name):
            self.mallopt = lambda option, value: 0

    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", Refuses)
    assert not hold_freed_memory()
