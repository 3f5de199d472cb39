"""Reactors that are closed after the test, and a check that it leaves no thread and no descriptor."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minray.wire.reactor import Reactor
from tests.wire.support import make_reactor


def open_descriptors() -> set[str]:
    try:
        names = os.listdir("/proc/self/fd")
    except FileNotFoundError:
        return set()
    found = set()
    for name in names:
        try:
            found.add(f"{name} → {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:  # the listing's own descriptor
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    descriptors, threads = open_descriptors(), set(threading.enumerate())
    yield
    if not open_descriptors() <= descriptors:
        gc.collect()  # slow: only if it matters
    assert set(threading.enumerate()) <= threads
    assert open_descriptors() <= descriptors


@pytest.fixture
def make(nothing_left: None) -> Iterator[Callable[..., Reactor]]:
    made: list[Reactor] = []

    def make_one(name: str = "test", **options: Any) -> Reactor:
        made.append(make_reactor(name, **options))
        return made[-1]

    yield make_one
    for reactor in made:
        reactor.close()


@pytest.fixture
def reactor(make: Callable[..., Reactor]) -> Reactor:
    return make()
