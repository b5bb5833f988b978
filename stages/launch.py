"""Launch a command in several processes on this machine, with torchrun: what `--processes N` does.

A mistake in the config is reported before, by the process that launches; the failure of a process in one line.
"""

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args
from torch.distributed.run import run as launch

from pipeline.runtime.environment import prepare_launch
from pipeline.runtime.text import printable
from pipeline.runtime.threads import threads_per_process
from stages.outcome import FAILED, INTERRUPTED, INTERRUPTED_LINE

# What a rank runs. With `-m stages`, a folder `stages` or `pipeline` where the user works would come before ours.
ENTRY = f"import sys; sys.path[0] = {str(Path(__file__).parents[1])!r}; from stages.__main__ import main; main()"


def launch_ranks(num_processes: int, words: Sequence[str]) -> None:
    """Start the command of these words in every process, wait for all, and exit with the code of the first failure."""
    prepare_launch(threads_per_process(num_processes))
    logging.disable()  # torchrun logs each failure and signal, with a trace
    command = ["--no-python", sys.executable, "-u", "-c", ENTRY, *words]
    try:
        launch(parse_args(["--standalone", "--nproc-per-node", str(num_processes), *command]))
    except ChildFailedError as error:
        _report(*_first_failure(error))
    except (SignalException, KeyboardInterrupt):
        print(f"{INTERRUPTED_LINE}, training from its last saved state", file=sys.stderr)
        sys.exit(INTERRUPTED)


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
        print(f"error: {printable(failure.message['message'].removeprefix('RuntimeError: '))}", file=sys.stderr)
    else:
        print(f"error: rank {rank} ended with {failure.exitcode}; its last lines are above", file=sys.stderr)
    sys.exit(failure.exitcode)
