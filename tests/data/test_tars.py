"""Tars whose headers were made to do harm."""

import tarfile

import pytest

from pipeline.data.tars import list_damaged_tar, list_tar


def write_tar(path, *sizes):
    """A tar of files of three bytes, whose headers state other sizes."""
    content = b""
    for i, size in enumerate(sizes):
        member = tarfile.TarInfo(f"{i}.png")
        member.size = size
        content += member.tobuf(tarfile.GNU_FORMAT) + b"abc" + bytes(509)
    path.write_bytes(content + bytes(1024))
    return path


def test_the_members_of_a_whole_tar(tmp_path):
    path = write_tar(tmp_path / "x.tar", 3, 3)
    for members in (list_tar(path), list_damaged_tar(path)):
        assert [(member.name, member.offset_data, member.size) for member in members] == [
            ("0.png", 512, 3),
            ("1.png", 1536, 3),
        ]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("size", [-512, -1024, -1536, 10**12, 2**62, 2**70])  # back to a header, and beyond the end
def test_a_size_that_no_file_has_ends_the_list(tmp_path, size):
    path = write_tar(tmp_path / "x.tar", 3, size)
    with pytest.raises(tarfile.TarError):
        list_tar(path)
    assert [member.name for member in list_damaged_tar(path)] == ["0.png"]


def test_a_file_that_is_no_tar_has_no_members(tmp_path):
    path = tmp_path / "x.tar"
    assert list_damaged_tar(path) == []
    path.write_bytes(b"no tar at all" * 100)
    assert list_damaged_tar(path) == []
