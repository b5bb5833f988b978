"""Compare runs: what differs in their configurations, their figures, and their curves over each other."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.report.comparison import comparison_csv, comparison_lines, read_summary, render_comparison
from pipeline.runtime.files import write_text
from stages.command import fail


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of some runs, and write `compare.html` and `compare.csv`; exits with 2 for a run without one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="names of runs, or paths of their checkpoints folders")
    parser.add_argument("--checkpoints-dir", type=Path, default=Path("checkpoints"), help="the folder of the runs")
    parser.add_argument("--output", type=Path, help="the folder to write to; by default that of the runs")
    options = parser.parse_args(arguments)
    try:
        if len(set(options.runs)) < 2:
            raise ValueError(f"{' '.join(options.runs)}: name at least two different runs to compare")
        runs = [read_summary(name, options.checkpoints_dir) for name in dict.fromkeys(options.runs)]
        folder = options.output or options.checkpoints_dir
        write_text(folder / "compare.html", render_comparison(runs))
        write_text(folder / "compare.csv", comparison_csv(runs))
    except (ValueError, OSError) as error:
        fail(error, str(error))
    print(*comparison_lines(runs), sep="\n")
    for run in runs:
        print(*(f"{run.name}: {note}" for note in run.notes), sep="\n", end="\n" if run.notes else "")
    print(f"compare: {folder / 'compare.html'}, {folder / 'compare.csv'}")


if __name__ == "__main__":
    main()
