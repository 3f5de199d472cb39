"""The conformance suite's fixtures; see fixtures.py."""

from __future__ import annotations

from .fixtures import (
    gate,
    gate_keeper,
    pytest_configure,
    pytest_runtest_call,
    pytest_runtest_setup,
    pytest_runtest_teardown,
    runtime,
)

__all__ = [
    "gate",
    "gate_keeper",
    "pytest_configure",
    "pytest_runtest_call",
    "pytest_runtest_setup",
    "pytest_runtest_teardown",
    "runtime",
]
