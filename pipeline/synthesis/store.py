"""Storage of finished batches: images are encoded, the stored pixels are scored, and one part file is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.data.codec import decode_image, encode_image
from pipeline.data.parts import FINGERPRINT, Sample, find_fault, list_parts, part_path, write_part
from pipeline.data.shards import is_packed
from pipeline.evaluation.scores import Scorers, score
from pipeline.models.config import ImageConfig
from pipeline.runtime.files import TEMPORARY_SUFFIX, remove_file
from pipeline.runtime.fingerprint import versions
from pipeline.runtime.object_store import ObjectStore
from pipeline.runtime.threads import background_threads
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.invert import Inversion
from pipeline.synthesis.plan import BatchSpec


@dataclass(frozen=True, kw_only=True)
class BatchStore:
    """The `folder` of a round, to which finished batches are written, one part file each.

    `fingerprint` is that of what the images depend on. With an `object_store`, each batch is also stored there.
    """

    folder: Path
    fingerprint: str
    config: SynthesisConfig
    scorers: Scorers
    object_store: ObjectStore | None = None

    def write(self, spec: BatchSpec, inversion: Inversion) -> None:
        """Write one finished batch, atomically."""
        write_part(self.folder, spec.index, self._samples(spec, inversion), self.config.image_format)
        if self.object_store is not None:
            self.object_store.push_or_warn(part_path(self.folder, spec.index))

    def _samples(self, spec: BatchSpec, inversion: Inversion) -> list[Sample]:
        """Encode the images, decode them again, and score what a reader of the files will see."""

        def encode(image: torch.Tensor) -> bytes:
            return encode_image(image, self.config.image_format, self.config.jpeg_quality)

        with background_threads() as threads:  # Pillow encodes without holding the interpreter's lock
            files = list(threads.map(encode, inversion.images))
        num_channels = inversion.images.shape[1]
        stored = torch.stack([decode_image(file, num_channels, f"batch {spec.index}") for file in files])
        scores = score(stored, inversion.labels, self.scorers)
        facts = {"batch": spec.index, "seed": spec.seed, FINGERPRINT: self.fingerprint}
        return [
            Sample(
                number=spec.first_image + i,
                label=spec.labels[i],
                image=files[i],
                metadata={**facts, "label": spec.labels[i], **scores[i]},
            )
            for i in range(len(files))
        ]


def missing_batches(folder: Path, specs: Sequence[BatchSpec]) -> list[BatchSpec]:
    """The batches of a round without a part file; none if the round is packed."""
    if is_packed(folder):
        return []
    existing = set(list_parts(folder))  # a file system remembers for a while that a file it was asked for is missing
    return [spec for spec in specs if part_path(folder, spec.index) not in existing]


def remove_damaged_parts(folder: Path, specs: Sequence[BatchSpec]) -> list[str]:
    """Remove the parts of a round that are not whole, so that their batches are missing; returns why, a line each.

    What killed processes left under temporary names is removed, too.
    """
    if is_packed(folder):
        return []
    for leftover in list_parts(folder, TEMPORARY_SUFFIX):
        remove_file(leftover)
    existing, faults = set(list_parts(folder)), []
    for spec in specs:
        path = part_path(folder, spec.index)
        if path in existing and (fault := find_fault(path, spec.keys)):
            remove_file(path)
            faults.append(fault)
    return faults


def manifest_facts(config: SynthesisConfig, images: ImageConfig) -> dict[str, Any]:
    """What the manifest of a round states of its images, beside their identity."""
    return {
        "num_classes": images.num_classes,
        "shape": list(images.shape),
        "image_format": config.image_format,
        "images_per_shard": config.images_per_shard,
        "versions": versions(),
    }
