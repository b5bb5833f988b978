"""Write one self-contained HTML page about a run, and a grid of its images."""

import torch
from torch import Tensor

from pipeline.data.codec import encode_image
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import read_manifest
from pipeline.evaluation.report import RunRecord, grid, render
from pipeline.identity import existing_evaluation, require_student
from pipeline.run import resolved_yaml
from pipeline.runtime.files import atomic_file, read_json, write_text
from pipeline.runtime.recorder import read_metrics
from pipeline.session import Session, last_student

GRID_CLASSES, GRID_IMAGES = 10, 16


def main(session: Session, round_index: int | None = None) -> None:
    """Write `report.html` of the student of a round, by default of the last one that was evaluated, and `grid.png`."""
    config = session.config
    if not session.context.is_main_process:
        return
    if round_index is None:
        round_index = last_student(config)
    require_student(config, round_index)
    evaluation = existing_evaluation(config, round_index)
    if evaluation is None:
        path = config.evaluation_path(round_index)
        raise ValueError(f"there is no evaluation of this student ({path}); run `make evaluate` first")
    folders = config.image_folders(round_index)
    metrics_files = [config.metrics_path(), *sorted(config.checkpoints.glob("metrics.*.jsonl"))]
    labels, tiles = _tiles(session.pool.newest_shards(round_index))
    record = RunRecord(
        name=config.name,
        manifests=[read_manifest(folder) for folder in folders],
        metrics=[line for path in metrics_files for line in read_metrics(path) if line.get("round", 0) <= round_index],
        evaluation=evaluation,
        tiles=tiles,
        tile_labels=labels,
        estimate=read_json(config.estimate_path) if config.estimate_path.exists() else None,
        config_yaml=resolved_yaml(config),
    )
    path = config.checkpoints / "report.html"
    write_text(path, render(record))
    with atomic_file(path.with_name("grid.png")) as file:
        file.write(encode_image(grid(tiles), "png"))
    print(f"report: {path}")


def _tiles(images: ShardSet) -> tuple[list[int], Tensor]:
    """Labels of evenly spaced classes, and uint8 (classes, images, C, H, W), with as many images as each has."""
    labels = torch.unique(images.labels)
    chosen = labels[torch.linspace(0, len(labels) - 1, min(GRID_CLASSES, len(labels))).long()]
    rows = [(images.labels == label).nonzero()[:, 0].tolist() for label in chosen]
    count = min(GRID_IMAGES, *(len(row) for row in rows))
    return chosen.tolist(), torch.stack([images.batch(row[:count]) for row in rows])
