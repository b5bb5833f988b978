"""The sink of TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.runtime.fingerprint import flatten

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Stages that continue from where they were stopped. Those of the others do not come in the order of their steps.
RESUMED = ("teacher", "synthesize", "distill")


def require_tensorboard() -> None:
    """Raise ValueError, with the command that installs it, when the package is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise ValueError("sinks: tensorboard needs the tensorboard package: pip install tensorboard") from None


class TensorBoard:
    """Event files in `FOLDER/tensorboard`, in one folder for each stage and one for pictures.

    What a resumed stage logs takes the place of what was logged before for the same and later steps.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder, self._config = folder / "tensorboard", config
        self._writers: dict[str, SummaryWriter] = {}

    def scalars(self, stage: str, round_index: int | None, step: int, values: Mapping[str, float]) -> None:
        """Write `STAGE/NAME` for each figure."""
        writer = self._writer(stage, step)
        for name, value in values.items():
            writer.add_scalar(f"{stage}/{name}", value, step)
        writer.flush()

    def image(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Write a picture (H, W, 3)."""
        writer = self._writer("pictures", step)
        writer.add_image(name, pixels, step, dataformats="HWC")
        writer.flush()

    def figures(self, values: Mapping[str, float]) -> None:
        """Write the keys of the config as hyper-parameters, with `final/NAME` for each figure."""
        keys = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in flatten(self._config)}
        writer = self._writer("hyper-parameters", 0)
        writer.add_hparams(keys, {f"final/{name}": value for name, value in values.items()}, run_name=".")

    def close(self) -> None:
        """Close all files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, name: str, step: int) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        if name not in self._writers:
            self._writers[name] = SummaryWriter(self._folder / name, purge_step=step if name in RESUMED else None)
        return self._writers[name]
