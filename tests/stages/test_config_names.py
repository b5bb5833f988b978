"""`--config NAME`: a file, a file of configs/ here, or a shipped config."""

from pathlib import Path

import pytest
from tiny_run import REPOSITORY

from pipeline.run import load_run
from stages.config_names import config_path, shipped_names


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_bare_name_is_a_shipped_config():
    assert shipped_names() == sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml"))
    config = load_run(config_path("digits"))
    assert (config.name, config.checkpoints) == ("digits", Path("checkpoints/digits"))


def test_own_config_of_that_name_comes_first(empty_folder):
    own = empty_folder / "configs" / "digits.yaml"
    own.parent.mkdir()
    own.touch()
    assert config_path("digits") == Path("configs/digits.yaml")


@pytest.mark.parametrize("name", ["mine.yaml", "configs/mine.yaml", "folder/mine"])
def test_path_is_taken_as_it_is(name):
    assert config_path(name) == Path(name)


@pytest.mark.parametrize("name", ["mine.yml", "digits"])
def test_existing_file_is_taken_as_it_is(empty_folder, name):
    (empty_folder / name).touch()
    assert config_path(name) == Path(name)


def test_unknown_name_lists_the_shipped_ones():
    with pytest.raises(ValueError, match=r"--config imagenete: .*did you mean imagenette\? \(shipped: .*digits, "):
        config_path("imagenete")


def test_missing_file_of_a_shipped_name_names_it():
    with pytest.raises(ValueError, match=r"configs/digits.yaml: there is no such file; .* is --config digits$"):
        config_path("configs/digits.yaml")
