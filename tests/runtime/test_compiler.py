"""Steps are compiled if this machine can; else the reason is one line. A cache serves several kinds of processors."""

import logging
import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch
import torch._inductor.config as inductor_config
from tiny_run import REPOSITORY
from torch._inductor import cpu_vec_isa
from torch._inductor.cpp_builder import cpp_compiler_search
from torch._inductor.utils import fresh_cache

from pipeline.runtime.compiler import maybe_compile, why_not_compiled

# Raised inside torch's compiler.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
CPU = torch.device("cpu")
# g++ that finds no headers of Python.
WITHOUT_HEADERS = """#!/bin/bash
arguments=()
for argument in "$@"; do case $argument in *include/python*) ;; *) arguments+=("$argument") ;; esac; done
exec g++ "${arguments[@]}"
"""


@pytest.fixture
def empty_caches(monkeypatch, tmp_path):
    """Nothing is compiled and no success is recorded, before and after the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    # Each of up to four checks starts a Python that imports torch.
    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", lambda self, code: True)
    caches = (why_not_compiled.cache_clear, cpp_compiler_search.cache_clear, torch.compiler.reset)
    for clear in caches:
        clear()
    with fresh_cache():
        yield
    for clear in caches:
        clear()


@pytest.mark.slow
@pytest.mark.usefixtures("empty_caches")
@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, Triton's compiler is missed first")
def test_missing_compiler_is_the_reason(monkeypatch, tmp_path):
    for name in ("env", "uname", "ls"):  # not g++, gcc, clang
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with inductor_config.patch({"cpp.cxx": (None, "g++")}):
        assert why_not_compiled(CPU) == "there is no C++ compiler; install g++ or clang++"


@pytest.mark.slow
@pytest.mark.usefixtures("compiler", "empty_caches")
def test_missing_python_headers_are_the_reason(tmp_path):
    compiler = tmp_path / "g++-without-headers"
    compiler.write_text(WITHOUT_HEADERS)
    compiler.chmod(0o755)
    # PyTorch keeps 120 MB of precompiled headers for each compiler.
    with inductor_config.patch({"cpp.cxx": (None, str(compiler)), "cpp_cache_precompile_headers": False}):
        assert why_not_compiled(CPU) == "Python's headers are missing; install the package with them (python3-dev)"


@pytest.mark.slow
@pytest.mark.usefixtures("compiler", "empty_caches")
def test_success_is_recorded_for_the_same_tools(monkeypatch, device, tmp_path):
    assert why_not_compiled(device) is None
    assert len(list(tmp_path.rglob("compiles-*"))) == 1
    monkeypatch.setattr(torch, "compile", None)  # raises TypeError when it is called
    why_not_compiled.cache_clear()
    assert why_not_compiled(device) is None
    monkeypatch.setattr(shutil, "which", lambda name: None)
    why_not_compiled.cache_clear()
    with pytest.raises(TypeError):
        why_not_compiled(device)


def test_failed_compilation_raises_with_the_fix(monkeypatch):
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise torch._dynamo.exc.TorchDynamoException("no such operation")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    with pytest.raises(ValueError, match=r"a step cannot be compiled: .*no such operation.*; set compile: false"):
        maybe_compile(abs, CPU)(torch.zeros(2))


@pytest.mark.parametrize("raised", [OSError, ImportError, torch._dynamo.exc.TorchDynamoException])
def test_a_library_that_a_killed_compiler_left_is_compiled_again(monkeypatch, tmp_path, raised):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    libraries = [tmp_path / "ab" / f"{name}.main.so" for name in "xy"]

    def load(x: torch.Tensor) -> torch.Tensor:
        for library in libraries:
            if library.exists():
                raise raised(f"backend='inductor' raised:\nOSError: {library}: file too short")
        return x + 1

    libraries[0].parent.mkdir()
    for library in libraries:
        library.touch()
    monkeypatch.setattr(torch, "compile", lambda function, **options: load)
    assert maybe_compile(abs, CPU)(torch.zeros(2)).tolist() == [1, 1]


def test_a_library_that_stays_damaged_is_reported_with_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def load(x: torch.Tensor) -> torch.Tensor:
        raise OSError(f"{tmp_path}/ab/x.so: file too short")

    monkeypatch.setattr(torch, "compile", lambda function, **options: load)
    with pytest.raises(
        ValueError, match=rf"x\.so: file too short; set compile: false, or remove {tmp_path} if a process"
    ):
        maybe_compile(abs, CPU)(torch.zeros(2))


def test_disabled_compilation_returns_the_function():
    assert maybe_compile(abs, CPU, enabled=False) is abs


# PyTorch reads the processor's capability once in a process, so there is a child for each.
SUMS = """
import os, sys
import torch, torch._dynamo, torch._inductor.compile_fx, torch._inductor.cpu_vec_isa
from pipeline.runtime.compiler import maybe_compile

torch._inductor.cpu_vec_isa.VecISA.check_build = lambda self, code: True  # each check starts a Python
widest = "AVX512" if torch.cpu._is_avx512_supported() else "AVX2"

def check(capability):
    os.environ["ATEN_CPU_CAPABILITY"] = capability.lower()
    x = torch.arange(64 * 96, dtype=torch.float32).view(64, 96)
    step = maybe_compile(lambda x: (torch.sin(x) * 2).sum(1) + x.mean(1), x.device)
    torch.testing.assert_close(step(x), (torch.sin(x) * 2).sum(1) + x.mean(1), rtol=1e-4, atol=1e-3)
    assert torch.backends.cpu.get_cpu_capability() == capability

for capability in ("AVX2", widest):
    if (child := os.fork()) == 0:
        check(capability)
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0, capability
"""


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 and AVX-512 are of x86 processors")
def test_one_cache_serves_vectors_of_two_widths(tmp_path):
    variables = {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # the children are forked
    }
    process = subprocess.run(
        [sys.executable, "-c", SUMS], cwd=REPOSITORY, env=os.environ | variables, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


def test_the_toolkit_without_a_device_is_not_told(caplog):
    maybe_compile(torch.sin, CPU)
    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local/cuda")
    logger.warning("another warning")
    assert [record.message for record in caplog.records] == ["another warning"]
