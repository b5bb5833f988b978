"""The ranks that work on a run together, and the device of each: the only module that reads the environment."""

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
from pipeline.runtime.threads import threads_per_process

# A rank that does not answer for so long is lost. In every step of distillation the others wait for it.
LOST_AFTER = timedelta(minutes=10)
# Some ranks can be busy with synthesis for hours after others have finished.
WAIT_AT_MOST = timedelta(days=7)
# What gloo and NCCL say when the other end of a connection is gone.
LOST_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")
# Set in the environment of ranks whose launcher reports their errors.
LAUNCHER_REPORTS = "DREAMDISTILL_LAUNCHER_REPORTS"

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class DistributedContext:
    """One process of a run: its `rank` of `size`, the `local_size` ranks of its machine, and its device.

    `wait_group` is the process group in which ranks wait for each other for days; None for a single process.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wait_group: dist.ProcessGroup | None = None

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which does what must be done once: packing, saving, reporting."""
        return self.rank == 0

    @property
    def leaves_cores_free(self) -> bool:
        """Whether the cores of the machine have little to do while the device computes."""
        return self.device.type != "cpu"

    def barrier(self) -> None:
        """Wait for all ranks. Raises ConnectionError when one is lost, as the other methods do."""
        if self.wait_group is not None:
            with explain_lost_peer():
                dist.barrier(self.wait_group)

    def broadcast(self, value: Value) -> Value:
        """The value of rank 0, on every rank."""
        if self.wait_group is None:
            return value
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
            raise ConnectionError(
                f"the connection to another rank is lost ({reason}); run the same command again to continue"
            ) from error
        raise


@contextmanager
def open_distributed() -> Iterator[DistributedContext]:
    """The context that `torchrun` describes in the environment, or that of a single process.

    It also sets the threads and the allocator of the process. `DREAMDISTILL_DEVICE` names the device (`cpu`, `cuda`,
    `cuda:1`); the default is CUDA if there is a device, else the CPU. `OMP_NUM_THREADS` is the number of threads of
    each rank; by default the ranks of a machine share its cores.
    """
    rank, size, local_rank, local_size = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    device = choose_device(local_rank, local_size)
    _set_up_process(device, local_size)
    if "RANK" not in os.environ:
        yield DistributedContext(device=device)
        return
    on_cuda = device.type == "cuda"
    with explain_lost_peer():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=LOST_AFTER, device_id=device if on_cuda else None
        )
        wait_group = dist.new_group(backend="gloo", timeout=WAIT_AT_MOST)
        dist.barrier(wait_group)  # if a rank failed while another still connects, gloo would log that beside the error
    yield DistributedContext(rank=rank, size=size, local_size=local_size, device=device, wait_group=wait_group)
    dist.destroy_process_group()  # not after an error: NCCL would wait for ranks that have not met it


def exit_process(code: int) -> NoReturn:
    """Exit. One rank of several does not wait for the others, which may be in the middle of a reduction."""
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def is_one_of_several() -> bool:
    """Whether this process is a rank that others wait for."""
    return dist.is_initialized()


def is_rank_zero() -> bool:
    """Whether this process is rank 0; known before `open_distributed`."""
    return os.environ.get("RANK", "0") == "0"


def launcher_reports_errors() -> bool:
    """Whether the process that launched this one reports its errors."""
    return LAUNCHER_REPORTS in os.environ


def prepare_launch(num_processes: int) -> None:
    """Set the environment of the ranks that this process is about to launch: their threads, and who reports errors."""
    # The default of torchrun is one thread for each rank, on any machine.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_process(num_processes)))
    os.environ[LAUNCHER_REPORTS] = "1"


def compiler_name() -> str:
    """The C++ compiler that PyTorch uses."""
    return os.environ.get("CXX", "g++")


def cache_folder() -> Path:
    """The folder of this user's cache; what is in it can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dreamdistill"


def is_device_named() -> bool:
    """Whether the user named the device."""
    return "DREAMDISTILL_DEVICE" in os.environ


def is_color_wanted() -> bool:
    """Whether a terminal may show colors: `NO_COLOR` is not set (https://no-color.org)."""
    return not os.environ.get("NO_COLOR")


def choose_device(local_rank: int, local_size: int) -> torch.device:
    """The device of one of the `local_size` ranks of this machine.

    Raises ValueError when the named device does not exist, or when there are fewer CUDA devices than ranks.
    """
    name, num_cuda = os.environ.get("DREAMDISTILL_DEVICE"), torch.cuda.device_count() if is_cuda_usable() else 0
    try:
        device = torch.device(name or ("cuda" if num_cuda else "cpu"))
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"DREAMDISTILL_DEVICE={name} is not a device to compute on; use cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    if (device.index or 0) >= num_cuda:
        reason = unusable_driver() or f"there are {num_cuda} CUDA devices"
        raise ValueError(f"DREAMDISTILL_DEVICE={name}, but {reason}; use cpu{' or a lower number' if num_cuda else ''}")
    num_devices = num_cuda if device.index is None else 1
    if local_size > num_devices:
        raise ValueError(
            f"NPROC={local_size}: each process needs a CUDA device, but this machine has {num_devices} for them; set "
            f"NPROC={num_devices}{'' if device.index is None else ', or DREAMDISTILL_DEVICE=cuda'}"
        )
    return torch.device("cuda", local_rank) if device.index is None else device


def _set_up_process(device: torch.device, local_size: int) -> None:
    """Set threads, allocator and CUDA's trade of speed for bits (docs/architecture.md, decisions 19 to 21)."""
    num_threads = os.environ.get("OMP_NUM_THREADS")
    if num_threads is not None and not (num_threads.isdigit() and int(num_threads)):
        raise ValueError(f"OMP_NUM_THREADS={num_threads} is not a number of threads; use 1 or more, or leave it out")
    if num_threads is None:
        # PyTorch counts physical cores, but knows nothing of containers and of other ranks.
        torch.set_num_threads(threads_per_process(local_size))
    keep_freed_memory(local_size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
