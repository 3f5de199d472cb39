"""What the tests of the wire share: a token, a Hello, a handler that records, a reactor on a thread."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minray.wire.errors import WireError
from minray.wire.messages import Hello
from minray.wire.reactor import Connection, Reactor, Waiter

TOKEN = b"the cluster's secret"
MAX_FRAME = 64 * 1024 * 1024
LONG = 20.0  # a wait that should end long before


def hello(role: str = "worker", endpoint: str = "") -> Hello:
    return Hello(role, os.urandom(28), b"", b"", os.getpid(), 0.0, endpoint)


def make_reactor(name: str = "test", **options: Any) -> Reactor:
    options.setdefault("token", TOKEN)
    options.setdefault("max_frame", MAX_FRAME)
    options.setdefault("background", True)
    return Reactor(name=name, **options)


class Recorder:
    """A handler that keeps everything and ends the waits that asked for it."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.messages: list[tuple[Any, ...]] = []
        self.batches: list[int] = []
        self.connections: list[Connection] = []
        self.closed: list[WireError | None] = []
        self.on_message: Callable[[Connection, tuple[Any, ...]], None] = lambda conn, message: None
        self._wanted: list[tuple[Callable[[], bool], Waiter]] = []

    def accept(self, conn: Connection) -> Recorder:
        self.connections.append(conn)
        self._look()
        return self

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        self.batches.append(len(messages))
        for message in messages:
            self.messages.append(message)
            self.on_message(conn, message)
        self._look()

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        self.closed.append(error)
        self._look()

    def _look(self) -> None:
        for condition, waiter in list(self._wanted):
            if condition():
                self.reactor.notify(waiter)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition``, which only this handler's calls can change."""
        waiter = Waiter()
        entry = (condition, waiter)
        self._wanted.append(entry)
        try:
            if not condition():
                assert self.reactor.wait(waiter, LONG), f"got {self.messages[-3:]}, {self.closed}"
        finally:
            self._wanted.remove(entry)

    def until_messages(self, count: int) -> None:
        self.until(lambda: len(self.messages) >= count)

    def until_closed(self) -> WireError | None:
        self.until(lambda: bool(self.closed))
        return self.closed[0]


class Echo:
    """A handler that sends everything back."""

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        conn.send_many(messages)

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        pass


@contextlib.contextmanager
def served(start: Callable[[Reactor], Any], **options: Any) -> Iterator[tuple[Reactor, Any]]:
    """A one-threaded reactor on a thread of its own, and what ``start`` made of it."""
    reactor = make_reactor("served", background=False, **options)
    made = start(reactor)
    thread = threading.Thread(target=reactor.run_forever, name="served")
    thread.start()
    try:
        yield reactor, made
    finally:
        reactor.stop()
        thread.join(LONG)
        assert not thread.is_alive()
        reactor.close()


def spin_until(condition: Callable[[], bool]) -> None:
    """For what has no event to wait for: another thread's falling asleep."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0)


def free_range(count: int) -> int:
    """The first of so many ports in a row that nobody has."""
    for low in range(21000, 30000, count):
        with contextlib.ExitStack() as held:
            try:
                for port in range(low, low + count):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return low
    pytest.skip(f"this machine has no {count} free ports in a row")
