"""Compilation of steps that run thousands of times, on machines that have what the compiler needs."""

import hashlib
import logging
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from pipeline.runtime.environment import cache_folder, compiler_name, name_user

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
# Width of the vectors that PyTorch uses on x86 processors; the compiler knows the others by itself.
VECTOR_BITS = {"AVX2": 256, "AVX512": 512}
# (text in the error of a compiler, what is missing). Inductor generates C++ for the CPU; Triton needs C for CUDA.
MISSING_PARTS = (
    ("InvalidCxxCompiler", "there is no C++ compiler; install g++ or clang++"),
    ("Failed to find C compiler", "there is no C compiler; install gcc or clang"),
    ("Python.h", "Python's headers are missing; install the package with them (python3-dev)"),
    ("omp.h", "the C++ compiler has no OpenMP; install libomp"),
    ("/main.c", "Triton's C compiler fails; install Python's headers (python3-dev)"),
    ("Cannot find a working triton", "the package triton is missing; install it"),
)


def maybe_compile(
    function: Callable[Parameters, Result], device: torch.device, *, enabled: bool = True, cuda_graphs: bool = False
) -> Callable[Parameters, Result]:
    """`function`, compiled for each shape of its arguments if `enabled`.

    PyTorch generates C++ for the CPU and Triton kernels for CUDA. With `cuda_graphs` the kernels are launched as one,
    and each call overwrites the results of the call before. The first call raises ValueError when the function cannot
    be compiled.
    """
    name_user()  # before the imports, which ask for it
    if not enabled:
        return function
    import torch._dynamo.config as dynamo_config
    import torch._inductor.config as inductor_config

    # DistributedDataParallel would cut a step at the buckets of gradients, to send them while the rest is computed. On
    # two cores that is a tenth slower than one graph, and it is compiled again at each start.
    dynamo_config.optimize_ddp = False
    # Every compiler supports the vector instructions of the processor; the test for it takes seconds at each start. As
    # an option, this setting would not reach code that is loaded from the compiler's cache.
    inductor_config.cpp.vec_isa_ok = True
    # Code for the CPU depends on the number of threads and the width of vectors; options are part of the key of the
    # compiler's cache. Without the width in the key, a processor with AVX-512 takes code for AVX2 from the cache,
    # builds it for vectors of twice the width, and writes past its buffers (PyTorch 2.11).
    options: dict[str, Any] = {
        "cpp.threads": torch.get_num_threads(),
        "cpp.simdlen": VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability()),
        "triton.cudagraphs": cuda_graphs,
    }
    logging.getLogger("torch.utils.cpp_extension").addFilter(_matters)
    return _compiled_again_if_damaged(torch.compile(function, dynamic=False, options=options))


def _compiled_again_if_damaged(fast: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A compiled function; a library that a killed compiler left incomplete is removed, which compiles it again.

    Calls raise ValueError when it cannot be compiled.
    """
    removed: set[Path] = set()

    def call(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        while True:
            try:
                return fast(*arguments, **keywords)
            except (torch._dynamo.exc.TorchDynamoException, OSError, ImportError) as error:
                library = _unloadable_library(error)
                if library is None or library in removed:
                    raise ValueError(
                        f"compile: a step cannot be compiled: {_reason(error)}; set compile: false, or remove "
                        f"{_cache()} if a process was killed while it compiled"
                    ) from error
            removed.add(library)
            library.unlink(missing_ok=True)

    return call


def _cache() -> str:
    """The folder of PyTorch's compiler."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()


def _unloadable_library(error: BaseException) -> Path | None:
    """The library in the compiler's cache that the error is about, if it is about one."""
    match = re.search(rf"{re.escape(_cache())}/[^\s:]+\.so(?=: )", str(error))
    return Path(match[0]) if match else None


def _matters(record: logging.LogRecord) -> bool:
    """False for the line that the toolkit of CUDA finds no device: it is logged when code for the CPU is compiled."""
    return not str(record.msg).startswith("No CUDA runtime is found")


@lru_cache
def why_not_compiled(device: torch.device) -> str | None:
    """What the compiler for `device` lacks on this machine; None when it can compile two lines.

    The test takes seconds. When it succeeds, an empty file in the user's cache records that.
    """
    mark = _success_mark(device)
    if mark.exists():
        return None
    try:
        maybe_compile(lambda x: torch.sin(x) + 1, device)(torch.zeros(8, device=device))
    except ValueError as error:
        return _reason(error.__cause__ or error)
    with suppress(OSError):  # the next process tests again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return None


def _success_mark(device: torch.device) -> Path:
    """The file that exists when this compiler has compiled for this device, PyTorch and Python."""
    tools = [shutil.which(name) for name in (compiler_name(), "g++", "clang++", "gcc", "clang")]
    facts = [device.type, torch.__version__, sys.version, sys.prefix, *tools]
    return cache_folder() / f"compiles-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def _reason(error: BaseException) -> str:
    """The missing part, if the error is a known one, else the first informative line of the error."""
    text = str(error)
    known_parts = [advice for mark, advice in MISSING_PARTS if mark in text]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("backend=")]
    return known_parts[0] if known_parts else lines[0] if lines else type(error).__name__
