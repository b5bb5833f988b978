"""Weight files of usual layouts load, others raise, and no code in them runs."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline.models.classifier import build_classifier, load_frozen
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.models.weights import load_weights, read_weights

IMAGES = ImageConfig(channels=3, height=32, width=32, num_classes=5)
SMALL = ModelConfig(source="cifar10:resnet8", options={"width": 4})


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """The tensors of a network of `SMALL`."""
    return dict(build_classifier(SMALL, IMAGES, seed=1).network.state_dict())


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("plain.pth", lambda tensors: tensors),
        ("state_dict.pth", lambda tensors: {"state_dict": tensors, "epoch": 3}),
        ("model_state_dict.pt", lambda tensors: {"model_state_dict": tensors, "optimizer": {"lr": 0.1}}),
        ("model.pt", lambda tensors: {"model": tensors}),
        ("net.t7", lambda tensors: {"net": tensors, "acc": 95.0}),
        ("network.bin", lambda tensors: {"network": tensors}),
        ("parallel.pth", lambda tensors: {"state_dict": {f"module.{k}": v for k, v in tensors.items()}}),
        ("compiled.pth", lambda tensors: {f"_orig_mod.{k}": v for k, v in tensors.items()}),
        ("both.pth", lambda tensors: {f"module._orig_mod.{k}": v for k, v in tensors.items()}),
        ("nested.pt", lambda tensors: {"model": {"net": {f"_orig_mod.module.{k}": v for k, v in tensors.items()}}}),
        ("old.pth", lambda tensors: {k: v for k, v in tensors.items() if "num_batches" not in k}),
    ],
)
def test_torch_weights_load_from_usual_wrappings(tmp_path, tensors, name, wrap):
    torch.save(wrap(tensors), tmp_path / name)
    classifier = build_classifier(replace(SMALL, weights=str(tmp_path / name)), IMAGES, seed=2)
    torch.testing.assert_close(dict(classifier.network.state_dict()), tensors, rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_weights_load_into_a_frozen_classifier(tmp_path, tensors, prefix):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({prefix + k: v for k, v in tensors.items()}, path)
    classifier = load_frozen(replace(SMALL, weights=str(path)), IMAGES, torch.device("cpu"))
    torch.testing.assert_close(dict(classifier.network.state_dict()), tensors, rtol=0, atol=0)
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())


def test_mismatch_lists_missing_unexpected_and_shapes_and_loads_nothing(tmp_path):
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    tensors = {k: v + 1 for k, v in before.items()} | {"0.weight": torch.zeros(4, 2), "head.bias": torch.zeros(1)}
    del tensors["1.running_mean"]
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="does not belong to a:b") as caught:
        load_weights(network, tmp_path / "x.safetensors", "a:b")
    assert "1 missing (1.running_mean)" in str(caught.value)
    assert "1 unexpected (head.bias)" in str(caught.value)
    assert "1 of another shape (0.weight (4, 2) instead of (3, 2))" in str(caught.value)
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, r"a:b: 1 of another shape \(weight \(2, 3\) instead of \(3, 2\)\)$"),
        ({"weight": None}, r"a:b: 1 missing \(weight\)$"),
        ({"scale": torch.zeros(1)}, r"a:b: 1 unexpected \(scale\)$"),
    ],
)
def test_each_kind_of_mismatch_raises(tmp_path, change, message):
    network = nn.Linear(2, 3)
    tensors = {k: v for k, v in (network.state_dict() | change).items() if v is not None}
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        load_weights(network, tmp_path / "x.pt", "a:b")


def test_long_list_of_unexpected_keys_is_cut(tmp_path):
    torch.save({f"k{i}": torch.zeros(1) for i in range(50)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"50 unexpected \(k0, .*, k7, \.\.\.\)"):
        load_weights(nn.Linear(1, 1), tmp_path / "x.pt", "a:b")


@pytest.mark.parametrize(("name", "kind"), [("x.safetensors", "safetensors"), ("x.pt", "torch")])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99])
def test_truncated_file_raises(tmp_path, name, kind, fraction):
    path = tmp_path / name
    save = safetensors.torch.save_file if kind == "safetensors" else torch.save
    save(nn.Linear(50, 50).state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ValueError, match=rf"^weights: .*{name} is truncated or not a {kind} file"):
        read_weights(path)


def test_missing_file_raises(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*absent\.pt"):
        read_weights(tmp_path / "absent.pt")


def test_file_that_torch_did_not_write_raises(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b".")
    with pytest.raises(ValueError, match=r"x\.pt is truncated or not a torch file"):
        read_weights(path)


def test_file_without_tensors_raises(tmp_path):
    torch.save({"epoch": 3, "lr": [0.1]}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds no state dict \(looked under state_dict"):
        read_weights(tmp_path / "x.pt")


def test_a_mapping_that_contains_itself_raises(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds no state dict"):
        read_weights(tmp_path / "x.pt")


def test_keys_that_are_no_names_raise(tmp_path):
    torch.save({0: torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds no state dict"):
        read_weights(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:TypedStorage")
@pytest.mark.parametrize("tensor", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, 2, device="meta")])
def test_tensors_that_hold_no_values_raise(tmp_path, tensor):
    torch.save({"weight": tensor}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: weight is no dense tensor with values"):
        read_weights(tmp_path / "x.pt")


class MakesFolder:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_file_with_code_raises_and_does_not_run(tmp_path, save):
    folder = tmp_path / "made"
    save({"state_dict": {"weight": torch.zeros(1)}, "extra": MakesFolder(folder)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds more than tensors, and loading it could run code; save the network's"):
        read_weights(tmp_path / "x.pt")
    assert not folder.exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_of_another_kind_of_number_raise(tmp_path, dtype):
    network = nn.Linear(2, 2)
    tensors = {**network.state_dict(), "bias": torch.zeros(2, dtype=dtype)}
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt: bias is {dtype} in place of torch\.float32; convert a quantized"):
        load_weights(network, tmp_path / "x.pt", "a linear layer")


def test_weights_of_another_precision_load(tmp_path):
    network = nn.Linear(2, 2)
    torch.save({name: tensor.double() for name, tensor in network.state_dict().items()}, tmp_path / "x.pt")
    load_weights(network, tmp_path / "x.pt", "a linear layer")
    assert network.weight.dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])  # the last is infinite in single precision
def test_weights_that_are_not_finite_raise(tmp_path, value):
    network = nn.Linear(2, 2)
    weight = torch.tensor([[1.0, value], [0.0, 0.0]], dtype=torch.float64)
    torch.save({**network.state_dict(), "weight": weight}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: weight holds values that are not finite"):
        load_weights(network, tmp_path / "x.pt", "a linear layer")
