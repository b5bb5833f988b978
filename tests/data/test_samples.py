"""The first samples of a shard, and what is said of a damaged one."""

import tarfile

import pytest
from tiny_run import make_samples

from pipeline.data.parts import ShardError, part_path, write_part
from pipeline.data.samples import read_metadata, read_samples


@pytest.fixture
def tar(tmp_path):
    write_part(tmp_path, 0, make_samples([3, 3, 3])[0], "png")
    return part_path(tmp_path, 0)


def test_the_first_samples_are_those_that_were_written(tar):
    samples, _ = make_samples([3, 3, 3])
    read = read_samples(tar, 3, "png", 2)
    assert [(sample.key, sample.image) for sample in read] == [(sample.key, sample.image) for sample in samples[:2]]
    assert all(sample.metadata.items() <= own.metadata.items() for sample, own in zip(samples[:2], read, strict=True))
    assert list(read_metadata(tar, 2)) == [(sample.key, sample.metadata) for sample in read]


@pytest.mark.parametrize("num_bytes", [0, 100, 700, 1600])
def test_a_damaged_tar_is_named_with_the_fix(tar, num_bytes):
    tar.write_bytes(tar.read_bytes()[:num_bytes])
    for read in (lambda: read_samples(tar, 3, "png", 3), lambda: list(read_metadata(tar, 3))):
        with pytest.raises(ShardError, match=f"^{tar} is damaged .*; run the stage `synthesize` again"):
            read()


def test_a_missing_tar_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"none\.tar is damaged"):
        read_samples(tmp_path / "none.tar", 0, "png", 1)


@pytest.mark.parametrize(
    ("kind", "num_bytes", "reason"),
    [(tarfile.REGTYPE, 2**40, "has the size"), (tarfile.DIRTYPE, 0, r"a\.json is no file")],
)
def test_a_header_that_states_what_is_not_there_is_damage(tmp_path, kind, num_bytes, reason):
    member, path = tarfile.TarInfo("a.json"), tmp_path / "x.tar"
    member.type, member.size = kind, num_bytes
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ShardError, match=reason):
        list(read_metadata(path, 1))
