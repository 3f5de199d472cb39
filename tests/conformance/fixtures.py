"""Fixtures of the conformance suite and the seeds: one runtime per module, a guard against hangs, gates.

A module that wants other arguments for ``init`` sets ``INIT = {...}``; one that starts and stops runtimes
itself sets ``INIT = None``. Nothing here knows which target runs: that is target.py's business.
"""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

from .target import IS_LOCAL, IS_RAY, Gate, make_gate_keeper, start, stop

PHASE_LIMIT_S = 60
_stderr = 2  # the real one, not what pytest captures: stacks of a hang have to be seen


class TestHang(BaseException):
    """A phase of a test ran past its limit. BaseException, so that no test's ``except Exception`` eats it."""

    __test__ = False


@contextmanager
def hang_guard(name: str) -> Iterator[None]:
    """End what hangs: first by an exception in the main thread, at last the process, showing its stacks."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def on_alarm(signum: int, frame: Any) -> None:
        raise TestHang(f"{name} ran for over {PHASE_LIMIT_S} s")

    previous = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(PHASE_LIMIT_S)
    faulthandler.dump_traceback_later(2 * PHASE_LIMIT_S, exit=True, file=_stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with hang_guard(f"the setup of {item.nodeid}"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with hang_guard(item.nodeid):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    with hang_guard(f"the teardown of {item.nodeid}"):
        return (yield)


def pytest_configure(config: pytest.Config) -> None:
    global _stderr
    if fault_handler_stderr_fd_key in config.stash:
        _stderr = config.stash[fault_handler_stderr_fd_key]
    if IS_RAY:
        config.addinivalue_line("filterwarnings", "ignore")


@pytest.fixture(scope="module", autouse=True)
def runtime(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The module's runtime, or None where the module manages its own."""
    options = getattr(request.module, "INIT", {})
    try:
        yield None if options is None else start(**options)
    finally:
        stop()


@pytest.fixture(scope="module")
def gate_keeper(runtime: Any) -> Any:
    if IS_LOCAL:
        return None
    return make_gate_keeper()


_gate_numbers = iter(range(10**9))


@pytest.fixture
def gate(gate_keeper: Any) -> Iterator[Gate]:
    """Gates of this test alone; all are opened when it ends, so that no task of it keeps a CPU."""
    if IS_LOCAL:
        pytest.skip("not in local mode: a gate needs tasks that run beside each other")
    gate = Gate(gate_keeper, f"{next(_gate_numbers)}/")
    yield gate
    gate.open_all()
