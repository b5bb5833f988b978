"""The hostile contents by kind, and the stages that meet them: figures, networks, configs, data, links."""

import os
import pickle
import struct
import tarfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.faults.hostile_files import (
    EVALUATION,
    MARKUP,
    STUDENT,
    Put,
    changed_network,
    changed_tensors,
    code,
    npz,
    png,
    png_bomb,
    state_with_code,
    torch_file_with_code,
    unevaluated,
    values,
    with_bytes,
    with_folder,
    with_link,
    with_overrides,
    with_tar,
    write,
    yaml_bomb,
    yaml_with_code,
    zip_bomb,
)
from pipeline.data.shards import MANIFEST_COPY
from pipeline.runtime.digests import seal_line

GIB = 1 << 30
SET, CHECKPOINTS = "shards/tiny/0", "checkpoints/tiny"
METRICS, FIRST = f"{CHECKPOINTS}/metrics.jsonl", "shards.0"
# Keys of files of JSON, and other values of them.
MANIFEST_VALUES: Sequence[tuple[str, Any]] = (
    (f"{FIRST}.file", "../secret.tar"), (f"{FIRST}.file", "/etc/passwd"), (f"{FIRST}.keys.0", "../../canary"),
    (f"{FIRST}.offsets.0", 10**15), (f"{FIRST}.sizes.0", 8 * GIB), (f"{FIRST}.bytes", 10**18),
    (f"{FIRST}.count", 10**12), (f"{FIRST}.class", -1), (f"{FIRST}.sha256", "0"), ("num_images", 10**12),
    ("num_classes", 10**9), ("shape", [1, 10**6, 10**6]), ("shape", [1, 8, -8]), ("image_format", "exe"),
    ("classes", list(range(9, -1, -1))), ("classes", [10**30] * 10), ("class_titles", [MARKUP] * 10),
    ("format", 10**30), ("identity", {}), ("identity.images", {"num_classes": "x"}), ("shards", []),
    ("identity.synthesis", {"grown_from": 5}), ("scores", {MARKUP: 1.0}), ("scores", {}), ("fingerprint", ""),
    ("grown_from", 5), ("grown_from", [{}]), ("images_per_shard", "x"), ("round", "../.."), ("teacher", MARKUP),
    ("teacher", 5), ("versions", MARKUP), ("versions", {"torch": MARKUP}), ("device", [MARKUP]),
)  # fmt: skip
EVALUATION_VALUES: Sequence[tuple[str, Any]] = (
    ("student", []), ("student", {}), ("student.top1", None), ("student.top1", MARKUP), ("student.forward_ms", "x"),
    ("teacher", None), ("agreement", MARKUP), ("config", {}), ("config", 5), ("config.name", MARKUP), ("identity", 5),
    ("identity.data", None), ("classes", [MARKUP] * 10), ("round", MARKUP), ("num_images", MARKUP), ("num_images", -1),
)  # fmt: skip
QUALITY_VALUES: Sequence[tuple[str, Any]] = (("identity", 5), ("synthetic", MARKUP), ("real", []))
ESTIMATE_VALUES: Sequence[tuple[str, Any]] = (("stages", MARKUP), ("total_s", "x"))
LINES: Sequence[Mapping[str, Any]] = (
    {}, {"stage": 5}, {"stage": "distill"}, {"stage": "distill", "step": "x", "round": 0}, {"stage": MARKUP, "step": 1},
    {"stage": "distill", "round": [], "step": 0, "loss": MARKUP}, {"stage": "synthesize", "batch": None, "step": 1e300},
    {"stage": "synthesize", "round": 10**9, "batch": 0, "step": 0, "elapsed_s": "x"},
    {"stage": "teacher", "step": 0, "elapsed_s": -1e300, "loss": 1e300},
)  # fmt: skip
CHANGES_OF_DESCRIPTION: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "code in its source": lambda d: d.update(source="python:os:system"),
    "wide": lambda d: d.update(options={"width": 10**9}),
    "no mean": lambda d: d.update(mean=[]),
    "large images": lambda d: d.update(images={"height": 10**9}),
    "no identity": lambda d: d.pop("identity") and None,
    "identity a number": lambda d: d.update(identity=5),
    "no JSON": lambda d: "{",
    "a list": lambda d: "[]",
    "deep": lambda d: "[" * 100_000,
}
CHANGES_OF_WEIGHTS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": lambda t: t * float("nan"),
    "int8": lambda t: t.to(torch.int8),
    "complex": lambda t: t.to(torch.complex64),
    "huge": lambda t: t.double() * 1e300,
    "other shapes": lambda t: t.flatten(),
}


def _weights(name: str, content: Callable[[Path], bytes]) -> Put:
    return with_bytes(name, content, f"teacher.weights=RUN/{name}", "teacher_training=null", "name=other")


def _arrays(content: bytes | Callable[[Path], bytes]) -> Put:
    return with_bytes("x.npz", content, "data.test=npz:RUN/x.npz")


def _yaml(text: bytes | Callable[[Path], bytes]) -> Put:
    return with_bytes("hostile.yaml", text, "--config", "RUN/hostile.yaml")


NETWORKS: Mapping[str, Put] = {
    **{
        name: unevaluated(with_bytes(STUDENT, changed_network(change)))
        for name, change in CHANGES_OF_DESCRIPTION.items()
    },
    "a header of 2^62 bytes": with_bytes(STUDENT, struct.pack("<Q", 1 << 62) + b"{}"),
    "code in a state": with_bytes(f"{CHECKPOINTS}/student-1.state", state_with_code),
}
WEIGHTS: Mapping[str, Put] = {
    **{name: _weights("w.safetensors", changed_tensors(change)) for name, change in CHANGES_OF_WEIGHTS.items()},
    "code": _weights("w.pt", torch_file_with_code),
    "a pickle": _weights("w.pt", lambda run: pickle.dumps(code(run))),
}
LARGE_SET = "synthesis.num_images=1000000000000"
CONFIGS: Mapping[str, Put] = {
    "num_images": with_overrides(LARGE_SET),
    "batch_size": with_overrides("synthesis.batch_size=1000000000000", LARGE_SET),
    "rounds": with_overrides("synthesis.rounds=1000000000", LARGE_SET),
    "steps": with_overrides("distill.steps=1e18"),
    "image size": with_overrides("images.height=1000000000"),
    "mean": with_overrides("teacher.mean=[1e300]", "name=other"),
    "std": with_overrides("teacher.std=[0]", "name=other"),
    "name": with_overrides("name=../../canary"),
    "shards_dir": with_overrides("shards_dir=/proc/none"),
    "checkpoints_dir": with_overrides("checkpoints_dir=/dev/null"),
    "processes": with_overrides("--processes", "x"),
    "width": with_overrides("student.options.width=1000000000"),
    "not UTF-8": _yaml(b"name: \xff\xfe"),
    "deep": _yaml(b"[" * 100_000),
    "aliases": _yaml(yaml_bomb()),
    "code": _yaml(yaml_with_code),
    "a key twice": _yaml(b"seed: 1\nseed: 2"),
    "its own base": _yaml(b"base: hostile.yaml"),
    "a large number": _yaml(b"seed: " + b"9" * 100_000),
    "null bytes": _yaml(b"seed: 1\0"),
}
ARRAYS: Mapping[str, Put] = {
    "code": _arrays(lambda run: npz(x=np.array([code(run)]), y=np.zeros(1))),
    "zip bomb": _arrays(zip_bomb),
    "labels": _arrays(npz(x=np.zeros((4, 8, 8, 1), np.uint8), y=np.full(4, 1 << 62))),
    "none": _arrays(npz(x=np.zeros((0, 8, 8, 1), np.uint8), y=np.zeros(0, int))),
}
IMAGES: Mapping[str, Put] = {
    "a fifo": with_folder(b"b.png", os.mkfifo),
    "a folder": with_folder(b"b.png", os.mkdir),
    "a name that is not UTF-8": with_folder(b"\xff.png", partial(write, content=b"")),
    "damaged pixels": with_folder(b"b.png", partial(write, content=png()[:-20])),
    "a bomb": with_folder(b"b.png", partial(write, content=png_bomb())),
    "a link to itself": with_folder(b"b.png", lambda path: os.symlink(path, path)),
    "a tar with a size": with_tar(("0/b.png", tarfile.REGTYPE, 8 * GIB)),
    "a tar with a link": with_tar(("0/b.png", tarfile.SYMTYPE, 0)),
    "a tar with a device": with_tar(("0/b.png", tarfile.CHRTYPE, 0)),
    "a tar with a name outside": with_tar(("../../../b.png", tarfile.REGTYPE, 0)),
}
LINKED = (STUDENT, f"{CHECKPOINTS}/report.html", f"{SET}/README.md", f"{SET}/{MANIFEST_COPY}")
TABLES: Mapping[str, tuple[Sequence[str], Mapping[str, Put]]] = {
    "manifest": (("verify", "run", "unpack", "report"), values(f"{SET}/manifest*.json", MANIFEST_VALUES)),
    "evaluation": (("verify", "report", "export"), values(EVALUATION, EVALUATION_VALUES)),
    "quality": (("report",), values(f"{CHECKPOINTS}/quality-1.json", QUALITY_VALUES)),
    "estimate": (("report",), values(f"{CHECKPOINTS}/estimate.json", ESTIMATE_VALUES)),
    "metrics": (("report", "verify"), {str(line)[:60]: with_bytes(METRICS, seal_line(line)) for line in LINES}),
    "network": (("verify", "run", "evaluate", "export"), NETWORKS),
    "weights": (("run",), WEIGHTS),
    "config": (("run", "doctor", "verify"), CONFIGS),
    "arrays": (("evaluate",), ARRAYS),
    "images": (("evaluate", "run"), IMAGES),
    "links": (("run",), {name: with_link(name) for name in LINKED}),
}
