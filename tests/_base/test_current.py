"""The slot of this process's runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from minray._base import current


class FakeRuntime:
    def __init__(self) -> None:
        self.told_of_fork = False

    def after_fork_child(self) -> None:
        self.told_of_fork = True


@pytest.fixture(autouse=True)
def _empty_slot(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(current, "_runtime", None)
    monkeypatch.setattr(current, "_auto_init", None)
    monkeypatch.setattr(current, "_inherited", None)
    yield


def test_set_and_get() -> None:
    assert current.get() is None
    runtime = FakeRuntime()
    current.set(runtime)
    assert current.get() is runtime is current.ensure()
    current.set(None)
    assert current.get() is None


def test_ensure_starts_one_by_the_hook() -> None:
    runtime = FakeRuntime()
    calls: list[int] = []

    def start() -> None:
        calls.append(1)
        current.set(runtime)

    current.set_auto_init(start)
    assert current.ensure() is runtime is current.ensure()
    assert calls == [1]


def test_ensure_without_a_hook_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"call minray.init\(\) first"):
        current.ensure()


def test_ensure_with_a_hook_that_does_nothing() -> None:
    current.set_auto_init(lambda: None)
    with pytest.raises(RuntimeError, match="failed"):
        current.ensure()


def test_a_forked_child_has_an_empty_slot_and_a_clear_error() -> None:
    runtime = FakeRuntime()
    current.set(runtime)
    current._after_fork_in_child()
    assert current.get() is None
    assert runtime.told_of_fork
    assert current.is_forked_child()
    with pytest.raises(RuntimeError, match=f"process {os.getpid()} was forked .* use"):
        current.ensure()
    current.set(FakeRuntime())  # a runtime of its own is allowed
    assert not current.is_forked_child()
    current.check_not_forked()


def test_a_fork_with_an_empty_slot_changes_nothing() -> None:
    current._after_fork_in_child()
    assert not current.is_forked_child()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_real_fork() -> None:
    current.set(FakeRuntime())
    pid = os.fork()
    if pid == 0:  # nothing but the answer may happen here, not even pytest's own end
        os._exit(0 if current.get() is None and current.is_forked_child() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert isinstance(current.get(), FakeRuntime)
