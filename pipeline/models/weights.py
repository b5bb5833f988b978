"""Weight files: tensors are read from them, and no code in them is run."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.runtime.fingerprint import KEYS_SHOWN

# Keys under which public training scripts store a state dict, and prefixes that wrappers of a network add.
WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network")
PREFIXES = ("module.", "_orig_mod.")
# (part of a key in public checkpoints, its name in our networks).
ALIASES = (("linear.", "fc."), ("classifier.", "fc."), (".shortcut.", ".downsample."))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file. Raises ValueError when it is damaged or holds more than tensors."""
    if not path.is_file():
        raise ValueError(f"weights: there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"weights: {path} is truncated or not a safetensors file ({error})") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"weights: {path} holds more than tensors, and loading it could run code; "
            "save the network's state_dict() alone"
        ) from error
    except Exception as error:  # what the unpickler raises on damaged bytes is not specified
        raise ValueError(f"weights: {path} is truncated or not a torch file ({error})") from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in WRAPPINGS:  # no deeper: a file can hold a mapping that contains itself
        if isinstance(content, Mapping) and (inner := [n for n in WRAPPINGS if isinstance(content.get(n), Mapping)]):
            content = content[inner[0]]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise ValueError(f"weights: {path} holds no state dict (looked under {', '.join(WRAPPINGS)} too)")
    for key, value in content.items():
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            raise ValueError(f"weights: {path}: {key} is no dense tensor with values; save it as one")
    return dict(content)


def load_weights(network: nn.Module, path: Path, source: str) -> None:
    """Load the tensors of `path` into `network`; raises ValueError with the keys that do not fit."""
    tensors = read_weights(path)
    while prefix := next((p for p in PREFIXES if tensors and all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    expected = network.state_dict()
    tensors = {key if key in expected else _rename(key, expected): value for key, value in tensors.items()}
    counter = "num_batches_tracked"  # BatchNorm's step counter, which older files and converters leave out
    missing = [k for k in expected if k not in tensors and not k.endswith(counter)]
    unexpected = [k for k in tensors if k not in expected and not k.endswith(counter)]
    shapes = [
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in expected
        if k in tensors and tensors[k].shape != expected[k].shape
    ]
    if missing or unexpected or shapes:
        lists = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
        raise ValueError(f"weights: {path} does not belong to {source}: {'; '.join(_shorten(lists))}")
    tensors = {key: value for key, value in tensors.items() if key in expected}
    _require_numbers(tensors, expected, path)
    network.load_state_dict(tensors, strict=False)


def _require_numbers(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise ValueError for integers or complex numbers in place of weights, and for values that are not finite."""
    for key, value in tensors.items():
        if expected[key].is_floating_point() and not value.is_floating_point():
            raise ValueError(
                f"weights: {path}: {key} is {value.dtype} in place of {expected[key].dtype}; convert a quantized "
                "network back before it is saved"
            )
        if not value.to(expected[key].dtype).isfinite().all():
            raise ValueError(
                f"weights: {path}: {key} holds values that are not finite in {expected[key].dtype}; the training of it "
                "diverged"
            )


def _rename(key: str, expected: Mapping[str, Tensor]) -> str:
    """The name of `key` in this network, if an alias gives one; else `key` itself."""
    renamed = (key.replace(theirs, ours) for theirs, ours in ALIASES)
    return next((name for name in renamed if name in expected), key)


def _shorten(lists: dict[str, list[str]]) -> list[str]:
    return [
        f"{len(keys)} {name} ({', '.join(keys[:KEYS_SHOWN])}{', ...' if len(keys) > KEYS_SHOWN else ''})"
        for name, keys in lists.items()
        if keys
    ]
