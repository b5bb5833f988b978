"""Run a stage in several workers on this machine, under torchrun: what `make NPROC=N` does.

    python -m stages.workers 4 synthesize --config configs/digits.yaml

A mistake in the config is told once, before there are workers, and a worker that fails in one line.
"""

import argparse
import logging
import signal
import sys
import warnings

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args
from torch.distributed.run import run as launch

from pipeline.runtime.distributed import choose_device, share_cores
from stages.command import FAILED, INTERRUPTED, fail, parse_arguments, read_config


def main() -> None:
    """Check what can be checked, start the workers, wait for them, and exit as the first that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("num_workers")
    parser.add_argument("stage")
    own, arguments = parser.parse_known_args()
    warnings.simplefilter("ignore")  # the workers' leader tells them
    try:
        num_workers = int(own.num_workers) if own.num_workers.isdigit() else 0
        if num_workers < 1:
            raise ValueError(f"NPROC={own.num_workers}: there is no such number of workers; use 1 or more")
        read_config(parse_arguments("", arguments))
        choose_device(0, num_workers)
    except (ValueError, OSError) as error:
        fail(error, str(error))
    share_cores(num_workers)
    logging.disable()  # torchrun logs each failure and signal, with a trace
    command = ["--standalone", "--nproc-per-node", str(num_workers), "-m", f"stages.{own.stage}"]
    try:
        launch(parse_args([*command, *arguments]))
    except ChildFailedError as error:
        _tell(*_first_failure(error))
    except (SignalException, KeyboardInterrupt):
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _first_failure(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The worker that failed first; torchrun ends the others with SIGTERM, and later with SIGKILL."""
    return min(error.failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].timestamp))


def _tell(rank: int, failure: ProcessFailure) -> None:
    """Say why the worker failed, and exit as it did."""
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        print(f"error: worker {rank} was killed ({name}); the same command goes on from here", file=sys.stderr)
        sys.exit(FAILED)
    if isinstance(failure.message, dict):  # from `fail`
        print(f"error: {failure.message['message'].removeprefix('RuntimeError: ')}", file=sys.stderr)
    else:
        print(f"error: worker {rank} ended with {failure.exitcode}; its own last lines are above", file=sys.stderr)
    sys.exit(failure.exitcode)


if __name__ == "__main__":
    main()
