"""Shell completion: a script for each shell, and the candidates that it asks for."""

from argparse import Action, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.models.config import SOURCES
from stages.arguments import PROGRAM, RUNS_FOLDER, user_path
from stages.command_line import COMPLETE
from stages.commands import COMMANDS, CommandParser
from stages.config_keys import choices_at, dotted_keys, read_sections
from stages.config_names import SUFFIX, config_names

# KIND:NAME of the values of some keys, and, where the name is a path, the end of its files; / is a folder.
IMAGE_KINDS = ("sklearn", "torchvision", "imagefolder", "tar", "npz", "shards")
KINDS_OF_KEYS = {"test": IMAGE_KINDS, "train": IMAGE_KINDS, "source": SOURCES}
PATH_KINDS = {"imagefolder": "/", "tar": ".tar", "npz": ".npz", "shards": "/", "python": ".py"}
# Keys whose value is a path.
PATH_KEYS = ("weights", "class_names", "folder", "shards_dir", "checkpoints_dir")

BASH = f"""\
_{PROGRAM}() {{
    local line=${{COMP_LINE:0:COMP_POINT}} words word
    read -a words <<< "$line"  # without -r, a space after a backslash belongs to its word
    [[ $line == *[!\\\\][[:space:]] ]] && words+=("")
    word=${{words[${{#words[@]}}-1]}}
    local IFS=$'\\n'
    COMPREPLY=($("$1" {COMPLETE} "${{words[@]:1}}" 2> /dev/null))
    # Bash replaces only what follows the last = or : of a word.
    local kept=${{word%"${{word##*[=:]}}"}}
    COMPREPLY=("${{COMPREPLY[@]#"$kept"}}")
    COMPREPLY=("${{COMPREPLY[@]// /\\\\ }}")
    [[ ${{COMPREPLY[0]}} == *[=./:] ]] && compopt -o nospace 2> /dev/null
    return 0
}}
complete -F _{PROGRAM} {PROGRAM}"""

ZSH = f"""\
#compdef {PROGRAM}
_{PROGRAM}() {{
    local -a candidates
    candidates=(${{(f)"$("${{words[1]}}" {COMPLETE} "${{(@Q)words[2,CURRENT]}}" 2> /dev/null)"}})
    compadd -S '' -- ${{(M)candidates:#*[=./:]}}
    compadd -- ${{candidates:#*[=./:]}}
}}
compdef _{PROGRAM} {PROGRAM}"""

FISH = f"""\
function __{PROGRAM}
    set -l words (commandline -opc)
    $words[1] {COMPLETE} $words[2..] (string unescape -- (commandline -ct)) 2> /dev/null
end
complete -c {PROGRAM} -f -a '(__{PROGRAM})'"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def main(arguments: Namespace) -> None:
    """Print the script of `arguments.shell`."""
    print(SCRIPTS[arguments.shell])


def candidates(words: Sequence[str]) -> list[str]:
    """What can stand for the last of the words after the program's name, which is incomplete or empty.

    A candidate that ends with `=`, `.`, `/` or `:` is to be continued.
    """
    *before, current = words or [""]
    commands = {command.name: command for command in COMMANDS}
    if not before:
        return _starting_with(current, commands)
    if before[0] not in commands:
        return []
    parser = CommandParser(commands[before[0]])
    option = parser.options.get(before[-1])
    if option is not None and option.nargs != 0:
        return _values(option, current)
    if current.startswith("-"):
        return _starting_with(current, parser.options)
    return [value for action in parser.positionals for value in _values(action, current)]


def _values(action: Action, current: str) -> list[str]:
    """Values of an option or of a positional argument."""
    match action.dest:
        case "overrides" if "=" in current:
            key, _, value = current.partition("=")
            return [f"{key}={candidate}" for candidate in _values_of_key(key, value)]
        case "overrides":
            return _next_levels(current, (f"{key}=" for key in dotted_keys()))
        case "topic":
            keys = [place for section in read_sections() for place in section.places if place] + dotted_keys()
            return _starting_with(current, (c.name for c in COMMANDS)) + _next_levels(current, keys)
        case "config":
            return _starting_with(current, config_names()) + _paths(current, SUFFIX)
        case "runs":
            return _starting_with(current, (path.name for path in sorted(RUNS_FOLDER.glob("*/")))) + _paths(current)
        case "device":
            return _starting_with(current, ("cpu", "cuda"))
    if action.type is user_path:
        return _paths(current)
    return _starting_with(current, action.choices or ())


def _values_of_key(key: str, value: str) -> list[str]:
    """Values of a config key that start with `value`: choices, paths, or sources, which are KIND:NAME."""
    name = key.rpartition(".")[2]
    if name in PATH_KEYS:
        return _paths(value)
    if name in KINDS_OF_KEYS:
        kind, colon, path = value.partition(":")
        if not colon:
            return _starting_with(value, (f"{known}:" for known in KINDS_OF_KEYS[name]))
        return [f"{kind}:{file}" for file in _paths(path, PATH_KINDS[kind])] if kind in PATH_KINDS else []
    return _starting_with(value, choices_at(key))


def _starting_with(current: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(current)]


def _next_levels(current: str, keys: Iterable[str]) -> list[str]:
    """The keys that start with `current`, cut after their next dot."""
    start = current.rpartition(".")[0]
    level = len(start) + 1 if start else 0
    cut = (key[: key.find(".", level) + 1] or key for key in _starting_with(current, keys))
    return list(dict.fromkeys(cut))


def _paths(current: str, suffix: str = "") -> list[str]:
    """Files with this suffix, and folders, that start with `current`."""
    prefix = current[: current.rfind("/") + 1]
    folder, name = Path(prefix or ".").expanduser(), current.removeprefix(prefix)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    names = [f"{path.name}{'/' * path.is_dir()}" for path in paths if name or not path.name.startswith(".")]
    return [prefix + path for path in _starting_with(name, names) if path.endswith(("/", suffix))]
