"""The form of plain data that a file should hold: its keys, and the types of their values."""

from typing import Any

# A type, a tuple of types of which one fits, a mapping of required keys to forms, or a list with the form of its items.
Form = Any
# The limits of numbers: whole ones fit 64 bits, others are finite.
LIMITS = {int: 2**63, float: 1e300}


def check_form(value: Any, form: Form, key: str = "") -> None:
    """Raise ValueError that names the first key whose value has not its form.

    Further keys are allowed. A value of type float may be a whole number; true and false are no numbers.
    """
    if isinstance(form, dict):
        _check_type(value, (dict,), key)
        for name, inner in form.items():
            path = f"{key}.{name}" if key else name
            if name not in value:
                raise ValueError(f"{path} is missing")
            check_form(value[name], inner, path)
    elif isinstance(form, list):
        _check_type(value, (list,), key)
        for i, item in enumerate(value):
            check_form(item, form[0], f"{key}.{i}")
    else:
        _check_type(value, form if isinstance(form, tuple) else (form,), key)


def check_object(value: Any) -> None:
    """Raise ValueError unless a value has keys."""
    check_form(value, {})


def _check_type(value: Any, kinds: tuple[type, ...], key: str) -> None:
    kind = type(value)
    if kind not in kinds and not (kind is int and float in kinds):
        names = " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
        raise ValueError(f"{key or 'the whole'} is of type {kind.__name__}, not {names}")
    if kind in LIMITS and not abs(value) < LIMITS[kind]:
        raise ValueError(f"{key} is {_short(value)}, no usable number")


def _short(number: float) -> str:
    try:
        return f"{number:.3g}"
    except OverflowError:  # a whole number that no float holds
        return "too large"
