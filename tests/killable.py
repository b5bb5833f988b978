"""Stages in processes that a test can kill; they are forked from a server that has already imported PyTorch."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from webdataset import TarWriter

from stages.command_line import run

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["stages.chain", "torch._dynamo"])  # an optimizer imports the latter


def start_stage(
    stage: str,
    path: Path,
    *,
    num_ranks: int = 1,
    images_before_kill: int | None = None,
    disks: Sequence[Path] = (),
    variables: Mapping[str, str] = {},
) -> "Ranks":
    """Start a stage on the CPU; each rank is killed before it writes an image more than `images_before_kill`.

    With `disks`, each rank is a machine of its own, which works in its folder. `variables` are for the environment.
    """
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    processes = []
    for rank in range(num_ranks):
        environment = {"DREAMDISTILL_DEVICE": "cpu", "OMP_NUM_THREADS": "1", **variables}
        if num_ranks > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost"}
            environment |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), "MASTER_PORT": str(port)}
        if disks:
            environment |= {"PWD": str(disks[rank]), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        process = SERVER.Process(target=_run, args=(stage, path, environment, images_before_kill))
        process.start()
        processes.append(process)
    return Ranks(processes)


class Ranks:
    """The processes of one stage."""

    def __init__(self, processes: Sequence[BaseProcess]) -> None:
        self.processes = processes

    def wait(self, timeout_s: float = 60) -> list[int | None]:
        """Wait for all; returns their exit codes."""
        for process in self.processes:
            process.join(timeout_s)
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true or a process has ended."""
        while all(process.is_alive() for process in self.processes) and not condition():
            time.sleep(0.001)

    def kill_after(self, condition: Callable[[], bool], delay_s: float) -> bool:
        """SIGKILL all of them `delay_s` after the condition is true; returns whether all were still running."""
        self.wait_until(condition)
        time.sleep(delay_s)
        for process in self.processes:
            process.kill()
        return self.wait() == [-signal.SIGKILL] * len(self.processes)


def _run(stage: str, path: Path, environment: dict[str, str], images_before_kill: int | None) -> None:
    """Run a stage like its command, without output."""
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), sys.stdout.fileno())
        os.dup2(null.fileno(), sys.stderr.fileno())
    os.environ.update(environment)
    os.chdir(environment.get("PWD", "."))
    torch.set_num_threads(1)
    if images_before_kill is not None:
        _kill_at_image(images_before_kill)
    sys.exit(run([stage, "--config", str(path)]))


def _kill_at_image(num_images: int) -> None:
    """Let this process kill itself when it writes one more than `num_images` images to tars."""
    write, num_written = TarWriter.write, 0

    def write_or_die(self: TarWriter, sample: dict) -> int:
        nonlocal num_written
        if num_written == num_images:
            os.kill(os.getpid(), signal.SIGKILL)
        num_written += 1
        return write(self, sample)

    TarWriter.write = write_or_die
