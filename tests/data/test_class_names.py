"""Names of classes, and the choice of some of them."""

import pytest

from pipeline.data.class_names import ClassNames, choose_classes, listed, read_class_names
from pipeline.runtime.config import ConfigError

NAMES = ClassNames(keys=("n1", "n2", "n3", "n4"), titles=("tench", "crane", "French horn", "crane"))


def test_a_line_is_a_key_and_a_title(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("n1 tench\n\n  n2\tFrench horn, horn \nn3\n")
    names = read_class_names(path, 3)
    assert names == ClassNames(keys=("n1", "n2", "n3"), titles=("tench", "French horn, horn", "n3"))
    assert len(names) == 3


def test_a_file_that_does_not_fit_the_teacher_raises(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("n1\nn2\nn1\n")
    with pytest.raises(ConfigError, match=r"2 different names on 3 lines, images\.num_classes=3 .*; correct the file"):
        read_class_names(path, 3)
    with pytest.raises(ConfigError, match=r"data\.class_names: there is no file .*nowhere"):
        read_class_names(tmp_path / "nowhere", 3)


def test_classes_are_labels_keys_or_titles_in_the_order_that_was_asked_for():
    assert choose_classes(["French horn", 0, "n4"], NAMES, 4) == (2, 0, 3)
    assert choose_classes([3, 1], None, 4) == (3, 1)


@pytest.mark.parametrize(
    ("chosen", "names", "message"),
    [
        ([0, 4], NAMES, r"classes: 4 is not in 0\.\.3, the labels of images\.num_classes; correct or remove it"),
        ([0, -1], None, r"classes: -1 is not in 0\.\.3"),
        ([0, "n5"], NAMES, r"'n5' is not in the file of data\.class_names; give a name or title that it has"),
        ([0, "french horn"], NAMES, "did you mean French horn"),
        ([0, "crane"], NAMES, "'crane' is the title of several classes; use one of their names: n2, n4"),
        ([0, "n2"], None, "'n2' is a name, and no file names the classes; set data.class_names"),
        ([0, 1, 0], NAMES, "0 is named twice; remove one"),
        ([0, 1, "tench"], NAMES, r"'tench' is named twice \(it is 0 too\); remove one"),
        ([1], NAMES, r"\[1\] leaves nothing to tell apart"),
        ([], NAMES, r"\[\] leaves nothing to tell apart"),
    ],
)
def test_classes_that_cannot_be_chosen_raise(chosen, names, message):
    with pytest.raises(ConfigError, match=message):
        choose_classes(chosen, names, 4)


def test_long_lists_are_cut():
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(i) for i in range(8)]) == "0, 1, 2, 3, 4 and 3 more"


def test_a_file_that_is_no_text_raises(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("n1 crane\nn2 Blåhaj\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"classes\.txt is not UTF-8 \(byte 14\); save it as UTF-8"):
        read_class_names(path, 2)
    path.write_text("n1\tcrane\nn2 \x1b[31mred\n")
    with pytest.raises(ConfigError, match=r"has control characters in 'n2 \\x1b\[31mred'; remove them"):
        read_class_names(path, 2)
    path.write_text("\ufeffn1\tcrane\nn2 Blåhaj\n", "utf-8")  # as editors of Windows save it
    assert read_class_names(path, 2) == ClassNames(keys=("n1", "n2"), titles=("crane", "Blåhaj"))
