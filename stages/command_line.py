"""`dreamdistill COMMAND ...`: finds the command, reads its arguments, and runs its module, imported only then."""

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from pipeline.runtime.fingerprint import source_version
from stages.arguments import PROGRAM
from stages.commands import COMMANDS, Command, find_command, parse_words
from stages.outcome import DONE, EXIT_CODES, FAILED, error_text, print_error

# What the scripts of `completion` call.
COMPLETE = "complete"
# What the system says when a library does not fit the memory that a process may have.
LIMITED_ADDRESSES = "failed to map segment"


def run(words: Sequence[str]) -> int:
    """Run a command line without the program's name; returns its exit code, or exits with it."""
    if not words:
        print(overview(), file=sys.stderr)
        return FAILED
    name, *others = words
    try:
        if name in ("-h", "--help"):
            print(overview())
        elif name == COMPLETE:
            completion = importlib.import_module("stages.completion")
            print(*completion.candidates(others), sep="\n")
        elif name == "--version":
            print(f"{PROGRAM} {source_version()}")
        else:
            command = find_command(name)
            run_command(command, parse_words(command, others))
    except BrokenPipeError:  # who read the output has stopped, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print_error(error_text(error))
        return FAILED
    except ImportError as error:
        if LIMITED_ADDRESSES not in str(error):
            raise
        print_error(f"the memory is too small to load PyTorch ({error}); raise the limit (ulimit -v)")
        return FAILED
    return DONE


def run_command(command: Command, arguments: Namespace) -> None:
    """Run a command with its arguments."""
    main = importlib.import_module(f"stages.{command.module_name}").main
    if command.is_stage:
        from stages.stage import run_stage

        run_stage(main, arguments, exclusive=command.exclusive)
    else:
        main(arguments)


def overview() -> str:
    """The help of the program: every command in a line."""
    width = max(len(command.name) for command in COMMANDS)
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [--config FILE] [KEY=VALUE ...] [OPTION ...]",
            "",
            "Distill a trained image classifier into another network without any training data.",
            "",
            "commands:",
            *(f"  {command.name.ljust(width)}  {command.summary}" for command in COMMANDS),
            "",
            f"`{PROGRAM} COMMAND --help` lists the options of a command and the keys of the config that it reads,",
            f"`{PROGRAM} --version` tells the version.",
            "",
            EXIT_CODES,
        ]
    )
