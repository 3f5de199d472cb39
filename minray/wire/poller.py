"""Readiness of descriptors: epoll where there is one, otherwise kqueue or select; and the bell that ends a
poll.

Two threads may be inside ``poll`` of one poller for a moment (an ousted background thread and the new
leader), so a poller keeps no state of a poll in progress. Readiness is level-triggered: what one thread
discards, the other sees. Masks are epoll's numbers on every platform.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Any, Protocol

IN, OUT, ERR, HUP = 1, 4, 8, 16
READABLE = IN | ERR | HUP | 2  # 2: EPOLLPRI
MAX_EVENTS = 128


class Poller(Protocol):
    """What the reactor needs to know of a platform."""

    sees_changes: bool  # whether a poll in progress notices a registration made meanwhile

    def register(self, fd: int, mask: int) -> None: ...

    def modify(self, fd: int, mask: int) -> None: ...

    def unregister(self, fd: int) -> None: ...

    @property
    def poll(self) -> Callable[[float, int], list[tuple[int, int]]]:
        """(timeout in seconds, negative for ever; at most so many events) → descriptors and masks."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class EpollPoller:
    """Linux."""

    sees_changes = True

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.poll: Callable[[float, int], list[tuple[int, int]]] = self._epoll.poll
        self.register = self._epoll.register
        self.modify = self._epoll.modify

    def unregister(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBADF):  # closed first: the kernel forgot it by itself
                raise

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        self._epoll.close()


class SelectorPoller:
    """Everywhere else, through the standard library's selectors."""

    def __init__(self) -> None:
        import selectors  # not where there is epoll: a control process starts in some tens of ms

        self._read, self._write = selectors.EVENT_READ, selectors.EVENT_WRITE
        kqueue = getattr(selectors, "KqueueSelector", None)
        self._selector: Any = kqueue() if kqueue else selectors.SelectSelector()
        self.sees_changes = kqueue is not None

    def register(self, fd: int, mask: int) -> None:
        self._selector.register(fd, self._events(mask))

    def modify(self, fd: int, mask: int) -> None:
        self._selector.modify(fd, self._events(mask))

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout: float, max_events: int) -> list[tuple[int, int]]:
        try:
            ready = self._selector.select(None if timeout < 0 else timeout)
        except (OSError, ValueError, RuntimeError):
            # A descriptor was closed, or the books changed, under a thread that has been ousted meanwhile.
            return []
        read, write = self._read, self._write
        return [
            (key.fd, (IN if events & read else 0) | (OUT if events & write else 0)) for key, events in ready
        ]

    def fileno(self) -> int:
        fileno: Callable[[], int] | None = getattr(self._selector, "fileno", None)
        if fileno is None:
            raise NotImplementedError("select() has no descriptor of its own to poll for")
        return fileno()

    def close(self) -> None:
        self._selector.close()

    def _events(self, mask: int) -> int:
        return (self._read if mask & IN else 0) | (self._write if mask & OUT else 0)


def is_readable(fd: int) -> bool:
    """Whether a read would find something now, or the end. Takes no descriptor: there may be none left."""
    if not hasattr(select, "poll"):
        return bool(select.select([fd], [], [], 0)[0])
    look = select.poll()
    look.register(fd, select.POLLIN)
    return bool(look.poll(0))


def make_poller(kind: str = "auto") -> Poller:
    """``kind``: "auto", or "selectors" to do without epoll."""
    if kind not in ("auto", "selectors"):
        raise ValueError(f"poller must be 'auto' or 'selectors', got {kind!r}")
    if kind == "auto" and hasattr(select, "epoll"):
        return EpollPoller()
    return SelectorPoller()


class Bell:
    """Wakes a poll from any thread, signal handler or finalizer. Stays readable until it is silenced."""

    def __init__(self) -> None:
        self._eventfd = -1
        self._pair: tuple[socket.socket, socket.socket] | None = None
        if hasattr(os, "eventfd"):
            self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._pair = socket.socketpair()
            for end in self._pair:
                end.setblocking(False)

    def fileno(self) -> int:
        return self._pair[0].fileno() if self._pair else self._eventfd

    def ring(self) -> None:
        """Never blocks, never raises for a bell that rings already or is closed."""
        try:
            if self._pair is not None:
                self._pair[1].send(b"x")
            elif self._eventfd >= 0:
                os.eventfd_write(self._eventfd, 1)
        except OSError:  # full: it rings already; closed: nobody listens any more
            return

    def silence(self) -> None:
        try:
            if self._pair is not None:
                while len(self._pair[0].recv(4096)) == 4096:
                    pass
            elif self._eventfd >= 0:
                os.eventfd_read(self._eventfd)
        except OSError:  # it did not ring
            return

    def close(self) -> None:
        if self._pair is not None:
            for end in self._pair:
                end.close()
        elif self._eventfd >= 0:
            fd, self._eventfd = self._eventfd, -1
            os.close(fd)


def usable_cpus() -> int:
    """How many CPUs this process may run on: with one, spinning only takes it from whom we wait for."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
