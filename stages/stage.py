"""How a stage runs: reads the config, opens the context, and turns errors into one clear line."""

import shlex
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from tqdm import tqdm

from pipeline.copies import open_object_store, pull_outputs
from pipeline.distillation.config import TrainingConfig
from pipeline.distillation.state import TrainState
from pipeline.preview import planned_outputs
from pipeline.resolve import resolve
from pipeline.run import RunConfig, load_run, resolved_yaml
from pipeline.runtime.config import to_plain
from pipeline.runtime.device import is_out_of_memory
from pipeline.runtime.distributed import DistributedContext, choose_device, exit_process, open_distributed
from pipeline.runtime.environment import (
    is_rank_zero,
    is_restarted,
    is_under_torchrun,
    launcher_reports_errors,
    name_device,
    named_device,
)
from pipeline.runtime.fingerprint import fingerprint
from pipeline.runtime.hardware import advice_on_address_limit, device_name, num_free_cores, unusable_driver
from pipeline.runtime.locks import exclusive_lock
from pipeline.runtime.text import printable
from pipeline.session import Session, check_networks, open_session
from pipeline.synthesis.config import InversionConfig
from stages.config_names import config_path
from stages.outcome import FAILED, error_text, print_error, report_interrupt

Stage = Callable[[Session, int | None], None]
LOCK_NAME = ".lock"
# How long a network file system keeps the locks of a machine that is lost (NFS 4: 90 s).
LOST_LOCK_S = 120.0
# A rank that lost another one waits, so that the launcher hears the reason of the other one first.
WAIT_FOR_REASON_S = 5.0


def preview_run(config: RunConfig, arguments: Namespace) -> Iterator[str]:
    """The configuration as it would run here, and the outputs of the run; raises ValueError for a wrong network."""
    config.distill.require_even_shares(arguments.processes)
    resolved = resolve(config, choose_device(0, arguments.processes))
    check_networks(resolved, arguments.processes, download=False)
    yield resolved_yaml(resolved)
    yield from planned_outputs(resolved)


def run_stage(stage: Stage, arguments: Namespace, *, exclusive: bool = True) -> None:
    """Run a stage with the arguments of its command, in processes of its own if there are to be several.

    Exits with 2 after an error, 130 after Ctrl-C and 143 after SIGTERM. Only one of the `exclusive` stages at a time
    works on a run.
    """
    launches = arguments.processes > 1 and not launcher_reports_errors()
    warnings.showwarning = show_warning
    if launches and not arguments.dry_run:
        warnings.simplefilter("ignore")  # rank 0 shows them
    try:
        config = read_config(arguments)  # before the ranks connect
        if arguments.dry_run:
            return _print_on_rank_zero(preview_run(config, arguments))
        if launches:
            choose_device(0, arguments.processes)
    except (ValueError, OSError) as error:
        fail(error, is_common=True)
    if launches:
        from stages.launch import launch_ranks

        return launch_ranks(arguments.processes, arguments.words)
    try:
        _run_in_session(stage, config, arguments, exclusive)
    except KeyboardInterrupt as interrupt:
        exit_process(report_interrupt(interrupt))


def _run_in_session(stage: Stage, config: RunConfig, arguments: Namespace, exclusive: bool) -> None:
    try:
        with open_distributed() as context, ExitStack() as resources:
            if exclusive and context.is_main_process:
                resources.enter_context(lock_run(config))
            get_outputs(config, context, with_states=exclusive)
            session = resources.enter_context(open_session(config, context, run_command(arguments)))
            context.require_same(
                fingerprint(to_plain(session.config)),
                "the value of auto for precision or compile on its machine; set both in the config",
            )
            if context.is_main_process:
                print(_start_line(session.config, context), flush=True)
                if exclusive and session.object_store is not None:
                    session.object_store.require_writable(config.checkpoints)
            stage(session, arguments.round)
    except (ValueError, OSError, FloatingPointError) as error:
        fail(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fix = f"{advice_on_address_limit()}lower batch_size, or memory_gib for cached images"
        fail(error, f"the memory is full; {fix} ({_in_one_line(error)})")


@contextmanager
def announced_stop(stage_name: str, state: TrainState) -> Iterator[None]:
    """Print which step of an interrupted training is saved."""
    try:
        yield
    except KeyboardInterrupt:
        if state.is_saved:
            print(f"{stage_name}: step {state.step:,} is saved", flush=True)
        raise


def get_outputs(config: RunConfig, context: DistributedContext, *, with_states: bool = True) -> None:
    """Get what is in the object store and not on the disk of this machine; see `pull_outputs`."""
    if (store := open_object_store(config)) is None:
        return
    is_main = context.is_main_process
    # Machines that share a disk with the main process find there what that one got.
    for is_turn in (is_main, context.is_first_of_machine and not is_main):
        for path in pull_outputs(config, store, with_states=with_states, is_main_process=is_main) if is_turn else ():
            print(f"got {path} from {store.address(path)}", flush=True)
        context.barrier()


def share_outputs(session: Session) -> None:
    """Let machines without a common disk have what the main process has made, if the run has an object store."""
    if session.context.size > session.context.local_size:
        get_outputs(session.config, session.context)


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def lock_run(config: RunConfig) -> Iterator[None]:
    """Keep the folders of a run to this process; raises ValueError when another one has them."""
    with ExitStack() as locks:
        for folder in {f.resolve(): f for f in (config.checkpoints, config.shards)}.values():  # may be equal
            locks.enter_context(exclusive_lock(folder / LOCK_NAME, LOST_LOCK_S if is_restarted() else 0.0))
        yield


def run_command(arguments: Namespace) -> str:
    """The command that repeats the run."""
    processes = ["--processes", str(arguments.processes)] if arguments.processes > 1 else []
    return shlex.join(["dreamdistill", "run", "--config", arguments.config, *arguments.overrides, *processes])


def read_config(arguments: Namespace) -> RunConfig:
    """The configuration of the arguments, whose device becomes that of this process.

    Raises ConfigError, and ValueError for a round that does not exist or for processes that torchrun already started.
    """
    if arguments.processes > 1 and is_under_torchrun() and not launcher_reports_errors():
        raise ValueError(f"--processes {arguments.processes}: torchrun has started the processes; leave it out")
    if arguments.device is not None:
        name_device(arguments.device)
    config, round_index = load_run(config_path(arguments.config), arguments.overrides), arguments.round
    num_rounds = config.num_rounds
    if round_index is not None and not 0 <= round_index < num_rounds:
        raise ValueError(f"--round {round_index}: synthesis.rounds={num_rounds} has rounds 0 to {num_rounds - 1}")
    return config


def _print_on_rank_zero(lines: Iterable[str]) -> None:
    if is_rank_zero():
        print(*lines, sep="\n")


def fail(error: Exception, message: str | None = None, *, is_common: bool = False) -> NoReturn:
    """Exit with one line about the error, which the launcher reports, or rank 0 if the error `is_common` to all."""
    message = message or error_text(error)
    if isinstance(error, ConnectionError):
        time.sleep(WAIT_FOR_REASON_S)
    if launcher_reports_errors():
        get_error_handler().record_exception(RuntimeError(message))
    else:
        print_error(message, is_common=is_common)
    exit_process(FAILED)


def _computation(section: TrainingConfig | InversionConfig) -> str:
    """How the steps of a resolved section are computed, in words."""
    graphs = " in CUDA graphs" if section.cuda_graphs else ""
    return f"{section.precision}, {'compiled' if section.compile else 'uncompiled'}{graphs}"


def _start_line(config: RunConfig, context: DistributedContext) -> str:
    """The device, the processes and how each part is computed, so that an unused GPU is noticed."""
    threads, each = torch.get_num_threads(), " each" if context.size > 1 else ""
    sections = {
        "teacher": config.teacher_training,
        "synthesis": config.synthesis.inversion,
        "distillation": config.distill,
    }
    settings = [f"{name} in {_computation(section)}" for name, section in sections.items() if section]
    driver_problem = unusable_driver() if context.device.type == "cpu" and named_device() is None else None
    return (
        f"on {device_name(context.device)}: {counted(context.size, 'process')} with "
        f"{counted(threads, 'thread')}{each}; "
        + "; ".join(settings)
        + (f"\nthe NVIDIA driver of this machine is not used: {driver_problem}" if driver_problem else "")
        + (_load_line(threads, context) if context.device.type == "cpu" else "")
    )


def _load_line(num_threads: int, context: DistributedContext) -> str:
    """A line about too few free cores for the threads of a process, which wait for each other by spinning."""
    num_free, all_threads = num_free_cores(), num_threads * context.local_size
    if num_free is None or num_free >= all_threads or num_threads == 1:
        return ""
    return (
        f"\nthe load of the last minute left {counted(num_free, 'core')} free for {counted(all_threads, 'thread')}; if "
        "other programs still compute, this run is many times as slow: wait, or set OMP_NUM_THREADS="
        f"{max(1, num_free // context.local_size)}"
    )


def counted(count: int, noun: str) -> str:
    """The count and the noun in its number: `1 process`, `2 processes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def show_warning(message: Warning | str, category: type[Warning], *location: object, **details: object) -> None:
    """Print a warning of rank 0 in one line; takes the place of `warnings.showwarning`."""
    if is_rank_zero():
        tqdm.write(f"warning: {printable(str(message))}", file=sys.stderr)  # above a bar, if there is one
