"""How hostile content is made and put into a finished run."""

import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from pipeline.distillation.state import digest_line
from pipeline.models.checkpoint import METADATA_KEY
from pipeline.models.digest import with_digest
from pipeline.runtime.files import read_json, write_json

# The file beside the run that no hostile content may reach, and its content.
CANARY = "canary"
STUDENT, EVALUATION = "checkpoints/tiny/student-1.safetensors", "checkpoints/tiny/eval-1.json"
MARKUP = "<img src=x onerror=alert(1)>"
# Of 16 MiB each, in an array of 3 GiB.
NUM_ROWS = 192
Put = Callable[[Path], Sequence[str]]


class RunsCode:
    """Unpickling it would change the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo changed > '{self.canary}'",)


def code(run: Path) -> RunsCode:
    """What changes the canary of a run when it is unpickled."""
    return RunsCode(run.parent / CANARY)


def with_value(glob: str, key: str, value: Any) -> Put:
    """Put another value at a dotted key into JSON files, with digests that fit."""

    def put(run: Path) -> Sequence[str]:
        for path in run.glob(glob):
            content = read_json(path)
            *parents, leaf = [int(name) if name.isdigit() else name for name in key.split(".")]
            node: Any = content
            for parent in parents:
                node = node[parent]
            node[leaf] = value
            write_json(path, content)
        return []

    return put


def values(glob: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Put]:
    """`with_value` of each pair of key and value, by a name of both."""
    return {f"{key}={str(value)[:40]}": with_value(glob, key, value) for key, value in pairs}


def with_bytes(name: str, content: bytes | Callable[[Path], bytes], *overrides: str) -> Put:
    """Put a file of that content into the run; `RUN` in overrides is its folder."""

    def put(run: Path) -> Sequence[str]:
        path, made = run / name, content(run) if callable(content) else content
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made)
        return [override.replace("RUN", str(run)) for override in overrides]

    return put


def with_overrides(*overrides: str) -> Put:
    """Change nothing but the configuration."""
    return lambda run: overrides


def unevaluated(put: Put) -> Put:
    """Remove the evaluation, too, so that stages load the student."""

    def put_both(run: Path) -> Sequence[str]:
        (run / EVALUATION).unlink(missing_ok=True)
        return put(run)

    return put_both


def changed_network(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], bytes]:
    """The student with another description, and a digest that fits."""

    def content(run: Path) -> bytes:
        path = run / STUDENT
        with safetensors.safe_open(path, "pt") as file:
            description = json.loads(file.metadata()[METADATA_KEY])
        changed = change(description)
        text = changed if isinstance(changed, str) else json.dumps(description)
        return with_digest(safetensors.torch.save(safetensors.torch.load_file(path), {METADATA_KEY: text}))

    return content


def changed_tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], bytes]:
    """The weights of the teacher, each changed."""

    def content(run: Path) -> bytes:
        tensors = safetensors.torch.load_file(run / "checkpoints/tiny/teacher.safetensors")
        return safetensors.torch.save({name: change(tensor).contiguous() for name, tensor in tensors.items()})

    return content


def torch_file_with_code(run: Path) -> bytes:
    """A torch file that changes the canary if more than tensors are loaded from it."""
    buffer = BytesIO()
    torch.save({"state_dict": code(run)}, buffer)
    return buffer.getvalue()


def state_with_code(run: Path) -> bytes:
    """A state with a digest that fits; the student, which it is to continue, is removed."""
    (run / STUDENT).unlink()
    content = torch_file_with_code(run)
    return digest_line(content) + content


def zip_bomb(run: Path) -> bytes:
    """An archive of arrays in which some MB become 3 GB."""
    buffer, header, row = BytesIO(), BytesIO(), bytes(1 << 24)
    array = {"descr": "|u1", "fortran_order": False, "shape": (NUM_ROWS, 512, 512, 64)}
    np.lib.format.write_array_header_1_0(header, array)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as file:
            file.write(header.getvalue())
            for _ in range(NUM_ROWS):
                file.write(row)
        archive.writestr("y.npy", b"")
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    """An archive of arrays, of objects too."""
    buffer = BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def png_bomb() -> bytes:
    """A picture that says it has 50,000 x 50,000 pixels."""
    size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def png() -> bytes:
    """A black picture."""
    buffer = BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def with_folder(name: bytes, make: Callable[[bytes], None]) -> Put:
    """Put class folders of images into the run, and among them something of that name."""

    def put(run: Path) -> Sequence[str]:
        for label in range(10):
            (run / f"images/{label}").mkdir(parents=True)
            (run / f"images/{label}/a.png").write_bytes(png())
        make(os.fsencode(run / "images/3") + b"/" + name)
        return [f"data.test=imagefolder:{run}/images"]

    return put


def with_tar(*members: tuple[str, bytes, int]) -> Put:
    """Put a tar of (name, type, stated size) into the run, beside an image of each class."""

    def put(run: Path) -> Sequence[str]:
        with tarfile.open(run / "images.tar", "w") as tar:
            for label in range(10):
                image = tarfile.TarInfo(f"{label}/a.png")
                image.size = len(png())
                tar.addfile(image, BytesIO(png()))
            for name, kind, size in members:
                other = tarfile.TarInfo(name)
                other.type, other.size, other.linkname = kind, size, "/etc/passwd"
                tar.addfile(other)
        return [f"data.test=tar:{run}/images.tar"]

    return put


def with_link(name: str) -> Put:
    """Put a link to the canary in place of a file that the run writes, which is removed."""

    def put(run: Path) -> Sequence[str]:
        (run / name).unlink(missing_ok=True)
        for target in (run / name, (run / name).with_name(Path(name).name + ".tmp")):
            target.symlink_to(run.parent / CANARY)
            if target.name.endswith(".tmp"):
                (run / name).unlink()
        return []

    return put


def yaml_bomb() -> bytes:
    """A mapping of lists of aliases: over a billion values in 12 lines."""
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(["a0: &a0 [x]", *lines]).encode()


def yaml_with_code(run: Path) -> bytes:
    """A tag of PyYAML's unsafe loader."""
    return f"name: !!python/object/apply:os.system ['echo x > {run.parent / CANARY}']".encode()


def write(path: bytes, content: bytes) -> None:
    """Write a file whose name need not be UTF-8."""
    Path(os.fsdecode(path)).write_bytes(content)
