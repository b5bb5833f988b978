"""Two hosts, as network namespaces joined by a virtual cable, work on one run; one of them is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from test_launch import child_pids
from tiny_run import REPOSITORY, digests, run_in_process, tiny_config, write_config

from benchmarks.sleepy_network import sleepy_teacher
from pipeline.data.parts import list_parts
from pipeline.data.shards import CONFIG_FILE
from pipeline.run import load_run
from stages import synthesize

ADDRESSES, PORT, RANKS_PER_HOST = ("10.77.0.1", "10.77.0.2"), 29400, 2
SETTINGS = {
    "teacher_training": None,
    "synthesis__inversion__phases": [{"steps": 20}],
    "synthesis__batch_size": 5,
}
NUM_BATCHES = 12
TIMEOUT_S = 300
# The store through which the hosts meet (docs/scaling.md#several-machines).
STORE = (
    f"import time, torch.distributed as dist; store = dist.TCPStore('{ADDRESSES[0]}', {PORT}, is_master=True, "
    "wait_for_workers=False); time.sleep(1000)"
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """Two namespaces, each with its end of the cable and an address."""

    def __init__(self) -> None:
        self.names = [f"dreamdistill-{os.getpid()}-{i}" for i in range(2)]
        self.devices = [f"dd{os.getpid()}{i}" for i in "ab"]
        self.processes: list[subprocess.Popen[bytes]] = []

    def connect(self) -> None:
        """Make the namespaces and the cable; raises CalledProcessError where that is not allowed."""
        for name in self.names:
            ip("netns", "add", name)
        first, second = zip(self.devices, self.names, strict=True)
        ip("link", "add", first[0], "netns", first[1], "type", "veth", "peer", "name", second[0], "netns", second[1])
        for name, device, address in zip(self.names, self.devices, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", device, "up")

    def start(self, host: int, command: list[str]) -> "subprocess.Popen[bytes]":
        """Start a command on a host."""
        environment = os.environ | {
            "DREAMDISTILL_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": self.devices[host],
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        words = ["ip", "netns", "exec", self.names[host], *command]
        process = subprocess.Popen(
            words, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.processes.append(process)
        return process

    def torchrun(self, host: int, path: Path) -> "subprocess.Popen[bytes]":
        """Start synthesis on a host; it meets the other one, and goes on without it."""
        elastic = ["--nnodes", "1:2", "--nproc-per-node", str(RANKS_PER_HOST), "--max-restarts", "3"]
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}", "--rdzv-id", "test"]
        meeting += ["--rdzv-conf", "is_host=0,last_call_timeout=5", "--local-addr", ADDRESSES[host]]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *elastic, *meeting]
        return self.start(host, [*torchrun, "-m", "stages", "synthesize", "--config", str(path)])

    def close(self) -> None:
        for process in self.processes:
            kill(process)
            process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a torchrun and its ranks, as if their host lost its power."""
    for pid in [process.pid, *child_pids(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("the command `ip` is missing (package iproute2)")
    hosts = Hosts()
    try:
        hosts.connect()
        yield hosts
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces: {error.stderr.strip()}")
    finally:
        hosts.close()


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("killed", [0, 1], ids=["with rank 0", "without rank 0"])
def test_host_goes_on_without_the_other(tmp_path, hosts, killed):
    settings = {**SETTINGS, "teacher": sleepy_teacher(tmp_path, pass_s=0.1)}
    path, expected = write_config(tmp_path / "hosts", **settings), tiny_config(tmp_path / "one", **settings)
    config = load_run(path)
    hosts.start(0, [sys.executable, "-c", STORE])
    torchruns = [hosts.torchrun(host, path) for host in range(2)]
    ranks = range(2 * RANKS_PER_HOST)
    while not (list_parts(config.round_folder(0)) and all(config.metrics_path(rank).exists() for rank in ranks)):
        assert [process.poll() for process in torchruns] == [None, None]
        time.sleep(0.1)
    assert len(list_parts(config.round_folder(0))) < NUM_BATCHES
    kill(torchruns[killed])
    assert torchruns[1 - killed].wait(timeout=TIMEOUT_S) == 0
    run_in_process(synthesize.main, expected)
    assert digests(config.shards, exclude=[CONFIG_FILE, ".lock"]) == digests(expected.shards, exclude=[CONFIG_FILE])
