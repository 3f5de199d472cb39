"""Fixtures of the end-to-end tests: drivers that are ended when their test is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .support import Driver


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests start minray themselves; on the other targets of the conformance suite they say nothing."""
    if os.environ.get("MINRAY_TEST_TARGET", "minray") == "minray":
        return
    for item in items:
        if Path(str(item.fspath)).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason="only for minray's own processes"))


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """``drive(program, …)`` starts a Driver in the test's folder."""
    drivers: list[Driver] = []

    def start(program: str, **options: Any) -> Driver:
        drivers.append(Driver(tmp_path, program, **options))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.end()
