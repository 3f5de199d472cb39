"""For all tests: nothing may be left behind. See leaks.py."""

from __future__ import annotations

from tests.leaks import nothing_is_left, pytest_addoption

__all__ = ["nothing_is_left", "pytest_addoption"]
