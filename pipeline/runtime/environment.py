"""The environment of the process: the only module that reads or sets it. It needs no PyTorch."""

import getpass
import os
import tempfile
from pathlib import Path

# The device that the user named.
DEVICE = "DREAMDISTILL_DEVICE"
# Set in the environment of ranks whose launcher reports their errors.
LAUNCHER_REPORTS = "DREAMDISTILL_LAUNCHER_REPORTS"
# Set by make: what it starts is to end when it is killed.
ENDS_WITH_PARENT = "DREAMDISTILL_ENDS_WITH_PARENT"
NUM_THREADS = "OMP_NUM_THREADS"
USER = "USER"
# How often torchrun has restarted its processes after one of them failed.
RESTART_COUNT = "TORCHELASTIC_RESTART_COUNT"


def ranks_of_torchrun() -> tuple[int, int, int, int]:
    """Rank, number of ranks, and both on this machine, as torchrun describes them; (0, 1, 0, 1) without it."""
    rank, size, local_rank, local_size = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    return rank, size, local_rank, local_size


def is_under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ


def is_restarted() -> bool:
    """Whether torchrun has started this process after another one failed."""
    return os.environ.get(RESTART_COUNT, "0") != "0"


def ends_with_parent() -> bool:
    """Whether this process works for torchrun or make, and is to end with it; one started by a shell stays."""
    return is_under_torchrun() or ENDS_WITH_PARENT in os.environ


def is_rank_zero() -> bool:
    """Whether this process is rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def launcher_reports_errors() -> bool:
    """Whether the process that launched this one, as `--processes` asks, reports its errors."""
    return LAUNCHER_REPORTS in os.environ


def prepare_launch(num_threads: int) -> None:
    """Set the environment of the ranks that this process is about to launch: their threads, and who reports errors."""
    os.environ.setdefault(NUM_THREADS, str(num_threads))  # torchrun's default is one thread for each, on any machine
    os.environ[LAUNCHER_REPORTS] = "1"


def named_num_threads() -> int | None:
    """The threads of each rank that `OMP_NUM_THREADS` names, if it is set; raises ValueError unless it is a number."""
    text = os.environ.get(NUM_THREADS)
    if text is None:
        return None
    if not (text.isdigit() and int(text)):
        raise ValueError(f"{NUM_THREADS}={text} is not a number of threads; use 1 or more, or leave it out")
    return int(text)


def named_device() -> str | None:
    """The device that the user named: `cpu`, `cuda`, `cuda:1`."""
    return os.environ.get(DEVICE)


def name_device(name: str) -> None:
    """Let `name` be the device of this process and of the ranks that it launches."""
    os.environ[DEVICE] = name


def compiler_name() -> str:
    """The C++ compiler that PyTorch uses."""
    return os.environ.get("CXX", "g++")


def cache_folder() -> Path:
    """The folder of this user's cache; what is in it can be computed again."""
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    if cache.startswith("~"):  # a container can have a user without a home
        cache = f"{tempfile.gettempdir()}/cache-{os.getuid()}"
    return Path(cache) / "dreamdistill"


def name_user() -> None:
    """Name the user by number where the system has no name for it, as in a container: PyTorch's compiler needs one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ[USER] = str(os.getuid())


def is_color_wanted() -> bool:
    """Whether a terminal may show colors: `NO_COLOR` is not set (https://no-color.org)."""
    return not os.environ.get("NO_COLOR")
