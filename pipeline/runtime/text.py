"""Text from files and names, made safe to show."""

import re

# What Markdown and a table in it take for markup in the text of a cell.
_MARKUP = re.compile(r"[\\|<>\[\]`]")
# Control characters, which a terminal may obey, and what stands for the bytes of a file name that is not UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def is_printable(text: str) -> bool:
    """Whether a name can be shown, and written as UTF-8, as it is: in one line, without control characters."""
    return not _UNPRINTABLE.search(text) and "\n" not in text


def printable(text: str) -> str:
    r"""The text with unprintable characters escaped, such as `\x1b`; line breaks and tabs stay."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def markdown_cell(text: str) -> str:
    """The text as it is shown in a cell of a Markdown table."""
    return _MARKUP.sub(r"\\\g<0>", printable(text)).replace("\n", " ")


def markdown_code(text: str) -> str:
    """The text as code in a line of Markdown."""
    shown = printable(" ".join(text.split())).replace("`", "'")
    return f"`{shown}`"
