"""`precision` and `compile`: what a config asks for, and what `auto` comes to on this machine."""

import warnings
from dataclasses import replace
from typing import Literal, Protocol, TypeVar

import torch

from pipeline.runtime.compiler import why_not_compiled
from pipeline.runtime.config import ConfigError
from pipeline.runtime.hardware import SLOWDOWN, device_name, multiplies_bfloat16

Precision = Literal["auto", "float32", "bfloat16"]


Compile = Literal["auto", True, False]


# Pixels that a stage's steps see, all images and steps together, from which on compiling pays. It takes 10 to 60 s: as
# long as it saves on the digits (4e7 pixels of synthesis), a tenth of what it saves on CIFAR-10 (1e9).
PIXELS_WORTH_COMPILING = 100_000_000


class _Accelerated(Protocol):
    """A frozen dataclass with the two settings."""

    @property
    def precision(self) -> Precision: ...

    @property
    def compile(self) -> Compile: ...


Config = TypeVar("Config", bound=_Accelerated)


def resolved(config: Config, device: torch.device, num_pixels: int, key: str) -> Config:
    """`config`, named `key`, with both settings decided for steps that see `num_pixels` pixels in all on `device`.

    `auto` is bfloat16 where the hardware multiplies it, and compiled where that pays and works, else with a warning.
    Warns of bfloat16 without hardware for it; raises ConfigError for `compile: true` where nothing can be compiled.
    """
    precision, compile = config.precision, config.compile
    if precision == "auto":
        precision = "bfloat16" if multiplies_bfloat16(device) else "float32"
    elif precision == "bfloat16" and not multiplies_bfloat16(device):
        warnings.warn(
            f"{key}.precision: bfloat16, but {device_name(device)} does not multiply it itself: {SLOWDOWN} slower than "
            "float32; set it to auto or float32",
            stacklevel=2,
        )
    if compile == "auto":
        compile = num_pixels >= PIXELS_WORTH_COMPILING and _compiles(device)
    elif compile and (missing := why_not_compiled(device)):
        raise ConfigError(f"{key}.compile: true, but {missing}, or set it to auto or false")
    return replace(config, precision=precision, compile=compile)  # type: ignore[type-var]  # a protocol is no dataclass


def _compiles(device: torch.device) -> bool:
    missing = why_not_compiled(device)
    if missing:  # the same text for every key, so that it is told once
        warnings.warn(f"compile: auto runs uncompiled, about half as fast: {missing}", stacklevel=2)
    return missing is None
