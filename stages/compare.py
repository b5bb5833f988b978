"""Compare runs: what differs in their configurations, their figures, and their curves over each other."""

from argparse import Namespace

from pipeline.report.comparison import comparison_csv, comparison_lines, render_comparison
from pipeline.report.summary import read_summary
from pipeline.runtime.files import write_sealed_text, write_text
from pipeline.runtime.text import printable
from stages.arguments import PROGRAM


def main(arguments: Namespace) -> None:
    """Print the table of some runs, and write `compare.html` and `compare.csv`."""
    names = list(dict.fromkeys(arguments.runs))
    if len(names) < 2:
        named = f"{' '.join(arguments.runs)}: " if names else ""
        raise ValueError(f'{named}name at least two different runs: {PROGRAM} compare a b (make: RUNS="a b")')
    runs = [read_summary(name, arguments.checkpoints_dir, arguments.shards_dir) for name in names]
    folder = arguments.output or arguments.checkpoints_dir
    print(*map(printable, comparison_lines(runs)), sep="\n")
    for run in runs:
        print(*(f"{run.name}: {note}" for note in run.notes), sep="\n", end="\n" if run.notes else "")
    write_sealed_text(folder / "compare.html", render_comparison(runs))
    write_text(folder / "compare.csv", comparison_csv(runs))
    print(f"compare: {folder / 'compare.html'}, {folder / 'compare.csv'}")
