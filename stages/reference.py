"""Write the reference of every config key, docs/configuration.md and that of the help, from their docstrings."""

import json
from pathlib import Path

from pipeline.run import RENAMED_KEYS, RunConfig
from pipeline.runtime.config import to_plain
from pipeline.runtime.files import write_text
from pipeline.runtime.reference import markdown, sections
from stages.config_keys import FILE

PATH = Path(__file__).parents[1] / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Written by `make docs` from the docstrings of the config dataclasses; edit those. -->

A run is one YAML file, such as [configs/digits.yaml](../configs/digits.yaml). Every key and the type of its
value are checked before anything runs. Unknown keys, missing keys and values of another type are errors that name the
key, the value and the fix. What depends on files or networks is checked by the stage that reads
them; networks and weight files also by `DRY_RUN=1` and when `make` starts.

Paths are relative to the folder in which a stage runs; only `base` is relative to its own file.

## Deriving a config

`base` at the top level names another config file, relative to the folder of the file that names it:

```yaml
base: imagenet_resnet50.yaml

student: {source: "torchvision:mobilenet_v2"}
```

- A base can have a base. Several bases are a list, `base: [a.yaml, b.yaml]`: later ones override earlier ones, and the
  file itself overrides all of them.
- Mappings are merged key by key. Any other value replaces the inherited one, lists and `null` included. So
  `teacher_training: null` drops that section. A single key of an inherited `options` can be changed, but not removed.
- `name` is not inherited. By default a run is named after its own file, so two configs never share their outputs.

## Overrides

Words KEY=VALUE of a command, or `SET` of make, set keys after all files are merged. A value is YAML and replaces the
whole value of its key, also a mapping. An item of a list is named by its number:

```
dreamdistill synthesize --config digits seed=1 synthesis.inversion.phases.0.steps=500
make CONFIG=configs/digits.yaml SET="seed=1 classes=[1,2]"
```

`SET` is split at spaces, so its values hold none. `base` cannot be overridden.

## `auto`

`precision: auto` and `compile: auto` are decided on the machine when a stage starts. The stage prints its choice.

## The resolved config

Each round's folder of images holds `config.yaml`: the complete configuration, with all defaults, overrides and choices
of `auto`, and without `base`. It can be run again as it is.
"""

RENAMED_INTRODUCTION = """\
## Renamed keys

Old names are accepted with a warning in files, in bases and in overrides; the next release refuses them. Both names of
a key in one file are an error.
"""

# The loader fills these in if a file has no such key.
DEFAULTS = {"name": "the file's name without `.yaml`"}


def document() -> str:
    """The text of docs/configuration.md."""
    tables = "\n\n".join(map(markdown, sections(RunConfig, DEFAULTS)))
    return "\n".join([INTRODUCTION, _renamed_keys(), "", tables, ""])


def keys() -> str:
    """The text of the file from which the help of the commands reads the keys."""
    return json.dumps(to_plain(sections(RunConfig, DEFAULTS)), indent=1) + "\n"


def _renamed_keys() -> str:
    former = {old: new for old, new in RENAMED_KEYS.items() if old.rpartition(".")[0] not in RENAMED_KEYS.values()}
    rows = "\n".join(f"| `{old}` | `{new}` |" for old, new in former.items())
    return f"{RENAMED_INTRODUCTION}\n| old | new |\n|---|---|\n{rows}"


def main() -> None:
    """Write both files."""
    for path, text in ((PATH, document()), (FILE, keys())):
        write_text(path, text)
        print(f"reference: wrote {path}")


if __name__ == "__main__":
    main()
