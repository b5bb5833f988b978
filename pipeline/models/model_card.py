"""The model card of an exported student, with Hugging Face's YAML header."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.models.classifier import Classifier
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.models.export import OPSET

CARD = """---
{header}---

# {name}

A classifier of {num_classes} classes (`{source}`, {parameters:,} parameters), distilled by dreamdistill from another
classifier, the teacher (`{teacher}`), without any real image: the teacher was inverted into synthetic images, and this
student was trained on the teacher's logits of them.

## Figures

On {num_images:,} real images (`{test}`), which took no part in its training:

| | student | teacher |
|---|---|---|
{figures}
The two agree on {agreement:.2%} of the images. The student has {accuracy_retention:.1%} of the teacher's accuracy. The
mean KL divergence from the teacher to the student is {kl:.4f} nats.

## Use

The input is `pixels`, float32 of shape (N, {channels}, {height}, {width}), {colors}, scaled to [0, 1]; N can be any
number. The output are logits (N, {num_classes}). The normalization is inside: mean {mean}, standard deviation {std}.

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

The header says `unknown`, since dreamdistill cannot know. This student was derived from the weights of the teacher, so
ask before you publish it: under which license were these weights published, does it allow derived networks, and do the
terms of the data that the teacher was trained on reach them? Then put the answer into the header. The license of
dreamdistill covers its code alone.
"""

ONNX = """
```python
import onnxruntime
session = onnxruntime.InferenceSession("student.onnx")
(logits,) = session.run(["logits"], {{"pixels": pixels.numpy()}})
```

`student.onnx` uses version {opset} of ONNX's operators.
"""

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

    `evaluation` has the keys of an `EvalReport`, `comparison` those of `export.json`. `test` names the real images of
    both.
    """

    name: str
    classifier: Classifier
    images: ImageConfig
    student: ModelConfig
    teacher: ModelConfig
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
            classes="".join(f"| {i} | {title} |\n" for i, title in enumerate(self.classifier.class_titles)),
        )

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
