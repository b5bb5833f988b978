"""The batches of a round: each rank inverts its share of them, and stores each one as it is finished."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.recorder import Recorder
from pipeline.runtime.threads import overlapped
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.invert import Inversion, OnInversionStep, invert
from pipeline.synthesis.memory import advise_batch_size
from pipeline.synthesis.objective import Objective
from pipeline.synthesis.pictures import LivePictures
from pipeline.synthesis.plan import BatchSpec, run_step
from pipeline.synthesis.store import BatchStore


class Monitor:
    """Shows the batches of this rank while they are inverted: to the recorder, and on rank 0 in pictures."""

    def __init__(self, recorder: Recorder, num_steps: int, pictures: LivePictures | None = None) -> None:
        self._recorder, self._pictures = recorder, pictures
        self._num_steps, self._steps_done = num_steps, recorder.progress.done

    def on_step(self, spec: BatchSpec, step: int, terms: dict[str, float], inputs: Tensor) -> None:
        """Take the weighted terms and the inputs (N, C, h, w) of a logging step."""
        done, step_of_run = self._steps_done + step + 1, run_step(spec, self._num_steps, step)
        self._recorder.log(step, terms, done=done, sink_step=step_of_run, batch=spec.index)
        if self._pictures:
            self._pictures.on_step(spec, step, inputs)

    def finish(self, spec: BatchSpec, images: Tensor) -> None:
        """Take the finished images of a batch, uint8 (N, C, H, W)."""
        self._steps_done += self._num_steps
        if self._pictures:
            self._pictures.finish(spec, images)


def make_batches(
    objective: Objective,
    specs: Sequence[BatchSpec],
    store: BatchStore,
    monitor: Monitor,
    context: DistributedContext,
) -> None:
    """Invert and store this rank's batches, `specs`, one after the other.

    If the device leaves the cores free, a thread stores a batch while the next one is inverted. Raises ValueError with
    a batch size that fits when the device has too little memory.
    """
    config = store.config.inversion
    # While the traceback of the error exists, so does the batch that did not fit; advice is measured without both.
    with suppress(torch.OutOfMemoryError), overlapped(context.leaves_cores_free) as storing:
        for spec in specs:
            inversion = invert_batch(objective, spec, config, partial(monitor.on_step, spec))
            storing.start(partial(store.write, spec, inversion))
            monitor.finish(spec, inversion.images)
        return
    raise ValueError(advise_batch_size(objective, config, store.config.batch_size))


def invert_batch(
    objective: Objective, spec: BatchSpec, config: InversionConfig, on_step: OnInversionStep | None = None
) -> Inversion:
    """The inversion of a planned batch: its labels, from the generator of its seed."""
    labels = torch.tensor(spec.labels, device=objective.device)
    return invert(objective, labels, config, torch.Generator().manual_seed(spec.seed), on_step)
