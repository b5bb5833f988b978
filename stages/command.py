"""The command line of every stage: reads the config, opens the context, and turns errors into one clear line."""

import argparse
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from pipeline.preview import planned_outputs
from pipeline.run import RunConfig, load_run, resolve, resolved_yaml
from pipeline.runtime.config import to_plain
from pipeline.runtime.distributed import (
    DistributedContext,
    choose_device,
    exit_process,
    is_device_named,
    is_rank_zero,
    launcher_reports_errors,
    open_distributed,
)
from pipeline.runtime.files import exclusive_lock
from pipeline.runtime.fingerprint import fingerprint
from pipeline.runtime.hardware import device_name, num_free_cores, unusable_driver
from pipeline.session import Session, check_networks, open_session

Stage = Callable[[Session, int | None], None]
# The lines that `--dry-run` prints for a configuration and a round.
Preview = Callable[[RunConfig, int | None], Iterable[str]]
FAILED, INTERRUPTED = 2, 130
LOCK_NAME = ".lock"
# A rank that lost another one waits, so that the launcher hears the reason of the other one first.
WAIT_FOR_REASON_S = 5.0


def preview_run(config: RunConfig, round_index: int | None = None) -> Iterator[str]:
    """The configuration as it would run here, and the outputs of the run; raises ValueError for a wrong network."""
    resolved = resolve(config, choose_device(0, 1))
    check_networks(resolved, download=False)
    yield resolved_yaml(resolved)
    yield from planned_outputs(resolved)


def run_stage(stage: Stage, description: str, *, exclusive: bool = True, preview: Preview = preview_run) -> None:
    """Parse the command line, run the stage, and exit: 0 done, 2 an error, 130 interrupted.

    Only one of the `exclusive` stages at a time works on a run. `preview` gives what `--dry-run` prints.
    """
    arguments = parse_arguments(description)
    warnings.showwarning = show_warning
    try:
        config = read_config(arguments)  # before the ranks connect
        if arguments.dry_run:
            return _print_on_rank_zero(preview(config, arguments.round))
    except (ValueError, OSError) as error:
        fail(error, _message(error), is_common=True)
    try:
        with open_distributed() as context, ExitStack() as resources:
            if exclusive and context.is_main_process:
                for folder in {f.resolve(): f for f in (config.checkpoints, config.shards)}.values():  # may be equal
                    resources.enter_context(exclusive_lock(folder / LOCK_NAME))
            session = resources.enter_context(open_session(config, context, make_command(arguments)))
            context.require_same(
                fingerprint(to_plain(session.config)),
                "the value of auto for precision or compile on its machine; set both in the config",
            )
            if context.is_main_process:
                print(_start_line(session.config, context), flush=True)
            stage(session, arguments.round)
    except torch.OutOfMemoryError as error:
        fail(error, f"the device is out of memory; lower batch_size, or memory_gib for cached images ({error})")
    except (ValueError, OSError, FloatingPointError) as error:
        fail(error, _message(error))
    except KeyboardInterrupt:
        if not launcher_reports_errors():
            print("interrupted; run the same command again to continue", file=sys.stderr)
        exit_process(INTERRUPTED)


def parse_arguments(description: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a stage, by default those of this process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, default=Path("configs/digits.yaml"), help="the YAML file of the run")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override keys, e.g. seed=1"
    )
    parser.add_argument(
        "--round", type=int, default=None, help="the round; by default the next one that is not finished"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and the outputs of the run, and stop"
    )
    return parser.parse_args(arguments)


def make_command(arguments: argparse.Namespace) -> str:
    """The command that repeats the run."""
    settings = f" SET={shlex.quote(' '.join(arguments.set))}" if arguments.set else ""
    return f"make CONFIG={shlex.quote(str(arguments.config))}{settings}"


def read_config(arguments: argparse.Namespace) -> RunConfig:
    """The configuration of the arguments; raises ConfigError, and ValueError for a round that does not exist."""
    config, round_index = load_run(arguments.config, arguments.set), arguments.round
    num_rounds = config.synthesis.rounds
    if round_index is not None and not 0 <= round_index < num_rounds:
        raise ValueError(f"--round {round_index}: synthesis.rounds={num_rounds} has rounds 0 to {num_rounds - 1}")
    return config


def _print_on_rank_zero(lines: Iterable[str]) -> None:
    if is_rank_zero():
        print(*lines, sep="\n")


def fail(error: Exception, message: str, *, is_common: bool = False) -> NoReturn:
    """Exit with one line about the error, which the launcher reports, or rank 0 if the error `is_common` to all."""
    if isinstance(error, ConnectionError):
        time.sleep(WAIT_FOR_REASON_S)
    if launcher_reports_errors():
        get_error_handler().record_exception(RuntimeError(message))
    elif is_rank_zero() or not is_common:
        print(f"error: {message}", file=sys.stderr)
    exit_process(FAILED)


def _start_line(config: RunConfig, context: DistributedContext) -> str:
    """The device, the processes and the precision of the stage, so that an unused GPU is noticed."""
    threads, each = torch.get_num_threads(), " each" if context.size > 1 else ""
    sections = {
        "teacher": config.teacher_training,
        "synthesis": config.synthesis.inversion,
        "distillation": config.distill,
    }
    settings = [f"{name} in {c.precision}, {'' if c.compile else 'un'}compiled" for name, c in sections.items() if c]
    driver_problem = unusable_driver() if context.device.type == "cpu" and not is_device_named() else None
    return (
        f"on {device_name(context.device)}: {counted(context.size, 'process')} with "
        f"{counted(threads, 'thread')}{each}; "
        + "; ".join(settings)
        + (f"\nthe NVIDIA driver of this machine is not used: {driver_problem}" if driver_problem else "")
        + (_load_line(threads, context) if context.device.type == "cpu" else "")
    )


def _load_line(num_threads: int, context: DistributedContext) -> str:
    """A line about too few free cores for the threads of a process, which wait for each other by spinning."""
    num_free, num_wanted = num_free_cores(), num_threads * context.local_size
    if num_free is None or num_free >= num_wanted or num_threads == 1:
        return ""
    return (
        f"\nthe load of the last minute left {counted(num_free, 'core')} free for {counted(num_wanted, 'thread')}; if "
        "other programs still compute, this run is many times as slow: wait, or set OMP_NUM_THREADS="
        f"{max(1, num_free // context.local_size)}"
    )


def counted(count: int, noun: str) -> str:
    """The count and the noun in its number: `1 process`, `2 processes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def _message(error: Exception) -> str:
    """The text of the error, without the number that Python puts before our own text of an OSError."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror
    return str(error)


def show_warning(message: Warning | str, category: type[Warning], *location: object, **details: object) -> None:
    """Print a warning of rank 0 in one line; takes the place of `warnings.showwarning`."""
    if is_rank_zero():
        print(f"warning: {message}", file=sys.stderr)
