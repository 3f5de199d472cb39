"""Caller: what leaves a worker with its results, and what does not when one of them cannot leave."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from minray.object_ref import ObjectRef, make_ref
from minray.wire.messages import RESULTS
from minray.worker.calling import Caller, Outbox
from minray.worker.core import Core
from minray.worker.running import Running
from minray.worker.tasks import INLINE, ITEM, MULTI, STORED, STREAMING
from tests.worker.support import JOB, ME, NODE, address

OWNER = address("owner")
TASK = OWNER[1][:12] + bytes(8) + JOB
LARGE, SMALL = "large", "small"


class Store:
    """Notes what a client is told."""

    def __init__(self) -> None:
        self.log: list[tuple[str, bytes]] = []

    def report(self, objects: list[tuple[bytes, Any]], owner: bytes) -> None:
        assert owner == OWNER[1]
        self.log += [("report", object_id) for object_id, _ in objects]

    def free(self, objects: list[tuple[bytes, Any]]) -> None:
        self.log += [("free", object_id) for object_id, _ in objects]


class Runtime:
    """A worker with a real core, whose values are what a test says: (how large, the references inside)."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.core = Core(ME, JOB, ME[1][:12], max_pipeline=8, lease_idle_s=1.0)
        self.store = Store()
        self.before_releases: Any = None
        self.interrupted = False  # on the way out of the lock
        self.caller = Caller(self, Outbox(self))
        self.sent: list[Any] = []

    def encode(self, value: Any, object_id: bytes) -> tuple[int, Any, list[ObjectRef[Any]]]:
        if isinstance(value, BaseException):
            raise value
        size, refs = value
        if size == LARGE:
            return STORED, ((NODE, 1, 0, 10), 10), refs
        return INLINE, ((b"", []) if refs else b""), refs

    def with_refs(self, value: Any, refs: list[Any]) -> Any:
        return value if type(value) is bytes else (value[0], value[1], refs)

    def task_id_of(self, running: Running) -> bytes:
        return TASK

    def reach_node(self) -> None:
        self.store.log.append(("reach", b""))

    def leave(self) -> None:
        self.sent += [effect[2] for effect in self.core.effects if effect[0] == "send"]
        self.core.effects.clear()
        if self.interrupted:
            raise KeyboardInterrupt

    def release(self, object_id: bytes) -> None:
        """The tests' references never end."""

    def put(self) -> ObjectRef[Any]:
        object_id = self.core.object_id(self.core.next_seq(), 0)
        self.core.refs.own(object_id)
        return make_ref(object_id, None, self)

    def lent(self, ref: ObjectRef[Any]) -> int:
        """How often the task's owner has it."""
        return (self.core.objects[ref._id].borrowers or {}).get(OWNER[1], 0)


def running(n: int) -> Running:
    return Running(OWNER, 7, 0, {"n": n, "name": "f"}, "", None)


def object_id(index: int) -> bytes:
    return TASK + index.to_bytes(4, "little")


def test_results_are_reported_and_give_their_references() -> None:
    rt = Runtime()
    ref = rt.put()
    status, values = rt.caller.result(running(3), [(LARGE, [ref]), (SMALL, [ref]), (SMALL, [])], [])
    granted = (ref._id, ME, True)
    assert status == MULTI
    assert values == [(STORED, ((NODE, 1, 0, 10), 10, [granted])), (INLINE, (b"", [], [granted])), (INLINE, b"")]
    assert rt.store.log == [("report", object_id(1)), ("reach", b"")]
    assert rt.lent(ref) == 2


@pytest.mark.parametrize("error", [TypeError("cannot pickle"), MemoryError("no room"), KeyboardInterrupt()])
def test_if_one_of_several_results_cannot_leave_none_does(error: BaseException) -> None:
    """They go as an error: nobody would ever give back what the first of them had given, or free it."""
    rt = Runtime()
    ref = rt.put()
    with pytest.raises(type(error)):
        rt.caller.result(running(3), [(LARGE, [ref]), (SMALL, [ref]), error], [])
    assert rt.lent(ref) == 0
    assert rt.store.log == [("report", object_id(1)), ("reach", b""), ("free", object_id(1))]


def test_an_item_is_given_and_sent_in_one_go() -> None:
    rt = Runtime()
    ref = rt.put()
    rt.caller.send_item(running(STREAMING), 4, (LARGE, [ref]), [])
    value = ((NODE, 1, 0, 10), 10, [(ref._id, ME, True)])
    assert rt.sent == [(RESULTS, [(7, 0, ITEM, (4, STORED, value), -1, None)])]
    assert rt.store.log == [("report", object_id(6)), ("reach", b"")]


def test_an_interrupt_before_an_item_is_sent_takes_it_back() -> None:
    rt = Runtime()
    ref = rt.put()

    class Interrupted:
        def __enter__(self) -> None:
            raise KeyboardInterrupt

        def __exit__(self, *error: object) -> None:
            pass

    rt.lock = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        rt.caller.send_item(running(STREAMING), 4, (LARGE, [ref]), [])
    assert rt.lent(ref) == 0 and rt.sent == []
    assert rt.store.log == [("report", object_id(6)), ("reach", b""), ("free", object_id(6))]


def test_an_interrupt_after_an_item_was_sent_leaves_it_alone() -> None:
    rt = Runtime()
    rt.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        rt.caller.send_item(running(STREAMING), 4, (LARGE, [rt.put()]), [])
    assert rt.sent and rt.store.log == [("report", object_id(6)), ("reach", b"")]


def test_an_interrupt_while_the_node_is_told_of_an_item_takes_it_back() -> None:
    """A cancelled generator, on a node that is too busy to listen."""
    rt = Runtime()

    def interrupted() -> None:
        raise KeyboardInterrupt

    rt.reach_node = interrupted  # type: ignore[method-assign]
    ref = rt.put()
    with pytest.raises(KeyboardInterrupt):
        rt.caller.send_item(running(STREAMING), 4, (LARGE, [ref]), [])
    assert rt.lent(ref) == 0 and rt.sent == []
    assert rt.store.log == [("report", object_id(6)), ("free", object_id(6))]
