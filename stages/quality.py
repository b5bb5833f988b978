"""Score a set of synthetic images: predictions, diversity, feature statistics, and distances to real images."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from pipeline.data.shards import is_packed, read_manifest
from pipeline.quality import measure_quality, quality_path
from pipeline.run import RunConfig
from pipeline.runtime.files import write_json
from pipeline.session import Session
from pipeline.sets import require_complete_set


def main(session: Session, round_index: int | None = None) -> None:
    """Print the scores of a round, by default of the last complete one, and write `quality-R.json`.

    Sets that `evaluation.quality.shards` or `distill.shards` names are written under their fingerprint in place of R.
    """
    if not session.context.is_main_process:
        return
    for folder, path in _chosen_sets(session, round_index):
        quality = measure_quality(session, folder)
        title, *rows = quality.lines()
        print(f"quality: {title}", *rows, sep="\n  ")
        write_json(path, asdict(quality))
        print(f"quality: {path}")


def _chosen_sets(session: Session, round_index: int | None) -> Iterator[tuple[Path, Path]]:
    """The folder of each set, and the file of its scores; raises ValueError for a set that is not of the run."""
    config = session.config
    if config.evaluation.quality.shards is not None or config.distill.shards:
        if config.evaluation.quality.shards is not None:
            folders = [Path(config.evaluation.quality.shards)]
        else:
            session.pool.require_complete(0)
            folders = config.image_folders(0)
        for folder in folders:
            yield folder, config.checkpoints / f"quality-{read_manifest(folder)['fingerprint']}.json"
        return
    round_index = _last_complete_round(config) if round_index is None else round_index
    folder = config.round_folder(round_index)
    require_complete_set(config, round_index, read_manifest(folder)["identity"])
    yield folder, quality_path(config, round_index)


def _last_complete_round(config: RunConfig) -> int:
    complete = [r for r in range(config.num_rounds) if is_packed(config.round_folder(r))]
    return complete[-1] if complete else 0
