"""Every file of configs/ runs from end to end with a few steps and random images; its header is complete."""

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
from pipeline.runtime import timing
from pipeline.runtime.config_files import BASE, load_yaml
from stages import chain

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
NORMALIZED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
NUM_REAL_IMAGES = 4
# float32, since bfloat16 is slow on processors without units for it.
FEW_STEPS = (
    "synthesis.num_images=6",
    "synthesis.batch_size=3",
    "synthesis.inversion.precision=float32",
    "synthesis.inversion.compile=false",
    "distill.steps=2",
    "distill.batch_size=3",
    "distill.precision=float32",
    "distill.compile=false",
    "distill.lr=1e-3",  # untrained networks would diverge
)
# In place of a network whose code is in a file of the user.
SUBSTITUTE = "cifar10:resnet8"


def local_weights(config: RunConfig, key: str, folder: Path) -> list[str]:
    """Overrides that give the network at `key` a file of random weights, so that nothing is downloaded."""
    model = config.ensemble[0] if key == "ensemble.0" else getattr(config, key)
    path = folder / f"{key}.safetensors"
    network = build_classifier(ModelConfig(source=model.source, options=model.options, **NORMALIZED), config.images)
    safetensors.torch.save_file(network.network.state_dict(), path)
    return [f"{key}.weights={path}", *(f"{key}.{name}={list(value)}" for name, value in NORMALIZED.items())]


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_runs(path, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "TIMED_PASSES", 1)
    original = load_run(path)
    smaller = [f"images.{side}={min(getattr(original.images, side), 32)}" for side in ("height", "width")]
    if original.classes is None:
        smaller.append("images.num_classes=10")
    models = {key: getattr(original, key) for key in ("teacher", "student", "verifier")}
    models |= {f"ensemble.{i}": model for i, model in enumerate(original.ensemble)}
    for key, model in models.items():
        if model and model.source.startswith("python:"):
            smaller += [f"{key}.source={SUBSTITUTE}", f"{key}.options={{}}"]
    if original.data.class_names:
        smaller.append("data.class_names=null")
    reduced = load_run(path, smaller)
    images, generator = reduced.images, np.random.default_rng(0)
    labels = reduced.class_labels or range(NUM_REAL_IMAGES)
    x = generator.integers(0, 256, (len(labels), images.height, images.width, images.channels), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=np.array(labels))
    source = f"npz:{tmp_path / 'images.npz'}"
    overrides = [*smaller, *FEW_STEPS, f"data.test={source}", f"synthesis.rounds={min(reduced.synthesis.rounds, 2)}"]
    overrides += [f"synthesis.inversion.phases.{i}.steps=1" for i in range(len(reduced.synthesis.inversion.phases))]
    overrides += [f"{key}_dir={tmp_path / key}" for key in ("shards", "checkpoints")]
    if reduced.teacher_training:
        training = {"steps": 1, "batch_size": 4, "lr": 1e-3, "precision": "float32", "compile": "false"}
        overrides += [f"data.train={source}", *(f"teacher_training.{key}={value}" for key, value in training.items())]
    else:
        overrides += local_weights(reduced, "teacher", tmp_path)
    for key in ("verifier", "ensemble.0"):
        if models.get(key):
            overrides += local_weights(reduced, key, tmp_path)
    config = load_run(path, overrides)
    run_in_process(chain.main, config)
    assert config.student_path(config.synthesis.rounds - 1).exists()
    assert (config.checkpoints / "report.html").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_config_header_states_command_hardware_and_result_or_target(path):
    header = path.read_text().split("\n\n")[0]
    assert f"CONFIG=configs/{path.name}" in header or path.stem == "digits"
    assert "# hardware " in header
    is_measured = "# time " in header and ("# result " in header or "# target " in header)
    assert is_measured or "nothing of it has been measured" in header


def repeated_keys(own: dict[str, Any], inherited: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of `own` that repeat the inherited value."""
    keys = []
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(inherited.get(key), dict):
            keys += repeated_keys(value, inherited[key], f"{prefix}{key}.")
        elif key in inherited and value == inherited[key]:
            keys.append(f"{prefix}{key}")
    return keys


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_derived_config_repeats_nothing_of_its_bases(path, tmp_path):
    own = yaml.safe_load(path.read_text())
    bases = own.pop(BASE, [])
    paths = [str(path.parent / base) for base in ([bases] if isinstance(bases, str) else bases)]
    (tmp_path / "bases.yaml").write_text(yaml.safe_dump({BASE: paths}))
    assert repeated_keys(own, load_yaml(tmp_path / "bases.yaml")) == []


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_config_has_no_renamed_key(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_run(path)


def test_gallery_has_the_published_term_weights_per_image():
    terms = load_run(CONFIGS[0].with_name("imagenet_gallery.yaml")).synthesis.inversion.terms
    assert (terms.image_l2, terms.tv_l2) == (1e-5, pytest.approx(1e-4 * 84**0.5, rel=0.01))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_config_leaves_precision_and_compile_on_auto(path):
    config = load_run(path)
    sections = [c for c in (config.synthesis.inversion, config.distill, config.teacher_training) if c]
    assert {value for c in sections for value in (c.precision, c.compile)} == {"auto"}
