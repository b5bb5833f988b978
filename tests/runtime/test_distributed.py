"""The ranks of a run: the device of each, what they exchange, and that they train as one process does."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_main import NUM_STEPS, train_network
from tiny_run import REPOSITORY

from pipeline.runtime import distributed
from pipeline.runtime.distributed import DistributedContext, choose_device, open_distributed

ONE_THREAD = {"DREAMDISTILL_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def run_two_ranks(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """The results of rank 0 and of rank 1 of rank_main.py."""
    script = Path(__file__).with_name("rank_main.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.run(
        [*torchrun, str(script), str(folder), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | ONE_THREAD,
        timeout=250,
    )
    assert process.returncode == 0, process.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return run_two_ranks(tmp_path_factory.mktemp("two_ranks"))


def check_training(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Assert that two ranks have learned the same as one process, with the same batches."""
    expected = train_network(DistributedContext())
    assert first["losses"] == second["losses"], "logged losses are means over the ranks"
    assert first["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert len(expected["losses"]) == NUM_STEPS
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(first["weights"][name], tensor, rtol=0, atol=1e-4)
        assert torch.equal(first["weights"][name], second["weights"][name]), name
    layer = "network.fc.weight"
    assert (expected["weights"][layer] - expected["start"][layer]).abs().max() > 0.01
    assert not torch.equal(first["start"][layer], second["start"][layer])


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(two_ranks):
    check_training(*(rank["training"] for rank in two_ranks))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_two_compiled_ranks_learn_what_one_learns(tmp_path):
    check_training(*(rank["training"] for rank in run_two_ranks(tmp_path, "compile")))


@pytest.mark.slow
def test_ranks_read_from_the_device_on_logging_steps_only(two_ranks):
    assert [rank["log_every=7"]["reading"] for rank in two_ranks] == [[0, 7, 14, NUM_STEPS - 1]] * 2


@pytest.mark.slow
def test_ranks_exchange_values(two_ranks):
    for rank in two_ranks:
        assert rank["exchange"]["broadcast"] == "from rank 0"
        assert rank["exchange"]["mean"].tolist() == [0.5, 5.0]
        assert rank["exchange"]["difference"] == "rank 1 differs from rank 0 in precision"


def test_single_process_is_rank_zero_of_one(monkeypatch):
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "cpu")
    with open_distributed() as context:
        assert context == DistributedContext(rank=0, size=1, local_size=1, device=torch.device("cpu"))
        assert context.is_main_process


def test_other_strides_of_the_same_memory_are_not_told(monkeypatch):
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda module, **options: module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DistributedContext(size=2, wait_group=object()).parallel(torch.nn.Linear(1, 1))
        warnings.warn("Grad strides do not match bucket view strides. This may indicate", stacklevel=1)
        with pytest.raises(UserWarning, match="another"):
            warnings.warn("another warning", stacklevel=1)


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99"])
def test_device_that_cannot_compute_raises(monkeypatch, name):
    monkeypatch.setenv("DREAMDISTILL_DEVICE", name)
    with pytest.raises(ValueError, match=f"device '{name}'"), open_distributed():
        pass


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "is_cuda_usable", lambda: True)


@pytest.mark.usefixtures("two_gpus")
def test_each_rank_has_its_own_device(monkeypatch):
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "cuda")
    assert [str(choose_device(rank, 2)) for rank in range(2)] == ["cuda:0", "cuda:1"]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", r"but this machine has 2 for them; use --processes 2 \(make: NPROC=2\)$"),
        ("cuda:1", r"but this machine has 1 for them; use --processes 1 \(make: NPROC=1\), or device cuda$"),
    ],
)
def test_more_ranks_than_devices_raise(monkeypatch, name, message):
    monkeypatch.setenv("DREAMDISTILL_DEVICE", name)
    with pytest.raises(ValueError, match=f"^3 processes need a CUDA device each, {message}"):
        choose_device(0, 3)


def test_device_with_an_unusable_driver_is_not_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # the system lists it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("DREAMDISTILL_DEVICE", raising=False)
    assert choose_device(0, 1) == torch.device("cpu")
