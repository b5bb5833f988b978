"""Data-free knowledge distillation: the names for notebooks and programs, imported when they are first used."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import distill, evaluate, invert, load_student, synthesize
    from pipeline.data.shard_set import ShardSet

__all__ = ["ShardSet", "distill", "evaluate", "invert", "load_student", "synthesize"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _require_own_pipeline()
    from pipeline import api  # imports torch, which takes seconds

    return getattr(api, name)


def _require_own_pipeline() -> None:
    """Raise ImportError when another module comes before the package `pipeline` that belongs to this one."""
    spec = find_spec("pipeline")
    origin = None if spec is None else spec.origin
    if origin is None or Path(origin).resolve().parents[1] != Path(__file__).resolve().parents[1]:
        raise ImportError(
            f"dreamdistill needs its own package `pipeline`, but Python finds {origin or 'none'} in its place; rename "
            "that file or folder, or start Python elsewhere"
        )


def __dir__() -> list[str]:
    return __all__
