"""A user's own Python by name: `package.module:function` or `path/to/file.py:function`."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.runtime.config import nearest


def load_python(name: str) -> Callable[..., Any]:
    """The function or class that `name` names after `python:`; raises ValueError when there is none."""
    module_name, separator, function_name = name.rpartition(":")
    if not separator:
        raise ValueError(f"python:{name} must be python:package.module:function or python:path/to/file.py:function")
    module = _import_file(Path(module_name)) if module_name.endswith(".py") else _import_module(module_name)
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if function is None:
        known = [key for key in vars(module) if not key.startswith("_")]
        hint = nearest(function_name, known) or "; correct the name"
        raise ValueError(f"python:{name}: {module_name} has no {function_name!r}{hint}")
    return function


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"python:{name}: {error}; is its folder on PYTHONPATH?") from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"python:{path}: no such file; correct the path")
    name = f"dreamdistill_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"python:{path}: {error}; install it, or put its folder on PYTHONPATH") from error
    return module
