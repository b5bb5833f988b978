"""The state of every file in the folders of a run."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from pipeline.data.given_sets import given_fix, read_given
from pipeline.data.remote import is_remote
from pipeline.data.shards import MANIFEST, is_packed
from pipeline.integrity.files import FileState, state_of
from pipeline.integrity.images import check_complete_set, check_round
from pipeline.integrity.outputs import check_outputs
from pipeline.run import RunConfig
from pipeline.runtime.files import TEMPORARY_SUFFIX


def check_run(config: RunConfig, rounds: range | None = None) -> Iterator[FileState]:
    """The state of each file in the folders of a run and of the sets that it was given, or of the sets of `rounds`.

    Of files that no stage writes, the first of each folder stands for all.
    Files under temporary names, which a killed process left, and locks are left out: nothing reads them.
    """
    if rounds is not None:
        for round_index in rounds:
            yield from check_round(config, round_index)
        return
    for name in config.distill.shards:
        yield from _check_given(name, config.given_folder(name))
    checked = [state for r in range(config.synthesis.rounds) for state in check_round(config, r)]
    checked += check_outputs(config)
    yield from checked
    known = {state.path for state in checked}
    for folder in (config.shards, config.checkpoints):
        others = (p for p in folder.rglob("*") if p not in known and p.is_file() and not _is_passing(p, folder))
        for _, group in groupby(sorted(others, key=lambda p: (p.parent, p)), key=lambda p: p.parent):
            first, *rest = group  # one line for a folder: unpacked images are many
            note = f"{first} is no output of this run, so it is not checked"
            yield FileState(first, "foreign", f"{note} (and {len(rest)} more in its folder)" if rest else note)


def _check_given(name: str, folder: Path) -> Iterator[FileState]:
    """The state of the files of a set that the run was given; a fetched one is missing until `distill` begins."""
    if is_packed(folder):
        yield from check_complete_set(folder, fix=given_fix(folder))
    elif not is_remote(name):
        yield state_of(folder / MANIFEST, lambda _: read_given(name, folder))


def _is_passing(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return path.name == ".lock" or any(part.endswith(TEMPORARY_SUFFIX) for part in parts)
