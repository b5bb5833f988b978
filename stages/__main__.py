"""The entry of `dreamdistill` and of `python -m stages`."""

import sys
from typing import NoReturn

from pipeline.runtime.environment import launcher_reports_errors
from stages.outcome import INTERRUPTED, INTERRUPTED_LINE


def main() -> NoReturn:
    """Run the command line of this process, and exit with its code, also when it is interrupted during the imports."""
    try:
        # The current folder, for `python:MODULE:FUNCTION`; last, so that no folder of a user hides our packages.
        sys.path.append("")
        from stages.command_line import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        if not launcher_reports_errors():
            print(INTERRUPTED_LINE, file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
