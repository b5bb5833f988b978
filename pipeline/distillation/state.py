"""`TrainState`: everything that a training run needs to resume, and the file that keeps it."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pipeline.distillation.config import TrainingConfig
from pipeline.distillation.muon import Muon
from pipeline.models.classifier import Classifier
from pipeline.runtime.config import to_plain
from pipeline.runtime.device import synchronize
from pipeline.runtime.digests import parse_object
from pipeline.runtime.files import atomic_file, remove_file, temporary_path
from pipeline.runtime.fingerprint import require_same_identity
from pipeline.runtime.form import check_form
from pipeline.runtime.shutdown import finished_before_exit

# The usual momentum of SGD with Nesterov's method.
SGD_MOMENTUM = 0.9
STATE_FORM = {"identity": str, "step": int}


@dataclass
class TrainState:
    """The network, its optimizer, the number of steps done, and the file that keeps all of it.

    Training ends at step `end`, by default after all steps of the config. `is_saved` tells, after an interrupt, that
    the file keeps this step. `after_write` gets the path of the file whenever it has been written.
    """

    classifier: Classifier
    config: TrainingConfig
    path: Path
    identity: Mapping[str, Any]
    optimizer: torch.optim.Optimizer
    step: int
    end: int
    is_saved: bool = False
    after_write: Callable[[Path], None] | None = None

    @classmethod
    def open(
        cls,
        classifier: Classifier,
        config: TrainingConfig,
        path: Path,
        identity: Mapping[str, Any],
        steps: range | None = None,
    ) -> Self:
        """A state for the `steps`, by default all of the config.

        If the file `path` exists, its content is loaded into the classifier and the optimizer, and training resumes at
        its step. Raises ValueError when the file is damaged, ConfigError when it has another identity.
        """
        steps = range(config.steps) if steps is None else steps
        optimizer = build_optimizer(classifier.network, config)
        state = cls(classifier, config, path, identity, optimizer, steps.start, steps.stop)
        if path.exists():
            state._restore()
        return state

    def on_host(self) -> dict[str, Any]:
        """What the file keeps, copied to the host's memory, so that training can continue while it is written."""
        content = {
            "identity": json.dumps(to_plain(self.identity), default=str),
            "step": self.step,
            "network": self.classifier.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        copied: dict[str, Any] = tree_map_only(Tensor, _host_copy, content)
        synchronize(self.classifier.device)
        return copied

    def _restore(self) -> None:
        content = read_state(self.path)
        require_same_identity(str(self.path), json.loads(content["identity"]), self.identity)
        self.classifier.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]


def state_path(network_path: Path) -> Path:
    """The file of the state of a network that is being trained."""
    return network_path.with_suffix(".state")


def remove_state(network_path: Path) -> None:
    """Remove the state of a finished network, and what a killed process left of it under a temporary name."""
    path = state_path(network_path)
    for leftover in (path, temporary_path(path)):
        remove_file(leftover)


def _host_copy(tensor: Tensor) -> Tensor:
    """A copy in the host's memory, complete once the device is synchronized."""
    return tensor.detach().to("cpu", copy=True, non_blocking=True)


def write_state(path: Path, content: Mapping[str, Any]) -> None:
    """Write the content that `TrainState.on_host` returned, atomically, after a line with the digest of the rest."""
    with finished_before_exit():
        buffer = io.BytesIO()  # on a full disk, writing bytes raises OSError, torch.save into a file RuntimeError
        torch.save(content, buffer)
        with atomic_file(path) as file:
            file.write(digest_line(buffer.getbuffer()))
            file.write(buffer.getbuffer())


def read_state(path: Path) -> dict[str, Any]:
    """The content that `write_state` wrote, on the CPU; raises ValueError when the file is damaged."""
    with open(path, "rb") as file:
        first_line, rest = file.readline(), file.read()
    if first_line != digest_line(rest):
        raise ValueError(
            f"{path} is damaged: its first line is not the digest of the rest (files of older versions have none); "
            "remove it to train from the start"
        )
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True)
        check_form(content, STATE_FORM)
        parse_object(content["identity"])
    except Exception as error:  # what the unpickler raises is not specified
        raise ValueError(f"{path} holds something else than a state; remove it to train from the start") from error
    return content


def digest_line(rest: bytes | memoryview) -> bytes:
    """The first line of a state, given the rest of the file."""
    return f"dreamdistill state, sha256 {hashlib.sha256(rest).hexdigest()}\n".encode()


def build_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer that the config names; biases and BatchNorm have no weight decay."""
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        momentum = SGD_MOMENTUM if config.momentum is None else config.momentum
        return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=momentum > 0)
    if config.optimizer == "muon":
        return Muon(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr)
