"""Run a stage in several workers on this machine, under torchrun: what `make NPROC=N` does.

    python -m stages.workers 4 synthesize --config configs/digits.yaml

A mistake in the config is told once, before there are workers, and a worker that fails in one line.
"""

import argparse
import logging
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args
from torch.distributed.run import run as launch

from pipeline.world import choose_device, share_cores
from stages.command import FAILED, INTERRUPTED, fail, parse_arguments, read_config


def main() -> None:
    """Check what can be checked, start the workers, wait for them, and exit as the first that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("num_workers", type=int)
    parser.add_argument("stage")
    own, arguments = parser.parse_known_args()
    try:
        if own.num_workers < 1:
            raise ValueError(f"NPROC={own.num_workers}: there is no such number of workers; use 1 or more")
        read_config(parse_arguments("", arguments))
        choose_device(0, own.num_workers)
    except (ValueError, OSError) as error:
        fail(error, str(error))
    share_cores(own.num_workers)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it logs each failure with a trace
    command = ["--standalone", "--nproc-per-node", str(own.num_workers), "-m", f"stages.{own.stage}"]
    try:
        launch(parse_args([*command, *arguments]))
    except ChildFailedError as error:
        _tell(*_first_failure(error))
    except (SignalException, KeyboardInterrupt):
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _first_failure(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The worker that failed first; the others lose their connection to it."""
    return min(error.failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))


def _tell(rank: int, failure: ProcessFailure) -> None:
    """Say why the worker failed, and exit as it did."""
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        print(f"error: worker {rank} was killed ({name}); the same command goes on from here", file=sys.stderr)
        sys.exit(FAILED)
    told = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    print(f"error: {told.removeprefix('RuntimeError: ')}", file=sys.stderr)
    sys.exit(failure.exitcode)


if __name__ == "__main__":
    main()
