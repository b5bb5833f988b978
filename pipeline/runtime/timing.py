"""Times of forward passes."""

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from pipeline.runtime.device import synchronize

# Repetitions of a timed pass. The least time is reported, as other programs can only add to it.
TIMED_PASSES = 11


def forward_ms(networks: Sequence[Callable[[Tensor], Tensor]], pixels: Tensor) -> list[float]:
    """Milliseconds of one forward pass of each network, the least of several, in turn, so that drift affects all."""
    times_ms: list[list[float]] = [[] for _ in networks]
    for _ in range(TIMED_PASSES + 1):
        for network, network_times_ms in zip(networks, times_ms, strict=True):
            synchronize(pixels.device)
            start = time.perf_counter()
            network(pixels)
            synchronize(pixels.device)
            network_times_ms.append((time.perf_counter() - start) * 1e3)
    return [min(values[1:]) for values in times_ms]  # the first pass warms up
