"""The batches of a round: the ranks share them, and each stores a batch as soon as it is finished."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from pipeline.runtime.distributed import DistributedContext, explain_lost_peer
from pipeline.runtime.recorder import Recorder
from pipeline.runtime.threads import overlapped
from pipeline.runtime.work_queue import WorkQueue
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.invert import NO_CALLBACKS, Callbacks, Inversion, invert
from pipeline.synthesis.memory import advise_batch_size
from pipeline.synthesis.objective import Objective
from pipeline.synthesis.pictures import LivePictures
from pipeline.synthesis.plan import BatchSpec, run_step
from pipeline.synthesis.store import BatchStore


class FinishedElsewhere(Exception):
    """Another rank has stored the batch that this one works on."""


class Monitor:
    """Shows the batches of this rank while they are inverted: to the recorder, and on rank 0 in pictures."""

    def __init__(self, recorder: Recorder, num_steps: int, pictures: LivePictures | None = None) -> None:
        self._recorder, self._pictures = recorder, pictures
        self._num_steps, self._steps_done = num_steps, recorder.progress.done

    def on_step(self, num_finished: int, spec: BatchSpec, step: int, terms: dict[str, float], inputs: Tensor) -> None:
        """Take the weighted terms and the inputs (N, C, h, w) of a logging step.

        The progress is that of all ranks, which have finished `num_finished` batches, and of this batch.
        """
        done = self._recorder.progress.done + num_finished * self._num_steps + step + 1
        self._steps_done = max(self._steps_done, done)  # a batch that is given up takes back its steps
        step_of_run = run_step(spec, self._num_steps, step)
        self._recorder.log(step, terms, done=self._steps_done, sink_step=step_of_run, batch=spec.index)
        if self._pictures:
            self._pictures.on_step(spec, step, inputs)

    def finish(self, spec: BatchSpec, images: Tensor) -> None:
        """Take the finished images of a batch, uint8 (N, C, H, W)."""
        if self._pictures:
            self._pictures.finish(spec, images)


def make_batches(
    objective: Objective,
    specs: Sequence[BatchSpec],
    store: BatchStore,
    monitor: Monitor,
    context: DistributedContext,
) -> None:
    """Invert and store the batches `specs`, together with the other ranks, which call this at the same time.

    A rank takes the next batch when it has finished one. At the end, ranks without work make again what others hold for
    too long, and the slower of both gives up. If the device leaves the cores free, a thread stores a batch while the
    next one is inverted. Raises ValueError with a batch size that fits when the device has too little memory.
    """
    config, queue = store.config.inversion, context.open_queue(len(specs))
    # While the traceback of the error exists, so does the batch that did not fit; advice is measured without both.
    with suppress(torch.OutOfMemoryError), explain_lost_peer(), overlapped(context.leaves_cores_free) as storing:
        maker = _Maker(objective, store, monitor, queue)
        for item in queue.claims():
            if task := maker.make(item, specs[item]):
                storing.start(task)
        storing.wait()  # its error must not wait for the other ranks
        for item in queue.claims_again():
            if task := maker.make(item, specs[item]):
                task()
        return
    raise ValueError(advise_batch_size(objective, config, store.config.batch_size))


class _Maker:
    """Inverts batches until other ranks have finished them."""

    def __init__(self, objective: Objective, store: BatchStore, monitor: Monitor, queue: WorkQueue) -> None:
        self._objective, self._store, self._monitor, self._queue = objective, store, monitor, queue

    def make(self, item: int, spec: BatchSpec) -> Callable[[], None] | None:
        """What stores the batch that is inverted; None if another rank has done so before."""

        def check() -> None:
            if self._queue.has_become_finished(item):
                raise FinishedElsewhere

        def on_step(step: int, terms: dict[str, float], inputs: Tensor) -> None:
            self._monitor.on_step(self._queue.num_finished, spec, step, terms, inputs)

        def write() -> None:
            if not self._queue.is_finished(item):
                self._store.write(spec, inversion)
                self._queue.finish(item)

        callbacks = Callbacks(before_step=check, on_step=on_step)
        try:
            inversion = invert_batch(self._objective, spec, self._store.config.inversion, callbacks)
        except FinishedElsewhere:
            return None
        self._monitor.finish(spec, inversion.images)
        return write


def invert_batch(
    objective: Objective, spec: BatchSpec, config: InversionConfig, callbacks: Callbacks = NO_CALLBACKS
) -> Inversion:
    """The inversion of a planned batch: its labels, from the generator of its seed."""
    labels = torch.tensor(spec.labels, device=objective.device)
    return invert(objective, labels, config, torch.Generator().manual_seed(spec.seed), callbacks)
