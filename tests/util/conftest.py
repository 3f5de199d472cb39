"""The conformance suite's fixtures: one runtime per module, gates, a guard against hangs."""

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
