"""The state of a training and its copy in an object store: the one that did more counts."""

import pytest
from tiny_run import tiny_config

from pipeline.copies import open_object_store, pull_outputs
from pipeline.distillation.state import read_state, state_path, write_state


@pytest.mark.parametrize(("is_main_process", "step"), [(True, 5), (False, 3)])
def test_a_state_that_is_ahead_of_its_copy_is_stored(tmp_path, is_main_process, step):
    config = tiny_config(tmp_path, object_store=f"file://{tmp_path}/store")
    state, store = state_path(config.student_path(0)), open_object_store(config)
    write_state(state, {"identity": "{}", "step": 3})
    store.push(state)
    write_state(state, {"identity": "{}", "step": 5})  # and killed before it is stored
    pull_outputs(config, store, with_states=True, is_main_process=is_main_process)
    copy = tmp_path / "store/checkpoints/tiny/student-0.state"
    assert read_state(state)["step"] == read_state(copy)["step"] == step
