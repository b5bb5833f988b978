"""All trials as a page: `python -m benchmarks.recipes.table` writes docs/recipes.md and its plot.

The error of a mean is the sample standard deviation over the root of the number of seeds. A recipe helps if it gains
more than two errors of the difference from the `base` of its file.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.harness import REPOSITORY, RESULTS

BASE = "base"
LEAST_SEEDS = 3
RECIPES = REPOSITORY / "benchmarks" / "recipes"
PAGE, PLOT = REPOSITORY / "docs" / "recipes.md", REPOSITORY / "docs" / "recipes.svg"
HEAD = """# Recipes, compared

`python -m benchmarks.recipes.table` writes this page from
[benchmarks/results/recipes](../benchmarks/results/recipes). Each file of [benchmarks/recipes](../benchmarks/recipes)
has one config and one budget, and each of its recipes is a list of overrides. Gains are over the file's `base`.
Errors are standard errors of the mean over seeds; a recipe helps or hurts if its gain is more than two errors of the
difference. Nothing is said of recipes with fewer than three seeds. Where the images took 0 s, another recipe
had made them. On the GPU, several trials ran side by side. `distill.procedural_images` was removed, since it
gained nothing: these were images of random overlapping shapes (dead leaves), which the teacher labels.

![accuracy over compute](recipes.svg)
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A recipe: its trials, and the accuracies of their students in percent."""

    recipe: str
    trials: Sequence[dict[str, Any]]

    @property
    def accuracies(self) -> list[float]:
        """One for each seed, in percent."""
        return [100 * trial["figures"]["student_top1"] for trial in self.trials]

    @property
    def mean(self) -> float:
        """The mean accuracy in percent."""
        return statistics.fmean(self.accuracies)

    @property
    def error(self) -> float:
        """The standard error of the mean, in points; infinite for one seed."""
        count = len(self.trials)
        return statistics.stdev(self.accuracies) / math.sqrt(count) if count > 1 else math.inf

    @property
    def passes(self) -> float:
        """Passes of an image through a network and back: a view is one of the student and a third of the teacher."""
        return float(self.trials[0]["image_steps"] + 4 / 3 * self.trials[0]["views"])

    @property
    def machine(self) -> str:
        """Where the trials ran: the name of the GPU, or that of the CPU and the number of processes."""
        machines = [(trial["machine"], trial["processes"]) for trial in self.trials]
        names = {m["accelerator"] or f"{m['processor']}, {processes} processes" for m, processes in machines}
        return "; ".join(sorted(names))

    def seconds(self, stage: str) -> float:
        """Mean seconds of a stage."""
        return statistics.fmean(trial["figures"].get(f"{stage}_s", 0.0) for trial in self.trials)


def read_rows(folder: Path) -> list[Row]:
    """All recipes with results in a folder, the best first."""
    trials_of = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        trial = json.loads(path.read_text())
        trials_of[trial["recipe"]].append(trial)
    rows = [Row(recipe=recipe, trials=trials) for recipe, trials in trials_of.items()]
    return sorted(rows, key=lambda row: -row.mean)


def verdict(row: Row, base: Row | None) -> str:
    """The gain over `base` in errors of the difference, in words; nothing for fewer than three seeds."""
    if base is None or row is base or min(len(row.trials), len(base.trials)) < LEAST_SEEDS:
        return ""
    error = math.hypot(row.error, base.error)
    gain = row.mean - base.mean
    return "helps" if gain > 2 * error else "hurts" if gain < -2 * error else "no difference"


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    base = next((row for row in rows if row.recipe == BASE), None)
    lines = [
        "| recipe | overrides | seeds | student, % | gain | | synthesis, distillation, s | machine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        overrides = "<br>".join(f"`{override}`" for override in row.trials[0]["overrides"])
        error = "" if math.isinf(row.error) else f" ± {row.error:.2f}"
        seconds = f"{row.seconds('synthesize'):.0f}, {row.seconds('distill'):.0f}"
        gain = "" if base is None else f"{row.mean - base.mean:+.2f}"
        cells = [
            row.recipe,
            overrides,
            str(len(row.trials)),
            f"{row.mean:.2f}{error}",
            gain,
            verdict(row, base),
            seconds,
            row.machine,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def section(name: str, rows: Sequence[Row]) -> str:
    """The part of the page about a file of recipes: its name, its first comment, its table."""
    comment = (RECIPES / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ")
    return f"\n## {name}.yaml\n\n{comment}\n\n{table(rows)}"


def plot(rows_of: Mapping[str, Sequence[Row]]) -> None:
    """Accuracy over compute, one point for each recipe, in one color for each file, as `PLOT`."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (name, rows) in enumerate(rows_of.items()):
        for row in rows:
            error, passes = 0.0 if math.isinf(row.error) else row.error, row.passes / 1e6
            label = name if row is rows[0] else None
            axes.errorbar(passes, row.mean, error, fmt="o", capsize=3, color=f"C{number}", label=label)
            axes.annotate(row.recipe, (passes, row.mean), xytext=(5, 2), textcoords="offset points", fontsize=6)
    axes.legend()
    axes.set(
        xscale="log", xlabel="millions of passes of an image through a network and back", ylabel="student top-1, %"
    )
    figure.savefig(PLOT)


def main() -> None:
    """Write the page and the plot."""
    rows_of = {path.stem: read_rows(RESULTS / "recipes" / path.stem) for path in sorted(RECIPES.glob("*.yaml"))}
    measured = {name: rows for name, rows in rows_of.items() if rows}
    PAGE.write_text(HEAD + "".join(section(name, rows) for name, rows in measured.items()))
    plot(measured)


if __name__ == "__main__":
    main()
