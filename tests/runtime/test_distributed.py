"""Several workers: the same student as one makes, no look at the device between logging steps, and a worker lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_run import REPOSITORY, copy_run, digests, stage_command, write_config

from pipeline.identity import CONFIG_FILE
from pipeline.run import load_run
from pipeline.runtime import distributed, threads
from pipeline.runtime.distributed import choose_device
from pipeline.runtime.files import exclusive_lock
from pipeline.runtime.threads import threads_per_process

# 600 images, one batch after the other for some seconds, so that a worker can be lost on the way.
SLOW = {"synthesis__num_images": 600, "synthesis__inversion__phases": [{"steps": 60}]}
LONG = {"distill__steps": 100_000, "distill__log_every": 1, "distill__save_every_s": 0}
# What a command may take to say that a worker is lost.
TOLD_WITHIN_S = 60
ONE_THREAD = {"DREAMDISTILL_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def run_script(script: str, folder: Path, *arguments: str, num_processes: int) -> subprocess.CompletedProcess[str]:
    path = folder / "script.py"
    path.write_text(script)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command = [sys.executable, *(torchrun if num_processes > 1 else []), str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD, timeout=300)


# A student without BatchNorm, whose statistics of a share are not those of the batch; no views, drawn for each worker.
TRAIN = """
import sys, traceback
from pathlib import Path
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from pipeline.data import ArrayImages
from pipeline.models import Classifier
from pipeline.distillation.config import TrainingConfig
from pipeline.distillation.state import TrainState
from pipeline.distillation.task import Task, build_label_loss
from pipeline.distillation.train import train
from pipeline.runtime.distributed import open_distributed

compile, log_every, out = sys.argv[1] == "compiled", int(sys.argv[2]), Path(sys.argv[3])
LOOKS = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__"}

class Looks(TorchFunctionMode):
    steps = set()
    def __torch_function__(self, function, types, arguments=(), keywords=None):
        drawn = any(Path(frame.filename).name == "views.py" for frame in traceback.extract_stack(limit=6))
        name = getattr(function, "__name__", "")
        if (name in LOOKS or (name == "to" and "cpu" in arguments)) and not drawn:  # draws never leave the host
            self.steps.add(state.step)
        return function(*arguments, **(keywords or {}))

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.unused = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(2, 2)
    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

with open_distributed() as context:
    torch.manual_seed(context.rank)  # DDP makes everyone's weights the leader's
    config = TrainingConfig(steps=50, batch_size=12, lr=0.05, log_every=log_every, precision="float32", compile=compile)
    pixels = torch.randint(0, 256, (48, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    classifier = Classifier(Network(), ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)), 4)
    state = TrainState.open(classifier, config, out.with_suffix(".state"), {})
    task = Task(classifier, build_label_loss(config), config, num_classes=4, seed=0, purpose="t")
    losses, start = [], {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    def train_all():
        train(state, task, ArrayImages(pixels, torch.arange(48) % 4), config, context,
              on_step=lambda step, figures: losses.append(figures["loss"]))
    if compile:
        train_all()
    else:
        with Looks():
            train_all()
        assert Looks.steps <= {s for s in range(50) if s % log_every == 0} | {49}, (context.rank, sorted(Looks.steps))
        assert Looks.steps, "nothing was counted"
    found = {"losses": losses, "start": start, "weights": classifier.state_dict()}
    torch.save(found, out.with_suffix(f".{context.rank}"))
"""


@pytest.mark.parametrize("way", ["uncompiled", "compiled"])
def test_two_workers_learn_what_one_learns_from_the_same_batches(tmp_path, request, way):
    if way == "compiled":
        request.getfixturevalue("compiler")
    found = {}
    for size in (1, 2):
        done = run_script(TRAIN, tmp_path, way, "1", str(tmp_path / f"of{size}.pt"), num_processes=size)
        assert done.returncode == 0, done.stderr
        for rank in range(size):
            found[size, rank] = torch.load(tmp_path / f"of{size}.{rank}", weights_only=True)
    alone, leader, other = found[1, 0], found[2, 0], found[2, 1]
    assert leader["losses"] == other["losses"], "logged losses are means over the workers"
    assert len(alone["losses"]) == 50
    assert max(abs(a - b) for a, b in zip(alone["losses"], leader["losses"], strict=True)) < 1e-5
    for name, tensor in alone["weights"].items():
        torch.testing.assert_close(leader["weights"][name], tensor, rtol=0, atol=1e-4)
        assert torch.equal(leader["weights"][name], other["weights"][name]), name
    assert (alone["weights"]["network.fc.weight"] - alone["start"]["network.fc.weight"]).abs().max() > 0.01
    assert not torch.equal(leader["start"]["network.fc.weight"], other["start"]["network.fc.weight"])


def test_no_worker_looks_at_the_device_but_on_logging_steps(tmp_path):
    done = run_script(TRAIN, tmp_path, "uncompiled", "7", str(tmp_path / "run.pt"), num_processes=2)
    assert done.returncode == 0, done.stderr


TOGETHER = """
import torch
from pipeline.runtime.distributed import open_distributed

with open_distributed() as context:
    assert context.broadcast(["of", context.rank]) == ["of", 0]
    assert context.mean(torch.tensor([1.0 * context.rank, 5.0])).tolist() == [0.5, 5.0]
    context.require_same("float32", "precision")
    try:
        context.require_same(f"of {context.rank}", "precision")
    except ValueError as error:
        assert str(error) == "worker 1 differs from worker 0 in precision"
    else:
        raise AssertionError("a difference was accepted")
    assert torch.get_num_threads() == 1
"""


def test_workers_share_what_the_leader_says_means_and_a_difference(tmp_path):
    done = run_script(TOGETHER, tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("num_processes", "expected"), [(1, 6), (2, 3), (4, 1), (16, 1)])
def test_workers_of_a_machine_share_its_cores(monkeypatch, num_processes, expected):
    monkeypatch.setattr(threads, "num_usable_cores", lambda: 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert threads_per_process(num_processes) == expected


def worker_pid(launcher: int, rank: int) -> int | None:
    """The process of one worker below a launcher; Linux only."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):  # it has ended meanwhile
            continue
        if parent == launcher and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    return None


def start_loud(stage: str, path: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"DREAMDISTILL_DEVICE": "cpu"}
    environment.pop("OMP_NUM_THREADS", None)
    command = stage_command(stage, path, num_processes=2)
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def lines_of(process: "subprocess.Popen[str]") -> tuple[int, list[str]]:
    """The exit code of a command, and what it wrote to its standard error."""
    try:
        lines = process.communicate(timeout=TOLD_WITHIN_S)[1].splitlines()
        return process.returncode, lines
    finally:
        process.kill()


def lose_a_worker(stage: str, path: Path, is_under_way: Callable[[], bool]) -> list[str]:
    """Kill worker 1 of a stage once it is under way; the lines that the command then ends with, in time."""
    process = start_loud(stage, path)
    while process.poll() is None and not is_under_way():
        time.sleep(0.01)
    if (killed := worker_pid(process.pid, 1)) is not None:
        os.kill(killed, signal.SIGKILL)
    code, lines = lines_of(process)
    assert code == 2, lines
    return lines


linux_only = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds workers in /proc")
LOST = ["error: worker 1 was killed (SIGKILL); the same command goes on from here"]


@linux_only
def test_a_worker_lost_in_synthesis_is_told_in_one_line_and_the_shards_become_the_same(finished, tmp_path):
    made = []
    for name in ("whole", "lost"):
        path = write_config(tmp_path / name, **SLOW)
        config = load_run(path)
        config.checkpoints.mkdir(parents=True)
        shutil.copy(finished / "checkpoints/tiny/teacher.safetensors", config.checkpoints)
        if name == "lost":
            parts = config.round_folder(0) / "parts"
            assert lose_a_worker("synthesize", path, lambda parts=parts: any(parts.glob("*.tar"))) == LOST
            assert any(parts.glob("*.tar"))
        assert lines_of(start_loud("synthesize", path)) == (0, [])
        made.append(digests(config.shards, leave_out=[CONFIG_FILE]))
    assert made[0] == made[1]


@linux_only
def test_a_worker_lost_in_distillation_is_told_in_one_line_and_training_goes_on(finished, tmp_path):
    path = copy_run(finished, tmp_path, **LONG)
    config = load_run(path)
    student = config.student_path(0)
    student.unlink()
    state = student.with_suffix(".state")
    assert lose_a_worker("distill", path, state.exists) == LOST
    first = torch.load(state, weights_only=True)["step"]
    changed = state.stat().st_mtime_ns
    assert lose_a_worker("distill", path, lambda: state.stat().st_mtime_ns != changed) == LOST
    assert torch.load(state, weights_only=True)["step"] > first > 0
    assert not student.exists()


def test_a_mistake_in_the_config_is_told_once_before_there_are_workers(tmp_path):
    code, (line,) = lines_of(start_loud("synthesize", write_config(tmp_path, synthesis__num_image=3)))
    assert line.startswith("error: unknown key synthesis.num_image; did you mean num_images?")
    assert code == 2


@pytest.mark.parametrize("number", ["0", "-1", "abc"])
def test_a_number_of_workers_that_cannot_be_meant_is_named(number):
    done = subprocess.run(
        [sys.executable, "-m", "stages.launch", number, "verify"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stderr == f"error: NPROC={number}: there is no such number of workers; use 1 or more\n"
    assert done.returncode == 2


def test_an_error_of_all_workers_is_told_once(tmp_path):
    code, (line,) = lines_of(start_loud("synthesize", write_config(tmp_path)))
    assert line.startswith("error: there is no teacher yet")
    assert code == 2


def test_an_error_of_one_worker_is_told_and_not_that_the_others_were_ended(tmp_path):
    path = write_config(tmp_path)
    with exclusive_lock(load_run(path).checkpoints / ".lock"):  # which only the leader takes
        code, (line,) = lines_of(start_loud("teacher", path))
    assert line.startswith("error: another process works on")
    assert code == 2


def test_under_a_torchrun_of_the_users_a_mistake_in_the_config_is_told_once(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    stage = ["-m", "stages.synthesize", "--config", str(write_config(tmp_path, synthesis__num_image=3))]
    done = subprocess.run(
        [*torchrun, *stage], cwd=REPOSITORY, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=120
    )
    assert done.stderr.count("error: unknown key synthesis.num_image") == 1
    assert done.returncode != 0


def test_a_device_that_its_driver_cannot_serve_is_not_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # the system lists it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("DREAMDISTILL_DEVICE", raising=False)
    assert choose_device(0, 1) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "NPROC=3 workers on this machine need a CUDA device each, there is 2 for them; set NPROC=2"),
        ("cuda:1", "need a CUDA device each, there is 1 for them; set NPROC=1, or DREAMDISTILL_DEVICE=cuda"),
    ],
)
def test_more_workers_than_devices_are_refused(monkeypatch, name, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "is_cuda_usable", lambda: True)
    monkeypatch.setenv("DREAMDISTILL_DEVICE", name)
    with pytest.raises(ValueError, match=message):
        choose_device(0, 3)


def test_every_worker_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "is_cuda_usable", lambda: True)
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "cuda")
    assert [str(choose_device(rank, 2)) for rank in range(2)] == ["cuda:0", "cuda:1"]
