"""Config files as plain data: YAML, the files that it derives from (`base`), renamed keys, overrides."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from pipeline.runtime.config import ConfigError, describe, nearest

# The key that names the files that a config file derives from.
BASE = "base"
# A run's name is its own file's; two runs of one name would write into the same folders.
NOT_INHERITED = ("name",)
# Far above the values of a config, 1,000 classes included, and below what a run could not hold.
MAX_VALUES = 1_000_000
# Ends a message about an override that looks like a part of one.
NO_SPACES = "; quote a value with spaces, and write it without them in SET of make: [1,2]"


class _Loader(yaml.SafeLoader):
    """PyYAML's loader, but every error has a line, and equal keys are one; PyYAML takes the last of them."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key.start_mark)
            if key.value in names:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} is given twice; remove one of them", problem_mark=key.start_mark
                )
            names.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)  # which repeats what is merged again and again
        node.value = list({key.value: (key, value) for key, value in node.value}.values())

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        # of a value that is not of its tag's kind, or of a number with thousands of digits
        except (ValueError, LookupError, AttributeError) as error:
            raise yaml.MarkedYAMLError(
                problem=f"a value is not of its kind ({error})", problem_mark=node.start_mark
            ) from error


# No key takes a date, and not all that look like one are.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(
    path: Path, overrides: Sequence[str] = (), renamed_keys: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Read a YAML mapping, merge it over its bases, and apply `dotted.key=value` overrides (values are YAML too).

    `renamed_keys` maps old dotted names to new ones of the same depth. Old names are accepted with a warning.
    Raises ConfigError.
    """
    mapping = _load_file(path, renamed_keys, ())
    for override in overrides:
        _apply(mapping, override, renamed_keys)
    return mapping


def _load_file(path: Path, renamed_keys: Mapping[str, str], derived: tuple[Path, ...]) -> dict[str, Any]:
    """A file merged over its bases; `derived` lists the files on the way to it, from the one that was asked for."""
    mapping = _read(path)
    chain = (*derived, path)
    inherited: dict[str, Any] = {}
    for base in _base_paths(path, mapping.pop(BASE, [])):
        _check_base(base, chain)
        inherited = _merge(inherited, _load_file(base, renamed_keys, chain))
    for name in NOT_INHERITED:
        inherited.pop(name, None)
    return _merge(inherited, _rename(mapping, renamed_keys, str(path)))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        known = sorted(str(p) for p in folder.glob("*.yaml"))
        hint = ", it is a folder" if path.is_dir() else nearest(path, known, _stem)
        raise ConfigError(f"no config file {path}{hint} (existing files: {', '.join(known) or 'none'})")
    try:
        mapping = _parse(path.read_bytes())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_problem(error)}") from None
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, it holds {describe(mapping)}")
    return mapping


def _stem(name: str) -> str:
    """What differs between the names of config files."""
    return Path(name).stem


def _parse(text: bytes | str) -> Any:
    """The value of a YAML text; raises YAMLError, also for what is nested too deeply or too large with its aliases."""
    try:
        value = yaml.load(text, _Loader)
        _count(value, {})
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply, or contains itself") from None
    return value


def _count(value: Any, counts: dict[int, int]) -> int:
    """The number of values in `value`, aliases counted as copies; `counts` has those of containers, by their id.

    Raises YAMLError for too many, and for a value that is none of a config, such as a set.
    """
    if not isinstance(value, dict | list):
        if value is not None and type(value) not in (str, int, float, bool):
            raise yaml.YAMLError(f"{value!r} is no text, number, list or mapping")
        return 1
    if id(value) not in counts:
        counts[id(value)] = 1 + sum(_count(v, counts) for v in (value.values() if isinstance(value, dict) else value))
    if counts[id(value)] > MAX_VALUES:
        raise yaml.YAMLError(f"it holds more than {MAX_VALUES:,} values, aliases counted as copies")
    return counts[id(value)]


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, and where, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.reason}, position {error.position}"
    return " ".join(str(error).split())


def _base_paths(path: Path, value: Any) -> list[Path]:
    """The base files that `path` names, relative to its own folder, the most general one first."""
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            f"{path}: base: expected a file name or a list of file names, got {describe(value)}; "
            "write it as base: other.yaml"
        )
    return [path.parent / name for name in names]


def _check_base(base: Path, chain: tuple[Path, ...]) -> None:
    """Raise ConfigError for a base that is no file, or that derives from itself through `chain`."""
    *_, path = chain
    if not base.is_file():
        names = sorted(p.name for p in base.parent.glob("*.yaml"))
        raise ConfigError(
            f"{path}: base: there is no file {base}{nearest(base.name, names, _stem)} (the folder holds "
            f"{', '.join(names) or 'no YAML file'}; the path is relative to the file that names it)"
        )
    resolved = [p.resolve() for p in chain]
    if base.resolve() in resolved:
        cycle = " -> ".join(p.name for p in (*chain[resolved.index(base.resolve()) :], base))
        raise ConfigError(f"{path}: base: {base.name} forms a cycle ({cycle}); remove one of these base keys")


def _merge(inherited: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over `inherited`: mappings are merged key by key, any other value replaces the inherited one."""
    merged = dict(inherited)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _rename(mapping: Any, renamed_keys: Mapping[str, str], origin: str, prefix: str = "") -> Any:
    """`mapping` with the new names of its keys; `origin` names the file or override in warnings and errors."""
    if not isinstance(mapping, Mapping):
        return mapping
    renamed = {}
    for key, value in mapping.items():
        old = f"{prefix}{key}"
        new = renamed_keys.get(old)
        if new is not None:
            *_, key = new.split(".")
            if key in mapping:
                raise ConfigError(f"{origin}: {old} is the old name of {new}, and both are given; remove {old}")
            warnings.warn(f"{origin}: {old} is now {new}; the old name will be refused", FutureWarning, stacklevel=2)
        renamed[key] = _rename(value, renamed_keys, origin, f"{old}.")
    return renamed


def _apply(mapping: dict[str, Any], override: str, renamed_keys: Mapping[str, str]) -> None:
    keys, value = _parse_override(override, renamed_keys)
    *parents, leaf = keys
    node: Any = mapping
    for i, parent in enumerate(parents):
        node = _child(node, parent, override, keys[:i])
        if not isinstance(node, dict | list):
            raise ConfigError(f"override {override!r}: {'.'.join(keys[: i + 1])} is {describe(node)}, it has no keys")
    if isinstance(node, list):
        node[_position(node, leaf, override, parents)] = value
    else:
        node[leaf] = value


def _parse_override(override: str, renamed_keys: Mapping[str, str]) -> tuple[list[str], Any]:
    """The parts of an override's key, and its value, both with new names."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"override {override!r} must look like key=value, for example synthesis.num_images=500{NO_SPACES}"
        )
    try:
        node = _parse(text)
    except yaml.YAMLError as error:
        problem = f"{text!r} is not a valid YAML value ({_problem(error)})"
        raise ConfigError(f"override {override!r}: {problem}{NO_SPACES}") from None
    old_names = key.split(".")
    if old_names[0] == BASE:
        raise ConfigError(f"override {override!r}: base can only stand in a config file; name that file with --config")
    for name in reversed(old_names):
        node = {name: node}
    node = _rename(node, renamed_keys, f"override {override!r}")
    new_names = []
    for _ in old_names:
        ((name, node),) = node.items()
        new_names.append(name)
    return new_names, node


def _child(node: Any, name: str, override: str, path: Sequence[str]) -> Any:
    """The value under `name`, a new mapping if there is none; items of lists are named by their number."""
    if isinstance(node, list):
        return node[_position(node, name, override, path)]
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def _position(items: Sequence[Any], name: str, override: str, path: Sequence[str]) -> int:
    """The position that `name` is in the list at `path`; raises ConfigError when there is no such item."""
    if name.isdecimal() and int(name) < len(items):
        return int(name)
    key, last = ".".join(path), len(items) - 1
    numbers = f"has the item{f's 0 to {last}' if last else ' 0'}, not {name}" if items else "is an empty list"
    raise ConfigError(f"override {override!r}: {key} {numbers}; to add one, write the whole list: {key}=[...]")
