"""The writing side of a connection: bytes from any thread to one socket, in order, without blocking.

It belongs to whoever holds ``_lock``, which nobody ever waits for: a sender that finds it free writes at
once; one that does not appends to ``_out``, and the holder looks there again after releasing it. So a send
never blocks, keeps the order, and may be made by a finalizer that runs in the middle of another send of the
same thread. What the kernel does not take waits in ``_backlog``, which is not bounded here: senders look at
``buffered``.

A failed write is not the end of the connection: what the peer sent before it died is still to be read, and
the end of that stream ends it. Only if that does not come, ``on_broken`` is called.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable

from minray.wire.core import Core
from minray.wire.errors import ConnectionLost, WireError
from minray.wire.poller import IN, OUT
from minray.wire.transports import Stream

SEND_CHUNK = 256 * 1024
LINGER_S = 1.0
END_S = 0.2
# Without it, programs that reset SIGPIPE (so as to die in a pipe: | head) would die of a lost peer.
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class Writer:
    """See the file's head. ``attach`` comes first, then ``open``: what is queued before waits."""

    __slots__ = (
        "_backlog",
        "_broken",
        "_buffered",
        "_core",
        "_dropped",
        "_first",
        "_lock",
        "_on_broken",
        "_out",
        "_resume",
        "_send",
        "_sock",
        "_stalled",
    )

    def __init__(self, core: Core, on_broken: Callable[[WireError], None]) -> None:
        self._core = core
        self._on_broken = on_broken  # on the leader's thread
        self._sock: Stream | None = None
        self._send: Callable[[bytes | memoryview, int], int]
        self._out: deque[bytes] = deque()  # appended to by anybody
        self._lock = threading.Lock()  # its holder writes, and owns what follows
        self._backlog: deque[bytes | memoryview] = deque()  # taken from _out, not yet in the kernel
        self._buffered = 0  # bytes of that
        self._stalled = True  # not open yet, or the kernel's buffer is full: wait for _resume
        self._resume = False  # set by the leader: try again
        self._first = b""  # goes out before everything queued
        self._broken = False  # the peer takes nothing more
        self._dropped = False  # nobody wants it any more

    # --- for any thread

    def queue(self, data: bytes) -> None:
        """The hot path: write at once, if nobody else writes and nothing waits."""
        out, lock = self._out, self._lock
        if not lock.acquire(False):
            out.append(data)
            self._pump()  # in vain, unless the holder has just released it
            return
        try:
            if out or self._stalled:
                out.append(data)
                self._flush()
            else:
                self._write(data)
        finally:
            lock.release()
        if out or self._resume:  # somebody came while we had the lock
            self._pump()

    def cork(self) -> bool:
        """Gather what is queued from now on, whoever queues it, to leave in one piece at ``uncork``: on the same
        thread, soon. False: somebody writes, and nothing is to be undone."""
        return self._lock.acquire(False)

    def uncork(self) -> None:
        """After a ``cork`` that was True."""
        self._lock.release()
        self._pump()

    @property
    def buffered(self) -> int:
        """Bytes that wait because the peer does not take them."""
        return self._buffered

    @property
    def flushed(self) -> bool:
        """Whether the kernel has all that was queued before, or nothing can be written any more."""
        return not self._lock.locked() and self.idle

    # --- for the leader's thread

    def attach(self, sock: Stream) -> None:
        """The socket to write to, not open for what is queued yet."""
        self._sock = sock
        self._send = sock.send

    def write_raw(self, data: bytes) -> bool:
        """Before ``open``: the handshake, past the queue. Whether the kernel took it all. Raises OSError."""
        return self._send(data, _NO_SIGNAL) == len(data)

    def open(self, first: bytes) -> None:
        """``first``, and then everything queued, may leave."""
        self._first = first
        self.resume()

    def resume(self) -> None:
        """The socket is writable."""
        self._resume = True
        self._pump()

    @property
    def idle(self) -> bool:
        """Whether nothing is left to write, or nothing can be written."""
        return self._broken or not (self._out or self._buffered)

    def drop(self) -> None:
        """What is queued from now on goes nowhere."""
        self._dropped = True

    def try_close(self) -> bool:
        """Close, unless somebody writes: the kernel could give the number to another socket."""
        if not self._lock.acquire(False):
            return False
        try:
            self._close()
        finally:
            self._lock.release()
        return True

    def close_now(self) -> None:
        """With the reactor, whose last leader has gone. What the kernel takes at once still leaves."""
        locked = self._lock.acquire(True, END_S)
        try:
            if locked and not self._dropped:
                self._resume = True
                self._flush()
            self._close()
        finally:
            if locked:
                self._lock.release()

    def _close(self) -> None:
        self._dropped = True
        self._backlog.clear()
        self._buffered = 0
        if self._sock is not None:
            self._sock.close()

    # --- whoever holds the lock

    def _pump(self) -> None:
        """Write what senders have appended, unless somebody does: who has the lock looks again afterwards."""
        lock = self._lock
        while (self._out or self._resume) and lock.acquire(False):
            try:
                self._flush()
            finally:
                lock.release()

    def _flush(self) -> None:
        may_write = self._resume or not self._stalled  # looked at first: what open() puts in front is there by then
        self._gather()
        if not may_write:
            return
        self._resume = False
        while self._backlog:
            if not self._write(self._next_chunk()):
                return
        if self._stalled and not self._broken:
            self._stalled = False
            self._watch(IN)

    def _gather(self) -> None:
        """Take over what senders have appended."""
        out, backlog = self._out, self._backlog
        if self._first:
            first, self._first = self._first, b""
            backlog.appendleft(first)
            self._buffered += len(first)
        lost = self._broken or self._dropped
        while out:
            data = out.popleft()
            if not lost:
                backlog.append(data)
                self._buffered += len(data)

    def _next_chunk(self) -> bytes | memoryview:
        """The next piece of the backlog, small ones joined."""
        backlog = self._backlog
        data = backlog.popleft()
        size = len(data)
        if backlog and size < SEND_CHUNK:
            parts = [data]
            while backlog and size + len(backlog[0]) <= SEND_CHUNK:
                parts.append(backlog.popleft())
                size += len(parts[-1])
            data = b"".join(parts)
        self._buffered -= size
        return data

    def _write(self, data: bytes | memoryview) -> bool:
        """Give ``data`` to the kernel; keeps what it does not take. Returns whether it took everything."""
        try:
            sent = self._send(data, _NO_SIGNAL)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._break("the peer takes no more data", LINGER_S)
            return False
        except BaseException:  # a user's signal handler raised: how much was sent is unknown
            self._break("a write was interrupted by an exception in a signal handler", 0.0)
            raise
        if sent == len(data):
            return True
        rest = memoryview(data)[sent:]
        self._backlog.appendleft(rest)
        self._buffered += len(rest)
        self._stalled = True
        self._watch(IN | OUT)
        return False

    def _break(self, why: str, patience_s: float) -> None:
        """Drop what is queued. Reading finds the end of the stream, or ``on_broken`` says why."""
        self._broken = self._stalled = True
        self._backlog.clear()
        self._buffered = 0
        self._watch(IN)
        self._core.call_later(patience_s, lambda: self._on_broken(ConnectionLost(why)))

    def _watch(self, mask: int) -> None:
        try:
            if self._sock is not None and not self._dropped:
                self._core.modify(self._sock.fileno(), mask)
        except (OSError, ValueError, KeyError):
            if not self._dropped:  # else the leader has just unregistered it
                raise
