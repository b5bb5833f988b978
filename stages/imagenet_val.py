"""Sort the official validation images of ILSVRC 2012 into class folders, for `data.test`."""

import hashlib
from argparse import Namespace

from pipeline.data.imagenet import read_wnids, sort_validation_images


def main(arguments: Namespace) -> None:
    """Read the labels, write the folder, and say whether the archive is the official one."""
    wnids = read_wnids(arguments.devkit)
    sort_validation_images(arguments.tar, wnids, arguments.folder)
    with open(arguments.tar, "rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    print(f"imagenet-val: {len(wnids):,} images of {len(set(wnids)):,} classes in {arguments.folder}")
    if md5 != official_md5():
        print(f"note: the MD5 of {arguments.tar} is {md5}, that of ILSVRC2012_img_val.tar is {official_md5()}")


def official_md5() -> str:
    """The MD5 of `ILSVRC2012_img_val.tar`, as torchvision checks it."""
    from torchvision.datasets.imagenet import ARCHIVE_META

    md5: str = ARCHIVE_META["val"][1]
    return md5
