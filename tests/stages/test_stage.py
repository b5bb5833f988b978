"""The command line of the stages: arguments, the first line, locks, and interrupts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_run import copy_run, run_command, write_config

from pipeline.distillation.config import TrainingConfig
from pipeline.run import load_run
from pipeline.runtime.locks import exclusive_lock
from stages import chain, distill, evaluate, report, stage, synthesize, teacher, verify

STAGES = (teacher, synthesize, distill, evaluate, report, verify, chain)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_unknown_key_raises_in_every_stage(error_of, tmp_path, stage):
    assert "unknown key sead; did you mean seed?" in error_of(stage, write_config(tmp_path), "sead=1")


@pytest.mark.parametrize("round_index", ["1", "-1"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_round_out_of_range_raises_in_every_stage(error_of, tmp_path, stage, round_index):
    message = error_of(stage, write_config(tmp_path), "--round", round_index)
    assert message == f"error: --round {round_index}: synthesis.rounds=1 has rounds 0 to 0\n"


def test_interrupt_says_how_to_continue(tmp_path, monkeypatch, capsys):
    def interrupted(session, round_index):
        raise KeyboardInterrupt

    assert run_command(monkeypatch, interrupted, write_config(tmp_path)) == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to continue\n"


def start_a_thread_without_memory():
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(2**50), lambda: bytearray(2**60), lambda: np.empty(2**55), start_a_thread_without_memory],
)
def test_full_memory_is_one_line_with_the_fix(error_of, tmp_path, allocate):
    stage = SimpleNamespace(main=lambda session, round_index: allocate())
    message = error_of(stage, write_config(tmp_path))
    assert message.startswith("error: the memory is full; lower batch_size, or memory_gib for cached images (")
    assert message.count("\n") == 1


def test_full_memory_under_a_limit_names_it(error_of, tmp_path, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda kind: (2**30, 2**30))
    stage = SimpleNamespace(main=lambda session, round_index: bytearray(2**60))
    message = error_of(stage, write_config(tmp_path))
    assert "the memory is full; raise the limit of 1.00 GiB (ulimit -v), or lower batch_size" in message


def test_another_error_of_pytorch_keeps_its_trace(tmp_path, monkeypatch):
    def fail(session, round_index):
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        run_command(monkeypatch, fail, write_config(tmp_path))


def test_unknown_device_raises(error_of, tmp_path):
    message = error_of(teacher, write_config(tmp_path), "--device", "gpu")
    assert message == "error: the device 'gpu' is none to compute on; use cpu, cuda or cuda:N\n"


def test_processes_under_torchrun_raise(error_of, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    message = error_of(synthesize, write_config(tmp_path), "--processes", "2")
    assert message == "error: --processes 2: torchrun has started the processes; leave it out\n"


def test_first_line_names_cuda_graphs():
    config = TrainingConfig(steps=1, batch_size=2, lr=0.1, precision="bfloat16", compile=True, cuda_graphs=True)
    assert stage._computation(config) == "bfloat16, compiled in CUDA graphs"


@pytest.mark.parametrize("reason", [None, "PyTorch is built without CUDA; install a build with it"])
def test_first_line_names_device_processes_and_precision(tmp_path, monkeypatch, capsys, finished, reason):
    monkeypatch.setattr("stages.stage.unusable_driver", lambda: reason)
    monkeypatch.setattr("stages.stage.named_device", lambda: None)
    assert run_command(monkeypatch, verify.main, copy_run(finished, tmp_path)) == 0
    first, *others = capsys.readouterr().out.splitlines()
    num_threads = torch.get_num_threads()
    assert first.startswith("on cpu (")
    assert first.endswith(
        f"): 1 process with {num_threads} thread{'s' * (num_threads > 1)}; "
        "teacher in float32, uncompiled; synthesis in float32, uncompiled; distillation in float32, uncompiled"
    )
    assert [line for line in others if "driver" in line] == (
        [f"the NVIDIA driver of this machine is not used: {reason}"] if reason else []
    )


@pytest.mark.parametrize(
    ("num_free", "num_threads", "is_shown"), [(1, 2, True), (2, 2, False), (None, 2, False), (0, 1, False)]
)
def test_load_that_leaves_too_few_cores_is_shown(
    tmp_path, monkeypatch, capsys, finished, num_free, num_threads, is_shown
):
    monkeypatch.setattr("stages.stage.num_free_cores", lambda: num_free)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    assert run_command(monkeypatch, verify.main, copy_run(finished, tmp_path)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "the load of the last minute" in line]
    assert len(lines) == is_shown
    assert all("left 1 core free for 2 threads" in line and line.endswith("OMP_NUM_THREADS=1") for line in lines)


def test_second_process_on_the_same_run_raises(error_of, finished, tmp_path):
    path = copy_run(finished, tmp_path)
    with exclusive_lock(load_run(path).checkpoints / ".lock"):
        assert "another process works on" in error_of(chain, path)


def test_second_process_on_the_same_shards_raises(error_of, finished, tmp_path):
    path = copy_run(finished, tmp_path, checkpoints_dir=str(tmp_path / "others"))
    with exclusive_lock(load_run(path).shards / ".lock"):
        assert f"another process works on {tmp_path}/shards/tiny; wait for it" in error_of(synthesize, path)


def test_failed_stage_leaves_no_folder(error_of, tmp_path):
    path = write_config(tmp_path)
    error_of(synthesize, path)
    assert list(tmp_path.iterdir()) == [path]


def test_shards_and_checkpoints_can_share_a_folder(tmp_path, monkeypatch):
    path = write_config(tmp_path, shards_dir=str(tmp_path / "all"), checkpoints_dir=str(tmp_path / "all"))
    assert run_command(monkeypatch, teacher.main, path) == 0
