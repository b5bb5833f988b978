"""Compiling where the machine can, devices by name, seeds by purpose."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from tiny_run import REPOSITORY

from pipeline.world import World, compiled, derive_seed, make_generator, open_world


def test_without_a_compiler_a_function_runs_as_it_is_with_one_warning(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="compile: true needs a C\\+\\+ compiler such as"):
        assert compiled(abs, torch.device("cpu")) is abs


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99"])
def test_a_device_that_cannot_compute_is_refused(monkeypatch, name):
    monkeypatch.setenv("DREAMDISTILL_DEVICE", name)
    with pytest.raises(ValueError, match=f"DREAMDISTILL_DEVICE={name}"), open_world():
        pass


def test_a_single_worker_leads(monkeypatch):
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "cpu")
    with open_world() as world:
        assert (world.rank, world.size, world.is_leader, world.device) == (0, 1, True, torch.device("cpu"))


AVERAGE = """
import torch
from pipeline.world import open_world
with open_world() as world:
    tensors = [torch.full((2, 3), float(world.rank)), torch.tensor([10.0 * world.rank, 1.0])]
    world.average(tensors)
    assert (tensors[0] == 1).all() and tensors[1].tolist() == [10, 1], tensors
"""


def test_workers_average_their_tensors(tmp_path):
    script = tmp_path / "average.py"
    script.write_text(AVERAGE)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    environment = os.environ | {"DREAMDISTILL_DEVICE": "cpu", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, *torchrun, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_single_worker_is_its_own_average():
    tensor = torch.tensor([1.0, 2.0])
    World().average([tensor])
    assert tensor.tolist() == [1, 2]


def test_seeds_differ_by_run_purpose_and_index_and_stay():
    seeds = {derive_seed(seed, purpose, index) for seed in (0, 1) for purpose in ("a", "b") for index in (0, 1)}
    assert len(seeds) == 8
    assert torch.equal(torch.rand(3, generator=make_generator(0, "a")), torch.rand(3, generator=make_generator(0, "a")))
