"""Warnings point at the user's line."""

from __future__ import annotations

import sys
import warnings

from minray._base import callsite
from minray._base.options import validate_task_options


def test_a_warning_from_inside_the_package_names_this_file() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        validate_task_options({"num_return_vals": 2})
        line = sys._getframe().f_lineno - 1
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]


def test_location_of_the_caller() -> None:
    assert callsite.user_location() == (__file__, sys._getframe().f_lineno)
