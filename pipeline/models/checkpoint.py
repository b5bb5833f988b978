"""Network files that a run writes: tensors as safetensors, with their model and identity; and identities of models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from pipeline.models.classifier import Classifier
from pipeline.models.config import ModelConfig
from pipeline.models.sources import is_published_name, published_name
from pipeline.runtime.config import to_plain
from pipeline.runtime.files import atomic_file, sha256_of
from pipeline.runtime.fingerprint import fingerprint

METADATA_KEY = "dreamdistill"


def save_classifier(path: Path, classifier: Classifier, config: ModelConfig, identity: Mapping[str, Any]) -> None:
    """Write the network's tensors as safetensors; the metadata has model, normalization and identity."""
    tensors = {  # clones: safetensors refuses tensors that share memory, as tied weights do
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, v in classifier.network.state_dict().items()
    }
    mean, std = classifier.normalization
    description = {
        "source": config.source,
        "options": config.options,
        "mean": mean,
        "std": std,
        "fingerprint": fingerprint(identity),
        "identity": to_plain(identity),
    }
    data = safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(description, sort_keys=True)})
    with atomic_file(path) as file:
        file.write(data)


def read_description(path: Path) -> dict[str, Any]:
    """The metadata that `save_classifier` wrote; raises ValueError for files that it did not write."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); remove it to make it again"
        ) from error
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path} was not written by a run; move it away, or name it as a model's `weights`")
    description: dict[str, Any] = json.loads(metadata[METADATA_KEY])
    return description


def weights_identity(config: ModelConfig, key: str) -> dict[str, Any]:
    """What a network depends on: its configuration, and the SHA-256 of its weight file and its `python:FILE.py` code.

    Raises ValueError, naming `key`, when the weight file or the published weights do not exist.
    """
    identity: dict[str, Any] = to_plain(config)
    if config.weights and not is_published_name(config):
        path = Path(config.weights)
        if not path.is_file():
            raise ValueError(f"{key}: there is no file {path}; correct the path")
        del identity["weights"]  # the content counts, not the path
        identity["sha256"] = sha256_of(path)
    elif config.weights:
        try:
            identity["weights"] = published_name(config)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    kind, _, name = config.source.partition(":")
    code = Path(name.rpartition(":")[0])
    if kind == "python" and code.is_file():
        identity["code_sha256"] = sha256_of(code)
    return identity
