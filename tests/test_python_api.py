"""The examples of docs/python_api.md, in their order, with few images and steps."""

import re
import shutil

import pytest
import torch
from tiny_run import REPOSITORY

PAGE = REPOSITORY / "docs" / "python_api.md"
SMALLER = {r"steps=\d+": "steps=2", r"range\(200\)": "range(2)", r"\b1024\b": "128", "digits/student": "tiny/student"}


@pytest.mark.slow
def test_every_example_runs(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "checkpoints", "checkpoints")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 8
    names = {}
    for block in blocks:
        for large, small in SMALLER.items():
            block = re.sub(large, small, block)
        exec(block, names)
    assert len(names["titles"]) == 4
    assert names["batch"].shape == (3, 1, 8, 8)
    assert names["images"].shape == (10, 1, 8, 8)
    assert not torch.isnan(names["images"]).any()
