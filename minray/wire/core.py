"""What the leader runs: one round of events, then posts, then timers.

``Core`` knows descriptors, callbacks and time; it does not know which thread polls (``reactor`` does), nor
what a connection is. Its owner is the leader, whoever that is. Other threads, signal handlers and finalizers
use only ``post``, ``call_later``, ``wake`` and the (un)registration of descriptors: none of these takes a
lock, so none can deadlock a thread that is interrupted anywhere.

No wake-up is lost: a poster appends, then looks whether the leader is ``sleeping``; the leader sets
``sleeping``, then looks for posts, then sleeps. Whoever sees the other's mark acts.

A descriptor that is dropped during a round stays open until the round is over (its closing is posted), so the
kernel cannot hand its number to a new one while the round's events still name the old.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from time import monotonic

from minray.wire.poller import IN, Bell, make_poller

RECV_BUFFER = 256 * 1024
_heappush, _heappop = heapq.heappush, heapq.heappop


def log_exception(text: str) -> None:
    """Log the exception being handled. (Imported here: nobody who never fails pays for logging.)"""
    import logging

    logging.getLogger("minray.wire").exception(text)


def log_warning(text: str) -> None:
    import logging

    logging.getLogger("minray.wire").warning(text)


class Timer:
    """A call that is due once, unless it is cancelled."""

    __slots__ = ("_fn",)

    def __init__(self, fn: Callable[[], None]) -> None:
        self._fn: Callable[[], None] | None = fn

    @property
    def pending(self) -> bool:
        return self._fn is not None

    def cancel(self) -> None:
        """From any thread; what already runs is not stopped."""
        self._fn = None

    def fire(self) -> None:
        fn, self._fn = self._fn, None
        if fn is not None:
            fn()


class Core:
    """See the file's head."""

    def __init__(self, poller: str = "auto", max_read: int = RECV_BUFFER) -> None:
        self.poller = make_poller(poller)
        self.poll = self.poller.poll  # (timeout, at most so many events)
        self.bell = Bell()
        self.entries: dict[int, Callable[[int], None]] = {}
        self.posts: deque[Callable[[], None]] = deque()
        self.sleeping = False  # the leader is, or is about to be, asleep in poll()
        self.buffer = bytearray(min(max_read, RECV_BUFFER))  # all reads of small frames go here: only the leader reads
        self.view = memoryview(self.buffer)
        self.timers: list[tuple[float, int, Timer]] = []  # a heap, the leader's: (due, number, timer)
        self.new_timers: deque[tuple[float, int, Timer]] = deque()  # anybody's
        self._compact_at = 1024
        self._count = itertools.count()
        self.on_failure: Callable[[int, Exception], None] = lambda fd, error: None
        self.poller.register(self.bell.fileno(), IN)

    # --- for any thread

    def post(self, fn: Callable[[], None]) -> None:
        """Run ``fn`` on the leader's thread, after the round in progress."""
        self.posts.append(fn)
        if self.sleeping:
            self.wake()

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> Timer:
        """Run ``fn`` on the leader's thread in ``delay_s`` seconds."""
        timer = Timer(fn)
        self.new_timers.append((monotonic() + delay_s, next(self._count), timer))
        if self.sleeping:
            self.wake()
        return timer

    def wake(self) -> None:
        """End the poll in progress, or the next one if none is."""
        self.sleeping = False  # one ring is enough: whoever polls looks at everything before it sleeps again
        self.bell.ring()

    def register(self, fd: int, mask: int, entry: Callable[[int], None]) -> None:
        self.entries[fd] = entry
        try:
            self.poller.register(fd, mask)
        except BaseException:
            del self.entries[fd]
            raise
        self._changed()

    def modify(self, fd: int, mask: int) -> None:
        self.poller.modify(fd, mask)
        self._changed()

    def unregister(self, fd: int) -> None:
        """``fd`` must be still open; close it by a post."""
        if self.entries.pop(fd, None) is not None:
            self.poller.unregister(fd)
            self._changed()

    def _changed(self) -> None:
        if self.sleeping and not self.poller.sees_changes:
            self.wake()

    # --- for the leader

    def timeout(self) -> float:
        """Seconds until the next known timer; negative if there is none."""
        timers = self.timers
        while timers and not timers[0][2].pending:
            _heappop(timers)
        return max(0.0, timers[0][0] - monotonic()) if timers else -1.0

    def fall_asleep(self, timeout: float) -> float:
        """Mark the leader as asleep. Returns how long the poll may take: 0 if there is work."""
        self.sleeping = True
        return 0.0 if self.posts or self.new_timers else timeout

    def dispatch(self, events: list[tuple[int, int]]) -> None:
        """Run the callbacks of one round."""
        entries = self.entries
        for fd, mask in events:
            entry = entries.get(fd)
            if entry is not None:  # else it was dropped earlier in this round
                try:
                    entry(mask)
                except Exception as error:  # a bug of ours: whose wait this happens to be is not to blame
                    log_exception(f"descriptor {fd} is watched no more")
                    self.unregister(fd)
                    self.on_failure(fd, error)

    def housekeep(self) -> None:
        """Run the posts that are there now, and the timers that are due."""
        posts = self.posts
        for _ in range(len(posts)):
            self._run(posts.popleft(), "a posted call")
        timers, new = self.timers, self.new_timers
        while new:
            _heappush(timers, new.popleft())
        if len(timers) > self._compact_at:  # mostly cancelled ones: deadlines that were kept
            timers[:] = [entry for entry in timers if entry[2].pending]
            heapq.heapify(timers)
            self._compact_at = max(1024, 2 * len(timers))
        while timers and timers[0][0] <= monotonic():
            self._run(_heappop(timers)[2].fire, "a timer")

    def _run(self, fn: Callable[[], None], what: str) -> None:
        try:
            fn()
        except Exception:
            log_exception(f"{what} failed: {fn!r}")

    def close(self) -> None:
        """Only when nobody polls any more."""
        self.poller.close()
        self.bell.close()
        self.entries.clear()
        self.posts.clear()
        self.timers.clear()
        self.new_timers.clear()
