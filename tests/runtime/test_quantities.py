"""Durations and sizes in words."""

import pytest

from pipeline.runtime.quantities import duration, size


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (90, "1.5 min"), (4140, "1.15 h")])
def test_duration_is_in_a_fitting_unit(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("num_bytes", "text"), [(512, "0.5 KiB"), (2**20, "1.0 MiB"), (9.6 * 2**30, "9.60 GiB")])
def test_size_is_in_a_fitting_unit(num_bytes, text):
    assert size(num_bytes) == text
