"""What every stage does on the command line: read the config, open the world, turn errors into one clear line."""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from pipeline.run import RunConfig, load_run
from pipeline.runtime.config import to_plain
from pipeline.runtime.distributed import World, is_device_named, is_launcher_telling, is_leading, leave, open_world
from pipeline.runtime.files import exclusive_lock
from pipeline.runtime.fingerprint import fingerprint
from pipeline.runtime.hardware import device_name, unusable_driver
from pipeline.session import Session, open_session

Stage = Callable[[Session, int | None], None]
FAILED, INTERRUPTED = 2, 130
# What a worker that lost another one waits, so that the other's reason is known first.
LAST_WORDS_S = 5.0


def run_stage(stage: Stage, description: str, *, exclusive: bool = True) -> None:
    """Parse `--config`, `--set` and `--round`, run the stage, and exit: 0 done, 2 an error, 130 interrupted.

    Of the stages that are `exclusive`, only one at a time works on a run.
    """
    arguments = parse_arguments(description)
    warnings.showwarning = _show_warning
    try:
        config = read_config(arguments)  # before the workers meet
    except (ValueError, OSError) as error:
        fail(error, _message(error), is_everyones=True)
    try:
        with open_world() as world, ExitStack() as resources:
            if exclusive and world.is_leader:
                for folder in {f.resolve(): f for f in (config.checkpoints, config.shards)}.values():  # may be one
                    resources.enter_context(exclusive_lock(folder / ".lock"))
            session = resources.enter_context(open_session(config, world))
            same = fingerprint(to_plain(session.config))
            world.require_same(same, "what auto is for precision or compile on its machine; name both in the config")
            if world.is_leader:
                print(_start_line(session.config, world), flush=True)
            stage(session, arguments.round)
    except torch.OutOfMemoryError as error:
        fail(error, f"the device is out of memory; lower batch_size, or memory_gib of held images ({error})")
    except (ValueError, OSError, FloatingPointError) as error:
        fail(error, _message(error))
    except KeyboardInterrupt:
        if not is_launcher_telling():
            print("interrupted; the same command goes on from here", file=sys.stderr)
        leave(INTERRUPTED)


def parse_arguments(description: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What every stage is told, by default on this process's command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, default=Path("configs/digits.yaml"), help="the run's YAML file")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override keys, e.g. seed=1"
    )
    parser.add_argument(
        "--round", type=int, default=None, help="one round; by default the next one that has work to do"
    )
    return parser.parse_args(arguments)


def read_config(arguments: argparse.Namespace) -> RunConfig:
    """The configuration that the arguments name; raises ConfigError, ValueError for a round that it has not."""
    config, round_index = load_run(arguments.config, arguments.set), arguments.round
    num_rounds = config.synthesis.rounds
    if round_index is not None and not 0 <= round_index < num_rounds:
        raise ValueError(f"--round {round_index}: synthesis.rounds={num_rounds} has rounds 0 to {num_rounds - 1}")
    return config


def fail(error: Exception, message: str, *, is_everyones: bool = False) -> NoReturn:
    """Exit with one line about the error, told once: by the launcher, or by the leader where it `is_everyones`."""
    if isinstance(error, ConnectionError):
        time.sleep(LAST_WORDS_S)
    if is_launcher_telling():
        get_error_handler().record_exception(RuntimeError(message))
    elif is_leading() or not is_everyones:
        print(f"error: {message}", file=sys.stderr)
    leave(FAILED)


def _start_line(config: RunConfig, world: World) -> str:
    """What the stage runs on, and how: nobody should learn from the clock that a GPU was not used."""
    threads, each = torch.get_num_threads(), " each" if world.size > 1 else ""
    work = {
        "teacher": config.teacher_training,
        "synthesis": config.synthesis.inversion,
        "distillation": config.distill,
    }
    ways = [f"{name} in {c.precision}, {'' if c.compile else 'un'}compiled" for name, c in work.items() if c]
    driver = unusable_driver() if world.device.type == "cpu" and not is_device_named() else None
    return (
        f"on {device_name(world.device)}: {_counted(world.size, 'worker')} with {_counted(threads, 'thread')}{each}; "
        + "; ".join(ways)
        + (f"\nthe NVIDIA driver of this machine is not used: {driver}" if driver else "")
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _message(error: Exception) -> str:
    """The error's text, without the number that Python puts before our own words for an OSError."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror
    return str(error)


def _show_warning(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    if is_leading():
        print(f"warning: {message}", file=sys.stderr)
