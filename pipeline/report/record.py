"""`RunRecord`: what a run has left so far, as the pages show it."""

import itertools
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.data.codec import ImageError
from pipeline.data.given_sets import read_given
from pipeline.data.samples import read_metadata
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import is_packed, read_manifest
from pipeline.identity import existing_evaluation
from pipeline.pool import Pool
from pipeline.report.diversity import Diversity, measure_diversity
from pipeline.report.pictures import Picture, embed_file, embed_image
from pipeline.run import RunConfig, resolved_yaml
from pipeline.runtime.files import read_json
from pipeline.runtime.form import check_form, check_object
from pipeline.runtime.ranges import evenly_spaced
from pipeline.runtime.recorder import read_metrics
from pipeline.sets import next_set, require_same_outputs
from pipeline.synthesis.pictures import PREVIEW, evolution_name, picture_path

# Images on the page: of at most this many classes, evenly spaced, with as many of each as the pixels allow.
SHOWN_CLASSES, SHOWN_IMAGES, SHOWN_PIXELS = 20, 16, 5_000_000
# Images whose scores are read, and whose diversity is measured; the latter are decoded this many at a time.
SCORED_IMAGES, COMPARED_IMAGES, COMPARED_PER_CLASS = 20_000, 2_000, 32
DECODED_IMAGES = 64
# Strips on the page, evenly spaced over the rounds.
SHOWN_STRIPS = 3


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """One synthetic image: its set, label and key, its metadata with the scores, its position in all shards."""

    set_title: str
    label: int
    key: str
    metadata: Mapping[str, Any]
    position: int


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """A round with its student, or a set of `distill.shards`, whose student is a record of its own.

    `folder` and `manifest` are those of the images, None without images. `student_round` is the round of the student,
    None without a student, which may have an evaluation.
    """

    title: str
    folder: Path | None = None
    manifest: Mapping[str, Any] | None = None
    student_round: int | None = None
    evaluation: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run has left. Each part is empty or None if the run has not come that far.

    `metrics` holds the metric lines of each rank, `images` the scored images, `shown` the pictures of some of them,
    `strips` the pictures of images over their steps, by their round.
    """

    name: str
    class_titles: Sequence[str]
    config_yaml: str
    rounds: Sequence[RoundRecord] = ()
    metrics: Sequence[Sequence[Mapping[str, Any]]] = ()
    images: Sequence[StoredImage] = ()
    shown: Sequence[tuple[StoredImage, Picture]] = ()
    diversity: Diversity | None = None
    strips: Mapping[int, Picture] = field(default_factory=dict)
    preview: Picture | None = None
    estimate: Mapping[str, Any] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def lines(self) -> list[Mapping[str, Any]]:
        """The metric lines of all ranks."""
        return list(itertools.chain.from_iterable(self.metrics))

    @property
    def num_images(self) -> int:
        """The synthetic images of all rounds."""
        return sum(record.manifest["num_images"] for record in self.rounds if record.manifest)

    @property
    def evaluated(self) -> RoundRecord | None:
        """The last round with an evaluation."""
        return next((record for record in reversed(self.rounds) if record.evaluation is not None), None)


def read_record(config: RunConfig, pool: Pool, last_round: int | None, facts: Mapping[str, str]) -> RunRecord:
    """The record of a run up to a round, by default up to the last one; `facts` are stated as they are.

    Raises ConfigError when an output has another identity, and ValueError when there is no output at all.
    """
    last_round = config.num_rounds - 1 if last_round is None else last_round
    rounds = _read_rounds(config, last_round)
    files = [config.metrics_path(), *sorted(config.checkpoints.glob("metrics.*.jsonl"))]
    metrics = [[line for line in read_metrics(path) if line.get("round", 0) <= last_round] for path in files]
    if not rounds and not any(metrics):
        raise ValueError(
            f"there is nothing to report yet, neither in {config.checkpoints} nor in {config.shards}; run the "
            "stage `synthesize` first"
        )
    shard_set = pool.shards(record.folder for record in rounds if record.folder)
    images = _read_images(shard_set, rounds)
    return RunRecord(
        name=config.name,
        class_titles=config.class_titles,
        config_yaml=resolved_yaml(config),
        rounds=rounds,
        metrics=metrics,
        images=images,
        shown=[(image, embed_image(shard_set[image.position][0])) for image in _choose_shown(images, config)],
        diversity=_measure(images, shard_set),
        strips=_read_strips(config, last_round),
        preview=_read_preview(config, last_round),
        estimate=read_json(config.estimate_path, _check_estimate) if config.estimate_path.exists() else None,
        facts=facts,
    )


def _read_rounds(config: RunConfig, last_round: int) -> list[RoundRecord]:
    """The rounds that have something, or the sets of `distill.shards` and then their student."""
    require_same_outputs(config, last_round)
    if config.distill.shards:
        given = [(name, config.given_folder(name)) for name in config.distill.shards]
        rounds = [RoundRecord(title=name, folder=folder, manifest=read_given(name, folder)) for name, folder in given]
        rounds.append(_with_student(config, 0, RoundRecord(title="student")))
    else:
        rounds = [_with_student(config, r, _read_round(config, r)) for r in range(last_round + 1)]
    return [record for record in rounds if record.folder or record.student_round is not None]


def _read_round(config: RunConfig, round_index: int) -> RoundRecord:
    folder, title = config.round_folder(round_index), f"round {round_index}"
    if not is_packed(folder):
        return RoundRecord(title=title)
    return RoundRecord(title=title, folder=folder, manifest=read_manifest(folder))


def _with_student(config: RunConfig, round_index: int, record: RoundRecord) -> RoundRecord:
    if not config.student_path(round_index).exists():
        return record
    return replace(record, student_round=round_index, evaluation=existing_evaluation(config, round_index))


def _read_images(shard_set: ShardSet, rounds: Sequence[RoundRecord]) -> list[StoredImage]:
    """The first images of every shard, with their metadata: all images, unless they are many."""
    shards = [
        (record.title, record.folder / shard["file"], shard["count"])
        for record in rounds
        if record.folder and record.manifest
        for shard in record.manifest["shards"]
    ]
    images, start, labels = [], 0, shard_set.labels.tolist()
    for title, path, count in shards:
        samples = read_metadata(path, max(2, SCORED_IMAGES // len(shards)))
        images += [
            StoredImage(set_title=title, label=labels[i], key=key, metadata=metadata, position=i)
            for i, (key, metadata) in enumerate(samples, start)
        ]
        start += count
    return images


def _by_label(images: Sequence[StoredImage]) -> dict[int, list[StoredImage]]:
    groups: dict[int, list[StoredImage]] = defaultdict(list)
    for image in images:
        groups[image.label].append(image)
    return dict(sorted(groups.items()))


def _choose_shown(images: Sequence[StoredImage], config: RunConfig) -> list[StoredImage]:
    groups = evenly_spaced(list(_by_label(images).values()), SHOWN_CLASSES)
    pixels_per_row = len(groups) * config.images.height * config.images.width
    count = min(SHOWN_IMAGES, max(2, SHOWN_PIXELS // max(1, pixels_per_row)))
    return [image for group in groups for image in evenly_spaced(group, count)]


def _measure(images: Sequence[StoredImage], shard_set: ShardSet) -> Diversity | None:
    groups = evenly_spaced(list(_by_label(images).values()), COMPARED_IMAGES // 2)
    if not groups:
        return None
    count = min(COMPARED_PER_CLASS, COMPARED_IMAGES // len(groups))
    compared = [image for group in groups for image in evenly_spaced(group, count)]
    positions = [image.position for image in compared]
    starts = range(0, len(positions), DECODED_IMAGES)
    batches = (shard_set.batch(positions[start : start + DECODED_IMAGES]) for start in starts)
    return measure_diversity(batches, torch.tensor([image.label for image in compared]))


def _check_estimate(estimate: Any) -> None:
    check_object(estimate)
    check_form(estimate, dict.fromkeys(estimate, float))


def _read_strips(config: RunConfig, last_round: int) -> dict[int, Picture]:
    paths = {r: picture_path(config.checkpoints, evolution_name(r)) for r in range(last_round + 1)}
    existing = [(r, path) for r, path in paths.items() if path.exists()]
    strips = {r: _read_picture(path) for r, path in evenly_spaced(existing, SHOWN_STRIPS)}
    return {r: strip for r, strip in strips.items() if strip is not None}


def _read_picture(path: Path) -> Picture | None:
    """The picture in a file; a damaged one is left out, since pictures are drawn for people alone."""
    try:
        return embed_file(path)
    except ImageError as error:
        warnings.warn(f"{error}; it is left out", stacklevel=2)
    except FileNotFoundError:  # synthesis removes the preview when it has finished the round
        pass
    return None


def _read_preview(config: RunConfig, last_round: int) -> Picture | None:
    """The preview, unless the rounds up to `last_round` have all their images, so that it is of a later one."""
    path = picture_path(config.checkpoints, PREVIEW)
    if not path.exists() or config.distill.shards or not any(next_set(config, r) for r in range(last_round + 1)):
        return None
    return _read_picture(path)
