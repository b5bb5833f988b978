"""Cores, memory, bfloat16 units and drivers, as the system reports them."""

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
    """Writes system files, given by name; the others are missing."""
    for module, name in ((hardware, "MEMORY_INFO"), (hardware, "NVIDIA_DRIVER"), (cgroups, "MEMBERSHIP")):
        monkeypatch.setattr(module, name, tmp_path / name)
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


# Control groups of version 2, of version 2 within a batch job, and of version 1.
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
def test_usable_cores_are_the_least_of_affinity_and_quotas(system, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    system(files)
    assert hardware.num_usable_cores() == expected


def test_all_cores_are_usable_without_affinity(system, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert hardware.num_usable_cores() == 6


@pytest.mark.parametrize(("load", "expected"), [(0.9, 8), (1.2, 7), (7.5, 1), (30.0, 0)])
def test_free_cores_are_those_without_load(monkeypatch, load, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert hardware.num_free_cores() == expected


def test_free_cores_are_unknown_without_a_reported_load(monkeypatch):
    monkeypatch.delattr(os, "getloadavg", raising=False)
    assert hardware.num_free_cores() is None


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
def test_free_memory_is_the_least_of_machine_and_groups(system, files, expected):
    system({"MEMORY_INFO": "MemTotal: 99999 kB\nMemAvailable: 4000 kB\n", **files})
    assert hardware.free_memory_bytes(CPU) == expected


def test_half_of_the_memory_is_free_without_a_report(system):
    assert hardware.free_memory_bytes(CPU) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes_on_every_system(monkeypatch, platform, unit):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5))
    assert hardware.peak_memory_bytes(CPU) == 5 * unit


def test_resources_are_cores_or_a_gpu_and_the_peak_of_memory(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(hardware, "peak_memory_bytes", lambda device: 1000 if device.type == "cuda" else 2000)
    assert hardware.resources_of_process(CPU) == {"cores": 3, "peak_memory_bytes": 2000}
    assert hardware.resources_of_process(torch.device("cuda", 1)) == {"gpus": 1, "peak_memory_bytes": 1000}


def test_unusable_driver_has_a_reason(system, monkeypatch):
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


@pytest.mark.parametrize(
    ("capability", "has_units", "expected"),
    [("AVX512", True, True), ("AVX512", False, False), ("AVX2", True, False), ("DEFAULT", True, False)],
)
def test_processor_needs_units_that_pytorch_uses_for_bfloat16(monkeypatch, capability, has_units, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_units})
    assert hardware.multiplies_bfloat16(CPU) is expected


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_gpu_multiplies_bfloat16_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.multiplies_bfloat16(torch.device("cuda")) is expected


# In a process of its own, since conftest.py has set the allocator of this one.
PAGE_FAULTS = """
import resource
import torch
from pipeline.runtime.hardware import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(16_000_000).fill_(1)  # 64 MB, twice what glibc learns to keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

page_faults()
print(page_faults())
keep_freed_memory()
page_faults()
print(page_faults())
"""


@pytest.mark.skipif(hardware.platform.libc_ver()[0] != "glibc", reason="other allocators stay as they are")
def test_keep_freed_memory_avoids_page_faults():
    process = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    before, after = map(int, process.stdout.split())
    assert after < 1000 < before
