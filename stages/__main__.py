"""The entry of `dreamdistill` and of `python -m stages`. It imports nothing before it can be interrupted."""

import sys


def main() -> None:
    """Run the command line of this process, and exit with its code, also when it is interrupted during the imports."""
    try:
        # The current folder, for `python:MODULE:FUNCTION`; last, so that no folder of a user hides our packages.
        sys.path.append("")
        from stages.command_line import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        from stages.outcome import INTERRUPTED, print_interrupted

        print_interrupted()
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
