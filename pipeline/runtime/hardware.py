"""The hardware of this machine: cores, memory, bfloat16 units, drivers. Nothing is assumed, everything is queried."""

import ctypes
import math
import mmap
import os
import platform
import resource
import shutil
import sys
import warnings
from functools import cache
from pathlib import Path

import torch

from pipeline.runtime import cgroups

# Files in which Linux describes the processor, the memory and the driver.
CPU_INFO, MEMORY_INFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
# The first CUDA architecture with tensor cores for bfloat16; older ones emulate it.
BFLOAT16_CAPABILITY = (8, 0)
# Slowdown of bfloat16 relative to float32 on processors without hardware for it (docs/performance.md).
BFLOAT16_SLOWDOWN = "8 to 18 times"
# glibc's options of mallopt(3) that keep freed memory in the process.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# Share of the free memory up to which the heap uses large pages; above, it uses small ones.
HEAP_SHARE = 0.5


def num_usable_cores() -> int:
    """The number of cores that this process may use: the least of the machine's, its affinity and its CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(cores, cgroups.core_limit()))


def num_free_cores() -> int | None:
    """The cores of the machine that its load of the last minute left free; None if the system does not report it."""
    if not hasattr(os, "getloadavg"):
        return None
    return max(0, (os.cpu_count() or 1) - int(os.getloadavg()[0]))


def free_memory_bytes(device: torch.device) -> int:
    """Free memory in bytes: of a CUDA device, else of the machine and its container limits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    fields = {line.partition(":")[0]: line.split()[1] for line in _lines(MEMORY_INFO)}
    if "MemAvailable" in fields:
        free = int(fields["MemAvailable"]) * 1024
    else:  # macOS reports only the total
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return int(min(free, cgroups.free_memory_bytes()))


def advice_on_address_limit() -> str:
    """What to do about a limit of this process's memory, which `ulimit -v` sets; empty if there is none."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return "" if limit == resource.RLIM_INFINITY else f"raise the limit of {limit / 2**30:.2f} GiB (ulimit -v), or "


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far in bytes: of a CUDA device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def resources_of_process(device: torch.device) -> dict[str, int]:
    """What this process uses: one of the `gpus`, or a core for each thread; its `peak_memory_bytes` so far."""
    units = {"gpus": 1} if device.type == "cuda" else {"cores": torch.get_num_threads()}
    return {**units, "peak_memory_bytes": peak_memory_bytes(device)}


@cache
def keep_freed_memory(num_sharing: int = 1) -> None:
    """Make glibc keep freed memory for the next allocation, in large pages; other allocators stay as they are.

    Every step frees its feature maps and allocates them again. Without this, the system calls take up to a quarter of
    the time of inversion on the CPU. `num_sharing` processes share the memory of the machine.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
    # This reserves addresses, not memory: the heap grows at once, so that all of it can be marked for large pages.
    num_bytes = int(HEAP_SHARE * free_memory_bytes(torch.device("cpu")) / num_sharing)
    start = libc.malloc(num_bytes)
    if start:
        first_page = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(first_page, num_bytes - (first_page - start), mmap.MADV_HUGEPAGE)
        libc.free(start)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16; without it, it is slower than float32 (BFLOAT16_SLOWDOWN)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY
    units = torch.cpu.get_capabilities()
    has_units = bool(units.get("amx_bf16") or units.get("avx512_bf16"))
    # The variable ATEN_CPU_CAPABILITY makes PyTorch use fewer instructions than the processor has.
    return has_units and torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX"))


def device_name(device: torch.device) -> str:
    """The device and its model, for a message: `cuda:0 (NVIDIA H100)`, `cpu (AMD EPYC)`."""
    return f"{device} ({torch.cuda.get_device_name(device) if device.type == 'cuda' else processor_name()})"


def processor_name() -> str:
    """The model of the processor, as far as the system reports it."""
    names = [line.partition(":")[2].strip() for line in _lines(CPU_INFO) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def is_cuda_usable() -> bool:
    """Whether PyTorch can compute on CUDA devices; a driver that is too old makes this false."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def unusable_driver() -> str | None:
    """Why PyTorch cannot use the NVIDIA driver of this machine; None if it can, or if there is no driver."""
    if not (NVIDIA_DRIVER.exists() or shutil.which("nvidia-smi")) or is_cuda_usable():
        return None
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA; install a build with it"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.cuda.current_device()
        except RuntimeError as error:
            caught_text = str(error)
        else:
            caught_text = "it lists no device; is CUDA_VISIBLE_DEVICES set?"
    reasons = [str(warning.message) for warning in caught] + [caught_text]
    return reasons[0].partition("(Triggered")[0].strip().splitlines()[0]
