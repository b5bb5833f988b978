"""Compiling where this machine can, one line where it cannot, and a cache that serves several kinds of processor."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import REPOSITORY

from pipeline.runtime.compiler import compiled, why_not_compiled

CPU = torch.device("cpu")
WHY = """
import torch
from pipeline.runtime.compiler import why_not_compiled
print(why_not_compiled(torch.device("cpu")))
"""
# A compiler that finds no headers of Python.
WITHOUT_HEADERS = """#!/bin/bash
kept=()
for argument in "$@"; do case $argument in *include/python*) ;; *) kept+=("$argument") ;; esac; done
exec g++ "${kept[@]}"
"""


def run(script: str, folder: Path, **environment: str) -> str:
    """What a script prints in a process of its own, with an empty compiler's cache in `folder`."""
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "XDG_CACHE_HOME": str(folder / "remembered")}
    variables = os.environ | caches | environment
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_a_compiler_the_reason_is_one_line(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("env", "uname", "ls"):  # not g++, gcc, clang
        (tools / name).symlink_to(str(shutil.which(name)))
    assert run(WHY, tmp_path, PATH=str(tools), CXX="g++") == "there is no C++ compiler; install g++ or clang++"


def test_without_pythons_headers_the_reason_is_one_line(tmp_path, compiler):
    compiler = tmp_path / "g++-without-headers"
    compiler.write_text(WITHOUT_HEADERS)
    compiler.chmod(0o755)
    found = run(WHY, tmp_path, CXX=str(compiler))
    assert found == "Python's headers are missing; install the package with them (python3-dev)"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # raised inside torch's compiler
def test_with_a_compiler_there_is_no_reason_and_that_is_remembered(device, compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    why_not_compiled.cache_clear()
    assert why_not_compiled(device) is None
    assert len(list(tmp_path.rglob("compiles-*"))) == 1
    why_not_compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", None)  # it is not tried again
    assert why_not_compiled(device) is None
    monkeypatch.setattr(shutil, "which", lambda name: None)  # but with other tools
    why_not_compiled.cache_clear()
    with pytest.raises(TypeError):
        why_not_compiled(device)
    why_not_compiled.cache_clear()


def test_what_cannot_be_compiled_is_told_with_the_fix(monkeypatch):
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise torch._dynamo.exc.TorchDynamoException("no such operation")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    with pytest.raises(ValueError, match=r"a step cannot be compiled: .*no such operation.*; set compile: false"):
        compiled(abs, CPU)(torch.zeros(2))


SUMS = """
import torch
from pipeline.runtime.compiler import compiled
x = torch.arange(64 * 96, dtype=torch.float32).view(64, 96)
step = compiled(lambda x: (torch.sin(x) * 2).sum(1) + x.mean(1), x.device)
print(torch.allclose(step(x), (torch.sin(x) * 2).sum(1) + x.mean(1), rtol=1e-4, atol=1e-3))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 and AVX-512 are of x86 processors")
def test_one_cache_serves_processors_with_vectors_of_other_widths(tmp_path, compiler):
    assert run(SUMS, tmp_path, ATEN_CPU_CAPABILITY="avx2") == "True"
    assert run(SUMS, tmp_path) == "True"
