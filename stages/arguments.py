"""The arguments of the commands."""

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

PROGRAM = "dreamdistill"
SHELLS = ("bash", "zsh", "fish")
# Where `compare` looks for runs.
RUNS_FOLDER = Path("checkpoints")


def config_arguments(parser: ArgumentParser) -> None:
    """The arguments that name a run."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config and their values in YAML")
    parser.add_argument(
        "--config", default="digits", metavar="FILE", help="the YAML file of the run, or the name of a shipped config"
    )


def process_arguments(parser: ArgumentParser) -> None:
    """The arguments that name a run and where it computes."""
    config_arguments(parser)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N; by default cuda if there is a device")
    parser.add_argument(
        "--processes", type=_num_processes, default=1, metavar="N", help="processes on this machine that share the work"
    )


def run_arguments(parser: ArgumentParser) -> None:
    """The arguments of the commands that can also say what they would make."""
    process_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and what would be made, and stop"
    )


def imagenet_val_arguments(parser: ArgumentParser) -> None:
    """The arguments of `imagenet-val`."""
    folder = Path("data/imagenet/val")  # which the configs name
    parser.add_argument("--tar", type=user_path, required=True, metavar="FILE", help="ILSVRC2012_img_val.tar")
    parser.add_argument(
        "--devkit",
        type=user_path,
        required=True,
        metavar="FILE",
        help="ILSVRC2012_devkit_t12.tar.gz, or a text with a wnid per image",
    )
    parser.add_argument(
        "--folder", type=user_path, default=folder, metavar="FOLDER", help=f"the folder to write, by default {folder}"
    )


def unpack_arguments(parser: ArgumentParser) -> None:
    """The arguments of `unpack`."""
    config_arguments(parser)
    parser.add_argument("--shards", type=user_path, metavar="FOLDER", help="one set, in place of the rounds of a run")
    parser.add_argument(
        "--folder",
        type=user_path,
        metavar="FOLDER",
        help="the folder to write, by default `unpacked` beside the rounds",
    )


def compare_arguments(parser: ArgumentParser) -> None:
    """The arguments of `compare`."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names of runs, or paths of their checkpoints folders")
    parser.add_argument(
        "--checkpoints-dir", type=user_path, default=RUNS_FOLDER, metavar="FOLDER", help="the folder of the runs"
    )
    parser.add_argument(
        "--shards-dir",
        type=user_path,
        metavar="FOLDER",
        help="the folder of the images of runs that are not evaluated",
    )
    parser.add_argument(
        "--output", type=user_path, metavar="FOLDER", help="the folder to write to, by default that of the runs"
    )


def help_arguments(parser: ArgumentParser) -> None:
    """The arguments of `help`."""
    parser.add_argument("topic", nargs="?", help="a command, a config key or a section of keys")


def completion_arguments(parser: ArgumentParser) -> None:
    """The arguments of `completion`."""
    parser.add_argument("shell", choices=SHELLS, help=f'eval "$({PROGRAM} completion bash)" in ~/.bashrc')


def user_path(text: str) -> Path:
    """A path of the command line; a shell leaves the ~ of a quoted one."""
    return Path(text).expanduser()


def _num_processes(text: str) -> int:
    if not (text.isdigit() and int(text)):
        raise ArgumentTypeError(f"{text} is not a number of processes; use 1 or more")
    return int(text)
