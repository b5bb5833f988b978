"""Cores, memory and drivers, as the system tells of them."""

import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_run import REPOSITORY

from pipeline.runtime import cgroups, hardware

CPU = torch.device("cpu")


@pytest.fixture
def system(monkeypatch, tmp_path):
    """Writes what the files of the system say, by their paths below `/`; the others are missing."""
    for module, name in ((hardware, "MEMORY_INFO"), (hardware, "NVIDIA_DRIVER"), (cgroups, "MEMBERSHIP")):
        monkeypatch.setattr(module, name, tmp_path / name)
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


UNIFIED, NESTED, OLD = (
    {"MEMBERSHIP": "0::/"},
    {"MEMBERSHIP": "0::/slurm/job_7/step_0"},
    {"MEMBERSHIP": "4:cpu,cpuacct:/a"},
)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({**UNIFIED, "cgroup/cpu.max": "max 100000"}, 8),
        ({**UNIFIED, "cgroup/cpu.max": "250000 100000"}, 3),
        ({**UNIFIED, "cgroup/cpu.max": "50000 100000"}, 1),
        ({**UNIFIED, "cgroup/cpu.max": "9900000 100000"}, 8),
        ({**NESTED, "cgroup/slurm/job_7/cpu.max": "200000 100000", "cgroup/cpu.max": "400000 100000"}, 2),
        ({**OLD, "cgroup/cpu/cpu.cfs_quota_us": "-1", "cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
        ({**OLD, "cgroup/cpu/a/cpu.cfs_quota_us": "200000", "cgroup/cpu/a/cpu.cfs_period_us": "100000"}, 2),
    ],
)
def test_usable_cores_are_those_of_the_affinity_and_the_tightest_quota(system, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    system(files)
    assert hardware.num_usable_cores() == expected


def test_where_there_is_no_affinity_all_cores_are_usable(system, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert hardware.num_usable_cores() == 6


USED = {"cgroup/memory.current": "2500000", "cgroup/memory.stat": "anon 5\ninactive_file 1500000\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4_096_000),
        ({**UNIFIED, "cgroup/memory.max": "max", **USED}, 4_096_000),
        ({**UNIFIED, "cgroup/memory.max": "3000000", **USED}, 2_000_000),
        (
            {**NESTED, "cgroup/slurm/job_7/memory.max": "700000", "cgroup/slurm/job_7/memory.current": "600000"},
            100_000,
        ),
        (
            {
                "MEMBERSHIP": "9:memory:/docker/x",
                "cgroup/memory/memory.limit_in_bytes": "900000",
                "cgroup/memory/memory.usage_in_bytes": "800000",
            },
            100_000,
        ),
    ],
)
def test_free_memory_is_the_machines_within_the_groups_around_the_process(system, files, expected):
    system({"MEMORY_INFO": "MemTotal: 99999 kB\nMemAvailable: 4000 kB\n", **files})
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
    system({"NVIDIA_DRIVER": "NVRM version: 580"})
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
    from pipeline.runtime.hardware import keep_freed_memory
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
