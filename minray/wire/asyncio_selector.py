"""An asyncio loop that waits inside the reactor: no thread between a message and the coroutine that awaits.

``ReactorEventLoop(reactor)`` is an ordinary selector loop whose ``select`` is ``Reactor.wait``: while the
loop has nothing to do, its thread leads or follows like any thread that waits, so that handlers run on it and
may call ``loop.call_soon``; while it runs coroutines, others or the background thread lead, and use
``loop.call_soon_threadsafe``, which costs no system call here. Used by the asyncio executor.

The loop's own descriptors are registered with the reactor, one event at a time: what has fired is not watched
again before the next ``select``, or another leader would find it ready in every round until the loop looks.

Uses two private names of asyncio's selector loops, the same in Python 3.4 to 3.14: ``_ready`` and
``_write_to_self``.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

from minray.wire.poller import ERR, HUP, IN, OUT
from minray.wire.reactor import Reactor, Waiter

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class _LoopWaiter(Waiter):
    """Done when notified, and as long as the loop has callbacks to run."""

    __slots__ = ("_notified", "ready")

    def __init__(self) -> None:
        self.ready: Sized = ()
        super().__init__()

    if not TYPE_CHECKING:

        @property
        def done(self) -> bool:
            return self._notified or len(self.ready) > 0

        @done.setter
        def done(self, value: bool) -> None:
            self._notified = value


class ReactorSelector(selectors._BaseSelectorImpl):
    """See the file's head. Its methods are called by the loop's thread."""

    def __init__(self, reactor: Reactor) -> None:
        super().__init__()
        self.waiter = _LoopWaiter()
        self._reactor = reactor
        self._fired: deque[tuple[int, int]] = deque()  # descriptors and masks; appended to by whoever leads
        self._resting: list[int] = []  # fired, and not watched until the loop has looked

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        try:
            self._watch(key)
        except BaseException:
            super().unregister(fileobj)
            raise
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = super().unregister(fileobj)
        self._reactor.remove_reader(key.fd)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        waiter = self.waiter
        while self._resting:
            resting = self.get_map().get(self._resting.pop())
            if resting is not None:
                self._watch(resting)
        if waiter.done or (timeout is not None and timeout <= 0):
            self._reactor.poll()
        else:
            self._reactor.wait(waiter, timeout)
        waiter.done = False  # before looking: what comes from now on ends the next select
        ready = []
        while self._fired:
            fd, mask = self._fired.popleft()
            key = self.get_map().get(fd)
            if key is not None:
                self._resting.append(fd)
                events = _READ if mask & (IN | HUP | ERR) else 0
                events |= _WRITE if mask & (OUT | HUP | ERR) else 0
                if events & key.events:
                    ready.append((key, events & key.events))
        return ready

    def close(self) -> None:
        for key in list((self.get_map() or {}).values()):
            self._reactor.remove_reader(key.fd)
        super().close()

    def _watch(self, key: selectors.SelectorKey) -> None:
        fd = key.fd

        def fired(mask: int) -> None:
            self._reactor.remove_reader(fd)
            self._fired.append((fd, mask))
            self._reactor.notify(self.waiter)

        mask = (IN if key.events & _READ else 0) | (OUT if key.events & _WRITE else 0)
        self._reactor.add_io(fd, mask, fired)


class ReactorEventLoop(asyncio.SelectorEventLoop):
    """See the file's head."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._waiter = Waiter()
        selector = ReactorSelector(reactor)
        super().__init__(selector)
        self._waiter = selector.waiter
        selector.waiter.ready = self._ready  # type: ignore[attr-defined]

    def _write_to_self(self) -> None:
        """What call_soon_threadsafe does to end a select."""
        self._reactor.notify(self._waiter)
