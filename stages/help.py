"""Explain a command, a config key, or a section of keys."""

from argparse import Namespace

from stages.command_line import overview
from stages.commands import COMMANDS, CommandParser, find_command
from stages.config_keys import describe_key, read_sections


def main(arguments: Namespace) -> None:
    """Print the help of `arguments.topic`, by default that of the program."""
    topic = arguments.topic
    if topic is None:
        print(overview())
    elif topic in [command.name for command in COMMANDS]:
        CommandParser(find_command(topic)).print_help()
        if any(topic in section.places for section in read_sections()):
            print(f"\n{describe_key(topic)}")
    else:
        print(describe_key(topic))
