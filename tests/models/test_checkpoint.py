"""Network files of a run with their descriptions, and the identity of a model."""

import hashlib
import json
import random
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline.models.checkpoint import (
    METADATA_KEY,
    load_classifier,
    read_description,
    save_classifier,
    weights_identity,
)
from pipeline.models.classifier import Classifier, build_classifier
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.models.digest import with_digest
from pipeline.models.weights import read_weights

IMAGES = ImageConfig(channels=3, height=32, width=32, num_classes=5)
MODEL = ModelConfig(source="cifar10:resnet8", options={"width": 4}, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_saved_classifier_loads_with_its_description(tmp_path):
    path = tmp_path / "x.safetensors"
    classifier = build_classifier(MODEL, IMAGES, seed=1)
    classifier.class_titles = tuple("abcde")
    save_classifier(path, classifier, MODEL, IMAGES, {"seed": 1, "shape": (3, 32)})
    loaded = load_classifier(path)
    torch.testing.assert_close(loaded.state_dict(), classifier.state_dict(), rtol=0, atol=0)
    assert loaded.class_titles == classifier.class_titles
    assert not loaded.training
    assert read_description(path) == {
        "source": "cifar10:resnet8",
        "options": {"width": 4},
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "images": {"channels": 3, "height": 32, "width": 32, "num_classes": 5},
        "class_titles": list("abcde"),
        "fingerprint": hashlib.sha256(b'{"seed": 1, "shape": [3, 32]}').hexdigest()[:16],
        "identity": {"seed": 1, "shape": [3, 32]},
    }


def test_flipped_bits_are_noticed_or_harmless(tmp_path):
    path = tmp_path / "x.safetensors"
    save_classifier(path, build_classifier(MODEL, IMAGES), MODEL, IMAGES, {"seed": 1})
    content, description = path.read_bytes(), read_description(path)
    draw = random.Random(0)
    # Half of them in the first kilobytes, the header.
    for position in [draw.randrange(limit) for limit in (3000, len(content)) for _ in range(100)]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            assert read_description(path) == description
            assert position < 3000, "a flip in the tensors passed"
        except ValueError as error:
            assert str(path) in str(error)


def test_a_file_without_digest_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_classifier(path, build_classifier(MODEL, IMAGES), MODEL, IMAGES, {})
    metadata = {METADATA_KEY: json.dumps(read_description(path))}
    safetensors.torch.save_file(read_weights(path), path, metadata)
    with pytest.raises(ValueError, match="does not have the digest in its metadata"):
        load_classifier(path)


def test_another_source_takes_the_place_of_that_in_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_classifier(path, build_classifier(MODEL, IMAGES), MODEL, IMAGES, {})
    with pytest.raises(ValueError, match=r"x\.safetensors does not belong to cifar10:resnet14"):
        load_classifier(path, "cifar10:resnet14")


def test_options_in_a_file_load_nothing_else(tmp_path):
    path, images = tmp_path / "x.safetensors", replace(IMAGES, num_classes=1000)
    config = replace(MODEL, source="torchvision:squeezenet1_1", options={})
    classifier = build_classifier(config, images)
    save_classifier(path, classifier, replace(config, options={"weights": "DEFAULT"}), images, {})
    with pytest.raises(ValueError, match=r"options\.weights='DEFAULT' would load another file"):
        load_classifier(path)


def test_tied_weights_are_saved(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    network[2].weight = network[0].weight
    path = tmp_path / "tied.safetensors"
    save_classifier(path, Classifier(network, ((0.0,) * 3, (1.0,) * 3), 4), MODEL, IMAGES, {})
    assert torch.equal(read_weights(path)["2.weight"], network[0].weight)


def test_description_of_a_truncated_file_raises(tmp_path):
    path = tmp_path / "x.safetensors"
    save_classifier(path, build_classifier(MODEL, IMAGES), MODEL, IMAGES, {})
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
        read_description(path)


def test_description_of_another_file_raises(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors was not written by a run"):
        read_description(tmp_path / "x.safetensors")


def test_identity_has_the_content_of_weights_and_not_the_path(tmp_path):
    for name, content in (("a.pt", b"1"), ("b.pt", b"1"), ("c.pt", b"2")):
        (tmp_path / name).write_bytes(content)
    first, same_content, other_content = (
        weights_identity(replace(MODEL, weights=str(tmp_path / name)), "teacher.weights")
        for name in ("a.pt", "b.pt", "c.pt")
    )
    assert first == same_content != other_content


def test_identity_changes_with_the_code_of_a_users_network(tmp_path):
    code, weights = tmp_path / "own.py", tmp_path / "w.pt"
    weights.write_bytes(b"1")
    config = ModelConfig(source=f"python:{code}:build", weights=str(weights))
    identities = []
    for text in ("first", "second"):
        code.write_text(text)
        identities.append(weights_identity(config, "teacher.weights"))
    assert identities[0] != identities[1]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"depth": 3}, "unknown key images.depth"),
        ({"height": 0}, "images.height: 0"),
        ({"width": "wide"}, "images.width"),
    ],
)
def test_a_shape_that_is_none_of_images_is_named(tmp_path, change, fault):
    path = tmp_path / "x.safetensors"
    save_classifier(path, build_classifier(MODEL, IMAGES), MODEL, IMAGES, {})
    description = read_description(path)
    metadata = {METADATA_KEY: json.dumps({**description, "images": description["images"] | change})}
    path.write_bytes(with_digest(safetensors.torch.save(read_weights(path), metadata)))
    with pytest.raises(ValueError, match=rf"^{path} is damaged \(.*{fault}.* in its metadata\); move it away"):
        read_description(path)


def test_a_file_of_an_unknown_network_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    save_classifier(path, build_classifier(MODEL, IMAGES), MODEL, IMAGES, {})
    metadata = {METADATA_KEY: json.dumps({**read_description(path), "source": "cifar10:resnet7"})}
    path.write_bytes(with_digest(safetensors.torch.save(read_weights(path), metadata)))
    with pytest.raises(ValueError, match=rf"^{path}: cifar10 has no network 'resnet7'; did you mean resnet8"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("source", "name"), [("torchvision:resnet50", "IMAGENET1K_V2"), ("timm:resnet18", "resnet18.a1_in1k")]
)
def test_identity_has_the_name_behind_an_alias(source, name):
    if source.startswith("timm"):
        pytest.importorskip("timm")
    assert weights_identity(ModelConfig(source=source, weights="DEFAULT"), "teacher.weights")["weights"] == name


def test_identity_of_a_missing_file_raises_with_the_key(tmp_path):
    config = replace(MODEL, weights=str(tmp_path / "absent.pt"))
    with pytest.raises(ValueError, match=r"^verifier\.weights: there is no file .*absent\.pt; correct the path"):
        weights_identity(config, "verifier.weights")


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ("{", "Expecting property name"),
        ("[]", "no object"),
        ("{}", "source is missing"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_metadata_that_no_run_has_written_is_named(tmp_path, metadata, fault):
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_digest(safetensors.torch.save({"a": torch.zeros(1)}, {"dreamdistill": metadata})))
    with pytest.raises(ValueError, match=rf"^{path} is damaged \(.*{fault}.* in its metadata\); move it away"):
        read_description(path)
