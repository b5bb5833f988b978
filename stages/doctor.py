"""Check a run before it: machine, networks, normalization, images, disk; one line for each, with the fix."""

import sys
import warnings
from collections import Counter
from contextlib import ExitStack

from pipeline.doctor.examine import examine
from pipeline.doctor.findings import Finding, problem
from pipeline.runtime.distributed import (
    DistributedContext,
    exit_process,
    is_color_wanted,
    is_rank_zero,
    open_distributed,
)
from stages.command import FAILED, INTERRUPTED, fail, parse_arguments, read_config, show_warning


def main() -> None:
    """Print a line for each finding as it is made, and exit: 0 without a problem, 2 with one."""
    arguments = parse_arguments(__doc__ or "")
    warnings.showwarning = show_warning
    try:
        config = read_config(arguments)
    except (ValueError, OSError) as error:
        fail(error, str(error), is_common=True)
    counts: Counter[str] = Counter()

    def report(finding: Finding) -> None:
        counts[finding.status] += 1
        print(finding.line(is_colored=sys.stdout.isatty() and is_color_wanted()), flush=True)

    with ExitStack() as resources:
        try:
            context = resources.enter_context(open_distributed())
        except ValueError as error:
            if not is_rank_zero():
                exit_process(FAILED)
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


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
