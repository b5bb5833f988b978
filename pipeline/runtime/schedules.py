"""Learning-rate schedules as data: one number for each step, computed before the loop."""

import math
from typing import Literal

Schedule = Literal["cosine", "constant"]


def learning_rates(schedule: Schedule, lr: float, num_steps: int, warmup_fraction: float) -> tuple[float, ...]:
    """Linear warm-up to `lr` over a fraction of the steps, then cosine to zero or constant; one rate per step."""
    num_warmup = round(warmup_fraction * num_steps)
    num_rest = num_steps - num_warmup
    rising = [lr * (i + 1) / (num_warmup + 1) for i in range(num_warmup)]
    if schedule == "constant":
        return (*rising, *(lr for _ in range(num_rest)))
    return (*rising, *(lr * (1 + math.cos(math.pi * i / num_rest)) / 2 for i in range(num_rest)))
