"""The ranks that work on a run together, and the device of each."""

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NoReturn, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from pipeline.runtime.environment import (
    is_under_torchrun,
    name_user,
    named_device,
    named_num_threads,
    ranks_of_torchrun,
)
from pipeline.runtime.hardware import is_cuda_usable, keep_freed_memory, unusable_driver
from pipeline.runtime.threads import threads_per_process
from pipeline.runtime.work_queue import WorkQueue

# A rank that does not answer for so long is lost. In every step of distillation the others wait for it.
LOST_AFTER = timedelta(minutes=10)
# Some ranks can be busy with synthesis for hours after others have finished.
WAIT_AT_MOST = timedelta(days=7)
# Seconds between two looks whether others have arrived.
LOOK_EVERY_S = 0.01
# What gloo and NCCL say when the other end of a connection is gone.
LOST_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")
CONTINUE = "run the same command again to continue"

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class DistributedContext:
    """One process of a run: its `rank` of `size`, its `local_rank` of the `local_size` of its machine, its device.

    `wait_group` is the process group in which ranks wait for each other for days; None for a single process. The
    `store` is shared by all ranks.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wait_group: dist.ProcessGroup | None = None
    store: Store = field(default_factory=dist.HashStore, compare=False)  # type: ignore[attr-defined]

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which does what must be done once: packing, saving, reporting."""
        return self.rank == 0

    @property
    def is_first_of_machine(self) -> bool:
        """Whether this is the process of its machine that does what must be done once on each."""
        return self.local_rank == 0

    @property
    def leaves_cores_free(self) -> bool:
        """Whether the cores of the machine have little to do while the device computes."""
        return self.device.type != "cpu"

    def barrier(self, within: timedelta = WAIT_AT_MOST) -> None:
        """Wait for all ranks. Raises ConnectionError when one is lost, as the other methods do, or does not come."""
        if self.wait_group is None:
            return
        with explain_lost_peer():
            work, gives_up_at = dist.barrier(self.wait_group, async_op=True), time.monotonic() + within.total_seconds()
            while not work.is_completed():  # a signal is handled between two operations of Python, and `wait` is one
                if time.monotonic() > gives_up_at:
                    raise ConnectionError(f"another rank has not come within {within}; {CONTINUE}")
                time.sleep(LOOK_EVERY_S)
            work.wait()

    def open_queue(self, num_items: int) -> WorkQueue:
        """A queue of items for all ranks, which call this at the same time."""
        return WorkQueue(self.store, self.broadcast(uuid4().hex), num_items)

    def on_any_rank(self, value: bool) -> bool:
        """Whether the value is true on any rank; all ranks call this in the same step."""
        if self.wait_group is None:
            return value
        with explain_lost_peer():
            flag = torch.tensor([float(value)])
            dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def broadcast(self, value: Value) -> Value:
        """The value of rank 0, on every rank."""
        if self.wait_group is None:
            return value
        self.barrier()
        values = [value]
        with explain_lost_peer():
            dist.broadcast_object_list(values, group=self.wait_group)
        return values[0]

    def require_same(self, value: str, what: str) -> None:
        """Raise ValueError, saying `what` the ranks differ in, unless all give the same value."""
        if self.wait_group is None:
            return
        values = [""] * self.size
        with explain_lost_peer():
            dist.all_gather_object(values, value, group=self.wait_group)
        if others := [rank for rank in range(self.size) if values[rank] != values[0]]:
            raise ValueError(f"rank {others[0]} differs from rank 0 in {what}")

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all ranks, which call this at the same time."""
        if self.wait_group is None:
            return tensor
        with explain_lost_peer():
            total = tensor.clone()
            dist.all_reduce(total)
        return total / self.size

    def parallel(self, module: nn.Module) -> nn.Module:
        """`module` with its gradients averaged over all ranks; all ranks start from the weights of rank 0.

        The same parameters must take part in every pass. Each rank keeps its own running statistics: no pass in
        training mode reads them, and those of rank 0 are saved.
        """
        if self.wait_group is None:
            return module
        # A gradient of a compiled step has another stride in dimensions of size 1 than its parameter: the same memory.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        device_ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=device_ids, broadcast_buffers=False, static_graph=True, gradient_as_bucket_view=True
        )


@contextmanager
def explain_lost_peer() -> Iterator[None]:
    """Turn what gloo and NCCL raise when a rank is gone into a ConnectionError that says how to continue."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(mark in str(error) for mark in LOST_PEER):
            reason = str(error).strip().partition("\n")[0]
            raise ConnectionError(f"the connection to another rank is lost ({reason}); {CONTINUE}") from error
        raise


@contextmanager
def open_distributed() -> Iterator[DistributedContext]:
    """The context that `torchrun` describes in the environment, or that of a single process.

    It also sets the threads and the allocator of the process. `DREAMDISTILL_DEVICE` names the device (`cpu`, `cuda`,
    `cuda:1`); the default is CUDA if there is a device, else the CPU. `OMP_NUM_THREADS` is the number of threads of
    each rank; by default the ranks of a machine share its cores.
    """
    rank, size, local_rank, local_size = ranks_of_torchrun()
    device = choose_device(local_rank, local_size)
    _set_up_process(device, local_size)
    if not is_under_torchrun():
        yield DistributedContext(device=device)
        return
    on_cuda = device.type == "cuda"
    with explain_lost_peer():
        store, rank, size = next(rendezvous("env://", timeout=LOST_AFTER))
        backend, device_id = ("cpu:gloo,cuda:nccl", device) if on_cuda else ("gloo", None)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=LOST_AFTER, device_id=device_id
        )
        wait_group = dist.new_group(backend="gloo", timeout=WAIT_AT_MOST)
        dist.barrier(wait_group)  # if a rank failed while another still connects, gloo would log that beside the error
    local = {"local_rank": local_rank, "local_size": local_size}
    yield DistributedContext(rank=rank, size=size, device=device, wait_group=wait_group, store=store, **local)
    dist.destroy_process_group()  # not after an error: NCCL would wait for ranks that have not met it


def exit_process(code: int) -> NoReturn:
    """Exit. One rank of several does not wait for the others, which may be in the middle of a reduction."""
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def choose_device(local_rank: int, local_size: int) -> torch.device:
    """The device of one of the `local_size` ranks of this machine.

    Raises ValueError when the named device does not exist, or when there are fewer CUDA devices than ranks.
    """
    device = usable_device(named_device() or ("cuda" if _num_cuda_devices() else "cpu"))
    if device.type == "cpu":
        return device
    num_devices = _num_cuda_devices() if device.index is None else 1
    if local_size > num_devices:
        raise ValueError(
            f"{local_size} processes need a CUDA device each, but this machine has {num_devices} for them; use "
            f"--processes {num_devices} (make: NPROC={num_devices}){'' if device.index is None else ', or device cuda'}"
        )
    return torch.device("cuda", local_rank) if device.index is None else device


def usable_device(name: str) -> torch.device:
    """The device of this name; raises ValueError when it does not exist or is none to compute on."""
    num_cuda = _num_cuda_devices()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the device {name!r} is none to compute on; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= num_cuda:
        reason = unusable_driver() or f"there are {num_cuda} CUDA devices"
        fix = f"use cpu{' or a lower number' if num_cuda else ''}"
        raise ValueError(f"there is no device {name!r}: {reason}; {fix}")
    return device


def _num_cuda_devices() -> int:
    return torch.cuda.device_count() if is_cuda_usable() else 0


def _set_up_process(device: torch.device, local_size: int) -> None:
    """Set threads, allocator and CUDA's trade of speed for bits (docs/architecture.md, decisions 19 to 21)."""
    if named_num_threads() is None:
        # PyTorch counts physical cores, but knows nothing of containers and of other ranks.
        torch.set_num_threads(threads_per_process(local_size))
    name_user()  # an optimizer imports the compiler
    keep_freed_memory(local_size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
