"""The official validation archive of ILSVRC 2012, sorted into one folder per class, as `imagefolder` reads them."""

import gzip
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.runtime.files import atomic_folder

# Files of the devkit: the class number of every image, and the names of the classes.
GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
IMAGE_NAME = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
WNID = re.compile(r"n\d{8}")
JPEG_START = b"\xff\xd8"
GZIP_START = b"\x1f\x8b"


def read_wnids(path: Path) -> list[str]:
    """The wnid of every validation image, in the order of the images.

    `path` is the official `ILSVRC2012_devkit_t12.tar.gz`, or a text file with one wnid per line. Raises ValueError when
    it is neither.
    """
    if not path.is_file():
        raise ValueError(f"--devkit: there is no file {path}")
    with open(path, "rb") as file:
        is_archive = file.read(2) == GZIP_START
    wnids = _wnids_of_devkit(path) if is_archive else _wnids_of_lines(path)
    if not wnids:
        raise ValueError(f"--devkit: {path} names no image")
    return wnids


def _wnids_of_devkit(path: Path) -> list[str]:
    try:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(path.read_bytes()))) as tar:
            files = {Path(m.name).name: tar.extractfile(m) for m in tar if m.isfile()}
            missing = {GROUND_TRUTH, META} - files.keys()
            if missing:
                raise ValueError(
                    f"--devkit: {path} has no {' and no '.join(sorted(missing))}; use ILSVRC2012_devkit_t12.tar.gz"
                )
            truth, meta = (_content(files[name]) for name in (GROUND_TRUTH, META))
    except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"--devkit: {path} is damaged ({error}); download it again") from error
    wnid_of = _read_meta(meta, path)
    numbers = truth.decode(errors="replace").split()
    unknown = sorted({number for number in numbers if number not in wnid_of})
    if unknown:
        raise ValueError(f"--devkit: {GROUND_TRUTH} in {path} has class {unknown[0]}, which {META} does not name")
    return [wnid_of[number] for number in numbers]


def _content(file: IO[bytes] | None) -> bytes:
    assert file is not None  # a regular file
    return file.read()


def _read_meta(content: bytes, path: Path) -> dict[str, str]:
    """The wnid of each ILSVRC2012_ID, in `meta.mat`; nodes with children are no classes."""
    from scipy.io import loadmat

    try:
        synsets: Any = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        return {
            str(int(number)): str(wnid)
            for number, wnid, num_children in zip(
                synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True
            )
            if num_children == 0
        }
    except Exception as error:  # damaged files raise whatever the parser at hand raises
        raise ValueError(f"--devkit: {META} in {path} cannot be read ({error}); download the devkit again") from error


def _wnids_of_lines(path: Path) -> list[str]:
    lines = path.read_text(errors="replace").split()
    for number, line in enumerate(lines, start=1):
        if line.isdigit():
            raise ValueError(
                f"--devkit: {path} holds class numbers; only the devkit names them: give ILSVRC2012_devkit_t12.tar.gz"
            )
        if not WNID.fullmatch(line):
            raise ValueError(
                f"--devkit: entry {number} of {path} is {line[:20]!r}; it must be ILSVRC2012_devkit_t12.tar.gz, or a "
                "text with one wnid per line"
            )
    return lines


def sort_validation_images(archive: Path, wnids: Sequence[str], folder: Path) -> None:
    """Write image i of `archive` to `folder`/wnids[i - 1].

    The folder appears when it is complete. Raises ValueError when it holds files already, and when the archive is
    damaged, is another one, or does not hold exactly one image for each of `wnids`.
    """
    if not archive.is_file():
        raise ValueError(f"--tar: there is no file {archive}")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--folder: {folder} holds files already; remove it, or name another folder")
    missing = set(range(1, len(wnids) + 1))
    with _open_target(folder) as temporary:
        for wnid in sorted(set(wnids)):
            (temporary / wnid).mkdir()
        for name, content in _read_images(archive):
            number = int(Path(name).stem.rpartition("_")[2])
            if number not in missing:
                raise ValueError(f"--tar: --devkit has {len(wnids):,} labels, and none is left for {name} in {archive}")
            missing.remove(number)
            (temporary / wnids[number - 1] / name).write_bytes(content)
        if missing:
            raise ValueError(
                f"--tar: {archive} ends after {len(wnids) - len(missing):,} of {len(wnids):,} images; number "
                f"{min(missing)} is missing; download it again"
            )


def _read_images(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every image, in the order of the archive."""
    name = "its start"
    try:
        with tarfile.open(archive, "r|") as tar:
            for member in tar:
                if member.isdir():
                    continue
                name = Path(member.name).name
                if not (member.isfile() and IMAGE_NAME.fullmatch(name)):
                    raise ValueError(
                        f"--tar: {archive} holds {member.name}; the images of ILSVRC2012_img_val.tar are named "
                        "ILSVRC2012_val_00000001.JPEG and so on"
                    )
                content = _content(tar.extractfile(member))
                if len(content) < member.size or not content.startswith(JPEG_START):
                    raise ValueError(f"--tar: {name} in {archive} is no JPEG image; download the archive again")
                yield name, content
    except tarfile.TarError as error:
        raise ValueError(f"--tar: {archive} is no tar, or damaged at {name} ({error}); download it again") from error
    except OSError as error:  # else the folder that is written would be blamed
        raise ValueError(f"--tar: {archive} cannot be read at {name} ({error}); is its disk in order?") from error


@contextmanager
def _open_target(folder: Path) -> Iterator[Path]:
    """The new `folder`, see `atomic_folder`, with an error that names the option."""
    try:
        with atomic_folder(folder) as temporary:
            yield temporary
            os.sync()  # all files at once, before their folder gets its name
    except OSError as error:
        raise ValueError(f"--folder: {folder} was not written ({error})") from error
