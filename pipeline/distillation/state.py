"""The state of a training, all that a resume needs."""

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pipeline.distillation.config import TrainingConfig
from pipeline.models.classifier import Classifier
from pipeline.models.weights import load_tensors
from pipeline.runtime.config import to_plain
from pipeline.runtime.device import synchronise
from pipeline.runtime.files import atomic_file
from pipeline.runtime.fingerprint import refuse_other

# What is usual for SGD with Nesterov momentum; AdamW has none.
SGD_MOMENTUM = 0.9


@dataclass
class TrainState:
    """All that a resume needs: the network, its optimiser, the number of steps done; and the file that keeps it."""

    classifier: Classifier
    optimizer: torch.optim.Optimizer
    path: Path
    identity: Mapping[str, Any]
    step: int = 0

    @classmethod
    def open(
        cls, classifier: Classifier, config: TrainingConfig, path: Path, identity: Mapping[str, Any], step: int = 0
    ) -> Self:
        """The state kept in `path`, or, where there is none, a fresh one before `step`.

        Raises ValueError when the file is damaged, ConfigError when it is of another identity.
        """
        state = cls(classifier, build_optimizer(classifier.network, config), path, identity, step)
        if path.exists():
            state._restore()
        return state

    def save(self) -> None:
        """Write the state atomically."""
        write_state(self.path, self.on_host())

    def on_host(self) -> dict[str, Any]:
        """What a resume needs, copied to the host: training may go on while it is written."""
        content = {
            "identity": json.dumps(to_plain(self.identity), default=str),
            "step": self.step,
            "network": self.classifier.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        copied: dict[str, Any] = tree_map_only(Tensor, _host_copy, content)
        synchronise(self.classifier.mean.device)
        return copied

    def _restore(self) -> None:
        try:
            content: dict[str, Any] = load_tensors(self.path)
        except (ValueError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.path} is damaged ({error}); remove it to train from the start") from error
        refuse_other(str(self.path), json.loads(content["identity"]), self.identity)
        self.classifier.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]


def _host_copy(tensor: Tensor) -> Tensor:
    """A copy in the host's memory, complete when the device is synchronised."""
    return tensor.detach().to("cpu", copy=True, non_blocking=True)


def write_state(path: Path, content: Mapping[str, Any]) -> None:
    """Write what `TrainState.on_host` gave, atomically."""
    buffer = io.BytesIO()  # on a full disk, writing bytes raises OSError, torch.save into a file RuntimeError
    torch.save(content, buffer)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())


def build_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; no weight decay on biases and BatchNorm."""
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        momentum = SGD_MOMENTUM if config.momentum is None else config.momentum
        return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=momentum > 0)
    return torch.optim.AdamW(groups, lr=config.lr)
