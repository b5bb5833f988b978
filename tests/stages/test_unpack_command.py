"""The command that unpacks the images of a run, or of one set."""

import shutil

import pytest
from tiny_run import TWO_ROUNDS, copy_run, make_facts, make_samples, write_config

from pipeline.data.parts import write_part
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import pack
from pipeline.run import load_run
from stages.command_line import run


@pytest.fixture
def run_unpack(capsys):
    """Run the command; returns its exit code, what it printed, and its error message."""

    def run_command(*arguments) -> tuple[int, str, str]:
        code = run(["unpack", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run_command


def test_a_run_is_unpacked_beside_its_rounds(run_unpack, finished, tmp_path):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    path = copy_run(finished, tmp_path)
    folder = load_run(path).shards / "unpacked"
    assert run_unpack("--config", path) == (0, f"unpack: 60 images of 10 classes in {folder}\n", "")
    assert run_unpack("--config", path, "--round", 0)[1].endswith("(up to date)\n")
    images, dataset = ShardSet([load_run(path).round_folder(0)]), ImageFolder(str(folder / "train"))
    assert [label for _, label in dataset.samples] == images.labels.tolist()
    assert all((pil_to_tensor(image)[:1] == images[i][0]).all() for i, (image, _) in enumerate(dataset))


def test_one_set_is_unpacked_into_a_named_folder(run_unpack, packed_round, tmp_path):
    code, text, _ = run_unpack("--shards", packed_round[0], "--folder", tmp_path / "out")
    assert (code, text) == (0, f"unpack: 36 images of 12 classes in {tmp_path / 'out'}\n")


def test_classes_without_images_are_told(run_unpack, tmp_path):
    write_part(tmp_path / "0", 0, make_samples([3, 5, 3])[0], "png")
    pack(tmp_path / "0", [0], {"seed": 0}, make_facts())
    text = run_unpack("--shards", tmp_path / "0", "--folder", tmp_path / "out")[1]
    assert "note: 8 classes have no image, and ImageFolder numbers the others" in text


def test_all_rounds_must_be_complete_and_of_this_configuration(run_unpack, finished, tmp_path):
    one = copy_run(finished, tmp_path)
    code, _, error = run_unpack("--config", one, "seed=1")
    assert code == 2
    assert "was made with another configuration" in error
    two = write_config(tmp_path, **TWO_ROUNDS)
    code, _, error = run_unpack("--config", two)
    assert code == 2
    assert f"no complete dataset is in {load_run(two).round_folder(1)}; run the stage `synthesize` first" in error
    assert not (load_run(one).shards / "unpacked").exists()


def test_mistakes_are_told(run_unpack, finished, packed_round, tmp_path):
    path = copy_run(finished, tmp_path)
    mistakes = [
        (["--shards", packed_round[0]], "--folder: missing; name the folder to write"),
        (["--shards", tmp_path, "--folder", tmp_path / "out"], f"{tmp_path} holds no complete synthetic dataset"),
        (["--config", path, "--folder", tmp_path], f"--folder: {tmp_path} holds other files"),
        (["--shards", packed_round[0], "--round", 0], "--shards names one set, as it is; leave out --round and"),
        (["--shards", packed_round[0], "seed=1"], "--shards names one set, as it is; leave out --round and"),
        (["--config", path, "distill.shards=[a]"], "distill.shards names the images of this run; unpack each"),
    ]
    for arguments, message in mistakes:
        code, _, error = run_unpack(*arguments)
        assert code == 2
        assert message in error
    shutil.rmtree(load_run(path).round_folder(0))
    assert "tiny/0; run the stage `synthesize` first" in run_unpack("--config", path)[2]
