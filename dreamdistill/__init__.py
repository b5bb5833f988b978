"""Data-free knowledge distillation: the names for notebooks and programs, imported when they are first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import distill, evaluate, invert, load_student, synthesize
    from pipeline.data.shard_set import ShardSet

__all__ = ["ShardSet", "distill", "evaluate", "invert", "load_student", "synthesize"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline import api  # imports torch, which takes seconds

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
