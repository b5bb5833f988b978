"""`make imagenet-val`: one command from the official files to images that an evaluation reads."""

from pathlib import Path

import pytest
from torchvision.datasets.imagenet import ARCHIVE_META

from stages import imagenet_val
from stages.command_line import run

MD5 = "900150983cd24fb0d6963f7d28e17f72"  # of b"abc", as RFC 1321 states


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """The calls that would write the images, for an archive `a.tar` in the current folder."""
    calls = []
    (tmp_path / "a.tar").write_bytes(b"abc")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imagenet_val, "read_wnids", lambda path: [str(path)] * 3)
    monkeypatch.setattr(imagenet_val, "sort_validation_images", lambda *arguments: calls.append(arguments))
    return calls


def run_imagenet_val(*words: str) -> int:
    return run(["imagenet-val", *words])


def test_default_folder_is_that_of_the_configs(calls, capsys):
    run_imagenet_val("--tar", "a.tar", "--devkit", "d")
    assert calls == [(Path("a.tar"), ["d", "d", "d"], Path("data/imagenet/val"))]
    assert "3 images of 1 classes in data/imagenet/val" in capsys.readouterr().out


@pytest.mark.parametrize("official", [MD5, "29b22e2961454d5413ddabcf34fc5622"])
def test_an_archive_with_another_md5_is_noted(calls, monkeypatch, capsys, official):
    monkeypatch.setitem(ARCHIVE_META, "val", ("ILSVRC2012_img_val.tar", official))
    run_imagenet_val("--tar", "a.tar", "--devkit", "d")
    assert (f"note: the MD5 of a.tar is {MD5}, that of" in capsys.readouterr().out) == (official != MD5)


def test_an_error_is_one_line(capsys):
    assert run_imagenet_val("--tar", "a.tar", "--devkit", "nowhere.txt") == 2
    assert capsys.readouterr().err == "error: --devkit: there is no file nowhere.txt\n"
