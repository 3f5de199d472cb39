"""The same fixtures as the conformance suite: the seeds run on the same three targets."""

from __future__ import annotations

from ..conformance.fixtures import (
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
