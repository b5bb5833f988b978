"""`auto` is bfloat16 with hardware support, and compiled where that works and saves time."""

import warnings
from dataclasses import replace

import pytest
import torch
from tiny_run import REPOSITORY, run_command, tiny_config, write_config

from pipeline.distillation.config import TrainingConfig
from pipeline.identity import synthesis_identity
from pipeline.resolve import resolve
from pipeline.run import load_run, resolved_yaml
from pipeline.runtime import acceleration
from pipeline.runtime.acceleration import PIXELS_WORTH_COMPILING, resolve_acceleration
from pipeline.runtime.config import ConfigError
from stages import chain

CPU = torch.device("cpu")
CONFIG = TrainingConfig(steps=1, batch_size=4, lr=0.1)
NO_COMPILER = "there is no C++ compiler; install g++ or clang++"


@pytest.fixture
def set_machine(monkeypatch):
    """Sets whether this machine has bfloat16 units, and what its compiler lacks."""

    def set_machine(*, bfloat16: bool = False, missing: str | None = None) -> None:
        monkeypatch.setattr(acceleration, "multiplies_bfloat16", lambda device: bfloat16)
        monkeypatch.setattr(acceleration, "why_not_compiled", lambda device: missing)

    return set_machine


@pytest.mark.parametrize(("bfloat16", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_auto_precision_depends_on_the_hardware(set_machine, bfloat16, precision):
    set_machine(bfloat16=bfloat16)
    assert resolve_acceleration(CONFIG, CPU, 1, "distill").precision == precision
    assert resolve_acceleration(replace(CONFIG, precision="float32"), CPU, 1, "distill").precision == "float32"


def test_bfloat16_without_hardware_support_warns(set_machine):
    set_machine(bfloat16=False)
    with pytest.warns(UserWarning, match=r"distill\.precision: bfloat16, but cpu .* set it to auto or float32"):
        assert resolve_acceleration(replace(CONFIG, precision="bfloat16"), CPU, 1, "distill").precision == "bfloat16"


@pytest.mark.parametrize(
    ("num_pixels", "expected"), [(PIXELS_WORTH_COMPILING, True), (PIXELS_WORTH_COMPILING - 1, False)]
)
def test_auto_compiles_long_runs(set_machine, num_pixels, expected):
    set_machine()
    assert resolve_acceleration(CONFIG, CPU, num_pixels, "distill").compile is expected


def test_auto_without_compiler_warns_once(set_machine):
    set_machine(missing=NO_COMPILER)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for key in ("synthesis.inversion", "distill"):
            assert resolve_acceleration(CONFIG, CPU, PIXELS_WORTH_COMPILING, key).compile is False
    (warning,) = caught
    assert str(warning.message) == f"compile: auto is false here, which is about half as fast: {NO_COMPILER}"


def test_short_and_uncompiled_runs_do_not_need_a_compiler(set_machine):
    set_machine(missing=NO_COMPILER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_acceleration(CONFIG, CPU, 1, "distill").compile is False
        assert (
            resolve_acceleration(replace(CONFIG, compile=False), CPU, PIXELS_WORTH_COMPILING, "distill").compile
            is False
        )


def test_compile_true_without_compiler_raises(set_machine):
    set_machine(missing=NO_COMPILER)
    with pytest.raises(ConfigError, match=r"distill\.compile: true, but there is no C\+\+ compiler; install g\+\+"):
        resolve_acceleration(replace(CONFIG, compile=True), CPU, 1, "distill")


def test_resolved_choices_are_in_config_and_identity(set_machine, tmp_path, finished):
    set_machine(bfloat16=True)
    config = tiny_config(tmp_path, synthesis__inversion__precision="auto", synthesis__inversion__compile="auto")
    config = resolve(replace(config, checkpoints_dir=str(finished / "checkpoints")), CPU)
    assert (config.synthesis.inversion.precision, config.synthesis.inversion.compile) == ("bfloat16", False)
    assert "auto" not in resolved_yaml(config)
    assert synthesis_identity(config, 0)["synthesis"]["inversion"]["precision"] == "bfloat16"
    assert resolve(config, CPU) == config


@pytest.mark.filterwarnings("default")
def test_run_without_compiler_finishes_with_one_warning(set_machine, tmp_path, monkeypatch, capsys):
    set_machine(missing=NO_COMPILER)
    monkeypatch.setattr(acceleration, "PIXELS_WORTH_COMPILING", 0)
    keys = ("synthesis__inversion", "distill", "teacher_training")
    path = write_config(tmp_path, **{f"{key}__compile": "auto" for key in keys})
    assert run_command(monkeypatch, chain.main, path) == 0
    output = capsys.readouterr()
    assert [line.startswith("warning: compile") for line in output.err.splitlines()].count(True) == 1
    assert "Traceback" not in output.err
    assert "distillation in float32, uncompiled" in output.out


@pytest.mark.parametrize("missing", [None, NO_COMPILER])
def test_cuda_graphs_make_auto_compile(set_machine, tmp_path, missing):
    set_machine(missing=missing)
    sections = ("synthesis__inversion", "distill", "teacher_training")
    graphs = {"cuda_graphs": True, "compile": "auto"}
    keys = {f"{section}__{key}": value for section in sections for key, value in graphs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = resolve(tiny_config(tmp_path, **keys), torch.device("cuda"))
    for section in (config.synthesis.inversion, config.distill, config.teacher_training):
        assert (section.cuda_graphs, section.compile) == (missing is None, missing is None)


def test_cuda_graphs_need_cuda(set_machine):
    set_machine()
    config = replace(CONFIG, compile="auto", cuda_graphs=True)
    with pytest.raises(ConfigError, match=r"distill.cuda_graphs: true, but the device is cpu.*; set it to auto"):
        resolve_acceleration(config, CPU, 1, "distill")


@pytest.mark.parametrize("compile", [True, False])
def test_cuda_graphs_of_auto_are_for_compiled_steps_on_cuda(set_machine, compile):
    set_machine()
    config = replace(CONFIG, compile=compile, cuda_graphs="auto")
    resolved = [resolve_acceleration(config, torch.device(name), 1, "distill").cuda_graphs for name in ("cuda", "cpu")]
    assert resolved == [compile, False]


@pytest.mark.parametrize(("name", "expected"), [("digits", False), ("cifar10_resnet20", True), ("imagenette", True)])
def test_auto_compiles_published_runs_except_digits(set_machine, name, expected):
    set_machine()
    config = resolve(load_run(REPOSITORY / "configs" / f"{name}.yaml"), CPU)
    assert (config.synthesis.inversion.compile, config.distill.compile) == (expected, expected)
