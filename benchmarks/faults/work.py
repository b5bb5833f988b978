"""The folder that a campaign works in: the run that faults happen to, and what it makes without any."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.child import Child, Ended, Fault
from pipeline.run import RunConfig, load_run
from pipeline.runtime.files import read_json

CONFIG = Path(__file__).with_name("tiny.yaml")
# What a second run measures anew.
TIMES = ("forward_ms", "images_per_s")


class Work:
    """The folder of a campaign. All runs lie in `run/` in turn, so that no path tells them apart."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run, self.log = folder, folder / "run", folder / "output.txt"
        self.operations = folder / "operations.txt"
        folder.mkdir(parents=True, exist_ok=True)

    def words(self, command: str, overrides: Sequence[str] = ()) -> list[str]:
        """The command line of a stage of the run."""
        outputs = [f"{name}_dir={self.run / name}" for name in ("shards", "checkpoints")]
        return [command, "--config", str(CONFIG), *outputs, *overrides]

    def config(self, overrides: Sequence[str] = ()) -> RunConfig:
        """The configuration of the run."""
        _, _, path, *others = self.words("run", overrides)
        return load_run(Path(path), others)

    def start(self, command: str = "run", overrides: Sequence[str] = (), faults: Sequence[Fault] = ()) -> Child:
        """Start a stage of the run."""
        return Child(self.words(command, overrides), self.log, faults)

    def do(self, command: str = "run", overrides: Sequence[str] = (), faults: Sequence[Fault] = ()) -> Ended:
        """Run a stage to its end."""
        return self.start(command, overrides, faults).wait()

    def must(self, command: str = "run", overrides: Sequence[str] = ()) -> None:
        """Run a stage without a fault; raises RuntimeError when it fails."""
        ended = self.do(command, overrides)
        if ended.code != 0:
            raise RuntimeError(f"{command} fails without any fault: {ended.output}")

    def clear(self) -> None:
        """Remove the run."""
        shutil.rmtree(self.run, ignore_errors=True)

    def put(self, source: Path) -> None:
        """Put a copy of a run in place of the one that is there."""
        self.clear()
        shutil.copytree(source, self.run)

    def reference(self) -> dict[str, str]:
        """The outputs of an uninterrupted run, which is made when they are first asked for."""
        path = self.folder / "reference.json"
        if not path.exists():
            self.clear()
            self.must()
            path.write_text(json.dumps(outputs(self.run)))
        reference: dict[str, str] = json.loads(path.read_text())
        return reference


def outputs(run: Path) -> dict[str, str]:
    """SHA-256 of what a run makes, by file: shards and all beside them, networks, figures of students."""
    files = [*(run / "shards").rglob("*"), *(run / "checkpoints").rglob("*.safetensors")]
    digests = {path: path.read_bytes() for path in files if path.is_file() and path.name != ".lock"}
    digests |= {path: _figures(path) for path in (run / "checkpoints").rglob("eval-*.json")}
    return {str(path.relative_to(run)): hashlib.sha256(content).hexdigest() for path, content in digests.items()}


def _figures(path: Path) -> bytes:
    try:
        return json.dumps(without_times(read_json(path)), sort_keys=True).encode()
    except ValueError:  # damaged
        return path.read_bytes()


def without_times(value: Any) -> Any:
    """A JSON value without what is measured anew in each run."""
    return {k: without_times(v) for k, v in value.items() if k not in TIMES} if isinstance(value, dict) else value


def difference(made: dict[str, str], expected: dict[str, str]) -> str | None:
    """The first file that is missing, added or has other bytes; None if there is none."""
    files = sorted(name for name in made.keys() | expected.keys() if made.get(name) != expected.get(name))
    return f"{len(files)} other files, such as {files[0]}" if files else None
