"""The bytes of large objects: a socket and a thread for each transfer, from mapping to mapping.

::

    puller's thread                                          source's thread
      nonce (8 bytes), offset (8, little endian)    ──────▶   looks the nonce up
      recv_into the room's mapping                  ◀──────   send from the object's mapping, or from its file
      nonce, offset of the next object, or the end  ──────▶   …

Before that the socket was a ``Connection``: authenticated, introduced, and then detached by both sides. When a
transfer is over the puller keeps it for the next one. The source hangs up at a nonce that it has not given out.

Threads, because nothing on the reactor may wait and because a copy needs no interpreter: both sides spend their
time in the kernel, without the GIL. Measured for 1 GB over loopback, on 2 cores: the reactor's own thread receives as
fast (2.3 GB/s beside other work), but a question to the node then takes 1.0 ms instead of 0.3 (median), and memory
that does not exist yet (0.7 s of CPU per GB) would stop it for milliseconds. ``send`` from the mapping, because
``sendfile`` is slower there (3.0 instead of 4.0 GB/s: the receiver gets pages of 4 KB) and saves the sender nothing.

Used by ``service``. Invariants: a ``Loaned`` view is let go of once, after its last sender; a room is written by
one thread at most, and by none after ``ended`` was called.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Callable

from minray.node.transfers.files import FileHold, FileView
from minray.store.client import Room
from minray.store.holds import Hold
from minray.wire.transports import Stream

NONCE_SIZE = 8
CHUNK = 1 << 20
SCRATCH = 256 * 1024
PATIENCE_S = 30.0  # how long a thread waits: a source for the next question, or until the puller takes more
_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG)


class Loaned:
    """An object that is pinned for a puller. Its pin ends with ``end``, or with the sender that is at it."""

    __slots__ = ("_ended", "_hold", "_lock", "_senders", "_view")

    def __init__(self, hold: Hold | FileHold) -> None:
        assert hold.view is not None
        self._hold = hold
        self._view: memoryview | FileView | None = hold.view
        self._lock = threading.Lock()
        self._senders = 0
        self._ended = False

    def enter(self) -> memoryview | FileView | None:
        """A sender begins; None if it has ended."""
        with self._lock:
            if not self._ended:
                self._senders += 1
            return self._view

    def leave(self) -> None:
        """A sender has ended."""
        with self._lock:
            self._senders -= 1
            over = self._ended and not self._senders
        if over:
            self._hold.release()

    def end(self) -> None:
        """Nobody may begin any more."""
        with self._lock:
            self._ended = True
            self._view = None
            over = not self._senders
        if over:
            self._hold.release()


class Sender:
    """The source's end of one data socket: answers questions until the puller hangs up or has none for long."""

    def __init__(
        self, sock: Stream, find: Callable[[bytes], Loaned | None], ended: Callable[[Sender], None]
    ) -> None:
        self._sock = sock
        self._find = find
        self._ended = ended  # called on its thread
        self._thread = threading.Thread(target=self._run, name="minray-send", daemon=True)

    def start(self) -> None:
        """Begin to listen to the puller."""
        try:
            self._thread.start()
        except RuntimeError:  # no more threads: the puller will see the end, and ask again
            self._sock.close()
            self._ended(self)

    def join(self, timeout: float) -> None:
        """Until its thread has ended."""
        self._thread.join(timeout)

    def stop(self) -> None:
        """From another thread: it ends soon."""
        shut(self._sock)

    def _run(self) -> None:
        try:
            while self._answer():
                pass
        except OSError:  # the puller is gone, or nothing has moved for too long: it will ask again, or not
            pass
        finally:
            self._sock.close()
            self._ended(self)

    def _answer(self) -> bool:
        sock = self._sock
        question = _read(sock, NONCE_SIZE + 8)
        loaned = self._find(question[:NONCE_SIZE]) if question else None
        view = loaned.enter() if loaned is not None else None
        if loaned is None or view is None:
            return False
        try:
            at, size = int.from_bytes(question[NONCE_SIZE:], "little"), len(view)
            while at < size:
                at += _send(sock, view[at : at + CHUNK])
        finally:
            del view
            loaned.leave()
        return True


class Receiver:
    """One object on its way into its room."""

    def __init__(self, room: Room, at: int, nonce: bytes, ended: Callable[[Receiver, str, bool], None]) -> None:
        self.room = room
        self.at = at  # so many bytes are there
        self.began = at
        self.sock: Stream | None = None  # while its thread runs, and after a good end
        self.stopped = False
        self.used = False  # the socket has served others before
        self._nonce = nonce
        self._ended = ended  # called on its thread: (self, reason or "", whether memory is full)
        self._thread: threading.Thread | None = None

    def start(self, sock: Stream, *, used: bool) -> None:
        """Receive from there."""
        self.sock, self.used = sock, used
        thread = threading.Thread(target=self._run, name="minray-receive", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            sock.close()
            self.sock = None
            self._ended(self, str(error), False)
        else:
            self._thread = thread

    def join(self, timeout: float) -> None:
        """Until its thread has ended."""
        if self._thread is not None:
            self._thread.join(timeout)

    def stop(self) -> None:
        """From another thread: ``ended`` follows soon."""
        self.stopped = True
        if self.sock is not None:
            shut(self.sock)

    def _run(self) -> None:
        reason, full = "", False
        sock = self.sock
        assert sock is not None
        try:
            self._receive(sock)
        except OSError as error:
            full = error.errno in _NO_ROOM
            reason = str(error) or type(error).__name__
        if self.at < self.room.size and not reason:
            reason = "its source hung up"
        if reason:
            sock.close()
            self.sock = None
        self._ended(self, reason, full)

    def _receive(self, sock: Stream) -> None:
        question = self._nonce + self.at.to_bytes(8, "little")
        if _send(sock, question) < len(question):
            raise ConnectionError("the source does not read")
        room, size = self.room, self.room.size
        scratch = memoryview(bytearray(min(SCRATCH, size)))

        def read(target: memoryview) -> int:
            return _receive(sock, target)  # the service looks after those that stall

        while self.at < size and not self.stopped:
            count = room.map.receive(room.offset + self.at, size - self.at, read, scratch)
            if not count:
                return
            self.at += count


def prepare(sock: Stream) -> None:
    """A detached socket, for a thread that may wait in it. (One with TLS has no such mode.)"""
    if isinstance(sock, socket.socket):
        sock.settimeout(PATIENCE_S)


def shut(sock: Stream) -> None:
    """End both directions: whoever waits in a call returns."""
    with contextlib.suppress(OSError, ValueError):  # it is closed
        with socket.socket(fileno=os.dup(sock.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)


def _receive(sock: Stream, target: memoryview) -> int:
    while True:
        try:
            return sock.recv_into(target)
        except BlockingIOError:
            _wait(sock, select.POLLIN)


def _send(sock: Stream, data: bytes | memoryview) -> int:
    while True:
        try:
            return sock.send(data)
        except BlockingIOError:
            _wait(sock, select.POLLOUT)


def _wait(sock: Stream, mask: int) -> None:
    poll = select.poll()
    poll.register(sock.fileno(), mask)
    if not poll.poll(PATIENCE_S * 1000):
        raise TimeoutError(f"nothing has moved for {PATIENCE_S:g} s")


def _read(sock: Stream, size: int) -> bytes:
    """So many bytes; b"" at the end of the stream."""
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        count = _receive(sock, view[at:])
        if not count:
            return b""
        at += count
    return bytes(data)
