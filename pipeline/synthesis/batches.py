"""The batches of a round: each rank inverts its share of them, and stores each one as it is finished."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import torch

from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.recorder import OnStep, Recorder
from pipeline.runtime.threads import overlapped
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.invert import Inversion, invert
from pipeline.synthesis.memory import advise_batch_size
from pipeline.synthesis.objective import Objective
from pipeline.synthesis.plan import BatchSpec
from pipeline.synthesis.store import BatchStore


def make_batches(
    objective: Objective,
    specs: Sequence[BatchSpec],
    store: BatchStore,
    recorder: Recorder,
    context: DistributedContext,
) -> None:
    """Invert and store this rank's batches, `specs`, one after the other.

    If the device leaves the cores free, a thread stores a batch while the next one is inverted. Raises ValueError with
    a batch size that fits when the device has too little memory.
    """
    config, steps_before = store.config.inversion, recorder.progress.done
    # While the traceback of the error exists, so does the batch that did not fit; advice is measured without both.
    with suppress(torch.OutOfMemoryError), overlapped(context.leaves_cores_free) as storing:
        for spec in specs:
            on_step = partial(recorder.log, steps_before=steps_before, batch=spec.index)
            storing.start(partial(store.write, spec, invert_batch(objective, spec, config, on_step)))
            steps_before += config.num_steps
        return
    raise ValueError(advise_batch_size(objective, config, store.config.batch_size))


def invert_batch(
    objective: Objective, spec: BatchSpec, config: InversionConfig, on_step: OnStep | None = None
) -> Inversion:
    """The inversion of a planned batch: its labels, from the generator of its seed."""
    labels = torch.tensor(spec.labels, device=objective.device)
    return invert(objective, labels, config, torch.Generator().manual_seed(spec.seed), on_step)
