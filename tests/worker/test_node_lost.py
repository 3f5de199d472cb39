"""A worker whose node is gone ends, whoever notices it first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from minray.exceptions import RaySystemError
from minray.worker import service


class Exited(BaseException):
    pass


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    def leave(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr(service.os, "_exit", leave)
    made: Any = object.__new__(service.WorkerRuntime)
    made.node, made.closed, made.exiting = SimpleNamespace(closed=False), False, False
    return made


def test_a_call_that_finds_the_connection_closed_is_the_end_and_no_error(worker: Any) -> None:
    worker.node.closed = True
    with pytest.raises(Exited, match="1"):
        worker.over()


def test_calls_after_a_good_end_are_errors(worker: Any) -> None:
    worker.node.closed = worker.closed = True
    assert isinstance(worker.over(), RaySystemError)
