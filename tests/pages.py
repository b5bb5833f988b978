"""HTML pages in tests: a parser that fails on tags that are not nested, and records of invented runs."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.report.diversity import measure_diversity
from pipeline.report.pictures import embed_image
from pipeline.report.record import RoundRecord, RunRecord, StoredImage
from pipeline.report.report import render_report

NO_END_TAG = ("meta", "img", "link")
# The caption of the first table of a comparison.
DIFFERENT_KEYS = "Keys whose values differ; a dash is a key that a run does not have"


class Page(HTMLParser):
    """Tags, attributes and texts of a page, and the texts of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []
        self.source = text

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in NO_END_TAG:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in NO_END_TAG:
            assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(data)

    def values(self, tag: str, name: str) -> list[str]:
        """The values of an attribute of all tags of a name."""
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]

    def rows(self, caption: str) -> list[list[str]]:
        """The cells of the table with a caption, row by row, with the header."""
        _, _, rest = self.source.partition(f"<caption>{caption}</caption>")
        assert rest, f"no table {caption!r}"
        lines = rest.partition("</table>")[0].split("<tr>")[1:]
        return [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", line) for line in lines]

    def pictures(self) -> list[np.ndarray]:
        """The pixels of all pictures."""
        files = [base64.b64decode(uri.partition(",")[2]) for uri in self.values("img", "src")]
        return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


def make_evaluation(num_classes: int) -> dict:
    """An evaluation with nine images per class: the student errs on three of class 0, the teacher on none."""
    confusion = 9 * np.eye(num_classes, dtype=int)
    confusion[0, [0, 1]] = 6, 3
    network = {
        "top1": 1 - 1 / (3 * num_classes),
        "top5": 1.0,
        "nll": 0.5,
        "calibration_error": 0.01,
        "calibration_bins": {"num_images": [3, 0, 9], "confidence": [0.3, None, 0.9], "top1": [1 / 3, None, 1.0]},
        "per_class_top1": [6 / 9, *[1.0] * (num_classes - 1)],
        "confusion": confusion.tolist(),
        "parameters": 20_000,
        "forward_ms": 1.5,
    }
    perfect = {"top1": 1.0, "per_class_top1": [1.0] * num_classes}
    return {
        "num_images": 9 * num_classes,
        "class_titles": [f"class <{label}>" for label in range(num_classes)],
        "student": network,
        "teacher": {**network, **perfect, "parameters": 80_000, "forward_ms": 3.0},
        "agreement": 0.9875,
        "kl": 0.25,
        "accuracy_retention": 0.9667,
        "timed_batch": 64,
        "device": "cpu (a processor)",
    }


def make_manifest(round_index: int = 0, num_images: int = 40) -> dict:
    return {
        "round": round_index,
        "num_images": num_images,
        "scores": {"teacher_top1": 0.875},
        "fingerprint": "0123456789abcdef",
        "versions": {"python": "3.11"},
        "device": "cuda:0 (a card)",
        "shards": [{"sizes": [2**20]}],
    }


def make_round(index: int = 0, **values) -> RoundRecord:
    """A round with images, and with a student if it has an evaluation."""
    student = {"student_round": index} if "evaluation" in values else {}
    images = {"folder": Path(str(index)), "manifest": make_manifest(index)}
    return RoundRecord(**{"title": f"round {index}", **images, **student, **values})


def make_images(num_classes: int, per_class: int, size_px: int) -> tuple[list[StoredImage], torch.Tensor]:
    """Random images of every class, of which the verifier misses each second one, and their pixels (N, 3, H, W)."""
    count = num_classes * per_class
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, max(1, size_px // 8), max(1, size_px // 8), generator=generator)
    pixels = torch.nn.functional.interpolate(small, size=(size_px, size_px), mode="bilinear").mul(255).to(torch.uint8)
    scores = {"teacher_probability": 0.75, "teacher_top1": True, "verifier_probability": 0.25}
    images = [
        StoredImage(
            set_title="round 0",
            label=i // per_class,
            key=f"{i // per_class:04d}/{i:06d}",
            metadata={**scores, "verifier_top1": i % 2 == 0},
            position=i,
        )
        for i in range(count)
    ]
    return images, pixels


def metric(stage: str, step: int, **more) -> dict:
    return {"stage": stage, "round": 0, "step": step, "elapsed_s": 0.5, **more}


def make_record(*, num_classes: int = 10, size_px: int = 8, per_class: int = 3, **values) -> RunRecord:
    """The record of an invented run; `values` are fields of it."""
    images, pixels = make_images(num_classes, per_class, size_px)
    shown = images[: 20 * per_class]
    record = {
        "name": "a run",
        "class_titles": [f"class <{label}>" for label in range(num_classes)],
        "config_yaml": "seed: 0\n",
        "rounds": [make_round(evaluation=make_evaluation(num_classes))],
        "metrics": [[metric("synthesize", step, batch=0, tv_l2=1.0 + step) for step in range(3)]],
        "images": images,
        "shown": [(image, embed_image(pixels[image.position])) for image in shown],
        "diversity": measure_diversity([pixels], torch.tensor([image.label for image in images])),
        "facts": {"command": "make CONFIG=a.yaml SET='seed=1'"},
    }
    return RunRecord(**{**record, **values})


def make_page(**values) -> Page:
    """The page of an invented run, as `make_record` takes it."""
    return Page(render_report(make_record(**values)))
