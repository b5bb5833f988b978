"""The shape of the code: sizes of files and functions, numbers of arguments, what is installed."""

import ast
import tomllib
from pathlib import Path

import pytest
from tiny_run import REPOSITORY

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 250, 48, 5
PACKAGES = ("dreamdistill", "pipeline", "stages", "cifar10")
FILES = sorted(path for folder in PACKAGES for path in (REPOSITORY / folder).rglob("*.py"))


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(REPOSITORY)) for path in FILES])
def test_files_and_functions_stay_small(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    for function in functions(path):
        num_lines = function.end_lineno - function.lineno + 1
        arguments = [a for a in ast.walk(function.args) if isinstance(a, ast.arg) and a.arg not in ("self", "cls")]
        assert num_lines <= MAX_FUNCTION_LINES, f"{function.name} has {num_lines} lines"
        assert len(arguments) <= MAX_ARGUMENTS, f"{function.name} has {len(arguments)} arguments"


def test_every_package_and_its_templates_are_installed():
    setuptools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in FILES}
    packages = [".".join(folder.relative_to(REPOSITORY).parts) for folder in folders]
    assert sorted(setuptools["packages"]) == sorted([*packages, "configs"])
    templates = {path for path in (REPOSITORY / "pipeline").rglob("*") if path.suffix in (".html", ".css", ".js")}
    globs = setuptools["package-data"]["pipeline.report"]
    assert templates == {path for glob in globs for path in (REPOSITORY / "pipeline" / "report").glob(glob)} != set()
