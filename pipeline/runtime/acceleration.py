"""The settings `precision`, `compile` and `cuda_graphs`, and how `auto` is resolved on this machine."""

import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, ParamSpec, Protocol, TypeVar

import torch

from pipeline.runtime.compiler import maybe_compile, why_not_compiled
from pipeline.runtime.config import ConfigError
from pipeline.runtime.hardware import BFLOAT16_SLOWDOWN, device_name, multiplies_bfloat16

Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", True, False]
CudaGraphs = Literal["auto", True, False]
# Compilation pays when the steps of a stage process at least so many pixels, over all images and steps. It takes 10 to
# 60 s. That is what it saves on the digits (4e7 pixels of synthesis), and a tenth of what it saves on CIFAR-10 (1e9).
PIXELS_WORTH_COMPILING = 100_000_000


class _Accelerated(Protocol):
    """A frozen dataclass with these settings."""

    @property
    def precision(self) -> Precision: ...

    @property
    def compile(self) -> Compile: ...

    @property
    def cuda_graphs(self) -> CudaGraphs: ...


Config = TypeVar("Config", bound=_Accelerated)
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def check_cuda_graphs(config: _Accelerated) -> None:
    """Raise ConfigError for `cuda_graphs` of a step that is not compiled."""
    if config.cuda_graphs is True and not config.compile:
        raise ConfigError("cuda_graphs: true needs compile: true or auto")


def resolve_acceleration(config: Config, device: torch.device, num_pixels: int, key: str) -> Config:
    """`config` (the section `key`) without `auto`, for steps that process `num_pixels` pixels on `device`.

    `precision: auto` is bfloat16 if the hardware multiplies it, else float32. `compile: auto` is true if compilation
    pays and works; if it pays but does not work, it is false, and a warning says why. With `cuda_graphs: true`, which
    are made of compiled steps, it always pays. `cuda_graphs: auto` is true for compiled steps on CUDA in the main
    thread. Warns of bfloat16 without hardware support. Raises ConfigError for `compile: true` on a machine that cannot
    compile, and for `cuda_graphs: true` without CUDA.
    """
    if config.cuda_graphs is True and device.type != "cuda":
        raise ConfigError(f"{key}.cuda_graphs: true, but the device is {device_name(device)}; set it to auto")
    precision, compile = config.precision, config.compile
    if precision == "auto":
        precision = "bfloat16" if multiplies_bfloat16(device) else "float32"
    elif precision == "bfloat16" and not multiplies_bfloat16(device):
        warnings.warn(
            f"{key}.precision: bfloat16, but {device_name(device)} has no hardware for it: {BFLOAT16_SLOWDOWN} slower "
            "than float32; set it to auto or float32",
            stacklevel=2,
        )
    if compile == "auto":
        compile = (config.cuda_graphs is True or num_pixels >= PIXELS_WORTH_COMPILING) and _compiles(device)
    elif compile and (missing := why_not_compiled(device)):
        raise ConfigError(f"{key}.compile: true, but {missing}, or set it to auto or false")
    graphs = bool(compile) and (_records_graphs(device) if config.cuda_graphs == "auto" else config.cuda_graphs)
    return replace(config, precision=precision, compile=compile, cuda_graphs=graphs)  # type: ignore[type-var]  # a protocol is no dataclass


def accelerated(
    function: Callable[Parameters, Result], config: _Accelerated, device: torch.device
) -> Callable[Parameters, Result]:
    """`function`, compiled as the resolved `config` says; see `maybe_compile`."""
    assert "auto" not in (config.precision, config.compile, config.cuda_graphs), "see `resolve_acceleration`"
    return maybe_compile(function, device, enabled=bool(config.compile), cuda_graphs=bool(config.cuda_graphs))


def _records_graphs(device: torch.device) -> bool:
    """Whether a compiled step can become a CUDA graph; the compiler records none in other threads than the main one."""
    return device.type == "cuda" and threading.current_thread() is threading.main_thread()


def _compiles(device: torch.device) -> bool:
    missing = why_not_compiled(device)
    if missing:  # the text is the same for every key, so that it is shown once
        warnings.warn(f"compile: auto is false here, which is about half as fast: {missing}", stacklevel=2)
    return missing is None
