"""The first samples of a shard, read without its index."""

import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.data.codec import EXTENSIONS, ImageFormat
from pipeline.data.parts import REMAKE, Sample, ShardError
from pipeline.data.tars import members_of
from pipeline.runtime.digests import parse_object
from pipeline.runtime.files import read_range
from pipeline.runtime.form import check_form

# Image, label and metadata.
MEMBERS_PER_SAMPLE = 3
PROBABILITY = "_probability"


def read_metadata(path: Path, max_samples: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The key and the metadata of the first samples of one tar, in file order; raises ShardError when it is damaged."""
    with _explain_damage(path), tarfile.open(path, "r:") as tar:
        files = ((member, tar.extractfile(member)) for member in members_of(tar) if member.name.endswith(".json"))
        for member, file in islice(files, max_samples):
            if file is None:
                raise tarfile.ReadError(f"{member.name} is no file")
            metadata = parse_object(file.read())
            _check_scores(metadata)
            yield member.name.partition(".")[0], metadata


def read_samples(path: Path, label: int, image_format: ImageFormat, at_most: int) -> list[Sample]:
    """The first samples of the shard of a class, with their metadata; raises ShardError when it is damaged."""
    samples: dict[str, dict[str, bytes]] = defaultdict(dict)
    with _explain_damage(path), tarfile.open(path, "r:") as tar:
        for member in islice(members_of(tar), MEMBERS_PER_SAMPLE * at_most):
            key, _, extension = member.name.partition(".")
            samples[key][extension] = read_range(path, member.offset_data, member.size)
        return [
            Sample(
                number=int(key.partition("/")[2]),
                label=label,
                image=members[EXTENSIONS[image_format]],
                metadata=parse_object(members["json"]),
            )
            for key, members in samples.items()
        ]


def _check_scores(metadata: Mapping[str, Any]) -> None:
    """Raise ValueError unless each network in the metadata has its probability of the label and whether it is a hit."""
    for name in metadata:
        if name.endswith(PROBABILITY):
            check_form(metadata, {name: float, f"{name.removesuffix(PROBABILITY)}_top1": bool})


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    try:
        yield
    # KeyError: a sample without one of its members; OverflowError: one of a size that no file has
    except (tarfile.TarError, OSError, ValueError, KeyError, OverflowError) as error:
        raise ShardError(f"{path} is damaged ({error}); {REMAKE}") from error
