"""The notebook: its cells run in their order, and the first shows a grid of images.

They are run by `exec`, since they hold plain Python; nbclient would bring a kernel and a dozen packages for the same.
"""

import json
import shutil
import time

import pytest
import torch
from tiny_run import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
MAX_GRID_LINES, MAX_BYTES = 10, 50_000
# Of the processor, by one thread, so that other programs do not count.
MAX_GRID_S = 60


def cells():
    notebook = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    shutil.copy(EXAMPLES / "digits_teacher.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    names, (first, *others) = {}, cells()
    start_s = time.process_time()
    exec(first, names)
    assert time.process_time() - start_s < MAX_GRID_S
    for cell in others:
        exec(cell, names)
    images, teacher = names["grid"], names["teacher"]
    predictions = teacher(images / 255).argmax(1)
    assert (predictions == torch.arange(10).repeat(4)).float().mean() > 0.9
    assert names["report"].student["top1"] > 0.9


def test_the_first_cell_shows_a_grid_in_few_lines():
    (first, *_) = cells()
    assert len([line for line in first.splitlines() if line]) < MAX_GRID_LINES
    assert "make_grid" in first


def test_the_notebook_is_small_and_keeps_its_pictures():
    text = NOTEBOOK.read_text()
    assert len(text) < MAX_BYTES
    assert '"image/png"' in text
    assert str(REPOSITORY) not in text
