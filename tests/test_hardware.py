"""Cores, memory and drivers, as the system tells of them."""

import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_run import REPOSITORY

from pipeline import hardware

CPU = torch.device("cpu")


@pytest.fixture
def system(monkeypatch, tmp_path):
    """Writes what the files of the system say; the others are missing."""
    names = ("CPU_MAX", "CPU_QUOTA", "CPU_PERIOD", "MEMORY_INFO", "NVIDIA_DRIVER")
    for name in names:
        monkeypatch.setattr(hardware, name, tmp_path / name)
    for name in ("MEMORY_LIMITS", "MEMORY_USED"):
        monkeypatch.setattr(hardware, name, (tmp_path / name,))

    def write(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / name).write_text(text)

    return write


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"CPU_MAX": "max 100000"}, 8),
        ({"CPU_MAX": "250000 100000"}, 3),
        ({"CPU_MAX": "50000 100000"}, 1),
        ({"CPU_MAX": "9900000 100000"}, 8),
        ({"CPU_QUOTA": "-1", "CPU_PERIOD": "100000"}, 8),
        ({"CPU_QUOTA": "200000", "CPU_PERIOD": "100000"}, 2),
    ],
)
def test_usable_cores_are_those_of_the_affinity_and_the_quota(system, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    system(**files)
    assert hardware.num_usable_cores() == expected


def test_where_there_is_no_affinity_all_cores_are_usable(system, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert hardware.num_usable_cores() == 6


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4096 * 1000),
        ({"MEMORY_LIMITS": "max", "MEMORY_USED": "1"}, 4096 * 1000),
        ({"MEMORY_LIMITS": "3000000", "MEMORY_USED": "1000000"}, 2_000_000),
    ],
)
def test_free_memory_is_the_machines_within_the_containers(system, files, expected):
    system(MEMORY_INFO=f"MemTotal: 99999 kB\nMemAvailable: {4 * 1000} kB\n", **files)
    assert hardware.free_memory_bytes(CPU) == expected


def test_where_the_system_does_not_tell_half_of_the_memory_is_taken_for_free(system):
    assert hardware.free_memory_bytes(CPU) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_is_in_bytes_on_every_system(monkeypatch, platform, unit):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5))
    assert hardware.peak_memory_bytes(CPU) == 5 * unit


def test_a_driver_that_pytorch_cannot_use_is_named(system, monkeypatch):
    assert hardware.unusable_driver() is None
    system(NVIDIA_DRIVER="NVRM version: 580")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.unusable_driver() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in str(hardware.unusable_driver())
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")

    monkeypatch.setattr(torch.cuda, "current_device", too_old)
    assert hardware.unusable_driver() == "The NVIDIA driver on your system is too old (found version 11040)."


ALLOCATIONS = """
import resource, sys, torch
if sys.argv[1] == "kept":
    from pipeline.hardware import keep_freed_memory
    keep_freed_memory()
FLOATS = 16_000_000  # 64 MB, twice what glibc learns to keep by itself
for _ in range(10):
    torch.empty(FLOATS).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.empty(FLOATS).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(hardware.platform.libc_ver()[0] != "glibc", reason="other allocators stay as they are")
def test_freed_memory_is_kept_for_the_next_allocation():
    faults = {}
    for way in ("kept", "returned"):
        done = subprocess.run(
            [sys.executable, "-c", ALLOCATIONS, way], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        faults[way] = int(done.stdout)
    assert faults["kept"] < 1000 < faults["returned"]
