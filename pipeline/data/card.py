"""The dataset card and the index of a synthetic dataset, for people and for other readers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.runtime.files import write_json, write_sealed_text
from pipeline.runtime.text import markdown_cell

CARD_FILES = ("README.md", "_info.json")
CARD = """---
{header}---

# {title}

{num_images} synthetic images of {num_classes} classes, {shape} pixels (channels, height, width), made by dreamdistill
by inverting a trained classifier. No real image was used.

- Teacher: `{teacher}`
- Fingerprint of everything the images depend on: `{fingerprint}`
- Round {round} of the run. `config.yaml` is the resolved configuration; `manifest.json` lists every shard with its
  SHA-256.
{scores}{classes}
## Reading it

Members are `CLASS/NUMBER.{extension}`, `.cls` (the label) and `.json` (batch, seed, and the scores of the
teacher and the verifier). One tar holds one class, so draw from all tars at once: a shuffle buffer does not mix them.

```python
webdataset.WebDataset([...]).decode("pil").to_tuple("{extension}", "cls")
datasets.load_dataset(folder)
timm.data.create_dataset("wds/", root=folder, split="train")
torchvision.datasets.ImageFolder(unpacked)    # after: for f in train/*.tar; do tar xf $f -C unpacked; done
```

`ImageFolder` numbers the existing class folders. If a class has no image, take the label from `.cls`.

## Caveats

The images show what the teacher responds to, not real objects. They can hold traces of the teacher's training data;
treat them with the care that those data require.
"""


def write_card(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `README.md` (for people and `datasets`) and `_info.json` (for timm) beside the shards."""
    shards = manifest["shards"]
    header = {
        "pretty_name": f"synthetic images by {manifest['teacher']}",
        "tags": ["synthetic", "data-free-distillation"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train/*.tar"}]}],
    }
    labels = sorted({entry["class"] for entry in shards})
    extension = manifest["image_format"].replace("jpeg", "jpg")
    scores = "".join(f"- {name.replace('_', ' ')}: {value:.4f}\n" for name, value in manifest["scores"].items())
    text = CARD.format(
        header=yaml.safe_dump(header, sort_keys=False),
        title=f"Synthetic images of round {manifest['round']}",
        extension=extension,
        **{**manifest, "scores": scores, "num_classes": len(labels), "classes": _class_table(manifest, labels)},
    )
    card, index = (folder / name for name in CARD_FILES)
    write_sealed_text(card, text)
    split = {
        "name": "train",
        "num_samples": manifest["num_images"],
        "filenames": [entry["file"] for entry in shards],
        "shard_lengths": [entry["count"] for entry in shards],
    }
    write_json(index, {"splits": {"train": split}})


def _class_table(manifest: Mapping[str, Any], labels: Sequence[int]) -> str:
    """The teacher's label and the title of each class that has images; empty if they say no more than the label."""
    classes, titles = manifest["classes"], manifest["class_titles"]
    if all(titles[label] == str(label) for label in labels):
        return ""
    rows = "".join(f"| {label} | {classes[label]} | {markdown_cell(titles[label])} |\n" for label in labels)
    return f"\n## Classes\n\n| label | label of the teacher | class |\n|---|---|---|\n{rows}"
