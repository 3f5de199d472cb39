"""Waiting for the node's answers, from any thread. Part of the client (client.py), which alone uses it.

``Waits`` is what the client needs of a reactor; ``ThreadWaits`` does the same on plain events. A ``Pending``
is an unanswered question; an ``Acquisition`` is what one ``acquire`` is about to get.

Invariant: a waiter that leaves early (timeout, KeyboardInterrupt) leaves nothing held behind, whether the
answer came before, comes during, or comes after that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from minray.store.holds import Gone, Hold

Held = list[Hold | Gone]


class Waits(Protocol):
    """How to wait for an answer: the reactor's waiters, or ``ThreadWaits`` without one."""

    def make(self) -> Any:
        """A fresh waiter."""

    def wait(self, waiter: Any, timeout: float | None) -> bool:
        """Until it is notified; False after ``timeout`` seconds."""

    def notify(self, waiter: Any) -> None:
        """End its wait."""


class ThreadWaits:
    """Waiting on plain events: for processes and tests without a reactor."""

    def make(self) -> threading.Event:
        """A fresh waiter."""
        return threading.Event()

    def wait(self, waiter: threading.Event, timeout: float | None) -> bool:
        """Until it is notified; False after ``timeout`` seconds."""
        return waiter.wait(timeout)

    def notify(self, waiter: threading.Event) -> None:
        """End its wait."""
        waiter.set()


class Pending:
    """An unanswered question to the node. ``callback`` runs once, on the reactor's thread."""

    __slots__ = ("answer", "callback", "error", "objects", "size")

    def __init__(self, callback: Callable[[Pending], None], *, size: int = -1, objects: Any = ()) -> None:
        self.callback = callback
        self.size = size  # of an ExtentRequest, else -1
        self.objects = objects  # of a Pin: [object_id, …]
        self.answer: Any = None
        self.error: Exception | None = None


class Acquisition:
    """What one waiting ``acquire`` gets, or would have got."""

    __slots__ = ("_abandoned", "_lock", "error", "held")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._abandoned = False
        self.held: Held | None = None
        self.error: Exception | None = None

    def done(self, held: Held, error: Exception | None) -> None:
        """The answer, on the reactor's thread."""
        with self._lock:
            self.held, self.error = held, error
            if not self._abandoned:
                return
        release_all(held)

    def abandon(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._abandoned = True
            held = self.held
        release_all(held or [])


def release_all(held: Held) -> None:
    """End all Holds of a list."""
    for hold in held:
        if isinstance(hold, Hold):
            hold.release()
