from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from minray.store.segments import Segments, choose


@pytest.fixture(params=["shm", "file"])
def segments(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Segments]:
    """Each implementation, on a fresh session folder."""
    if request.param == "shm" and not os.path.isdir("/dev/shm"):
        pytest.skip("this machine has no /dev/shm")
    made = choose(request.param, str(tmp_path))
    yield made
    made.close()


@pytest.fixture
def shm(tmp_path: Path) -> Iterator[Segments]:
    """What is fast here, for tests that are not about segments."""
    made = choose("auto", str(tmp_path))
    yield made
    made.close()
