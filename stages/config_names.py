"""The configs that come with the program, by name: `digits` is `configs/digits.yaml`."""

from pathlib import Path

from pipeline.runtime.config import nearest

SUFFIX = ".yaml"
# Beside this package, in a checkout and where it is installed.
SHIPPED = Path(__file__).parents[1] / "configs"


def config_path(name: str) -> Path:
    """The file of a config: `name` itself if it is a path or a file, else `configs/NAME.yaml` here or the shipped one.

    Raises ValueError for a bare name that is none of these, and for a missing file with the name of a shipped one.
    """
    names, path = shipped_names(), Path(name).expanduser()
    if "/" in name or name.endswith(SUFFIX) or path.is_file():
        if path.stem in names and not path.exists():
            raise ValueError(f"--config {name}: there is no such file; the shipped config is --config {path.stem}")
        return path
    paths = [Path(SHIPPED.name, name + SUFFIX), SHIPPED / (name + SUFFIX)]
    for path in paths:
        if path.is_file():
            return path
    here = Path(name + SUFFIX)
    hint = f"; did you mean --config {here}?" if here.is_file() else nearest(name, names)
    raise ValueError(
        f"--config {name}: there is no file {name} or {paths[0]}, and no shipped config of that name{hint} "
        f"(shipped: {', '.join(names)})"
    )


def shipped_names() -> list[str]:
    """The names of the shipped configs."""
    return sorted(path.stem for path in SHIPPED.glob(f"*{SUFFIX}"))


def config_names() -> list[str]:
    """The names that `--config` takes: of the shipped configs, and of those in `configs/` here."""
    return sorted({*shipped_names(), *(path.stem for path in Path(SHIPPED.name).glob(f"*{SUFFIX}"))})
