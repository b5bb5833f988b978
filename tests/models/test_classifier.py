"""Networks of every source, their weights, and the messages when they do not fit."""

import hashlib
import importlib.util
import os
import pickle
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision.models._api
from torch import nn

from cifar10.networks import build_network
from pipeline.models.checkpoint import read_description, save_classifier, weights_identity
from pipeline.models.classifier import Classifier, build_classifier, load_frozen
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.models.weights import load_weights, read_weights
from pipeline.runtime.config import ConfigError
from pipeline.synthesis.statistics import batch_norm_layers

IMAGES = ImageConfig(channels=3, height=32, width=32, num_classes=5)
SMALL = ModelConfig(source="cifar10:resnet8", options={"width": 4})
USER_CODE = """
import torch
from torch import nn

def network(num_classes=5, channels=3):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))

def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()

def text():
    return "no network"
"""


@pytest.fixture
def user_file(tmp_path, monkeypatch):
    """A module of a user's own, both importable and a file."""
    path = tmp_path / "user_networks_of_a_test.py"
    path.write_text(USER_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def assert_same_tensors(found: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    state = found.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], v) for k, v in expected.items())


def test_pixels_are_normalized_per_channel(device):
    classifier = Classifier(nn.Identity(), ((0.5, 0.2), (0.25, 0.1)), 2).to(device)
    pixels = torch.tensor([[[[0.0, 1.0]], [[0.2, 0.3]]]], device=device)
    expected = torch.tensor([[[[-2.0, 2.0]], [[0.0, 1.0]]]], device=device)
    torch.testing.assert_close(classifier.normalize(pixels), expected)
    torch.testing.assert_close(classifier(pixels), expected)


@pytest.mark.parametrize(
    ("source", "options", "channels"),
    [
        ("cifar10:resnet8", {"width": 4, "shortcut": "A"}, 1),
        ("cifar10:resnet18", {"width": 4}, 3),
        ("torchvision:resnet18", {"zero_init_residual": True}, 3),
        ("timm:resnet10t", {}, 1),
        ("python:user_networks_of_a_test:network", {"channels": 2}, 2),
        ("python:FILE:network", {}, 3),
    ],
)
def test_every_kind_of_source_answers_images_with_logits(user_file, source, options, channels):
    if source.startswith("timm"):
        pytest.importorskip("timm")
    images = ImageConfig(channels=channels, height=32, width=40, num_classes=5)
    config = ModelConfig(source=source.replace("FILE", str(user_file)), options=options)
    classifier = build_classifier(config, images)
    assert classifier(torch.rand(2, *images.shape)).shape == (2, 5)
    assert classifier.training
    assert all(p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar10:resnet_20", r"cifar10 has no network 'resnet_20'; did you mean resnet20\?"),
        ("torchvision:resnet19", "torchvision has no classifier 'resnet19'"),
        ("timm:resnet19", "timm has no model 'resnet19'"),
        ("python:absent_module_of_a_test:f", "No module named 'absent_module_of_a_test'.*PYTHONPATH"),
        ("python:absent.py:f", r"python:absent\.py: no such file"),
        ("python:user_networks_of_a_test:nothing", "user_networks_of_a_test has no 'nothing'"),
        ("python:user_networks_of_a_test", "must be python:package.module:function"),
        ("python:user_networks_of_a_test:text", "must return a torch.nn.Module, it returned str"),
        ("python:user_networks_of_a_test:pair", "answers one image with tuple"),
    ],
)
def test_a_source_that_gives_no_network_is_refused(user_file, source, message):
    if source.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        build_classifier(ModelConfig(source=source), IMAGES)


def test_options_that_a_network_does_not_take_are_named():
    with pytest.raises(ValueError, match=r"torchvision:resnet18 does not take options \{'depth': 3\}"):
        build_classifier(ModelConfig(source="torchvision:resnet18", options={"depth": 3}), IMAGES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "resnet20"}, "source: 'resnet20' must be KIND:NAME"),
        ({"source": "keras:resnet20"}, "source: 'keras:resnet20' must be KIND:NAME"),
        ({"source": "cifar10:"}, "source: 'cifar10:' must be KIND:NAME"),
        ({"source": "cifar10:resnet8", "mean": (0.5,)}, "mean, std: give both or neither"),
        (
            {"source": "cifar10:resnet8", "mean": (0.5,), "std": (0.0,)},
            r"std: \[0\.0\] must be one positive value a channel",
        ),
    ],
)
def test_a_model_config_that_cannot_be_meant_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**values)


def test_normalization_comes_from_the_config_then_the_caller_then_is_none():
    of_caller = ((0.1,) * 3, (0.2,) * 3)
    own = ModelConfig(source="cifar10:resnet8", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert build_classifier(own, IMAGES, default_normalization=of_caller).normalization == (own.mean, own.std)
    torch.testing.assert_close(
        build_classifier(SMALL, IMAGES, default_normalization=of_caller).normalization, of_caller
    )
    assert build_classifier(SMALL, IMAGES).normalization == ((0.0,) * 3, (1.0,) * 3)


def test_a_normalization_with_another_number_of_channels_is_refused():
    config = ModelConfig(source="cifar10:resnet8", mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match=r"need one value for each of images\.channels=3"):
        build_classifier(config, IMAGES)


def test_channels_that_a_network_cannot_read_are_refused():
    with pytest.raises(ValueError, match=r"torchvision:resnet18 cannot read images of \(C, H, W\) = \(1, 32, 32\)"):
        build_classifier(
            ModelConfig(source="torchvision:resnet18"), ImageConfig(channels=1, height=32, width=32, num_classes=5)
        )


def test_a_wrong_number_of_classes_is_refused(user_file):
    config = ModelConfig(source="python:user_networks_of_a_test:network", options={"num_classes": 7})
    with pytest.raises(ValueError, match=r"answers one image with \(1, 7\), images\.num_classes=5 needs \(1, 5\)"):
        build_classifier(config, IMAGES)


def test_a_network_without_batch_norm_is_refused_by_name():
    for network in (nn.Linear(2, 2), nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False))):
        with pytest.raises(ValueError, match=rf"the teacher \({type(network).__name__}\) has no BatchNorm layer"):
            batch_norm_layers(network)


def test_published_weights_that_do_not_exist_or_cannot_be_downloaded_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="torchvision:resnet18 has no weights 'BEST'; it has IMAGENET1K_V1"):
        build_classifier(ModelConfig(source="torchvision:resnet18", weights="BEST"), IMAGES)

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=r"could not be downloaded.*put a weight file's path"):
        build_classifier(ModelConfig(source="torchvision:squeezenet1_1", weights="DEFAULT"), IMAGES)


def test_the_same_seed_gives_the_same_weights_and_the_global_generator_is_untouched():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build_classifier(SMALL, IMAGES, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_tensors(again, tensors_of(first))
    assert not torch.equal(first.network.conv1.weight, other.network.conv1.weight)
    torch.manual_seed(6)
    assert_same_tensors(build_classifier(SMALL, IMAGES, seed=1), tensors_of(first))


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
        ("old.pth", lambda tensors: {k: v for k, v in tensors.items() if "num_batches" not in k}),
    ],
)
def test_torch_weights_are_found_in_the_usual_wrappings(tmp_path, name, wrap):
    expected = tensors_of(build_classifier(SMALL, IMAGES, seed=1).network)
    torch.save(wrap(expected), tmp_path / name)
    config = ModelConfig(**{**vars(SMALL), "weights": str(tmp_path / name)})
    assert_same_tensors(build_classifier(config, IMAGES, seed=2).network, expected)


def test_safetensors_weights_are_loaded_with_and_without_a_prefix(tmp_path):
    expected = tensors_of(build_classifier(SMALL, IMAGES, seed=1).network)
    for prefix in ("", "module."):
        path = tmp_path / f"{prefix}x.safetensors"
        safetensors.torch.save_file({prefix + k: v for k, v in expected.items()}, path)
        loaded = load_frozen(ModelConfig(**{**vars(SMALL), "weights": str(path)}), IMAGES, torch.device("cpu"))
        assert_same_tensors(loaded.network, expected)
        assert not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())


def test_a_mismatch_lists_missing_unexpected_and_shapes_and_loads_nothing(tmp_path):
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = tensors_of(network)
    tensors = {k: v + 1 for k, v in before.items()} | {"0.weight": torch.zeros(4, 2), "head.bias": torch.zeros(1)}
    del tensors["1.running_mean"]
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="does not belong to a:b") as caught:
        load_weights(network, tmp_path / "x.safetensors", "a:b")
    assert "1 missing (1.running_mean)" in str(caught.value)
    assert "1 unexpected (head.bias)" in str(caught.value)
    assert "1 of another shape (0.weight (4, 2) instead of (3, 2))" in str(caught.value)
    assert_same_tensors(network, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, r"a:b: 1 of another shape \(weight \(2, 3\) instead of \(3, 2\)\)$"),
        ({"weight": None}, r"a:b: 1 missing \(weight\)$"),
        ({"scale": torch.zeros(1)}, r"a:b: 1 unexpected \(scale\)$"),
    ],
)
def test_each_kind_of_mismatch_alone_is_refused(tmp_path, change, message):
    network = nn.Linear(2, 3)
    tensors = {k: v for k, v in (tensors_of(network) | change).items() if v is not None}
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        load_weights(network, tmp_path / "x.pt", "a:b")


def test_a_long_list_of_wrong_keys_is_cut(tmp_path):
    torch.save({f"k{i}": torch.zeros(1) for i in range(50)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"50 unexpected \(k0, .*, k7, \.\.\.\)"):
        load_weights(nn.Linear(1, 1), tmp_path / "x.pt", "a:b")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    path = tmp_path / name
    tensors = tensors_of(nn.Linear(50, 50))
    (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf"{name} is truncated or no"):
        read_weights(path)


def test_an_absent_file_and_a_file_without_tensors_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*absent\.pt"):
        read_weights(tmp_path / "absent.pt")
    torch.save({"epoch": 3, "lr": [0.1]}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds no state dict \(looked under state_dict"):
        read_weights(tmp_path / "x.pt")


class Attack:
    """Unpickling it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_a_file_with_code_is_refused_and_the_code_does_not_run(tmp_path, save):
    save({"state_dict": {"weight": torch.zeros(1)}, "extra": Attack(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="could run code in it, so it is refused"):
        read_weights(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_a_saved_classifier_reads_back_with_its_description(tmp_path):
    path = tmp_path / "x.safetensors"
    config = ModelConfig(**{**vars(SMALL), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)})
    classifier = build_classifier(config, IMAGES, seed=1)
    save_classifier(path, classifier, config, {"seed": 1, "shape": (3, 32)})
    loaded = build_classifier(ModelConfig(**{**vars(config), "weights": str(path)}), IMAGES, seed=2)
    assert_same_tensors(loaded, tensors_of(classifier))
    description = read_description(path)
    assert description.pop("fingerprint") == hashlib.sha256(b'{"seed": 1, "shape": [3, 32]}').hexdigest()[:16]
    assert description == {
        "source": "cifar10:resnet8",
        "options": {"width": 4},
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "identity": {"seed": 1, "shape": [3, 32]},
    }
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="is truncated or no safetensors file"):
        read_description(path)


def test_a_file_of_other_origin_has_no_description(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors was not written by a run"):
        read_description(tmp_path / "x.safetensors")


def test_the_identity_of_weights_is_their_content_not_their_place(tmp_path):
    for name, content in (("a.pt", b"1"), ("b.pt", b"1"), ("c.pt", b"2")):
        (tmp_path / name).write_bytes(content)
    same, moved, other = (
        weights_identity(ModelConfig(source="cifar10:resnet8", weights=str(tmp_path / name)), "teacher.weights")
        for name in ("a.pt", "b.pt", "c.pt")
    )
    assert same == moved != other


@pytest.mark.parametrize(
    ("name", "shortcut", "parameters"),
    [
        ("resnet20", "A", 269_722),
        ("resnet56", "A", 853_018),
        ("resnet18", "B", 11_173_962),
        ("resnet34", "B", 21_282_122),
    ],
)
def test_cifar_networks_have_the_published_number_of_parameters(name, shortcut, parameters):
    with torch.device("meta"):
        network = build_network(name, in_channels=3, num_classes=10, shortcut=shortcut)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_an_unknown_shortcut_is_refused():
    with pytest.raises(ValueError, match=r"shortcut: 'C' must be A .* or B"):
        build_network("resnet8", in_channels=3, num_classes=10, shortcut="C")


DATA = os.environ.get("DREAMDISTILL_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="DREAMDISTILL_DATA names no folder with real networks and images")
REAL_IMAGES = ImageConfig(channels=3, height=32, width=32, num_classes=10)


@pytest.fixture(scope="module")
def real_test_set():
    """The first 500 real test images as pixels in [0, 1], and their labels."""
    with np.load(Path(DATA) / "cifar10" / "cifar10_test.npz") as arrays:
        pixels, labels = arrays["x"][:500], arrays["y"][:500]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels.astype(np.int64))


@pytest.fixture(scope="module")
def users_loader():
    """The loader that lies beside the real weights."""
    spec = importlib.util.spec_from_file_location("users_cifar_resnet", Path(DATA) / "cifar_models" / "cifar_resnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_data
@pytest.mark.parametrize(
    ("weights", "source", "shortcut"),
    [
        ("cifar10_resnet20_akamaster", "cifar10:resnet20", "A"),
        ("cifar10_resnet56_akamaster", "cifar10:resnet56", "A"),
        ("cifar10_resnet56_chenyaofo", "cifar10:resnet56", "B"),
    ],
)
@torch.no_grad()
def test_real_weights_answer_as_their_own_loader_and_reach_their_accuracy(
    device, real_test_set, users_loader, weights, source, shortcut
):
    path = Path(DATA) / "cifar_models" / f"{weights}.safetensors"
    reference, facts = users_loader.load(str(path))
    config = ModelConfig(
        source=source,
        options={"shortcut": shortcut},
        weights=str(path),
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
    )
    classifier = load_frozen(config, REAL_IMAGES, device)
    pixels, labels = real_test_set
    normalized = (pixels[:64] - torch.tensor(facts["mean"]).view(3, 1, 1)) / torch.tensor(facts["std"]).view(3, 1, 1)
    logits = torch.cat([classifier(batch.to(device)).cpu() for batch in pixels.split(100)])
    torch.testing.assert_close(logits[:64], reference(normalized), atol=1e-3, rtol=1e-4)
    top1 = 100 * (logits.argmax(1) == labels).float().mean().item()
    assert abs(top1 - facts["top1_cifar10_test"]) <= 3


@needs_data
def test_real_weights_with_the_other_shortcut_are_refused():
    path = Path(DATA) / "cifar_models" / "cifar10_resnet56_chenyaofo.safetensors"
    config = ModelConfig(source="cifar10:resnet56", options={"shortcut": "A"}, weights=str(path))
    with pytest.raises(
        ValueError, match=r"does not belong to cifar10:resnet56: \d+ unexpected \(layer2\.0\.downsample"
    ):
        build_classifier(config, REAL_IMAGES)


def test_bytes_that_are_no_torch_file_are_refused(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(b".")
    with pytest.raises(ValueError, match=r"w\.pt is truncated or no torch file"):
        read_weights(path)


def test_wrappings_and_prefixes_may_be_nested(tmp_path):
    network = build_network("resnet8", in_channels=3, num_classes=10, width=4)
    tensors = {f"_orig_mod.module.{k}": v for k, v in network.state_dict().items()}
    torch.save({"model": {"state_dict": tensors}}, tmp_path / "w.pt")
    other = build_network("resnet8", in_channels=3, num_classes=10, width=4)
    load_weights(other, tmp_path / "w.pt", "cifar10:resnet8")
    assert torch.equal(other.conv1.weight, network.conv1.weight)


def test_tied_weights_are_saved(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    network[2].weight = network[0].weight
    classifier = Classifier(network, ((0.0,) * 3, (1.0,) * 3), 4)
    save_classifier(tmp_path / "tied.safetensors", classifier, ModelConfig(source="python:x:y"), {})
    assert torch.equal(read_weights(tmp_path / "tied.safetensors")["2.weight"], network[0].weight)


def test_a_network_of_a_fixed_size_names_the_size_it_was_given():
    config = ModelConfig(source="torchvision:vit_b_16", options={"image_size": 32})
    images = ImageConfig(channels=3, height=48, width=48, num_classes=10)
    with pytest.raises(ValueError, match=r"torchvision:vit_b_16 cannot read images of \(C, H, W\) = \(3, 48, 48\)"):
        build_classifier(config, images)


def test_the_code_of_a_users_own_network_counts(tmp_path):
    code, weights = tmp_path / "own.py", tmp_path / "w.pt"
    weights.write_bytes(b"1")
    config = ModelConfig(source=f"python:{code}:build", weights=str(weights))
    code.write_text("first")
    first = weights_identity(config, "teacher.weights")
    code.write_text("second")
    assert weights_identity(config, "teacher.weights") != first


def test_a_name_that_timm_does_not_know_for_weights_is_a_path():
    images = ImageConfig(channels=3, height=32, width=32, num_classes=10)
    with pytest.raises(ValueError, match="weights: there is no file foo"):
        build_classifier(ModelConfig(source="timm:resnet10t", weights="foo"), images)


@pytest.mark.parametrize(
    ("source", "name"), [("torchvision:resnet50", "IMAGENET1K_V2"), ("timm:resnet18", "resnet18.a1_in1k")]
)
def test_an_alias_of_published_weights_is_identified_by_what_it_stands_for(source, name):
    assert weights_identity(ModelConfig(source=source, weights="DEFAULT"), "teacher.weights")["weights"] == name
