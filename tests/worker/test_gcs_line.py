"""A process's line to the GCS while heads come and go. Scripted; random histories are in tests/gcs/test_restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from minray.wire.errors import ConnectionLost
from minray.wire.messages import Message, Request, unpack
from minray.worker import gcs_line
from minray.worker.gcs_line import GcsLine

ME = b"m" * 28
PROBE = Request(0, "kv_exists", (b"", b""))


class Conn:
    def __init__(self) -> None:
        self.got: list[Message] = []
        self.closed = False

    def send(self, raw: tuple[Any, ...]) -> None:
        assert not self.closed
        self.got.append(unpack(raw))

    def send_many(self, raws: Iterable[tuple[Any, ...]]) -> None:
        for raw in raws:
            self.send(raw)


class Wire:
    """The process."""

    worker_id = ME
    closed = False

    def __init__(self) -> None:
        self.conns: list[Conn] = []
        self.later: list[Callable[[], None]] = []
        self.actors: list[bytes] = []
        self.given_up: list[tuple[list[int], str]] = []

    def dial_gcs(self, endpoint: str) -> Any:
        self.conns.append(Conn())
        return self.conns[-1]

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> None:
        self.later.append(fn)

    def subscriptions(self) -> list[bytes]:
        return self.actors

    def give_up_on(self, numbers: list[int], text: str) -> None:
        self.given_up.append((numbers, text))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(gcs_line, "monotonic", lambda: now[0])
    return now


def break_and_redial(wire: Wire, line: GcsLine) -> Conn:
    wire.conns[-1].closed = True
    line.on_close(ConnectionLost("gone"))
    wire.later.pop()()
    return wire.conns[-1]


def test_what_is_open_is_asked_again_in_order_and_subscriptions_follow() -> None:
    wire = Wire()
    line = GcsLine(wire, Conn(), "tcp:head:1", 60.0)  # type: ignore[arg-type]
    line.ask(1, "create_actor", ({},))
    line.ask(2, "get_actor", ("a", "ns"))
    line.ask(3, "actor_out_of_scope", (b"x",))
    line.answered(2)
    wire.actors = [b"a"]
    wire.conns[0].closed = True
    line.on_close(ConnectionLost("gone"))
    assert line.away and line.problem() is None
    line.ask(4, "nodes", ())  # while there is no connection
    wire.later.pop()()
    assert wire.conns[1].got == [
        Request(1, "create_actor", ({},)), Request(3, "actor_out_of_scope", (b"x",)), Request(4, "nodes", ()),
        Request(0, "subscribe_actor", (b"a",)), PROBE,
    ]  # fmt: skip
    assert line.away, "a connection is no answer"
    line.on_reply()
    assert not line.away


def test_what_must_not_be_done_twice_carries_who_asks_and_what_was_heard() -> None:
    wire = Wire()
    line = GcsLine(wire, Conn(), "tcp:head:1", 60.0)  # type: ignore[arg-type]
    line.ask(1, "kill_actor", (b"x", True))
    line.ask(2, "kv_put", (b"k", b"v", False, b""))
    line.answered(1)
    line.ask(3, "kv_del", (b"k", False, b""))
    floors = {m.request_id: m.args[:2] for m in wire.conns[0].got if isinstance(m, Request) and m.method == "once"}
    assert floors == {1: (ME, 1), 2: (ME, 1), 3: (ME, 2)}
    assert break_and_redial(wire, line).got[0].args[2:] == ("kv_put", (b"k", b"v", False, b""))  # type: ignore[attr-defined]


def test_patience_ends_once_and_dialling_goes_on(clock: list[float]) -> None:
    wire = Wire()
    line = GcsLine(wire, Conn(), "tcp:head:1", 5.0)  # type: ignore[arg-type]
    line.ask(1, "nodes", ())
    for _ in range(4):
        break_and_redial(wire, line)
        clock[0] += 3.0
    assert [numbers for numbers, _ in wire.given_up] == [[1]]
    assert "tcp:head:1" in wire.given_up[0][1] and "--resume" in wire.given_up[0][1]
    assert "12 s" in str(line.problem())
    line.on_reply()
    assert line.problem() is None and not line.away


def test_on_the_heads_machine_the_node_is_the_line() -> None:
    wire, node = Wire(), Conn()
    line = GcsLine(wire, node, None, 5.0)  # type: ignore[arg-type]
    line.ask(1, "kv_put", (b"k", b"v", False, b""))
    assert node.got == [Request(1, "kv_put", (b"k", b"v", False, b""))] and not wire.conns
    line.on_close(ConnectionLost("gone"))
    assert not wire.later and not line.away


def test_a_process_that_ends_dials_no_more() -> None:
    wire = Wire()
    line = GcsLine(wire, Conn(), "tcp:head:1", 5.0)  # type: ignore[arg-type]
    wire.conns[0].closed = True
    line.on_close(ConnectionLost("gone"))
    wire.closed = True
    wire.later.pop()()
    line.on_close(ConnectionLost("gone"))
    assert len(wire.conns) == 1 and not wire.later
