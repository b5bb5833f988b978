"""Text from files is shown without what a terminal obeys or cannot write."""

from pipeline.runtime.text import is_printable, markdown_cell, markdown_code, printable


def test_control_characters_and_stray_bytes_are_escaped():
    assert printable("a\x1b[31mb\x9bc\udce9\r\x00") == r"a\x1b[31mb\x9bc\udce9\r\x00"
    assert printable("two\nlines\tof Blåhaj, 犬\u202f🦈") == "two\nlines\tof Blåhaj, 犬\u202f🦈"


def test_a_printable_name_is_one_line_of_text():
    assert is_printable("Blåhaj, 犬\u202f🦈\t1.png")
    assert not any(map(is_printable, ("a\nb", "a\x1bb", "caf\udce9", "a\x7f")))


def test_text_is_no_markup_in_markdown():
    assert markdown_cell("a | <b>[c](d)`\n\x1b") == r"a \| \<b\>\[c\](d)\` \\x1b"
    assert markdown_cell("hot_dog, *Canis lupus* & 犬") == "hot_dog, *Canis lupus* & 犬"
    assert markdown_code("timm:x` <b>\n\n# y\x1b") == r"`timm:x' <b> # y\x1b`"
