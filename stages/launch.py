"""Launch a stage in several processes on this machine, with torchrun: what `make NPROC=N` does.

    python -m stages.launch 4 synthesize --config configs/digits.yaml

A mistake in the config is reported once, before there are processes; the failure of a process is reported in one line.
"""

import argparse
import logging
import signal
import sys
import warnings
from collections.abc import Iterable

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args
from torch.distributed.run import run as launch

from pipeline.run import RunConfig
from pipeline.runtime.distributed import choose_device, prepare_launch
from stages.clean import planned_removals
from stages.command import FAILED, INTERRUPTED, fail, parse_arguments, preview_run, read_config, show_warning


def main() -> None:
    """Check the arguments, start the processes, wait for them, and exit with the code of the first that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("num_processes")
    parser.add_argument("stage")
    own, arguments = parser.parse_known_args()
    try:
        num_processes = int(own.num_processes) if own.num_processes.isdigit() else 0
        if num_processes < 1:
            raise ValueError(f"NPROC={own.num_processes} is not a number of processes; use 1 or more")
        stage_arguments = parse_arguments("", arguments)
        if stage_arguments.dry_run:
            warnings.showwarning = show_warning
        else:
            warnings.simplefilter("ignore")  # rank 0 shows them
        config = read_config(stage_arguments)
        choose_device(0, num_processes)
        if stage_arguments.dry_run:
            print(*_preview(own.stage, config, stage_arguments.round, num_processes), sep="\n")
            return
    except (ValueError, OSError) as error:
        fail(error, str(error))
    prepare_launch(num_processes)
    logging.disable()  # torchrun logs each failure and signal, with a trace
    command = ["--standalone", "--nproc-per-node", str(num_processes), "-m", f"stages.{own.stage}"]
    try:
        launch(parse_args([*command, *arguments]))
    except ChildFailedError as error:
        _report(*_first_failure(error))
    except (SignalException, KeyboardInterrupt):
        print(
            "interrupted; run the same command again to continue, training from its last saved state", file=sys.stderr
        )
        sys.exit(INTERRUPTED)


def _preview(stage: str, config: RunConfig, round_index: int | None, num_processes: int) -> Iterable[str]:
    if stage == "clean":
        return planned_removals(config, round_index)
    config.distill.require_even_shares(num_processes)
    return preview_run(config)


def _first_failure(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The rank that failed first; torchrun ends the others with SIGTERM, and later with SIGKILL."""
    return min(error.failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].timestamp))


def _report(rank: int, failure: ProcessFailure) -> None:
    """Print why the rank failed, and exit with its code."""
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        print(f"error: rank {rank} was killed ({name}); run the same command again to continue", file=sys.stderr)
        sys.exit(FAILED)
    if isinstance(failure.message, dict):  # from `fail`
        print(f"error: {failure.message['message'].removeprefix('RuntimeError: ')}", file=sys.stderr)
    else:
        print(f"error: rank {rank} ended with {failure.exitcode}; its last lines are above", file=sys.stderr)
    sys.exit(failure.exitcode)


if __name__ == "__main__":
    main()
