"""Check every file of a run: is it whole, damaged, or not of the run?"""

from collections import Counter

from pipeline.integrity.run import check_run
from pipeline.session import Session
from stages.stage import counted


def main(session: Session, round_index: int | None = None) -> None:
    """Print how many files of each folder are whole, and which are not of the run.

    Raises ValueError with one line for each damaged file, or when there is no file at all.
    """
    config = session.config
    if not session.context.is_main_process:
        return
    states = list(check_run(config, None if round_index is None else range(round_index, round_index + 1)))
    if not states:
        raise ValueError(f"there is nothing to verify yet, neither in {config.shards} nor in {config.checkpoints}")
    for folder, count in Counter(state.path.parent for state in states if state.state == "whole").items():
        print(f"verify: {folder}, {counted(count, 'whole file')}")
    for state in states:
        if state.note and state.state != "damaged":
            print(f"verify: {state.note}")
    # Of a file by which others are checked, all say the same.
    if damaged := dict.fromkeys(state.note for state in states if state.state == "damaged"):
        raise ValueError("\n  ".join([f"{counted(len(damaged), 'file')} of {len(states)} damaged:", *damaged]))
