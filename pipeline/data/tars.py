"""Uncompressed tars: their members, if they are whole up to the mark of their end."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.runtime.files import read_range


def list_tar(path: Path) -> list[tarfile.TarInfo]:
    """The members of an uncompressed tar; raises tarfile.TarError unless it is whole up to the mark of its end.

    `tarfile` takes a file that ends between two members, or a damaged header, for the end.
    """
    with tarfile.open(path, "r:") as tar:
        try:
            members = list(members_of(tar))
        except (ValueError, OSError) as error:  # of a size or a number in a header
            raise tarfile.ReadError(str(error)) from error
        end = tar.offset
    if read_range(path, end, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(
            f"cut or damaged after {len(members):,} files, at byte {end:,}, where the next one or the mark of the end "
            "should be"
        )
    return members


def list_damaged_tar(path: Path) -> list[tarfile.TarInfo]:
    """The members of a tar whose headers are whole and that are not cut, whatever else in it is damaged."""
    members: list[tarfile.TarInfo] = []
    with suppress(tarfile.TarError, ValueError, OSError), tarfile.open(path, "r:", ignore_zeros=True) as tar:
        for member in members_of(tar):
            members.append(member)
    return members


def members_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an open tar of a file.

    Raises tarfile.ReadError for a negative size, which would lead back for ever, and for one that goes beyond the end
    of the file, which could take all memory.
    """
    num_bytes = os.stat(str(tar.name)).st_size
    for member in tar:
        if member.size < 0 or member.offset_data + member.size > num_bytes:
            raise tarfile.ReadError(f"{member.name} has the size {member.size}, the file {num_bytes}")
        yield member
