"""Unpack the images of a run, or of one set, into class folders, as torchvision's ImageFolder reads them.

make unpack CONFIG=configs/digits.yaml [FOLDER=...]
python -m stages.unpack --shards shards/digits/0 --folder unpacked
"""

import argparse
import sys
from pathlib import Path

from pipeline.data.shards import ShardError, is_packed, read_manifest
from pipeline.data.unpack import unpack
from pipeline.run import RunConfig, load_run
from stages.command import INTERRUPTED, fail


def main() -> None:
    """Write the folder, and say how ImageFolder will number its classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/digits.yaml"), help="the YAML file of the run")
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override keys")
    parser.add_argument("--round", type=int, default=None, help="the round; by default all complete rounds")
    parser.add_argument("--shards", type=Path, default=None, help="the folder of one set, in place of those of a run")
    parser.add_argument(
        "--folder", type=Path, default=None, help="the folder to write, by default `unpacked` beside the rounds"
    )
    arguments = parser.parse_args()
    try:
        if arguments.shards is not None:
            folders, folder = [arguments.shards], arguments.folder
        else:
            config = load_run(arguments.config, arguments.set)
            folders, folder = _complete_rounds(config, arguments.round), arguments.folder or config.shards / "unpacked"
        if folder is None:
            raise ValueError("FOLDER: missing; name the folder to write with --folder")
        is_new = unpack(folders, folder)
        _report(folders, folder, is_new)
    except ValueError as error:
        fail(error, str(error))
    except OSError as error:
        fail(error, error.strerror if error.strerror and error.filename is None else str(error))
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _complete_rounds(config: RunConfig, round_index: int | None) -> list[Path]:
    if config.distill.shards:
        raise ValueError("distill.shards names the images of this run; unpack each set with --shards")
    rounds = range(config.num_rounds) if round_index is None else [round_index]
    folders = [folder for folder in map(config.round_folder, rounds) if is_packed(folder)]
    if not folders:
        raise ShardError(f"{config.round_folder(rounds[0])} holds no complete dataset; run `make synthesize` first")
    return folders


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


if __name__ == "__main__":
    main()
