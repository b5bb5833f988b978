"""Check a run before it: machine, networks, normalization, images, disk; one line for each, with the fix."""

import sys
import warnings
from argparse import Namespace
from collections import Counter
from contextlib import ExitStack

from pipeline.doctor.examine import examine
from pipeline.doctor.findings import Finding, problem
from pipeline.runtime.distributed import DistributedContext, exit_process, open_distributed
from pipeline.runtime.environment import is_color_wanted, is_rank_zero, launcher_reports_errors, ranks_of_torchrun
from stages.outcome import FAILED
from stages.stage import read_config, show_warning


def main(arguments: Namespace) -> None:
    """Print a line for each finding as it is made; exits with 2 if there is a problem."""
    warnings.showwarning = show_warning
    config = read_config(arguments)
    if arguments.processes > 1 and not launcher_reports_errors():
        from stages.launch import launch_ranks

        return launch_ranks(arguments.processes, arguments.words)
    counts: Counter[str] = Counter()

    def report(finding: Finding) -> None:
        counts[finding.status] += 1
        print(finding.line(is_colored=sys.stdout.isatty() and is_color_wanted()), flush=True)

    with ExitStack() as resources:
        try:
            context = resources.enter_context(open_distributed())
        except ValueError as error:
            if not is_rank_zero():
                _, size, _, local_size = ranks_of_torchrun()
                if size > local_size:  # rank 0 may be on a machine without this error, and would wait
                    exit_process(FAILED)
                return  # rank 0 has met the same error; a failure here would end it before it has reported
            report(problem("device", f"{error}; the other checks use the CPU"))
            context = DistributedContext()
        if context.is_main_process:
            print(f"doctor: {config.name} ({arguments.config})", flush=True)
            for finding in examine(config, context):
                report(finding)
            print("doctor: " + ", ".join(f"{counts[status]} {status}" for status in ("ok", "warning", "problem")))
        context.barrier()
    if counts["problem"]:
        exit_process(FAILED)
