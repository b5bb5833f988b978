"""The largest batch of inversion that fits into the memory of a CUDA device."""

from collections.abc import Callable
from dataclasses import replace

import torch

from pipeline.runtime.seeds import make_generator
from pipeline.synthesis.config import MIN_BATCH_SIZE, InversionConfig
from pipeline.synthesis.invert import invert
from pipeline.synthesis.objective import Objective

# Share of the memory of a device that a batch may take, since the allocator needs room between blocks.
USABLE_MEMORY = 0.9


def advise_batch_size(objective: Objective, config: InversionConfig, batch_size: int) -> str:
    """A message for the user whose batch does not fit: the memory of the device, and a batch size that fits."""
    limit_bytes = torch.cuda.get_device_properties(objective.device).total_memory
    fits = batch_that_fits(lambda size: _peak_bytes(objective, config, size), batch_size, limit_bytes)
    return (
        f"synthesis.batch_size: {batch_size} images at once need more than the {limit_bytes / 2**30:.1f} GiB of "
        f"{objective.device}; about {fits} fit, set it to that"
    )


def batch_that_fits(peak_bytes: Callable[[int], int], batch_size: int, limit_bytes: int) -> int:
    """The largest batch whose peak stays within a share of `limit_bytes`, from the peaks of two small batches."""
    small, larger = max(MIN_BATCH_SIZE, batch_size // 8), max(MIN_BATCH_SIZE + 1, batch_size // 4)
    base, more = peak_bytes(small), peak_bytes(larger)
    bytes_per_image = max(1.0, (more - base) / (larger - small))
    return max(MIN_BATCH_SIZE, int(small + (USABLE_MEMORY * limit_bytes - base) / bytes_per_image))


def _peak_bytes(objective: Objective, config: InversionConfig, batch_size: int) -> int:
    """Peak memory of two steps of every phase with `batch_size` images."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(objective.device)
    few_steps = replace(config, phases=tuple(replace(phase, steps=2) for phase in config.phases))
    labels = torch.zeros(batch_size, dtype=torch.long, device=objective.device)
    invert(objective, labels, few_steps, make_generator(0, "memory"))
    return torch.cuda.max_memory_allocated(objective.device)
