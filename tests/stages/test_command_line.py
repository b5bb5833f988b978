"""`dreamdistill`: the table of commands, their words, the help without PyTorch, and interrupts during the imports."""

import importlib
import os
import re
import resource
import subprocess
import sys

import pytest
from tiny_run import REPOSITORY, write_config

from pipeline.runtime.fingerprint import source_version
from stages import __main__
from stages.command_line import run
from stages.commands import COMMANDS, CommandParser, find_command, parse_words
from stages.config_keys import read_sections
from stages.stage import read_config

RUNS = [command for command in COMMANDS if command.sections]
# Of the processor, so that other programs do not count. The figure to reach is 0.5 s; PyTorch alone takes longer.
MAX_HELP_S = 0.4
WITHOUT_TORCH = """
import sys
from stages.command_line import run
code = run(sys.argv[1:])
assert not {"torch", "numpy"} & sys.modules.keys()
sys.exit(code)
"""
# A package that stands for PyTorch. In the background of a shell, Ctrl-C would be ignored.
INTERRUPTED_IMPORT = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
os.kill(os.getpid(), signal.NAME)
time.sleep(60)
"""


def by_name(command) -> str:
    return command.name


@pytest.mark.parametrize("command", COMMANDS, ids=by_name)
def test_every_command_has_a_module_with_a_main(command):
    assert callable(importlib.import_module(f"stages.{command.module_name}").main)


@pytest.mark.parametrize("command", COMMANDS, ids=by_name)
def test_every_command_is_in_the_help_and_has_a_help(capsys, command):
    assert run(["--help"]) == 0
    assert f"  {command.name} " in capsys.readouterr().out
    assert run(["help", command.name]) == 0
    assert capsys.readouterr().out.startswith(f"usage: dreamdistill {command.name} ")


@pytest.mark.parametrize("command", COMMANDS, ids=by_name)
def test_every_command_is_in_the_docs(command):
    assert f"\n| `{command.name}` | " in (REPOSITORY / "docs" / "command_line.md").read_text()


@pytest.mark.parametrize("command", RUNS, ids=by_name)
def test_sections_of_a_command_exist(command):
    assert set(command.sections) <= {place for section in read_sections() for place in section.places}


@pytest.mark.parametrize("words", ["--help", "synthesize --help", "help synthesis", "complete run s", "completion zsh"])
def test_help_and_completion_need_no_pytorch(words):
    command = [sys.executable, "-c", WITHOUT_TORCH, *words.split()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MAX_HELP_S


def test_version_is_that_of_the_package(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"dreamdistill {source_version()}\n"


def test_help_lists_the_keys_of_the_sections_and_the_exit_codes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert run(["help", "synthesize"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "synthesis.inversion.phases.N:" in lines
    assert "  lr (0.1)                  Peak learning rate of Adam, positive, for the variables of basis" in lines
    assert "  basis (pixels)            pixels or fourier: What Adam changes" in lines
    assert "distill:" not in lines
    assert any(line.startswith("  130  interrupted") for line in lines)
    assert max(map(len, lines)) <= 100


def test_a_command_that_is_a_section_too_explains_both(capsys):
    assert run(["help", "distill"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: dreamdistill distill ")
    assert "\ndistill.temperature\n  finite number; default: " in text


@pytest.mark.parametrize("command", COMMANDS, ids=by_name)
def test_docs_state_the_round_of_a_command(command):
    rows = re.findall(
        r"^\| (.*) \| (.* by default .*) \|$", (REPOSITORY / "docs" / "command_line.md").read_text(), re.M
    )
    rounds = {name: text for names, text in rows for name in names.replace("`", "").split(", ")}
    assert rounds.get(command.name) == command.rounds
    assert ("--round" in CommandParser(command).options) == (command.rounds is not None)


def test_overrides_may_stand_between_options(tmp_path):
    words = ["seed=5", "--config", str(write_config(tmp_path)), "name=other", "--round", "0", "distill.lr=0.5"]
    arguments = parse_words(find_command("distill"), words)
    config = read_config(arguments)
    assert (config.seed, config.name, config.distill.lr, arguments.round) == (5, "other", 0.5, 0)
    assert arguments.words == ["distill", *words]


MISTAKES = {
    "synthesise": "there is no command 'synthesise'; did you mean synthesize?",
    "chain": "there is no command 'chain'",
    "--dry-run run": "--dry-run has no command before it; options come after the command: `dreamdistill run --dry-run",
    "run --procesess 2": "unknown argument --procesess; did you mean --processes?",
    "completion bash --round=1": "unknown argument --round",
    "estimate --round 1": "unknown argument --round (it is an option of run, synthesize, distill, ",
    "report --rond 1": "unknown argument --rond; did you mean --round?",
    "completion bash zsh": "unknown argument zsh",
    "run --set seed=1": "unknown argument --set (write KEY=VALUE alone, as in `dreamdistill run seed=1",
    "run seed": "override 'seed' must look like key=value",
    "run configs/d.yaml": "configs/d.yaml is not KEY=VALUE; name a config file with --config configs/d.yaml",
    "run --config digit": "--config digit: there is no file digit or configs/digit.yaml",
    "run --config": "--config: expected one argument",
    "run --processes 0": "--processes: 0 is not a number of processes; use 1 or more",
    "run --processes two": "--processes: two is not a number of processes",
    "doctor --dry-run": "unknown argument --dry-run",
    "unpack --dry-run": "unknown argument --dry-run",
    "doctor --round=1": "unknown argument --round",
    "teacher --round 1": "unknown argument --round",
    "run --round last": "--round: invalid int value: 'last'",
    "run --device cuda:99": "there is no device 'cuda:99'",
    "compare": 'name at least two different runs: dreamdistill compare a b (make: RUNS="a b")',
    "compare a": 'a: name at least two different runs: dreamdistill compare a b (make: RUNS="a b")',
    "imagenet-val --tar a.tar": "the following arguments are required: --devkit",
    "completion": "the following arguments are required: shell",
    "completion tcsh": "shell: invalid choice: 'tcsh'",
    "help distill.lrr": "distill.lrr is neither a command nor a config key; did you mean distill.lr?",
    "help xyzzy": "xyzzy is neither a command nor a config key; `help` lists the commands, and `help run` the keys",
    "help stpes": "stpes is neither a command nor a config key; did you mean ",
    "run configs": "override 'configs' must look like key=value",
    "run lr=1": "unknown key lr; did you mean synthesis.inversion.lr or distill.lr or teacher_training.lr? (known",
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.items(), ids=MISTAKES)
def test_mistake_is_one_line(monkeypatch, capsys, words, message):
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "cpu")
    monkeypatch.setattr("warnings.showwarning", None)  # the command replaces it
    try:
        code = run(words.split())
    except SystemExit as end:
        code = end.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith(f"error: {message}")


def test_mistake_is_printed_by_rank_zero_alone(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert run(["run", "--rond", "1"]) == 2
    assert capsys.readouterr().err == ""


def test_command_line_without_a_command_prints_the_commands(capsys):
    assert run([]) == 2
    assert "commands:\n  run " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "variables", "code", "lines"),
    [
        ("SIGINT", {}, 130, ["interrupted; run the same command again to continue"]),
        ("SIGTERM", {}, 143, ["terminated; run the same command again to continue"]),
        ("SIGTERM", {"LOCAL_RANK": "1"}, 143, []),
        ("SIGTERM", {"DREAMDISTILL_LAUNCHER_REPORTS": "1"}, 143, []),
    ],
)
def test_interrupt_during_the_imports_ends_without_a_trace(tmp_path, name, variables, code, lines):
    (tmp_path / "torch.py").write_text(INTERRUPTED_IMPORT.replace("NAME", name))
    process = subprocess.run(
        [sys.executable, "-m", "stages", "verify"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr.splitlines()) == (code, lines)


def test_modules_in_the_current_folder_can_be_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dreamdistill", "--help"])
    monkeypatch.setattr(sys, "path", ["first"])
    monkeypatch.setattr("pipeline.runtime.shutdown.handle_termination", lambda *_, **__: None)
    with pytest.raises(SystemExit, match="0"):
        __main__.main()
    assert sys.path == ["first", ""]


def test_parser_of_a_run_takes_its_options():
    options = CommandParser(find_command("run")).format_usage()
    assert all(option in options for option in ("--config", "--round", "--device", "--processes", "--dry-run"))


def test_a_reader_that_stops_is_no_error():
    script = f"{sys.executable} -m stages help synthesis | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ulimit -v limits nothing")
def test_memory_too_small_for_pytorch_is_one_line():
    command = [
        "bash",
        "-c",
        'ulimit -v 131072; exec "$0" -m stages doctor --config configs/digits.yaml',
        sys.executable,
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: the memory is too small to load PyTorch \(.*\); raise the limit .*\n", done.stderr)
