"""What every stage does on the command line: read the config, open the world, turn errors into one clear line."""

import argparse
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from pipeline.files import exclusive_lock
from pipeline.run import load_run
from pipeline.session import Session, open_session
from pipeline.world import open_world

Stage = Callable[[Session, int | None], None]
INTERRUPTED = 130


def run_stage(stage: Stage, description: str, *, exclusive: bool = True) -> None:
    """Parse `--config`, `--set` and `--round`, run the stage, and exit: 0 done, 2 an error, 130 interrupted.

    Of the stages that are `exclusive`, only one at a time works on a run.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, default=Path("configs/digits.yaml"), help="the run's YAML file")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="override keys, e.g. seed=1")
    parser.add_argument(
        "--round", type=int, default=None, help="one round; by default the next one that has work to do"
    )
    arguments = parser.parse_args()
    warnings.showwarning = _show_warning
    try:
        with open_world() as world:
            config = load_run(arguments.config, arguments.set)
            _check_round(arguments.round, config.synthesis.rounds)
            lock = exclusive_lock(config.checkpoints / ".lock") if exclusive and world.is_leader else nullcontext()
            with lock, open_session(config, world) as session:
                stage(session, arguments.round)
    except torch.OutOfMemoryError as error:
        print(f"error: the device is out of memory; lower batch_size ({error})", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {_message(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _message(error: Exception) -> str:
    """The error's text, without the number that Python puts before our own words for an OSError."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror
    return str(error)


def _check_round(round_index: int | None, num_rounds: int) -> None:
    if round_index is not None and not 0 <= round_index < num_rounds:
        raise ValueError(f"--round {round_index}: synthesis.rounds={num_rounds} has rounds 0 to {num_rounds - 1}")


def _show_warning(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
