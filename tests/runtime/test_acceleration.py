"""What `auto` comes to: bfloat16 where the hardware multiplies it, compiled where that pays and works."""

import warnings
from dataclasses import replace

import pytest
import torch
from tiny_run import REPOSITORY, run_command, tiny_config, write_config

from pipeline.distillation.config import TrainingConfig
from pipeline.identity import synthesis_identity
from pipeline.run import load_run, resolved_yaml
from pipeline.runtime import acceleration, hardware
from pipeline.runtime.acceleration import PIXELS_WORTH_COMPILING, resolved
from pipeline.runtime.config import ConfigError
from pipeline.session import resolve
from stages import chain

CPU = torch.device("cpu")
CONFIG = TrainingConfig(steps=1, batch_size=4, lr=0.1)


@pytest.fixture
def machine(monkeypatch):
    """Sets what this machine is found to have."""

    def have(*, bfloat16: bool = False, missing: str | None = None) -> None:
        monkeypatch.setattr(acceleration, "multiplies_bfloat16", lambda device: bfloat16)
        monkeypatch.setattr(acceleration, "why_not_compiled", lambda device: missing)

    return have


@pytest.mark.parametrize(("bfloat16", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_where_the_hardware_multiplies_it(machine, bfloat16, precision):
    machine(bfloat16=bfloat16)
    assert resolved(CONFIG, CPU, 1, "distill").precision == precision
    assert resolved(replace(CONFIG, precision="float32"), CPU, 1, "distill").precision == "float32"


def test_bfloat16_without_hardware_is_warned_of_and_kept(machine):
    machine(bfloat16=False)
    with pytest.warns(UserWarning, match=r"distill\.precision: bfloat16, but cpu .* set it to auto or float32"):
        assert resolved(replace(CONFIG, precision="bfloat16"), CPU, 1, "distill").precision == "bfloat16"


@pytest.mark.parametrize(
    ("num_pixels", "expected"), [(PIXELS_WORTH_COMPILING, True), (PIXELS_WORTH_COMPILING - 1, False)]
)
def test_auto_compiles_where_it_pays(machine, num_pixels, expected):
    machine()
    assert resolved(CONFIG, CPU, num_pixels, "distill").compile is expected


def test_auto_runs_uncompiled_with_one_warning_where_nothing_compiles(machine):
    machine(missing="there is no C++ compiler; install g++ or clang++")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for key in ("synthesis.inversion", "distill"):
            assert resolved(CONFIG, CPU, PIXELS_WORTH_COMPILING, key).compile is False
    (line,) = [str(warning.message) for warning in told]
    assert line.startswith("compile: auto runs uncompiled, about half as fast: there is no C++ compiler")


def test_where_compiling_does_not_pay_nothing_is_tried(machine):
    machine(missing="there is no C++ compiler")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolved(CONFIG, CPU, 1, "distill").compile is False
        assert resolved(replace(CONFIG, compile=False), CPU, PIXELS_WORTH_COMPILING, "distill").compile is False


def test_an_explicit_wish_to_compile_that_cannot_be_met_is_refused(machine):
    machine(missing="there is no C++ compiler; install g++ or clang++")
    with pytest.raises(ConfigError, match=r"distill\.compile: true, but there is no C\+\+ compiler; install g\+\+"):
        resolved(replace(CONFIG, compile=True), CPU, 1, "distill")


def test_what_is_decided_is_in_the_resolved_config_and_in_the_identity(machine, tmp_path, finished):
    machine(bfloat16=True)
    config = tiny_config(tmp_path, synthesis__inversion__precision="auto", synthesis__inversion__compile="auto")
    config = replace(config, checkpoints_dir=str(finished / "checkpoints"))
    found = resolve(config, CPU)
    assert (found.synthesis.inversion.precision, found.synthesis.inversion.compile) == ("bfloat16", False)
    assert "auto" not in resolved_yaml(found)
    assert synthesis_identity(found, 0)["synthesis"]["inversion"]["precision"] == "bfloat16"
    assert resolve(found, CPU) == found


@pytest.mark.filterwarnings("default")
def test_a_run_without_a_compiler_ends_with_one_warning(machine, tmp_path, monkeypatch, capsys):
    machine(missing="there is no C++ compiler; install g++ or clang++")
    monkeypatch.setattr(acceleration, "PIXELS_WORTH_COMPILING", 0)
    keys = ("synthesis__inversion", "distill", "teacher_training")
    path = write_config(tmp_path, **{f"{key}__compile": "auto" for key in keys})
    assert run_command(monkeypatch, chain.main, path) == 0
    written = capsys.readouterr()
    warned = [line for line in written.err.splitlines() if line.startswith("warning: compile")]
    assert len(warned) == 1
    assert "Traceback" not in written.err
    assert "distillation in float32, uncompiled" in written.out


@pytest.mark.parametrize("missing", [None, "there is no C++ compiler"])
def test_cuda_graphs_ask_for_compiling_and_are_left_out_without_it(machine, tmp_path, missing):
    machine(missing=missing)
    graphs = {"synthesis__inversion__cuda_graphs": True, "synthesis__inversion__compile": "auto"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inversion = resolve(tiny_config(tmp_path, **graphs), CPU).synthesis.inversion
    assert (inversion.cuda_graphs, inversion.compile) == (missing is None, missing is None)


def test_the_digits_are_not_compiled_and_cifar10_is(machine):
    machine()
    for name, expected in (("digits", False), ("cifar10_resnet20", True), ("imagenet_ten_classes", True)):
        found = resolve(load_run(REPOSITORY / "configs" / f"{name}.yaml"), CPU)
        assert (found.synthesis.inversion.compile, found.distill.compile) == (expected, expected), name


@pytest.mark.parametrize(
    ("capability", "units", "expected"),
    [("AVX512", True, True), ("AVX512", False, False), ("AVX2", True, False), ("DEFAULT", True, False)],
)
def test_a_processor_multiplies_bfloat16_with_units_that_pytorch_uses(monkeypatch, capability, units, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": units})
    assert hardware.multiplies_bfloat16(CPU) is expected


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_a_gpu_multiplies_bfloat16_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.multiplies_bfloat16(torch.device("cuda")) is expected
