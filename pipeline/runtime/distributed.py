"""Who else works on this run, and on which device: the only module that reads the environment."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.runtime.hardware import is_cuda_usable, keep_freed_memory, unusable_driver
from pipeline.runtime.threads import threads_of_a_worker

# A worker that answers nothing for so long is lost; the others wait for it in every step of distillation.
LOST_AFTER = timedelta(minutes=10)


# Synthesis can keep some workers busy for hours after others have finished theirs.
WAIT_AT_MOST = timedelta(days=7)


# What gloo and NCCL say when the other end of a connection is gone.
LOST_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")


# Set for workers whose launcher tells their errors.
TELLING = "DREAMDISTILL_LAUNCHER_TELLS"


Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class World:
    """One worker's place: `rank` of `size` workers, `local_size` of them on its machine, and the device it computes on.

    `waiting` is the group in which workers wait for each other as long as it takes; None for a worker on its own.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    waiting: dist.ProcessGroup | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this worker does what must be done once: packing, training, reporting."""
        return self.rank == 0

    @property
    def leaves_cores_free(self) -> bool:
        """Whether the cores of the machine have little to do while the device computes."""
        return self.device.type != "cpu"

    def barrier(self) -> None:
        """Wait until every worker is here. Raises ConnectionError when one is lost, as the other methods do."""
        if self.waiting is not None:
            with explained_loss():
                dist.barrier(self.waiting)

    def broadcast(self, value: Value) -> Value:
        """The leader's value, on every worker."""
        if self.waiting is None:
            return value
        values = [value]
        with explained_loss():
            dist.broadcast_object_list(values, group=self.waiting)
        return values[0]

    def require_same(self, value: str, what: str) -> None:
        """Raise ValueError, saying `what` the workers differ in, unless all give the same value."""
        if self.waiting is None:
            return
        values = [""] * self.size
        with explained_loss():
            dist.all_gather_object(values, value, group=self.waiting)
        if others := [rank for rank in range(self.size) if values[rank] != values[0]]:
            raise ValueError(f"worker {others[0]} differs from worker 0 in {what}")

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all workers, which call this at the same time."""
        if self.waiting is None:
            return tensor
        with explained_loss():
            total = tensor.clone()
            dist.all_reduce(total)
        return total / self.size

    def parallel(self, module: nn.Module) -> nn.Module:
        """`module` with its gradients averaged over all workers; the leader's weights become everyone's.

        The same parameters have to take part in every pass. Running statistics stay each worker's own: no pass in
        training mode reads them, and the leader's are saved.
        """
        if self.waiting is None:
            return module
        device_ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=device_ids, broadcast_buffers=False, static_graph=True, gradient_as_bucket_view=True
        )


@contextmanager
def explained_loss() -> Iterator[None]:
    """Turn what gloo and NCCL raise, most often since a worker is gone, into a ConnectionError with the way on."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(mark in str(error) for mark in LOST_PEER):
            reason = str(error).strip().partition("\n")[0]
            raise ConnectionError(
                f"the connection to another worker is lost ({reason}); the same command goes on from here"
            ) from error
        raise


@contextmanager
def open_world() -> Iterator[World]:
    """The world that `torchrun` describes in the environment, or a single worker; settles the process for its share.

    `DREAMDISTILL_DEVICE` names the device (`cpu`, `cuda`, `cuda:1`); without it, CUDA is used where there is one.
    Workers of one machine share its cores, unless `OMP_NUM_THREADS` gives each a number.
    """
    rank, size, local_rank, local_size = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    device = choose_device(local_rank, local_size)
    _settle_process(device, local_size)
    if "RANK" not in os.environ:
        yield World(device=device)
        return
    on_cuda = device.type == "cuda"
    with explained_loss():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=LOST_AFTER, device_id=device if on_cuda else None
        )
        waiting = dist.new_group(backend="gloo", timeout=WAIT_AT_MOST)
    yield World(rank=rank, size=size, local_size=local_size, device=device, waiting=waiting)
    dist.destroy_process_group()  # not after an error: NCCL would wait for workers that have not met it


def leave(code: int) -> NoReturn:
    """Exit; of several workers without waiting for the others, who may be in the midst of a reduction."""
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def is_leading() -> bool:
    """Whether this process speaks for all workers, also before their world is open."""
    return os.environ.get("RANK", "0") == "0"


def is_launcher_telling() -> bool:
    """Whether errors are told by the process that launched this one."""
    return TELLING in os.environ


def share_cores(num_workers: int) -> None:
    """Give the workers that this process is about to launch their threads, and tell their errors for them."""
    # torchrun's own default is one thread for each worker, on any machine.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_of_a_worker(num_workers)))
    os.environ[TELLING] = "1"


def compiler_name() -> str:
    """The C++ compiler that PyTorch takes."""
    return os.environ.get("CXX", "g++")


def cache_folder() -> Path:
    """Where this user's programs keep what they can find out again."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dreamdistill"


def is_device_named() -> bool:
    """Whether somebody chose the device."""
    return "DREAMDISTILL_DEVICE" in os.environ


def choose_device(local_rank: int, local_size: int) -> torch.device:
    """The device of one of `local_size` workers of this machine.

    Raises ValueError when there is no such device, or not one for each worker.
    """
    name, num_cuda = os.environ.get("DREAMDISTILL_DEVICE"), torch.cuda.device_count() if is_cuda_usable() else 0
    try:
        device = torch.device(name or ("cuda" if num_cuda else "cpu"))
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"DREAMDISTILL_DEVICE={name} is no device to compute on; use cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    if (device.index or 0) >= num_cuda:
        reason = unusable_driver() or f"there are {num_cuda} CUDA devices"
        raise ValueError(f"DREAMDISTILL_DEVICE={name}, but {reason}; use cpu{' or a lower number' if num_cuda else ''}")
    num_devices = num_cuda if device.index is None else 1
    if local_size > num_devices:
        raise ValueError(
            f"NPROC={local_size} workers on this machine need a CUDA device each, there is {num_devices} for them; "
            f"set NPROC={num_devices}{'' if device.index is None else ', or DREAMDISTILL_DEVICE=cuda'}"
        )
    return torch.device("cuda", local_rank) if device.index is None else device


def _settle_process(device: torch.device, local_size: int) -> None:
    """Threads, allocator and CUDA's choices between speed and bits (docs/architecture.md, decisions 19 to 21)."""
    given = os.environ.get("OMP_NUM_THREADS")
    if given is not None and not (given.isdigit() and int(given)):
        raise ValueError(f"OMP_NUM_THREADS={given} is no number of threads; use 1 or more, or leave it out")
    if given is None:
        # PyTorch counts physical cores, but knows nothing of containers and of other workers.
        torch.set_num_threads(threads_of_a_worker(local_size))
    keep_freed_memory(local_size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
