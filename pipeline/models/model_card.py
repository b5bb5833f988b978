"""The model card of an exported student, with Hugging Face's YAML header."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.models.classifier import Classifier
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.models.export import OPSET
from pipeline.runtime.text import markdown_cell

# The network that the student learns from, in a sentence.
TEACHER = "the teacher"

CARD = """---
{header}---

# {name}

A classifier of {num_classes} classes (`{source}`, {parameters:,} parameters), distilled by dreamdistill from another
classifier, the teacher (`{teacher}`). Synthetic images were inverted from {inverted}, and this student was trained on
the teacher's outputs for them. {start}

## Figures

On {num_images:,} real images (`{test}`), which took no part in this training:

| | student | teacher |
|---|---|---|
{figures}
The two agree on {agreement:.2%} of the images. The student has {accuracy_retention:.1%} of the teacher's accuracy. The
mean KL divergence from the teacher to the student is {kl:.4f} nats.

## Use

The input is `pixels`, float32 of shape (N, {channels}, {height}, {width}), {colors}, scaled to [0, 1]; N can be any
number. The output is logits (N, {num_classes}). The normalization is inside: mean {mean}, standard deviation {std}.

```python
from dreamdistill import load_student
student = load_student("student.safetensors"{source_argument})
logits = student(pixels)
```

```python
import torch
student = torch.export.load("student.pt2").module()
logits = student(pixels)
```
{onnx}
| file | size | largest difference from PyTorch's logits | time of a batch |
|---|---|---|---|
{files}
Measured on {compared_images:,} of the real images, in batches of {timed_batch}, on {hardware}; PyTorch itself takes
{pytorch_ms:.2f} ms. `export.json` holds these figures and the versions of the libraries.

## Classes

| output | class |
|---|---|
{classes}
## Limits

- The figures hold for images like the test images above. Other cameras, crops or subjects were not measured, and every
  image gets one of the {num_classes} classes, whatever it shows.
- The student repeats what the teacher learned: its errors and its biases too.
- Weights can hold traces of the data that the teacher was trained on; treat them with the care that those data require.
- The probabilities are calibrated only as well as the calibration error above says.

## License

The header says `unknown`, since dreamdistill cannot know. This student was derived from the weights of {origins}, so
ask before you publish it: under which license were these weights published, does it allow derived networks, and do the
terms of the data that they were trained on reach them? Then put the answer into the header. The license of dreamdistill
covers its code alone.
"""

ONNX = """
```python
import onnxruntime
session = onnxruntime.InferenceSession("student.onnx")
(logits,) = session.run(["logits"], {{"pixels": pixels.numpy()}})
```

`student.onnx` uses version {opset} of ONNX's operators.
"""

NO_REAL_IMAGE = "No real image took part."
# Of a student with `weights`, which the user brings.
GIVEN_START = "It started from the weights `{weights}`; whether these have seen real images is not known here."

# (title, key of an evaluation's metrics, format).
FIGURES = (
    ("top-1 accuracy", "top1", ".2%"),
    ("top-5 accuracy", "top5", ".2%"),
    ("negative log-likelihood, nats", "nll", ".4f"),
    ("expected calibration error", "calibration_error", ".2%"),
    ("parameters", "parameters", ",d"),
)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What the card states.

    `inverted` tells in words the networks that the images were inverted from. `evaluation` has the keys of an
    `EvalReport`, `comparison` those of `export.json`. `test` names the real images of both.
    """

    name: str
    classifier: Classifier
    images: ImageConfig
    student: ModelConfig
    teacher: ModelConfig
    inverted: Sequence[str]
    test: str
    evaluation: Mapping[str, Any]
    comparison: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The card, as Markdown."""
        images, files, source = self.images, self.comparison["files"], self.student.source
        mean, std = ([float(f"{value:.6g}") for value in values] for values in self.classifier.normalization)
        return CARD.format(
            **vars(images),
            **{key: self.evaluation[key] for key in ("num_images", "agreement", "accuracy_retention", "kl")},
            **{key: value for key, value in self.comparison.items() if key != "files"},
            header=yaml.safe_dump(self._header(), sort_keys=False),
            name=self.name,
            source=source,
            parameters=self.classifier.num_parameters,
            teacher=self.teacher.source,
            inverted=_joined(self.inverted),
            start=GIVEN_START.format(weights=self._start) if self._start else NO_REAL_IMAGE,
            origins=_joined(self._origins),
            test=self._test_name,
            figures="".join(self._row(*figure) for figure in FIGURES),
            colors="RGB" if images.channels == 3 else "gray",
            mean=mean,
            std=std,
            source_argument=f', source="{source}"' if source.startswith("python:") else "",
            onnx=ONNX.format(opset=OPSET) if "student.onnx" in files else "",
            files="".join(
                f"| `{name}` | {file['num_bytes'] / 2**20:.2f} MiB | {file['max_difference']:.2g} | "
                f"{file['forward_ms']:.2f} ms |\n"
                for name, file in files.items()
            ),
            classes="".join(
                f"| {i} | {markdown_cell(title)} |\n" for i, title in enumerate(self.classifier.class_titles)
            ),
        )

    @property
    def _start(self) -> str | None:
        """The student's own weights without the folders of this machine; None if it had none."""
        return None if self.student.weights is None else Path(self.student.weights).name

    @property
    def _origins(self) -> list[str]:
        """What the student was derived from: the teacher, the networks that were inverted, its own weights."""
        start = [] if self._start is None else [f"`{self._start}`"]
        return list(dict.fromkeys([TEACHER, *self.inverted, *start]))

    @property
    def _test_name(self) -> str:
        """The set of test images without the folders of this machine."""
        kind, _, name = self.test.partition(":")
        return f"{kind}:{Path(name).name}"

    def _row(self, title: str, key: str, form: str) -> str:
        student, teacher = (format(self.evaluation[network][key], form) for network in ("student", "teacher"))
        return f"| {title} | {student} | {teacher} |\n"

    def _header(self) -> dict[str, Any]:
        """The YAML header, as Hugging Face reads it; `model-index` holds the accuracy."""
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": self._test_name, "type": self._test_name},
            "metrics": [{"type": "accuracy", "value": round(self.evaluation["student"]["top1"], 4)}],
        }
        return {
            "license": "unknown",
            "library_name": "dreamdistill",
            "pipeline_tag": "image-classification",
            "tags": ["data-free-distillation", "knowledge-distillation"],
            "metrics": ["accuracy"],
            "model-index": [{"name": self.name, "results": [result]}],
        }


def _joined(names: Sequence[str]) -> str:
    """The names as one part of a sentence."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
