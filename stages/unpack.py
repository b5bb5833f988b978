"""Unpack the images of a run, or of one set, into class folders, as torchvision's ImageFolder reads them."""

from argparse import Namespace
from pathlib import Path

from pipeline.data.class_names import listed
from pipeline.data.parts import ShardError
from pipeline.data.shards import is_packed, read_manifest
from pipeline.data.unpack import unpack
from pipeline.resolve import resolve
from pipeline.run import RunConfig, load_run
from pipeline.runtime.distributed import choose_device
from pipeline.sets import require_complete_set
from stages.config_names import config_path


def main(arguments: Namespace) -> None:
    """Write the folder, and say how ImageFolder will number its classes."""
    if arguments.shards is not None:
        if arguments.round is not None or arguments.overrides:
            raise ValueError("--shards names one set, as it is; leave out --round and KEY=VALUE, or --shards")
        folders, folder = [arguments.shards], arguments.folder
    else:
        config = load_run(config_path(arguments.config), arguments.overrides)
        folders, folder = _complete_rounds(config, arguments.round), arguments.folder or config.shards / "unpacked"
    if folder is None:
        raise ValueError("--folder: missing; name the folder to write")
    is_new = unpack(folders, folder)
    _report(folders, folder, is_new)


def _complete_rounds(config: RunConfig, round_index: int | None) -> list[Path]:
    """The folders of the rounds, or of one; raises ValueError unless all are complete and of this configuration."""
    if config.distill.shards:
        raise ValueError("distill.shards names the images of this run; unpack each set with --shards")
    rounds = range(config.num_rounds) if round_index is None else [round_index]
    missing = [str(folder) for folder in map(config.round_folder, rounds) if not is_packed(folder)]
    if missing:
        raise ShardError(
            f"no complete dataset is in {listed(missing)}; run the stage `synthesize` first, or unpack one round with "
            "--round"
        )
    config = resolve(config, choose_device(0, 1))
    for r in rounds:
        require_complete_set(config, r, read_manifest(config.round_folder(r))["identity"])
    return [config.round_folder(r) for r in rounds]


def _report(folders: list[Path], folder: Path, is_new: bool) -> None:
    manifests = [read_manifest(source) for source in folders]
    num_images, num_classes = sum(m["num_images"] for m in manifests), manifests[0]["num_classes"]
    num_existing = len({entry["class"] for manifest in manifests for entry in manifest["shards"]})
    print(f"unpack: {num_images:,} images of {num_existing:,} classes in {folder}{'' if is_new else ' (up to date)'}")
    if num_existing < num_classes:
        print(
            f"note: {num_classes - num_existing:,} classes have no image, and ImageFolder numbers the others without "
            "gaps: take a label from the name of its folder"
        )
