"""The table of commands, and how the words of each are read."""

from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from pipeline.runtime.config import nearest
from stages.arguments import (
    PROGRAM,
    compare_arguments,
    completion_arguments,
    help_arguments,
    imagenet_val_arguments,
    process_arguments,
    run_arguments,
    unpack_arguments,
)
from stages.config_keys import list_keys, sections_under
from stages.config_names import SUFFIX
from stages.outcome import EXIT_CODES, UsageError

# Options of former versions, and what stands for them now.
REMOVED = {"--set": f"write KEY=VALUE alone, as in `{PROGRAM} run seed=1 distill.lr=0.05`"}


@dataclass(frozen=True)
class Command:
    """A command: its name, what it does in a line, and where in the config its keys are, besides the top level.

    Its module, by default of the same name, has a function `main`. That of a stage takes the session and the round,
    and `exclusive` ones have the run to themselves; any other takes the parsed arguments. `rounds` tells what `--round`
    is, and what stands for it if it is not given; without it, there is no such option.
    """

    name: str
    summary: str
    sections: tuple[str, ...] = ()
    module: str | None = None
    is_stage: bool = True
    exclusive: bool = True
    rounds: str | None = None
    add_arguments: Callable[[ArgumentParser], None] = run_arguments

    @property
    def module_name(self) -> str:
        """The module of this package."""
        return self.module or self.name.replace("-", "_")


ALL_SECTIONS = ("images", "data", "teacher", "teacher_training", "synthesis", "distill", "evaluation")
LAST_STUDENT = "the round; by default the last with a student"
COMPLETE_ROUNDS = "the round; by default all complete ones"
COMMANDS = (
    Command(
        "run",
        "run all stages: teacher, images and student by round, evaluation, report",
        ALL_SECTIONS,
        "chain",
        rounds="the round to stop after; by default the last",
    ),
    Command(
        "doctor",
        "check machine, networks, images and disk before a run",
        ALL_SECTIONS,
        is_stage=False,
        add_arguments=process_arguments,
    ),
    Command("estimate", "predict hours, memory and disk from a few steps on this machine", ALL_SECTIONS),
    Command("teacher", "train a teacher that has no weights", ("images", "data", "teacher", "teacher_training")),
    Command(
        "synthesize",
        "invert the teacher into the images of the next round",
        ("images", "teacher", "synthesis"),
        rounds="the round; by default the next that is not complete",
    ),
    Command(
        "distill",
        "train the student on the images of all rounds so far",
        ("images", "teacher", "distill"),
        rounds="the round; by default the next complete one without a student",
    ),
    Command(
        "evaluate",
        "compare student and teacher on real images",
        ("data", "evaluation"),
        exclusive=False,
        rounds=LAST_STUDENT,
    ),
    Command(
        "quality",
        "score the synthetic images, alone and beside real ones",
        ("data", "evaluation"),
        exclusive=False,
        rounds="the round; by default the last complete one",
    ),
    Command(
        "report",
        "write one HTML page about the run",
        exclusive=False,
        rounds="the last round to show; by default all that exist",
    ),
    Command(
        "compare",
        "show what differs between runs, on one page and in a table",
        is_stage=False,
        add_arguments=compare_arguments,
    ),
    Command(
        "export",
        "write the student as safetensors, torch.export and ONNX files, with a model card",
        rounds=LAST_STUDENT,
    ),
    Command(
        "verify",
        "check every file of the run: whole, damaged, or not of it",
        exclusive=False,
        rounds="the round whose images are checked; by default everything",
    ),
    Command(
        "clean",
        "remove the shards and checkpoints of the run",
        is_stage=False,
        rounds="the round; by default the whole run, with its teacher",
    ),
    Command(
        "unpack",
        "write the images of the run into class folders",
        is_stage=False,
        rounds=COMPLETE_ROUNDS,
        add_arguments=unpack_arguments,
    ),
    Command(
        "imagenet-val",
        "sort the official ImageNet validation images into class folders",
        is_stage=False,
        add_arguments=imagenet_val_arguments,
    ),
    Command("help", "explain a command or a key of the config", is_stage=False, add_arguments=help_arguments),
    Command("completion", "print the completion of a shell", is_stage=False, add_arguments=completion_arguments),
)


def find_command(name: str) -> Command:
    """The command of that name; raises UsageError when there is none."""
    commands = {command.name: command for command in COMMANDS}
    if name.startswith("-"):
        raise UsageError(f"{name} has no command before it; options come after the command: `{PROGRAM} run {name} ...`")
    if name not in commands:
        raise UsageError(f"there is no command {name!r}{nearest(name, commands)} (`{PROGRAM} --help` lists all)")
    return commands[name]


class CommandParser(ArgumentParser):
    """The parser of the words after a command's name; raises UsageError. Its help ends with the keys of the config."""

    def __init__(self, command: Command) -> None:
        super().__init__(
            prog=f"{PROGRAM} {command.name}",
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            allow_abbrev=False,
        )
        self.command = command
        command.add_arguments(self)
        self.set_defaults(round=None)
        if command.rounds is not None:
            self.add_argument("--round", type=int, metavar="R", help=command.rounds)

    @property
    def options(self) -> dict[str, Action]:
        """What each option does, such as `--config`."""
        return {option: action for action in self._actions for option in action.option_strings}

    @property
    def positionals(self) -> list[Action]:
        """The arguments that are no options."""
        return [action for action in self._actions if not action.option_strings]

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, where argparse would print its usage and exit."""
        raise UsageError(f"{message.removeprefix('argument ')} (see `{self.prog} --help`)")

    def format_help(self) -> str:
        """The options, the keys of the config if the command reads one, and the exit codes."""
        parts = [super().format_help().rstrip()]
        if any(action.dest == "overrides" for action in self.positionals):
            parts += [f"keys of the config, with their defaults (more: `{PROGRAM} help KEY`):"]
            parts += map(list_keys, sections_under(("", *self.command.sections)))
        return "\n\n".join([*parts, EXIT_CODES, ""])


def _name_of_option(option: str) -> str:
    return option.lstrip("-")


def parse_words(command: Command, words: Sequence[str]) -> Namespace:
    """The arguments of a command; raises UsageError.

    Words of a run's KEY=VALUE may stand between options. The words themselves are kept, to launch ranks with.
    """
    parser = CommandParser(command)
    arguments, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        word = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
        owners = ", ".join(other.name for other in COMMANDS if word in CommandParser(other).options)
        fix = f"it is an option of {owners}" if owners else REMOVED.get(word, f"`{parser.prog} --help` lists all")
        hint = "" if owners else nearest(word, parser.options, _name_of_option)
        raise UsageError(f"unknown argument {word}{hint} ({fix})")
    for word in getattr(arguments, "overrides", ()):
        if word.endswith(SUFFIX) and "=" not in word:
            raise UsageError(f"{word} is not KEY=VALUE; name a config file with --config {word}")
    return Namespace(**vars(arguments), words=[command.name, *words])
