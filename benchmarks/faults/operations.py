"""File operations of a process, as Python's audit hooks see them: listed, and the process killed before one of them."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

# Audit events of operations that change a file system, with the positions of their paths. `os.replace` is a rename.
CHANGES = {
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.mkdir": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.utime": (0,),
}
# Of these, the second argument can be an open folder, as in rmtree.
RELATIVE = ("os.remove", "os.rmdir")
EXECUTIONS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "ctypes.dlopen")
# Operations on what a link leads to; all others are on the link itself.
FOLLOWING = ("open", "os.truncate", "os.chmod", "os.utime")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def changed_paths(event: str, arguments: tuple[Any, ...]) -> Iterator[str]:
    """The paths that an audited operation is about to change; a name may be relative to an open folder."""
    positions = (0,) if event == "open" and (arguments[2] or 0) & WRITING else CHANGES.get(event, ())
    for position in positions:
        if isinstance(arguments[position], str | bytes | os.PathLike):
            is_relative = event in RELATIVE and arguments[1] >= 0
            folder = os.readlink(f"/proc/self/fd/{arguments[1]}") if is_relative else ""
            yield os.path.join(folder, os.fsdecode(arguments[position]))


def watch_operations(folder: Path, log: Path, kill_at: int | None = None, pattern: str = "") -> None:
    """List in `log` the file operations of this process in a folder, synchronizations too.

    Before the operation number `kill_at` of those that match the `pattern`, the process ends with SIGKILL.
    """
    descriptor, count = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 0

    def note(name: str, path: str) -> None:
        nonlocal count
        # Paths that are relative come from rmtree, which works in an open folder.
        line = f"{name} {os.path.relpath(path, folder) if os.path.isabs(path) else path}"
        if line.split()[1].startswith("..") or not re.search(pattern, line):
            return
        os.write(descriptor, f"{line}\n".encode())
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        for path in list(changed_paths(event, arguments))[:1]:
            note(event, path)

    synchronize = os.fsync

    def fsync(file: int) -> None:
        note("os.fsync", os.readlink(f"/proc/self/fd/{file}"))
        synchronize(file)

    os.fsync = fsync
    sys.addaudithook(audit)


def watch_for_harm(folder: Path, log: Path) -> None:
    """List in `log` every program that this process starts, and every change outside the folder."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    root = os.path.realpath(folder)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EXECUTIONS:
            os.write(descriptor, f"{event} {arguments!r}\n".encode())
        for path in changed_paths(event, arguments):
            parent, name = os.path.split(os.path.realpath(path) if event in FOLLOWING else path)
            with suppress(OSError, ValueError):
                if path != os.devnull and os.path.commonpath([root, os.path.realpath(parent)]) != root:
                    os.write(descriptor, f"{event} {parent}/{name}\n".encode(errors="replace"))

    sys.addaudithook(audit)
