"""`RunRecord`: what a run has left so far, as the pages show it."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

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
from pipeline.runtime.recorder import read_metrics
from pipeline.sets import require_same_outputs

Item = TypeVar("Item")

# Images on the page: of at most this many classes, evenly spaced, with as many of each as the pixels allow.
SHOWN_CLASSES, SHOWN_IMAGES, SHOWN_PIXELS = 20, 16, 5_000_000
# Images whose scores are read, and whose diversity is measured.
SCORED_IMAGES, COMPARED_IMAGES, COMPARED_PER_CLASS = 20_000, 2_000, 32
# Strips on the page, evenly spaced over the rounds.
SHOWN_STRIPS = 3


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """One synthetic image: its round, label and key, its metadata with the scores, its position in the shards."""

    round_index: int
    label: int
    key: str
    metadata: Mapping[str, Any]
    position: int


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """A round with images, whose manifest it has, or with a student, which may have an evaluation."""

    index: int
    folder: Path
    manifest: Mapping[str, Any] | None
    has_student: bool = False
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
        return sum(one.manifest["num_images"] for one in self.rounds if one.manifest)

    @property
    def evaluated(self) -> RoundRecord | None:
        """The last round with an evaluation."""
        return next((one for one in reversed(self.rounds) if one.evaluation is not None), None)


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
    shard_set = pool.shards(one.folder for one in rounds if one.manifest)
    images = _read_images(shard_set, rounds)
    preview = config.checkpoints / "preview.png"
    return RunRecord(
        name=config.name,
        class_titles=config.class_titles,
        config_yaml=resolved_yaml(config),
        rounds=rounds,
        metrics=metrics,
        images=images,
        shown=[(one, embed_image(shard_set[one.position][0])) for one in _choose_shown(images, config)],
        diversity=_measure(images, shard_set),
        strips=_read_strips(config, last_round),
        preview=embed_file(preview) if preview.exists() else None,
        estimate=read_json(config.estimate_path) if config.estimate_path.exists() else None,
        facts=facts,
    )


def _read_rounds(config: RunConfig, last_round: int) -> list[RoundRecord]:
    """The rounds that have something, or one for each set of `distill.shards`, the last of them with the student."""
    require_same_outputs(config, last_round)
    if config.distill.shards:
        given = [(name, config.given_folder(name)) for name in config.distill.shards]
        *others, last = (
            RoundRecord(index=i, folder=folder, manifest=read_given(name, folder))
            for i, (name, folder) in enumerate(given)
        )
        return [*others, _with_student(config, 0, last)]
    folders = [config.round_folder(r) for r in range(last_round + 1)]
    rounds = [
        RoundRecord(index=r, folder=folder, manifest=read_manifest(folder) if is_packed(folder) else None)
        for r, folder in enumerate(folders)
    ]
    with_students = [_with_student(config, one.index, one) for one in rounds]
    return [one for one in with_students if one.manifest or one.has_student]


def _with_student(config: RunConfig, round_index: int, record: RoundRecord) -> RoundRecord:
    if not config.student_path(round_index).exists():
        return record
    return replace(record, has_student=True, evaluation=existing_evaluation(config, round_index))


def _read_images(shard_set: ShardSet, rounds: Sequence[RoundRecord]) -> list[StoredImage]:
    """The first images of every shard, with their metadata: all images, unless they are many."""
    shards = [(one, shard) for one in rounds if one.manifest for shard in one.manifest["shards"]]
    images, start, labels = [], 0, shard_set.labels.tolist()
    for one, shard in shards:
        samples = read_metadata(one.folder / shard["file"], max(2, SCORED_IMAGES // len(shards)))
        images += [
            StoredImage(round_index=one.index, label=labels[i], key=key, metadata=metadata, position=i)
            for i, (key, metadata) in enumerate(samples, start)
        ]
        start += shard["count"]
    return images


def _by_label(images: Sequence[StoredImage]) -> dict[int, list[StoredImage]]:
    groups: dict[int, list[StoredImage]] = defaultdict(list)
    for one in images:
        groups[one.label].append(one)
    return dict(sorted(groups.items()))


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spaced, with the first and the last one."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def _choose_shown(images: Sequence[StoredImage], config: RunConfig) -> list[StoredImage]:
    groups = evenly_spaced(list(_by_label(images).values()), SHOWN_CLASSES)
    pixels_per_row = len(groups) * config.images.height * config.images.width
    count = min(SHOWN_IMAGES, max(2, SHOWN_PIXELS // max(1, pixels_per_row)))
    return [one for group in groups for one in evenly_spaced(group, count)]


def _measure(images: Sequence[StoredImage], shard_set: ShardSet) -> Diversity | None:
    groups = evenly_spaced(list(_by_label(images).values()), COMPARED_IMAGES // 2)
    if not groups:
        return None
    count = min(COMPARED_PER_CLASS, COMPARED_IMAGES // len(groups))
    compared = [one for group in groups for one in evenly_spaced(group, count)]
    pixels = shard_set.batch([one.position for one in compared])
    return measure_diversity(pixels, torch.tensor([one.label for one in compared]))


def _read_strips(config: RunConfig, last_round: int) -> dict[int, Picture]:
    paths = {r: config.checkpoints / f"evolution-{r}.png" for r in range(last_round + 1)}
    existing = [(r, path) for r, path in paths.items() if path.exists()]
    return {r: embed_file(path) for r, path in evenly_spaced(existing, SHOWN_STRIPS)}
