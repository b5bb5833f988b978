"""The copies of a run's outputs in its object store: what a machine gets of them, and what it leaves there."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.data.stored_sets import pull_set
from pipeline.distillation.state import read_state, remove_state, state_path
from pipeline.models.checkpoint import read_description
from pipeline.run import RunConfig
from pipeline.runtime.config import ConfigError
from pipeline.runtime.files import read_json
from pipeline.runtime.object_store import ObjectStore


class _NotNewer(Exception):
    """The copy of a state has no step more than the file here."""


def open_object_store(config: RunConfig) -> ObjectStore | None:
    """The store that `object_store` names; None if it is null. Nothing is looked up yet."""
    if config.object_store is None:
        return None
    folders = {config.shards: f"shards/{config.name}", config.checkpoints: f"checkpoints/{config.name}"}
    return ObjectStore(config.object_store, folders)


def pull_outputs(config: RunConfig, store: ObjectStore, *, with_states: bool, is_main_process: bool) -> list[Path]:
    """Get what is in the store and not here: complete sets, networks, and states of training; returns what was new.

    A state here that did less than its copy is replaced. One that did more, since the process ended before it was
    stored, is stored by the main process; the others then get it. `with_states` only while no training writes them.
    Raises ConfigError when the store has images or a state of another configuration than those here.
    """
    sets = () if config.distill.shards else map(config.round_folder, range(config.synthesis.rounds))
    pulled = [folder for folder in sets if pull_set(store, folder)]
    copies = store.sizes(config.checkpoints)
    for network in _networks(config):
        state, facts = state_path(network), _facts(network)
        if not network.exists() and network in copies and store.pull(network, read_description):
            pulled.append(network)
        is_wanted = with_states and not network.exists() and state in copies and _differs(store, state)
        if is_wanted and _exchange_state(store, state, is_main_process):
            pulled.append(state)
        if network.exists() and not facts.exists() and facts in copies:
            store.pull(facts, read_json)
    return pulled


def finish_network(store: ObjectStore | None, path: Path, *, is_new: bool = False) -> None:
    """Store a copy of a trained network, and remove the state of its training, here and there.

    Unless it `is_new`, a copy that exists stays as it is.
    """
    if store is not None:
        copies = store.sizes(path.parent)
        outputs = [output for output in (_facts(path), path) if output.exists()]
        store.push_all(output for output in outputs if is_new or output not in copies)
        store.remove({state_path(path)} & copies.keys())
    remove_state(path)


def _networks(config: RunConfig) -> Iterator[Path]:
    if config.teacher.weights is None:
        yield config.trained_teacher_path
    yield from map(config.student_path, range(config.num_rounds))


def _facts(network: Path) -> Path:
    """The file beside a trained teacher with its accuracy; a student has none."""
    return network.with_suffix(".json")


def _differs(store: ObjectStore, state: Path) -> bool:
    """Whether the copy of a state is another one than the file here; the first line of a state has its digest."""
    if not state.exists():
        return True
    with open(state, "rb") as file:
        first_line = file.readline()
    return store.read(state, len(first_line)) != first_line


def _exchange_state(store: ObjectStore, state: Path, is_main_process: bool) -> bool:
    """Get the copy of a state, or let it become that of the main process, if this did more; whether it was got."""
    try:
        return store.pull(state, partial(_require_usable, state, store.address(state), is_main_process))
    except _NotNewer:
        store.push_or_warn(state)
        return False


def _require_usable(state: Path, address: str, is_main_process: bool, copy: Path) -> None:
    """Raise ValueError when the copy of a state is damaged, ConfigError when it is of another training than `state`.

    Raises _NotNewer when it did not more than the state of the main process.
    """
    content = read_state(copy)
    try:
        existing = read_state(state) if state.exists() else None
    except ValueError:  # damaged, so that the copy takes its place
        return
    if existing is None:
        return
    if json.loads(existing["identity"]) != json.loads(content["identity"]):
        raise ConfigError(
            f"object_store: {address} is of another configuration than {state}; set another `name` or another address, "
            "or remove the one that you do not need"
        )
    if is_main_process and content["step"] <= existing["step"]:
        raise _NotNewer
