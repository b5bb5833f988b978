"""Faults of many kinds, each survived or named: SIGKILL, damaged bytes, full disks, hostile files, random inputs.

    python -m benchmarks.faults CAMPAIGN [--number N] [--every K] [--minutes M] [--seed S] [--folder FOLDER]

A campaign that is interrupted continues with the same FOLDER, commit and seed. Writes results/faults/CAMPAIGN.json.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.faults.disks import disks
from benchmarks.faults.flips import flips
from benchmarks.faults.fuzz import fuzz
from benchmarks.faults.hostile import hostile
from benchmarks.faults.kills import kill_moments, kill_operations
from benchmarks.faults.trials import FAILED, Trial, summary, try_all
from benchmarks.faults.work import Work
from benchmarks.harness import make_parser, measured_commit, open_benchmark, options_of, print_result

# Each with its number of trials, by default that of docs/reliability.md.
CAMPAIGNS: Mapping[str, tuple[Callable[..., Iterator[Trial]], int]] = {
    "kill-moments": (kill_moments, 100),
    "kill-operations": (kill_operations, 0),  # as many as there are operations
    "flips": (flips, 400),
    "disks": (disks, 20),
    "hostile": (hostile, 0),  # all
    "fuzz": (fuzz, 0),  # as many as its time allows
}


def main() -> None:
    """Make a campaign; the exit code is 1 if a fault was not survived."""
    parser = make_parser(__doc__)
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("--number", type=int, default=None, help="kills, flips, or sizes of disks")
    parser.add_argument("--every", type=int, default=1, help="kill-operations: try one in so many operations")
    parser.add_argument("--minutes", type=float, default=10.0, help="fuzz: for each parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="by default one in the folder of temporary files")
    options = parser.parse_args()
    campaign, default_number = CAMPAIGNS[options.campaign]
    options.number = default_number if options.number is None else options.number
    with open_benchmark() as context:
        # Outputs state the commit that made them; another seed makes other trials of the same names.
        name = f"{options.campaign}-{measured_commit()}-{options.seed}"
        folder = options.folder or Path(tempfile.gettempdir()) / "dreamdistill-faults" / name
        work = Work(folder.resolve())
        tried = try_all(campaign(work, options), folder / "trials.jsonl")
        result = {"command": "python -m benchmarks.faults", "options": options_of(options), **summary(tried)}
        print_result(f"faults/{options.campaign}", result, context)
    if any(one.word == FAILED for one in tried):
        sys.exit(1)


if __name__ == "__main__":
    main()
