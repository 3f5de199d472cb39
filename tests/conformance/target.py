"""The one seam between the suite and the system under test.

``MINRAY_TEST_TARGET`` chooses the system: ``minray`` (default), ``minray-local`` (``init(local_mode=True)``)
or ``ray`` (real Ray, the oracle). Tests import ``ray``, ``exceptions`` and ``util`` from here and never name
a package themselves, so that one text means the same on all three.

Real Ray brings a configuration and an environment of its own (no psutil, no plugins), so run it like this::

    MINRAY_TEST_TARGET=ray python -m pytest -c /dev/null --rootdir . --confcutdir tests/conformance \\
        tests/conformance

A mark says where a test does not apply, always with the reason. Marks are for differences *by design*; a
difference that is a bug stays a failing test.

``Gate`` is how tests order events in several processes without sleeping: a test or a task waits at a named
gate, another opens it, and a hanging task is one that waits at a gate that nobody opens before the test ends.

Workers import this module too: a ``Gate`` is pickled by reference.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

TARGET = os.environ.get("MINRAY_TEST_TARGET", "minray")
IS_RAY = TARGET == "ray"
IS_LOCAL = TARGET == "minray-local"
IS_MINRAY = TARGET == "minray"
if not (IS_RAY or IS_LOCAL or IS_MINRAY):
    raise ValueError(f"MINRAY_TEST_TARGET={TARGET!r}: expected 'minray', 'minray-local' or 'ray'")

if IS_RAY:
    # Ray reads these when it is imported or started: keep it quiet, local and complete.
    for _name, _value in {
        "RAY_AUTH_MODE": "disabled",
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
    }.items():
        os.environ.setdefault(_name, _value)

ray: Any = importlib.import_module("ray" if IS_RAY else "minray")


def submodule(name: str) -> Any:
    """Import ``name`` (``"util.queue"``) of the package under test."""
    return importlib.import_module(f"{ray.__name__}.{name}")


# What a misuse raises at the call that made it. Ray asserts or stumbles in a few places; minray never does.
USAGE_ERRORS: tuple[type[Exception], ...] = (TypeError, ValueError)
if IS_RAY:
    USAGE_ERRORS += (AssertionError, AttributeError)

exceptions: Any = submodule("exceptions")
util: ModuleType = submodule("util")


def load_cloudpickle() -> Any:
    """cloudpickle: Ray brings its own copy, minray depends on the package."""
    return submodule("cloudpickle") if IS_RAY else importlib.import_module("cloudpickle")


def load_testing() -> Any:
    """The module that holds ``SignalActor`` and ``Semaphore``."""
    return submodule("_common.test_utils" if IS_RAY else "util.testing")


# --- marks --------------------------------------------------------------------------------------


def minray_only(reason: str) -> pytest.MarkDecorator:
    """minray promises this and Ray does not."""
    return pytest.mark.skipif(IS_RAY, reason=f"not on Ray: {reason}")


def ray_only(reason: str) -> pytest.MarkDecorator:
    """A fact about Ray that the suite records but minray differs from by design."""
    return pytest.mark.skipif(not IS_RAY, reason=f"only on Ray: {reason}")


def not_local(reason: str) -> pytest.MarkDecorator:
    """Local mode is serial and in process; this needs a second process or real concurrency."""
    return pytest.mark.skipif(IS_LOCAL, reason=f"not in local mode: {reason}")


def t2(name: str) -> pytest.MarkDecorator:
    """``util.<name>`` belongs to the second tier of the surface: skipped until it is built."""
    return pytest.mark.skipif(not hasattr(util, name), reason=f"util.{name} is not built yet")


needs_processes = not_local("it needs worker processes")
needs_concurrency = not_local("tasks run to their end inside .remote()")


# --- starting and stopping ----------------------------------------------------------------------

START_DEFAULTS: dict[str, Any] = {"num_cpus": 4, "include_dashboard": False, "log_to_driver": False}


def start(**kwargs: Any) -> Any:
    """``init`` with the suite's defaults; ``kwargs`` override them."""
    options = {**START_DEFAULTS, **kwargs}
    if IS_LOCAL:
        options["local_mode"] = True
    return ray.init(**options)


def stop() -> None:
    """``shutdown``; harmless when nothing runs."""
    ray.shutdown()


# --- helpers for tests --------------------------------------------------------------------------


class _GateKeeper:
    """Actor behind ``Gate``: named events and named counters. ``open_all`` frees whoever waits or will."""

    def __init__(self) -> None:
        self._events: dict[str, asyncio.Event] = {}
        self._passed: dict[str, int] = {}
        self._changed = asyncio.Condition()

    def _event(self, key: str) -> asyncio.Event:
        return self._events.setdefault(key, asyncio.Event())

    async def wait(self, key: str) -> str:
        await self.arrive(key)
        await self._event(key).wait()
        return key

    async def open(self, key: str) -> None:
        self._event(key).set()

    async def arrive(self, key: str) -> int:
        async with self._changed:
            self._passed[key] = self._passed.get(key, 0) + 1
            self._changed.notify_all()
            return self._passed.get(key, 0)

    async def arrivals(self, key: str, at_least: int) -> int:
        async with self._changed:
            await self._changed.wait_for(lambda: self._passed.get(key, 0) >= at_least)
            return self._passed.get(key, 0)

    async def open_all(self, prefix: str) -> None:
        for key, event in self._events.items():
            if key.startswith(prefix):
                event.set()


class Gate:
    """A test's handle on the keeper; give it to tasks and actors as an argument or in a closure.

    ``wait`` blocks until ``open``; ``arrive`` counts a visit; ``arrivals(key, n)`` blocks until n visits were
    counted (a ``wait`` counts as a visit when it begins).
    """

    def __init__(self, keeper: Any, prefix: str) -> None:
        self._keeper = keeper
        self._prefix = prefix

    def ref(self, key: str = "go") -> Any:
        """A reference that becomes ready when the gate opens: an object that nobody has produced yet."""
        return self._keeper.wait.remote(self._prefix + key)

    def wait(self, key: str = "go") -> None:
        ray.get(self.ref(key))

    def open(self, key: str = "go") -> None:
        ray.get(self.open_ref(key))

    def open_ref(self, key: str = "go") -> Any:
        """Open without waiting, for coroutines to await."""
        return self._keeper.open.remote(self._prefix + key)

    def arrive(self, key: str = "here") -> int:
        count: int = ray.get(self.arrive_ref(key))
        return count

    def arrive_ref(self, key: str = "here") -> Any:
        """Count a visit without waiting, for coroutines to await."""
        return self._keeper.arrive.remote(self._prefix + key)

    def count(self, key: str = "here") -> int:
        """Visits so far, without waiting."""
        return self.arrivals(key, 0)

    def arrivals(self, key: str = "here", at_least: int = 1) -> int:
        count: int = ray.get(self.arrivals_ref(key, at_least))
        return count

    def arrivals_ref(self, key: str = "here", at_least: int = 1) -> Any:
        """A reference that becomes ready once so many visits were counted."""
        return self._keeper.arrivals.remote(self._prefix + key, at_least)

    def open_all(self) -> None:
        ray.get(self._keeper.open_all.remote(self._prefix))


def make_gate_keeper() -> Any:
    """Create the actor; it needs no CPU so that it never competes with a test's tasks."""
    return ray.remote(num_cpus=0)(_GateKeeper).remote()


def eventually(condition: Callable[[], Any], what: str, limit: float = 10.0) -> Any:
    """Poll ``condition`` until it is true; return its value, or fail in ``limit`` seconds by ``what``."""
    deadline = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {limit} s")
        time.sleep(0.02)
