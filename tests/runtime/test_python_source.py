"""Functions and classes of a user's own Python; tests/models/test_sources.py has the names that are wrong."""

import pytest

from pipeline.runtime.python_source import load_python


def test_a_class_of_a_file_is_loaded(tmp_path):
    (tmp_path / "user_code.py").write_text("class Sink:\n    value = 3\n")
    assert load_python(f"{tmp_path}/user_code.py:Sink").value == 3


def test_a_package_that_a_file_lacks_is_named(tmp_path):
    (tmp_path / "user_code.py").write_text("import absent_package_of_a_test\n")
    with pytest.raises(ValueError, match=r"user_code\.py: No module named 'absent_package_of_a_test'; install it"):
        load_python(f"{tmp_path}/user_code.py:Sink")
