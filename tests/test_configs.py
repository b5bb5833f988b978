"""Every file of configs/ names what exists and runs from end to end, cut down to a few steps on made-up images."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import yaml
from tiny_run import run_in_process

from pipeline.models.classifier import build_classifier
from pipeline.models.config import ModelConfig
from pipeline.run import RunConfig, load_run
from pipeline.runtime.config_files import BASE, load_yaml
from stages import chain

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
NORMALIZED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FEW_STEPS = (
    "synthesis.num_images=6",
    "synthesis.batch_size=3",
    "synthesis.inversion.compile=false",
    "distill.steps=2",
    "distill.batch_size=3",
    "distill.compile=false",
    "distill.lr=1e-3",  # networks that have learned nothing would diverge
)
# In place of networks in a user's own files.
OWN_NETWORK = "cifar10:resnet8"


def local_weights(config: RunConfig, key: str, folder: Path) -> list[str]:
    """Overrides that give the network at `key` random weights of its own, instead of what would be downloaded."""
    model = getattr(config, key)
    path = folder / f"{key}.safetensors"
    network = build_classifier(ModelConfig(source=model.source, options=model.options, **NORMALIZED), config.images)
    safetensors.torch.save_file(network.network.state_dict(), path)
    return [f"{key}.weights={path}", *(f"{key}.{name}={list(value)}" for name, value in NORMALIZED.items())]


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_runs(path, tmp_path):
    shipped = load_run(path)
    small = [f"images.{side}={min(getattr(shipped.images, side), 32)}" for side in ("height", "width")]
    for key in ("teacher", "verifier"):
        if (model := getattr(shipped, key)) and model.source.startswith("python:"):
            small.append(f"{key}.source={OWN_NETWORK}")
    as_shipped = load_run(path, small)
    images, draws = as_shipped.images, np.random.default_rng(0)
    x = draws.integers(0, 256, (20, images.height, images.width, images.channels), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(20) % images.num_classes)
    source = f"npz:{tmp_path / 'images.npz'}"
    overrides = [*small, *FEW_STEPS, f"data.test={source}", f"synthesis.rounds={min(as_shipped.synthesis.rounds, 2)}"]
    overrides += [f"synthesis.inversion.phases.{i}.steps=2" for i in range(len(as_shipped.synthesis.inversion.phases))]
    overrides += [f"{key}_dir={tmp_path / key}" for key in ("shards", "checkpoints")]
    if as_shipped.teacher_training:
        training = {"steps": 2, "batch_size": 4, "lr": 1e-3, "compile": "false"}
        overrides += [f"data.train={source}", *(f"teacher_training.{key}={value}" for key, value in training.items())]
    else:
        overrides += local_weights(as_shipped, "teacher", tmp_path)
    if as_shipped.verifier:
        overrides += local_weights(as_shipped, "verifier", tmp_path)
    config = load_run(path, overrides)
    run_in_process(chain.main, config)
    assert config.student_path(config.synthesis.rounds - 1).exists()
    assert (config.checkpoints / "report.html").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_states_its_command_and_what_was_measured_or_what_it_aims_at(path):
    header = path.read_text().split("\n\n")[0]
    assert f"CONFIG=configs/{path.name}" in header or path.stem == "digits"
    assert "# hardware " in header
    assert ("# time " in header and "# result " in header) or "nothing of it has been measured" in header


def restated(own: dict[str, Any], inherited: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of `own` that have the inherited value."""
    keys = []
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(inherited.get(key), dict):
            keys += restated(value, inherited[key], f"{prefix}{key}.")
        elif key in inherited and value == inherited[key]:
            keys.append(f"{prefix}{key}")
    return keys


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_a_derived_config_states_only_what_differs_from_its_base(path):
    own = yaml.safe_load(path.read_text())
    base = own.pop(BASE, None)
    assert restated(own, load_yaml(path.with_name(base)) if base else {}) == []


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_configs_use_no_renamed_key(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_run(path)


def test_the_gallery_has_the_published_weights_of_terms_that_are_means_over_images():
    terms = load_run(CONFIGS[0].with_name("imagenet_gallery.yaml")).synthesis.inversion.terms
    assert (terms.image_l2, terms.tv_l2) == (1e-5, pytest.approx(1e-4 * 84**0.5, rel=0.01))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_configs_leave_precision_and_compiling_to_the_machine(path):
    assert not {"precision:", "compile:"} & set(path.read_text().split())
