"""Network files that a run writes: tensors as safetensors, with what loading them takes; and identities of models."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from pipeline.models.classifier import Classifier, build_classifier
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.models.digest import is_intact, with_digest
from pipeline.models.sources import is_published_name, published_name
from pipeline.runtime.config import parse, to_plain
from pipeline.runtime.digests import parse_object
from pipeline.runtime.files import atomic_file, sha256_of
from pipeline.runtime.fingerprint import fingerprint
from pipeline.runtime.form import check_form

METADATA_KEY = "dreamdistill"
DESCRIPTION_FORM = {
    "source": str,
    "options": dict,
    "mean": [float],
    "std": [float],
    "images": dict,
    "class_titles": [str],
    "fingerprint": str,
    "identity": dict,
}


def save_classifier(
    path: Path, classifier: Classifier, config: ModelConfig, images: ImageConfig, identity: Mapping[str, Any]
) -> None:
    """Write the network's tensors as safetensors; the metadata has what `load_classifier` needs, and the identity."""
    mean, std = classifier.normalization
    description = {
        "source": config.source,
        "options": config.options,
        "mean": mean,
        "std": std,
        "images": to_plain(images),
        "class_titles": classifier.class_titles,
        "fingerprint": fingerprint(identity),
        "identity": to_plain(identity),
    }
    metadata = {METADATA_KEY: json.dumps(description, sort_keys=True)}
    with atomic_file(path) as file:
        file.write(with_digest(_tensor_bytes(classifier.network, metadata)))


def _tensor_bytes(network: nn.Module, metadata: dict[str, str] | None = None) -> bytes:
    tensors = {  # clones: safetensors refuses tensors that share memory, as tied weights do
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in network.state_dict().items()
    }
    return safetensors.torch.save(tensors, metadata)


def read_description(path: Path) -> dict[str, Any]:
    """The metadata that `save_classifier` wrote; raises ValueError for any other path, or a damaged file."""
    if path.is_dir():  # of which safetensors says that there is no such device
        raise ValueError(f"{path} is a folder; name a file in it, such as student-0.safetensors")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); if a run wrote it, remove it to make it again"
        ) from error
    if METADATA_KEY not in metadata:
        raise ValueError(
            f"{path} was not written by a run, or is damaged; move it away, or name it as a model's `weights`"
        )
    if not is_intact(path):
        raise ValueError(
            f"{path} is damaged, or of an older version: its content does not have the digest in its metadata; move it "
            "away to make it again, or, if it is of an older version, name it as a model's `weights`"
        )
    try:
        description = parse_object(metadata[METADATA_KEY])
        check_form(description, DESCRIPTION_FORM)
        parse(ImageConfig, description["images"], "images")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error} in its metadata); move it away to make it again") from error
    return description


def load_classifier(path: Path, source: str | None = None) -> Classifier:
    """The network in a file that `save_classifier` wrote, in evaluation mode on the CPU.

    `source` replaces that of the file. It must be given for a network of `python:`, because a weight file must not
    choose the code that is run. Raises ValueError when it is not, or when the network is not available.
    """
    description = read_description(path)
    stated = description["source"]
    if source is None and stated.startswith("python:"):
        raise ValueError(
            f"{path}: its network is made by {stated}, which is not in the file; if you trust that code, name it when "
            f'you load the file: source="{stated}"'
        )
    try:
        model = ModelConfig(
            source=source or stated,
            options=description["options"],
            weights=str(path),
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
        )
        classifier = build_classifier(model, ImageConfig(**description["images"]))
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error
    classifier.class_titles = tuple(description["class_titles"])
    return classifier.eval()


def network_identity(classifier: Classifier) -> dict[str, Any]:
    """What a network that was not built from a configuration depends on: its weights above all."""
    kind, (mean, std) = type(classifier.network), classifier.normalization
    return {
        "network": f"{kind.__module__}.{kind.__qualname__}",
        "mean": mean,
        "std": std,
        "classes": None if classifier.classes is None else classifier.classes.tolist(),
        "sha256": hashlib.sha256(_tensor_bytes(classifier.network)).hexdigest(),
    }


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
