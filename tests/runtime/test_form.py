"""Plain data is compared with the form that it should have."""

import pytest

from pipeline.runtime.form import check_form

FORM = {"name": str, "top1": float, "counts": [[int]], "shares": [(float, type(None))], "inner": {"on": bool}}
GOOD = {"name": "x", "top1": 1, "counts": [[1], []], "shares": [None, 0.5, 1], "inner": {"on": True, "more": 0}}


def test_data_of_the_form_passes():
    check_form(GOOD, FORM)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "name is of type int, not str"),
        ({"top1": True}, "top1 is of type bool, not float"),
        ({"top1": float("nan")}, "top1 is nan, no usable number"),
        ({"top1": float("inf")}, "top1 is inf, no usable number"),
        ({"counts": [[1], [2.0]]}, "counts.1.0 is of type float, not int"),
        ({"counts": [[2**63]]}, "counts.0.0 is 9.22e+18, no usable number"),
        ({"counts": [[10**400]]}, "counts.0.0 is too large, no usable number"),
        ({"counts": 3}, "counts is of type int, not list"),
        ({"shares": ["0.5"]}, "shares.0 is of type str, not float or null"),
        ({"inner": {}}, "inner.on is missing"),
        ({"inner": [True]}, "inner is of type list, not dict"),
    ],
)
def test_the_first_key_without_its_form_is_named(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$".replace("+", r"\+")):
        check_form(GOOD | changes, FORM)


def test_another_value_in_place_of_an_object_raises():
    with pytest.raises(ValueError, match=r"^the whole is of type list, not dict$"):
        check_form([], FORM)
