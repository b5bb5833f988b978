"""docs/your_teacher.md, from the files that it lists to the exported student, in an empty folder and in small sizes."""

import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from tiny_run import REPOSITORY

from pipeline.models.export import ONNX_PACKAGES
from stages.command_line import run

PAGE = REPOSITORY / "docs" / "your_teacher.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# ([\w.]+)\n")
PLAIN = {"precision": "float32", "compile": False}


def shrink(text):
    """The configuration of the page with as few images and steps as it allows."""
    config = yaml.safe_load(text)
    config["synthesis"] |= {"num_images": 20, "batch_size": 20}
    config["synthesis"]["inversion"] |= {"phases": [{"steps": 2}], **PLAIN}
    config["distill"] |= {"steps": 2, "batch_size": 20, **PLAIN}
    return yaml.safe_dump(config)


def run_line(line, monkeypatch):
    program, *arguments = shlex.split(line.removeprefix("$ "))
    if program == "python":
        subprocess.run([sys.executable, *arguments], check=True)
        return
    assert program == "dreamdistill"
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "cpu")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command replaces it
    assert run(arguments) == 0, line


@pytest.mark.slow
def test_page_leads_from_a_pt_file_to_an_exported_student(tmp_path, monkeypatch):
    for name in ONNX_PACKAGES:
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    for language, text in BLOCK.findall(PAGE.read_text()):
        if name := FILE_NAME.match(text):
            Path(name[1]).write_text(shrink(text) if language == "yaml" else text.replace("range(800)", "range(60)"))
        elif language == "console":
            for line in text.splitlines():
                run_line(line, monkeypatch)
        else:
            assert language == "python"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch.export.load about a buffer that it does not write to
                exec(text, names := {})
            assert names["logits"].shape == (4, 10)
    assert (tmp_path / "checkpoints" / "mine" / "report.html").exists()
