"""Compiling what runs thousands of times, where this machine has what a compiler needs."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from pipeline.runtime.distributed import cache_folder, compiler_name

Parameters = ParamSpec("Parameters")


Result = TypeVar("Result")


# Of the vectors that PyTorch uses on x86 processors; the compiler knows others by itself.
VECTOR_BITS = {"AVX2": 256, "AVX512": 512}


# What an error of a compiler says, and what is missing then; Inductor makes C++ for the CPU, Triton needs C for CUDA.
MISSING_PARTS = (
    ("InvalidCxxCompiler", "there is no C++ compiler; install g++ or clang++"),
    ("Failed to find C compiler", "there is no C compiler; install gcc or clang"),
    ("Python.h", "Python's headers are missing; install the package with them (python3-dev)"),
    ("omp.h", "the C++ compiler has no OpenMP; install libomp"),
    ("main.c", "Triton's C compiler fails; install Python's headers (python3-dev)"),
    ("Cannot find a working triton", "the package triton is missing; install it"),
)


def compiled(
    function: Callable[Parameters, Result], device: torch.device, *, cuda_graphs: bool = False
) -> Callable[Parameters, Result]:
    """`function` compiled for each shape it meets; the first call raises ValueError when it cannot be compiled.

    PyTorch makes C++ for the CPU and Triton kernels for CUDA; there, `cuda_graphs` has them launched as one, and each
    call overwrites the results of the one before.
    """
    import torch._dynamo.config as dynamo_config
    import torch._inductor.config as inductor_config

    # In DistributedDataParallel a step would be cut at the buckets of gradients, so that they travel while the rest is
    # computed: a tenth slower on two cores than one graph, and compiled anew at each start.
    dynamo_config.optimize_ddp = False
    # Every compiler builds the vector instructions that the processor has; to try them takes seconds at each start. As
    # an option this would not reach what is loaded from the compiler's cache.
    inductor_config.cpp.vec_isa_ok = True
    # Code for the CPU has the number of threads and the width of vectors in it; as options they are part of the key
    # of the compiler's cache. Without the width, code for AVX2 is taken from a cache on a processor with AVX-512, built
    # anew for its vectors of twice the width, and writes past its buffers (PyTorch 2.11).
    options: dict[str, Any] = {
        "cpp.threads": torch.get_num_threads(),
        "cpp.simdlen": VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability()),
        "triton.cudagraphs": cuda_graphs,
    }
    fast = torch.compile(function, dynamic=False, options=options)

    def call(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        try:
            return fast(*arguments, **keywords)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ValueError(f"compile: a step cannot be compiled: {_reason(error)}; set compile: false") from error

    return call


@lru_cache
def why_not_compiled(device: torch.device) -> str | None:
    """What a compiler for `device` lacks on this machine, found by compiling two lines; None when it works.

    That it worked is remembered in the user's cache, since a try takes seconds even where nothing will be compiled.
    """
    mark = _works_mark(device)
    if mark.exists():
        return None
    try:
        compiled(lambda x: torch.sin(x) + 1, device)(torch.zeros(8, device=device))
    except ValueError as error:
        return _reason(error.__cause__ or error)
    with suppress(OSError):  # it can be found out again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return None


def _works_mark(device: torch.device) -> Path:
    """A file that is there when the compiler found now, for this device, has compiled for this PyTorch and Python."""
    tools = [shutil.which(name) for name in (compiler_name(), "g++", "clang++", "gcc", "clang")]
    facts = [device.type, torch.__version__, sys.version, sys.prefix, *tools]
    return cache_folder() / f"compiles-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def _reason(error: BaseException) -> str:
    """What is missing, or the first line of the error that tells something."""
    text = str(error)
    known = [advice for mark, advice in MISSING_PARTS if mark in text]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("backend=")]
    return known[0] if known else lines[0] if lines else type(error).__name__
