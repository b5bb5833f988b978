"""The installed package: the command `dreamdistill` and the configs, in a folder that holds nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import REPOSITORY

pytestmark = pytest.mark.slow
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "dreamdistill", "pipeline", "stages", "cifar10", "configs")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder into which pip installs a copy of the sources."""
    pytest.importorskip("setuptools", minversion="77", reason="builds the package")
    folder = tmp_path_factory.mktemp("install")
    sources, target = folder / "sources", folder / "target"
    sources.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, sources / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(sources)], check=True)
    return target


def run_installed(installed: Path, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(installed), "DREAMDISTILL_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    command = [str(installed / "bin" / "dreamdistill"), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_command_works_in_an_empty_folder(installed, tmp_path):
    process = run_installed(installed, tmp_path, "run", "--dry-run")
    assert process.returncode == 0, process.stderr
    assert "teacher     checkpoints/digits/teacher.safetensors: 1,260 steps of 64 images" in process.stdout


def test_ranks_work_in_a_folder_with_packages_of_the_same_names(installed, tmp_path):
    for name in ("stages", "pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    words = ["distill.batch_size=20", "synthesis.num_images=20", "synthesis.batch_size=20"]
    process = run_installed(installed, tmp_path, "synthesize", "--processes", "2", *words)
    assert process.returncode == 2
    assert process.stderr.startswith("error: there is no teacher yet")


def test_installed_help_shows_the_keys(installed, tmp_path):
    process = run_installed(installed, tmp_path, "help", "seed")
    assert process.stdout.startswith("seed\n  whole number; default: `0`\n")
