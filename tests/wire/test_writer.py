"""The writing side, with another thread's steps put where they hurt."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from minray.wire.core import Core
from minray.wire.errors import WireError
from minray.wire.poller import IN
from minray.wire.writer import Writer


class OpenedInTheMiddle(deque[bytes]):
    """What is queued; the leader opens the connection while a sender takes it over."""

    act: Callable[[], None] | None = None

    def popleft(self) -> bytes:
        act, self.act = self.act, None
        if act is not None:
            act()
        return super().popleft()


class OpenedAtTheEnd:
    """A lock; the leader opens the connection just before a sender lets go of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.act: Callable[[], None] | None = None

    def acquire(self, blocking: bool = True) -> bool:
        return self._lock.acquire(blocking)

    def release(self) -> None:
        act, self.act = self.act, None
        if act is not None:
            act()
        self._lock.release()


@pytest.fixture
def pair() -> Iterator[tuple[Writer, socket.socket]]:
    core = Core()
    here, there = socket.socketpair()
    here.setblocking(False)
    there.settimeout(10)
    errors: list[WireError] = []
    writer = Writer(core, errors.append)
    writer.attach(here)
    core.register(here.fileno(), IN, lambda mask: None)
    with here, there:
        yield writer, there
        core.unregister(here.fileno())
    core.close()
    assert not errors


def test_what_opens_a_connection_goes_before_what_a_sender_has_taken_over(
    pair: tuple[Writer, socket.socket],
) -> None:
    writer, there = pair
    writer._out = out = OpenedInTheMiddle()
    out.act = lambda: writer.open(b"proof ")
    writer.queue(b"call")
    assert there.recv(100) == b"proof call"
    assert writer.idle


def test_a_connection_that_opens_while_a_sender_has_the_lock_is_open(pair: tuple[Writer, socket.socket]) -> None:
    writer, there = pair
    lock = OpenedAtTheEnd()
    writer._lock = lock  # type: ignore[assignment]
    lock.act = lambda: writer.open(b"proof ")
    writer.queue(b"call")
    assert there.recv(100) == b"proof call"
    assert writer.idle


def test_what_is_queued_while_it_is_corked_leaves_together_and_in_order(pair: tuple[Writer, socket.socket]) -> None:
    writer, there = pair
    writer.open(b"")
    writer.queue(b"1 ")
    assert there.recv(100) == b"1 "
    assert writer.cork()
    writer.queue(b"2 ")
    other = threading.Thread(target=lambda: writer.queue(b"3 "))
    other.start()
    other.join()
    assert not writer.cork(), "once is enough"
    writer.resume()
    writer.queue(b"4")
    there.setblocking(False)
    with pytest.raises(BlockingIOError):
        there.recv(100)
    assert not writer.idle
    writer.uncork()
    assert there.recv(100) == b"2 3 4"
    assert writer.idle


def test_a_corked_writer_is_not_closed_in_the_middle(pair: tuple[Writer, socket.socket]) -> None:
    writer, there = pair
    writer.open(b"")
    assert writer.cork()
    assert not writer.try_close()
    writer.queue(b"last words")
    writer.uncork()
    assert there.recv(100) == b"last words"


def test_it_is_flushed_when_the_kernel_has_all(pair: tuple[Writer, socket.socket]) -> None:
    writer, there = pair
    writer.open(b"")
    assert writer.flushed
    size = 8 << 20
    writer.queue(bytes(size))
    assert not writer.flushed
    left = size
    while left:
        left -= len(there.recv(min(left, 1 << 20)))
        writer.resume()
    assert writer.flushed
    assert writer.cork()
    assert not writer.flushed, "somebody writes"
    writer.uncork()
    assert writer.flushed
