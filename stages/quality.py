"""Score a set of synthetic images: predictions, diversity, feature statistics, and distances to real images."""

from dataclasses import asdict
from pathlib import Path

from pipeline.data.shards import is_packed, read_manifest
from pipeline.quality import measure_quality, quality_path
from pipeline.run import RunConfig
from pipeline.runtime.files import write_json
from pipeline.session import Session


def main(session: Session, round_index: int | None = None) -> None:
    """Print the scores of a round, by default of the last complete one, and write `quality-R.json`.

    A set that `evaluation.quality.shards` names is written under its fingerprint in place of R.
    """
    config = session.config
    if not session.context.is_main_process:
        return
    if config.evaluation.quality.shards is not None:
        folder = Path(config.evaluation.quality.shards)
        path = config.checkpoints / f"quality-{read_manifest(folder)['fingerprint']}.json"
    else:
        round_index = _last_complete_round(config) if round_index is None else round_index
        folder, path = config.round_folder(round_index), quality_path(config, round_index)
    quality = measure_quality(session, folder)
    write_json(path, asdict(quality))
    title, *rows = quality.lines()
    print(f"quality: {title}", *rows, sep="\n  ")
    print(f"quality: {path}")


def _last_complete_round(config: RunConfig) -> int:
    complete = [r for r in range(config.synthesis.rounds) if is_packed(config.round_folder(r))]
    return complete[-1] if complete else 0
