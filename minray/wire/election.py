"""Who polls. Pure: no thread, lock, clock or socket.

Whoever waits, polls: of the threads that wait one is the *leader* and reads the sockets; the others are
*followers* and sleep until their wait is over or the leader leaves and promotes them. When nobody has polled
for a tick (~2 ms), the *background* thread leads, until a waiter takes over from it.

The reactor calls each method under one lock and carries out what it returns after releasing it. The model
that ``tests/wire/test_election.py`` runs through every interleaving is: threads that call these methods, one
at a time, and sleep and wake in between.

The background thread's states::

    TICKING ──tick: nobody polled──► RUNNING ──rested: nobody waits──► POLLING ──woke──► RUNNING
       ▲  │                             │                                 │
       │  └─tick: one leader, asleep──► PARKED                      (a waiter enters)
       │        ◄──leader left, nobody follows (unpark)──┘                ▼
       ├──────────────────rested: a waiter was promoted──┘             OUSTED
       └──────────────────────────────woke───────────────────────────────┘

* It polls, and may be ousted, only in POLLING: a waiter that enters then leads at once, and the reactor wakes
  the background thread, which finds itself OUSTED and discards what it saw (readiness is level-triggered: the
  leader sees it again). While RUNNING (handlers on its thread) newcomers follow, and it promotes one when it
  has rested.
* PARKED it sleeps without a tick: an idle process has no periodic wake-up.
* ``demand`` says that somebody waits who cannot poll (a future, an asyncio loop): then the background thread
  is woken to lead as soon as nobody else does, without waiting for a tick.

Invariants (``check_invariants``): at most one leader; followers only while somebody leads; RUNNING or POLLING
if and only if the background thread is the leader; PARKED only while a waiter leads.
"""

from __future__ import annotations

from enum import Enum
from typing import Generic, TypeVar

W = TypeVar("W")


class Background(Enum):
    """State of the background thread."""

    ABSENT = "absent"  # there is none: daemons, tests
    TICKING = "ticking"
    PARKED = "parked"
    POLLING = "polling"
    RUNNING = "running"
    OUSTED = "ousted"


_ABSENT, _TICKING, _PARKED = Background.ABSENT, Background.TICKING, Background.PARKED
_POLLING, _RUNNING, _OUSTED = Background.POLLING, Background.RUNNING, Background.OUSTED


class Entry(Enum):
    """What a thread that begins to wait has to do."""

    LEAD = "lead"
    OUST = "oust"  # lead, and wake the background thread out of its poll
    FOLLOW = "follow"


class Tick(Enum):
    """What the background thread has to do after a tick."""

    LEAD = "lead"  # it is the leader now, RUNNING
    SLEEP = "sleep"  # one more tick
    PARK = "park"  # sleep until unparked


_LEAD, _OUST, _FOLLOW = Entry.LEAD, Entry.OUST, Entry.FOLLOW


class Election(Generic[W]):
    """See the file's head. ``W`` is whatever stands for one wait of one thread; it is hashed by identity."""

    __slots__ = ("_followers", "_seen_leading", "_seen_polls", "background", "demand", "leader", "polls")

    def __init__(self, *, background: bool) -> None:
        self.background = _TICKING if background else _ABSENT
        self.leader: W | None = None  # the waiter that leads; None also while the background thread does
        self.demand = False
        self.polls = 0  # grows whenever somebody has led
        self._followers: dict[W, None] = {}  # oldest first
        self._seen_polls = -1  # what the last tick saw: polls, and whether a waiter led
        self._seen_leading = False

    # --- threads that wait

    def enter(self, waiter: W) -> Entry:
        """``waiter`` begins to wait."""
        if self.leader is None:
            state = self.background
            if state is not _POLLING and state is not _RUNNING:
                self.leader = waiter
                return _LEAD
            if state is _POLLING:
                self.leader = waiter
                self.background = _OUSTED
                return _OUST
        self._followers[waiter] = None
        return _FOLLOW

    def leave(self, waiter: W) -> W | None:
        """``waiter`` waits no more. Returns the follower to be promoted: it leads from now on."""
        if self.leader is waiter:
            self.polls += 1
            self.leader = None
            if self._followers:
                return self._promote()
            return None
        self._followers.pop(waiter, None)
        return None

    def try_enter(self, waiter: W) -> Entry:
        """Like ``enter`` for one round of polling: FOLLOW: somebody else leads, nothing changed."""
        if self.leader is not None or self.background is _RUNNING:
            return _FOLLOW
        return self.enter(waiter)

    # --- the background thread, as seen by the others

    def unpark(self) -> bool:
        """Called after ``leave``: whether the background thread must be woken, because nobody polls now and
        it would not notice by itself. True once per need."""
        if self.leader is not None:
            return False
        if self.background is _PARKED:
            self.background = _TICKING
            return True
        return self.demand and self.background is _TICKING

    # --- the background thread itself

    def tick(self) -> Tick:
        """A tick has passed (or the thread was woken out of it)."""
        assert self.background in (_TICKING, _PARKED), self.background
        self.background = _TICKING
        leading = self.leader is not None
        quiet = self.polls == self._seen_polls and leading is self._seen_leading
        self._seen_polls, self._seen_leading = self.polls, leading
        if not leading and (quiet or self.demand):
            self.background = _RUNNING
            return Tick.LEAD
        if leading and quiet:
            self.background = _PARKED
            return Tick.PARK
        return Tick.SLEEP

    def woke(self) -> bool:
        """The poll of the background thread has returned. True: it leads, and may handle what it saw."""
        if self.background is _POLLING:
            self.background = _RUNNING
            return True
        assert self.background is _OUSTED, self.background
        self.background = _TICKING
        return False

    def rested(self) -> tuple[bool, W | None]:
        """It has handled everything. (True, None): it polls on; (False, w): promote ``w``."""
        assert self.background is _RUNNING, self.background
        if self._followers:
            self.polls += 1
            self.background = _TICKING
            return False, self._promote()
        self.background = _POLLING
        return True, None

    def _promote(self) -> W:
        oldest = next(iter(self._followers))
        del self._followers[oldest]
        self.leader = oldest
        return oldest

    def retire(self) -> W | None:
        """The background thread ends. Returns the follower to be promoted, if it led."""
        led = self.background in (_POLLING, _RUNNING)
        self.background = _ABSENT
        return self._promote() if led and self._followers else None

    # --- for tests and reprs

    @property
    def followers(self) -> list[W]:
        """Oldest first."""
        return list(self._followers)

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself."""
        leads = self.background in (_POLLING, _RUNNING)
        assert not (leads and self.leader is not None), "two leaders"
        if self._followers:
            assert self.leader is not None or self.background is _RUNNING, "nobody can promote the followers"
        if self.background is _PARKED:
            assert self.leader is not None, "parked, and nobody polls"
        assert self.leader is None or self.leader not in self._followers, "leads and follows"
