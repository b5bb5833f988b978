"""Export a student: safetensors, torch.export and ONNX, each compared with PyTorch, and a model card."""

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.data.codec import to_unit
from pipeline.data.image_sets import load_images
from pipeline.data.shards import read_manifest
from pipeline.identity import existing_evaluation, student_identity
from pipeline.models import export
from pipeline.models.checkpoint import load_classifier, save_classifier
from pipeline.models.classifier import Classifier
from pipeline.models.model_card import TEACHER, ModelCard
from pipeline.run import RunConfig
from pipeline.runtime.files import atomic_folder, sha256_of, write_json, write_sealed_text
from pipeline.runtime.fingerprint import fingerprint, versions
from pipeline.runtime.hardware import device_name
from pipeline.runtime.text import markdown_code
from pipeline.session import Session, load_student, student_round
from stages.stage import counted

# The most test images on which logits are compared.
MAX_COMPARED = 500


def main(session: Session, round_index: int | None = None) -> None:
    """Write the folder `export` of the student of a round, by default of the last one, in place of a former one.

    Without the packages of the extra `onnx` there is no ONNX file, and a line says so.
    """
    config = session.config
    if not session.context.is_main_process:
        return
    round_index = student_round(config, round_index)
    evaluation = existing_evaluation(config, round_index)
    if evaluation is None:
        path = config.evaluation_path(round_index)
        raise ValueError(f"there is no evaluation of this student ({path}); run the stage `evaluate` first")
    student, pixels = load_student(config, round_index), _test_pixels(config)
    student.class_titles = config.class_titles
    identity, folder = student_identity(config, round_index), config.checkpoints / "export"
    with atomic_folder(folder) as temporary:
        networks = _write_networks(temporary, student, config, identity)
        pytorch_ms, files = export.compare(student, networks, pixels)
        comparison = {
            "compared_images": len(pixels),
            "timed_batch": min(len(pixels), export.BATCH),
            "hardware": f"{device_name(student.device)} with {counted(torch.get_num_threads(), 'thread')}",
            "pytorch_ms": pytorch_ms,
            "files": {name: {**asdict(file), "sha256": sha256_of(temporary / name)} for name, file in files.items()},
        }
        head = {"round": round_index, "fingerprint": fingerprint(identity), "opset": export.OPSET}
        write_json(temporary / "export.json", {**head, **comparison, "versions": _versions()})
        card = ModelCard(
            name=config.name,
            classifier=student,
            images=config.student_images,
            student=config.student,
            teacher=config.teacher,
            inverted=_inverted(config),
            test=config.data.test,
            evaluation=evaluation,
            comparison=comparison,
        )
        write_sealed_text(temporary / "README.md", card.text)
    for name, file in files.items():
        print(
            f"export: {folder / name}, {file.num_bytes / 2**20:.2f} MiB, logits within {file.max_difference:.2g} of "
            f"PyTorch's on {len(pixels)} images; {file.forward_ms:.2f} ms per batch, PyTorch {pytorch_ms:.2f} ms"
        )
    if missing := export.missing_onnx_packages():
        print(f"export: no student.onnx without {', '.join(missing)}; pip install 'dreamdistill[onnx]'")


def _inverted(config: RunConfig) -> list[str]:
    """The networks that the images were inverted from, for the model card."""
    if not config.distill.shards:
        return [TEACHER, *(f"`{model.source}`" for model in config.ensemble)]
    manifests = map(read_manifest, map(config.given_folder, config.distill.shards))
    return list(dict.fromkeys(markdown_code(str(manifest.get("teacher", "unknown"))) for manifest in manifests))


def _test_pixels(config: RunConfig) -> Tensor:
    """Evenly spaced test images, pixels in [0, 1] (N, C, H, W)."""
    images = load_images(config.data, "test", config.images, config.class_labels)
    num_images = len(images.labels)
    chosen = torch.linspace(0, num_images - 1, min(MAX_COMPARED, num_images)).long()
    return to_unit(images.batch(chosen.tolist()))


def _write_networks(
    folder: Path, student: Classifier, config: RunConfig, identity: dict[str, Any]
) -> dict[Path, export.Network]:
    """Write a file in each format; returns the network that each gives when it is loaded."""
    names = ("student.safetensors", "student.pt2", "student.onnx")
    weights, exported, onnx = (folder / name for name in names)
    save_classifier(weights, student, config.student, config.student_images, identity)
    program = export.trace(student, torch.zeros(2, *config.images.shape))
    export.save_program(exported, program)
    networks: dict[Path, export.Network] = {
        weights: load_classifier(weights, config.student.source),
        exported: export.load_program(exported),
    }
    if not export.missing_onnx_packages():
        export.save_onnx(onnx, program)
        networks[onnx] = export.load_onnx(onnx)
    return networks


def _versions() -> dict[str, str]:
    packages = set(export.ONNX_PACKAGES) - set(export.missing_onnx_packages())
    return versions() | {name: importlib.import_module(name).__version__ for name in sorted(packages)}
