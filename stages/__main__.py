"""The entry of `dreamdistill` and of `python -m stages`. It imports nothing before it can be interrupted."""

import sys


def main() -> None:
    """Run the command line of this process, and exit with its code, also when it is interrupted during the imports."""
    try:
        from pipeline.runtime.environment import ends_with_parent
        from pipeline.runtime.shutdown import handle_termination
        from stages.outcome import exit_terminated

        handle_termination(exit_terminated, ends_with_parent=ends_with_parent())
        # The current folder, for `python:MODULE:FUNCTION`; last, so that no folder of a user hides our packages.
        sys.path.append("")
        from stages.command_line import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt as interrupt:
        from stages.outcome import report_interrupt

        code = report_interrupt(interrupt)
    sys.exit(code)


if __name__ == "__main__":
    main()
