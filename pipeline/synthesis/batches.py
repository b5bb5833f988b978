"""The batches of a round: each rank inverts its share of them, and stores each one as it is finished."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import torch

from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.recorder import Recorder
from pipeline.runtime.threads import overlapped
from pipeline.synthesis.invert import invert
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
    with suppress(torch.OutOfMemoryError):  # while its traceback exists, so does the batch that did not fit
        _make_batches(objective, specs, store, recorder, context)
        return
    raise ValueError(advise_batch_size(objective, store.config.inversion, store.config.batch_size))


def _make_batches(
    objective: Objective,
    specs: Sequence[BatchSpec],
    store: BatchStore,
    recorder: Recorder,
    context: DistributedContext,
) -> None:
    config, steps_before = store.config.inversion, recorder.progress.done
    with overlapped(context.leaves_cores_free) as storing:
        for spec in specs:
            labels = torch.tensor(spec.labels, device=objective.device)
            generator = torch.Generator().manual_seed(spec.seed)
            on_step = partial(recorder.log, steps_before=steps_before, batch=spec.index)
            inversion = invert(objective, labels, config, generator, on_step)
            storing.start(partial(store.write, spec, inversion))
            steps_before += config.num_steps
