"""Who else works on this run, and on which device: the only module that reads the environment."""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ParamSpec, TypeVar

import torch
import torch.distributed
from torch import Tensor

# Synthesis can keep some workers busy for hours after others have finished theirs.
BARRIER_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class World:
    """One worker's place: `rank` of `size` workers, and the device it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_leader(self) -> bool:
        """Whether this worker does what must be done once: packing, training, reporting."""
        return self.rank == 0

    @property
    def leaves_cores_free(self) -> bool:
        """Whether the cores of the machine have little to do while the device computes."""
        return self.device.type != "cpu"

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its mean over all workers, which call this at the same time."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            torch.distributed.all_reduce(flat)
            flat /= self.size
            means = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, mean in zip(tensors, means, strict=True):
                tensor.copy_(mean.view_as(tensor))


@contextmanager
def open_world() -> Iterator[World]:
    """The world that `torchrun` describes in the environment, or a single worker.

    `DREAMDISTILL_DEVICE` names the device (`cpu`, `cuda`, `cuda:1`); without it, CUDA is used where there is one.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = _device(os.environ.get("DREAMDISTILL_DEVICE"), int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1:
        torch.distributed.init_process_group("gloo", timeout=BARRIER_TIMEOUT)
    try:
        yield World(rank=rank, size=size, device=device)
    finally:
        if size > 1:
            torch.distributed.destroy_process_group()


def _device(name: str | None, local_rank: int) -> torch.device:
    found = torch.cuda.device_count()
    try:
        device = torch.device(name or ("cuda" if found else "cpu"))
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"DREAMDISTILL_DEVICE={name} is no device to compute on; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ValueError(
            f"DREAMDISTILL_DEVICE={name}, but PyTorch sees {found} CUDA devices; use cpu or a lower number"
        )
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", local_rank % found)
    return device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`, without making the host wait for it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def synchronise(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def background_threads(num_threads: int | None = None) -> ThreadPoolExecutor:
    """Threads to work beside the main one, by default as many as Python thinks good for this machine.

    PyTorch has one core in each. It would start further threads for each, and once a process has more of its threads
    than the machine has cores, libgomp puts them to sleep after every operation: a step of small ones then takes nearly
    twice as long.
    """
    # A thread takes its number of cores at its first operation, and what another one has set by then is its default.
    torch.get_num_threads()
    return ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))


@contextmanager
def overlapped(world: World) -> Iterator[Callable[[Callable[[], None]], None]]:
    """What runs a task while the caller goes on to use the device: one at a time, the next waits for the one before.

    On the CPU the caller waits, since two would only take turns on the same cores. An error of a task is raised by the
    next one, or when the block ends, unless the block has one of its own.
    """
    if not world.leaves_cores_free:
        yield lambda task: task()
        return
    running: Future[None] | None = None

    def start(task: Callable[[], None]) -> None:
        nonlocal running
        if running:
            running.result()
        running = thread.submit(task)

    with background_threads(1) as thread:
        yield start
        if running:
            running.result()


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def compiled(
    function: Callable[Parameters, Result], device: torch.device, *, cuda_graphs: bool = False
) -> Callable[Parameters, Result]:
    """`function` compiled for each shape it meets; uncompiled, with a warning, where the compiler it needs is missing.

    PyTorch makes C++ for the CPU and Triton kernels for CUDA; there, `cuda_graphs` has them launched as one, and each
    call overwrites the results of the one before.
    """
    if device.type == "cuda":
        missing = None if importlib.util.find_spec("triton") else "the package triton"
    else:
        known = [os.environ.get("CXX", "g++"), "g++", "clang++"]
        missing = None if any(map(shutil.which, known)) else "a C++ compiler such as g++"
    if missing:
        warnings.warn(f"compile: true needs {missing}; the steps run uncompiled, several times slower", stacklevel=2)
        return function
    # Code for the CPU has the number of threads in it; as an option it is also part of the key of the compiler's cache.
    # Every compiler builds the vector instructions that the processor has; to try them takes seconds at each start.
    return torch.compile(
        function,
        dynamic=False,
        options={
            "cpp.threads": torch.get_num_threads(),
            "cpp.vec_isa_ok": True,
            "triton.cudagraphs": cuda_graphs,
        },
    )


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for one use of randomness; different purposes and indices are independent."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator for (run seed, purpose, index): the same draws on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, index))


def versions() -> dict[str, str]:
    """What computed an output: interpreter and libraries whose versions can change its bytes."""
    names = ("torch", "torchvision", "numpy", "Pillow", "webdataset")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
