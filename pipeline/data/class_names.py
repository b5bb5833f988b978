"""Names of classes, and the choice of some classes by name or number."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.config import ConfigError, nearest
from pipeline.runtime.text import is_printable

# The most names that a message lists; it counts the others.
MAX_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """The names of the labels 0, 1, ...: `keys`, which name folders of images, and `titles`, for people."""

    keys: tuple[str, ...]
    titles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)


def read_class_names(path: Path, num_classes: int) -> ClassNames:
    """The names in a text file: line i starts with the key of label i; its title follows, or else is the key.

    Raises ConfigError when the file is missing or no text, or does not name `num_classes` different keys.
    """
    if not path.is_file():
        raise ConfigError(f"data.class_names: there is no file {path}; correct the path")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.class_names: {path} is not UTF-8 (byte {error.start:,}); save it as UTF-8") from error
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    if unprintable := [line for line in text.splitlines() if not is_printable(line)]:
        raise ConfigError(f"data.class_names: {path} has control characters in {unprintable[0]!a}; remove them")
    keys = tuple(line[0] for line in lines)
    if len(keys) != num_classes or len(set(keys)) != num_classes:
        raise ConfigError(
            f"data.class_names: {path} has {len(set(keys))} different names on {len(keys)} lines, "
            f"images.num_classes={num_classes} needs as many of each; correct the file, or images.num_classes"
        )
    return ClassNames(keys=keys, titles=tuple(line[-1].strip() for line in lines))


def choose_classes(chosen: Sequence[int | str], names: ClassNames | None, num_classes: int) -> tuple[int, ...]:
    """The labels of the `chosen` classes, in their order; each is a label, or a key or title of `names`.

    Raises ConfigError for a class that does not exist or is named twice, for a name without `names`, and for fewer than
    two classes.
    """
    labels = tuple(_label(one, names, num_classes) for one in chosen)
    for i, label in enumerate(labels):
        if label in labels[:i]:
            first = chosen[labels.index(label)]
            same = "" if first == chosen[i] else f" (it is {first!r} too)"
            raise ConfigError(f"classes: {chosen[i]!r} is named twice{same}; remove one")
    if len(labels) < 2:
        raise ConfigError(
            f"classes: {list(chosen)} leaves nothing to tell apart; name two or more, or null for all classes"
        )
    return labels


def _label(chosen: int | str, names: ClassNames | None, num_classes: int) -> int:
    if isinstance(chosen, int):
        if 0 <= chosen < num_classes:
            return chosen
        raise ConfigError(
            f"classes: {chosen} is not in 0..{num_classes - 1}, the labels of images.num_classes; correct or remove it"
        )
    if names is None:
        raise ConfigError(
            f"classes: {chosen!r} is a name, and no file names the classes; set data.class_names to such a file, or "
            "give the label"
        )
    matches = [i for i in range(num_classes) if chosen in (names.keys[i], names.titles[i])]
    if not matches:
        known = (*names.keys, *names.titles)
        fix = nearest(chosen, known) or "; give a name or title that it has, or a label as a number"
        raise ConfigError(f"classes: {chosen!r} is not in the file of data.class_names{fix}")
    if len(matches) > 1:
        keys = ", ".join(names.keys[i] for i in matches)
        raise ConfigError(f"classes: {chosen!r} is the title of several classes; use one of their names: {keys}")
    return matches[0]


def listed(names: Sequence[str]) -> str:
    """The first names, and the number of the others, for a message."""
    more = len(names) - MAX_NAMED
    return (", ".join(names[:MAX_NAMED]) or "none") + (f" and {more} more" if more > 0 else "")
