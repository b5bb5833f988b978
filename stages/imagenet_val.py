"""Sort the official validation images of ILSVRC 2012 into class folders, for `data.test`.

make imagenet-val TAR=ILSVRC2012_img_val.tar DEVKIT=ILSVRC2012_devkit_t12.tar.gz
"""

import argparse
import hashlib
import sys
from pathlib import Path

from pipeline.data.imagenet import read_wnids, sort_validation_images
from stages.command import INTERRUPTED, fail

# What the configs name.
FOLDER = Path("data/imagenet/val")


def main() -> None:
    """Read the labels, write the folder, and say whether the archive is the official one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tar", type=Path, required=True, help="ILSVRC2012_img_val.tar")
    parser.add_argument(
        "--devkit", type=Path, required=True, help="ILSVRC2012_devkit_t12.tar.gz, or a text with a wnid per image"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"the folder to write, by default {FOLDER}")
    arguments = parser.parse_args()
    try:
        wnids = read_wnids(arguments.devkit)
        sort_validation_images(arguments.tar, wnids, arguments.folder)
        with open(arguments.tar, "rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
    except (ValueError, OSError) as error:
        fail(error, str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    print(f"imagenet-val: {len(wnids):,} images of {len(set(wnids)):,} classes in {arguments.folder}")
    if md5 != official_md5():
        print(f"note: the MD5 of {arguments.tar} is {md5}, that of ILSVRC2012_img_val.tar is {official_md5()}")


def official_md5() -> str:
    """The MD5 of `ILSVRC2012_img_val.tar`, as torchvision checks it."""
    from torchvision.datasets.imagenet import ARCHIVE_META

    md5: str = ARCHIVE_META["val"][1]
    return md5


if __name__ == "__main__":
    main()
