"""What this node fetches from others: which object, from which copy, in which order. Pure.

::

    want ─▶ QUEUED ─(lane has room)─▶ ROOM ─(reserved)─▶ ASKED ─PullGranted─▶ RECEIVING ─(all is here)─▶ guest
                                                          ▲ │ PullRefused("ask …"): ask that one  │
                            ┌──────(later)── RESTING ◀────┼─┘                                     │
                            └─────────────────────────────┴──────(source lost: another copy) ◀────┘
      unwanted, stalled ─▶ STOPPING until nobody writes to the room ─▶ given back, or asked for again

The node that a location names is the object's *home*: where it was made, and where it is known who has copies
(``lending``). It is asked first, whatever happens; it lends the object itself or names somebody who has all of it.
What has been received stays: another copy goes on from there, if its version (see ``lending``) is the same.
When its home is dead and the home has named nobody, the other nodes are asked one by one, at most SEARCHED: the list
of copies has died with the home, the copies have not.

There is one pull per object, however many wait (the store asks once). Small objects and large ones start in order
of arrival in a lane of their own, so that a gigabyte does not hold up everybody; each lane has a bound of bytes,
which only a single larger object exceeds. The home hears whether we have a copy (PullDone) or not, or no longer
(PullRefused, from us): it will tell us when the object is freed. A guest whose home we have lost touch with stays
for as long as memory lasts; but if that home turns out to live, it goes once nobody reads it, for nobody will say
when it is freed.

Called by ``service``, which performs: ``("reserve", object_id, number, size)``, ``("release", number)``: the room;
``("send", node_id, Message)``; ``("receive", object_id, number, request, node_id, ticket, offset)``,
``("stop", object_id)``; and to the store ``("seal", object_id, number, version)``,
``("failed", object_id, reason, kind)``, ``("fade", object_id)``.

Invariants (``check_invariants``): bytes in flight of a lane are the sum of its started pulls, and bounded; a pull
has a room from ROOM's end on until it is sealed or released; an open request belongs to one pull.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from minray.node.transfers.wording import DROPPED, NOT_WANTED, kind_of, nodes_to_ask
from minray.wire.messages import Location, Message, PullDone, PullObject, PullRefused

Effect = tuple[Any, ...]
MIB = 1 << 20
SMALL = 16 * MIB  # objects up to that size go in the lane of the small ones
LANE_BYTES = 256 * MIB  # in flight, per lane
LANE_PULLS = 16  # started, per lane
STALL_S = 20.0  # a source from which nothing has come for so long is lost
REST_S = 0.2  # before the same node is asked again; grows with each time
TRIES = 6  # questions in a row that brought nothing
SEARCHED = 64  # nodes that are asked for an object whose home is dead

QUEUED, ROOM, ASKED, RECEIVING, RESTING, STOPPING = "queued", "room", "asked", "receiving", "resting", "stopping"


@dataclass(slots=True, eq=False)
class Pull:
    """One object on its way."""

    object_id: bytes
    location: Location
    number: int
    state: str = QUEUED
    has_room: bool = False
    request: int = 0  # the open question, or the grant that is being received
    source: bytes = b""  # whom it went to
    home_request: int = 0  # the question at home that led to it; may be the same
    version: bytes = b""  # of what has been received
    received: int = 0
    others: list[bytes] = field(default_factory=list)  # who else is said to have a copy
    tries: int = 0
    due: float = 0.0  # RECEIVING: when it counts as stalled; RESTING: when it is asked again
    wanted: bool = True
    cut: bool = False  # STOPPING: because the connection to the source is lost
    homeless: bool = False  # its home is gone for good
    searched: bool = False  # … and all others are in ``others``, or have been asked
    why: str = ""  # what went wrong last
    why_lost: str = ""  # … before the others were asked

    @property
    def home(self) -> bytes:
        """The node that the location names."""
        return self.location[0]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.location[3]


class Lane:
    """Pulls of about one size: who waits, and what is in flight."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.queue: deque[Pull] = deque()
        self.started: dict[bytes, Pull] = {}
        self.bytes = 0

    def next(self) -> Pull | None:
        """The next one to start, now in flight; None if it has to wait."""
        queue, started = self.queue, self.started
        if not queue or len(started) >= LANE_PULLS or (started and self.bytes + queue[0].size > self.limit):
            return None
        pull = queue.popleft()
        started[pull.object_id] = pull
        self.bytes += pull.size
        return pull

    def leave(self, pull: Pull) -> None:
        """It is over, whether it had started or not."""
        if self.started.pop(pull.object_id, None) is not None:
            self.bytes -= pull.size
        elif pull in self.queue:
            self.queue.remove(pull)


class Pulls:
    """See the module. ``node_id``: ours. ``living``: the other nodes, as far as we know."""

    def __init__(
        self,
        node_id: bytes,
        *,
        living: Callable[[], Iterable[bytes]] = tuple,
        lane_bytes: int = LANE_BYTES,
        stall_s: float = STALL_S,
    ) -> None:
        self._node_id = node_id
        self._living = living
        self._stall_s = stall_s
        self._pulls: dict[bytes, Pull] = {}
        self._requests: dict[int, Pull] = {}  # open questions and grants
        self._lanes = (Lane(lane_bytes), Lane(lane_bytes))
        self._guests: dict[bytes, tuple[bytes, int]] = {}  # object → home, request there (0: out of touch)
        self._lost_touch: dict[bytes, dict[bytes, None]] = {}  # home → its guests here
        self._last = 0
        self._effects: list[Effect] = []

    def __len__(self) -> int:
        return len(self._pulls)

    # --- the store's side -------------------------------------------------------------------------

    def want(self, object_id: bytes, location: Location, now: float) -> list[Effect]:
        """Somebody here waits for it."""
        pull = self._pulls.get(object_id)
        if pull is not None:
            pull.wanted = True
            return []
        self._last += 1
        pull = self._pulls[object_id] = Pull(object_id, location, self._last)
        self._lane(pull).queue.append(pull)
        return self._done()

    def unwanted(self, object_id: bytes, now: float) -> list[Effect]:
        """Nobody waits any more."""
        pull = self._pulls.get(object_id)
        if pull is not None:
            pull.wanted = False
            if pull.state == RECEIVING:
                self._stop(pull, NOT_WANTED)
            elif pull.state != STOPPING:
                self._close_requests(pull, NOT_WANTED)
                self._end(pull)
        return self._done()

    def reserved(self, object_id: bytes, number: int, error: str, now: float) -> list[Effect]:
        """There is room for it; or, with an ``error``, there is none. False room is given back."""
        pull = self._pulls.get(object_id)
        if pull is None or pull.number != number:
            if not error:
                self._effects.append(("release", number))
        elif error:
            self._fail(pull, f"there is no room on this node for a copy of it: {error}", "full")
        else:
            pull.has_room = True
            self._ask(pull, pull.home)
        return self._done()

    def evicted(self, object_id: bytes) -> list[Effect]:
        """The store let our copy go: its home need not tell us any more, nor send others here."""
        home, request = self._guests.pop(object_id, (b"", 0))
        if request:
            self._send(home, PullRefused(request, DROPPED))
        elif home:
            self._touch(home, object_id)
        return self._done()

    def freed(self, object_id: bytes) -> None:
        """Its owner has freed it, and the store knows."""
        home, request = self._guests.pop(object_id, (b"", 0))
        if home and not request:
            self._touch(home, object_id)

    # --- answers ----------------------------------------------------------------------------------

    def granted(
        self, node_id: bytes, request: int, size: int, ticket: bytes, version: bytes, others: list[bytes], now: float
    ) -> list[Effect]:
        """A source has pinned it for us. ``others``: more nodes with a copy."""
        pull = self._answered(node_id, request)
        if pull is None:
            self._send(node_id, PullRefused(request, NOT_WANTED))
        elif size != pull.size:
            why = f"it has {size} bytes there and should have {pull.size}"
            self._send(node_id, PullRefused(request, why))
            self._source_lost(pull, why, now)
        else:
            if version != pull.version:
                pull.version, pull.received = version, 0
            rest = pull.others if pull.homeless else []
            pull.others = [one for one in dict.fromkeys([*others, *rest]) if one not in (self._node_id, node_id)]
            pull.state, pull.due = RECEIVING, now + self._stall_s
            self._effects.append(
                ("receive", pull.object_id, pull.number, request, node_id, ticket, pull.received)
            )
        return self._done()

    def refused(self, node_id: bytes, request: int, reason: str, now: float) -> list[Effect]:
        """It cannot be had there; or its home says who has it."""
        pull = self._answered(node_id, request)
        if pull is None:
            return self._done()
        others = [one for one in nodes_to_ask(reason) if one != self._node_id]
        if node_id == pull.home and others:
            pull.others = others
            self._ask(pull, pull.others.pop(0))
        elif node_id == pull.home:
            self._forget_request(pull)
            self._fail(pull, reason, kind_of(reason))
        else:
            self._forget_request(pull)
            self._source_lost(pull, reason, now)
        return self._done()

    def _answered(self, node_id: bytes, request: int) -> Pull | None:
        self._heard(node_id)
        pull = self._requests.get(request)
        if pull is None or pull.state != ASKED or pull.request != request or pull.source != node_id:
            return None
        return pull

    # --- bytes ------------------------------------------------------------------------------------

    def progress(self, object_id: bytes, received: int, now: float) -> None:
        """So much of it is here by now."""
        pull = self._pulls.get(object_id)
        if pull is not None and pull.state == RECEIVING and received > pull.received:
            pull.received, pull.tries, pull.due = received, 0, now + self._stall_s

    def ended(self, object_id: bytes, received: int, reason: str, now: float, *, full: bool = False) -> list[Effect]:
        """Nobody writes to the room any more: all is here, or ``reason`` says why not."""
        pull = self._pulls[object_id]
        if received > pull.received:
            pull.received, pull.tries = received, 0
        if pull.received == pull.size and not reason:
            self._finish(pull)
        elif full:
            self._close_requests(pull, reason)
            self._fail(pull, f"there is no room on this node for a copy of it: {reason}", "full")
        else:
            if pull.request:  # else its connection is lost, and with it the request
                self._send(pull.source, PullRefused(pull.request, pull.why or reason))
                self._forget_request(pull)
            if pull.wanted:
                self._source_lost(pull, pull.why or reason, now, cut=pull.cut)
            else:
                self._close_requests(pull, NOT_WANTED)
                self._end(pull)
        return self._done()

    def receiving(self) -> list[bytes]:
        """Those whose progress matters before a ``tick``."""
        return [pull.object_id for lane in self._lanes for pull in lane.started.values() if pull.state == RECEIVING]

    # --- nodes ------------------------------------------------------------------------------------

    def link_lost(self, node_id: bytes, reason: str, now: float, *, gone: bool = False) -> list[Effect]:
        """The connection to that node is lost, and with it all requests there; ``gone``: the node is dead."""
        for pull in list(self._pulls.values()):
            if gone and pull.home == node_id:
                pull.homeless = True
            if pull.home == node_id and pull.home_request != pull.request:
                self._requests.pop(pull.home_request, None)
                pull.home_request = 0
            if pull.source == node_id and pull.request:
                self._forget_request(pull)
                if pull.state == RECEIVING:
                    self._stop(pull, reason)
                    pull.cut = True
                elif pull.state == ASKED:
                    self._source_lost(pull, reason, now, cut=True)
        for object_id, (home, request) in self._guests.items():
            if home == node_id and request:
                self._guests[object_id] = (home, 0)
                self._lost_touch.setdefault(home, {})[object_id] = None
        if gone:
            self._lost_touch.pop(node_id, None)
        return self._done()

    def tick(self, now: float) -> list[Effect]:
        """Time has passed; call it at ``next_deadline()``, after ``progress``."""
        for lane in self._lanes:
            for pull in list(lane.started.values()):
                if pull.state == RECEIVING and pull.due <= now:
                    self._stop(pull, f"nothing has come from there for {self._stall_s:g} s")
                elif pull.state == RESTING and pull.due <= now:
                    self._ask(pull, pull.home)
        return self._done()

    def next_deadline(self) -> float | None:
        """When ``tick`` has something to do."""
        moments = [
            pull.due for lane in self._lanes for pull in lane.started.values() if pull.state in (RECEIVING, RESTING)
        ]
        return min(moments, default=None)

    # --- inside -----------------------------------------------------------------------------------

    def _lane(self, pull: Pull) -> Lane:
        return self._lanes[pull.size > SMALL]

    def _send(self, node_id: bytes, message: Message) -> None:
        self._effects.append(("send", node_id, message))

    def _ask(self, pull: Pull, node_id: bytes) -> None:
        self._last += 1
        pull.state, pull.source, pull.request, pull.why = ASKED, node_id, self._last, ""
        pull.cut = False
        if node_id == pull.home:
            pull.home_request = self._last
        self._requests[self._last] = pull
        self._send(node_id, PullObject(self._last, pull.object_id, pull.location))

    def _forget_request(self, pull: Pull) -> None:
        """The open one needs no more words."""
        self._requests.pop(pull.request, None)
        if pull.home_request == pull.request:
            pull.home_request = 0
        pull.request = 0

    def _close_requests(self, pull: Pull, reason: str) -> None:
        """Whoever was asked hears that we have no copy."""
        for node_id, request in self._open(pull):
            del self._requests[request]
            self._send(node_id, PullRefused(request, reason))
        pull.request = pull.home_request = 0

    def _open(self, pull: Pull) -> list[tuple[bytes, int]]:
        asked = dict.fromkeys([(pull.source, pull.request), (pull.home, pull.home_request)])
        return [(node_id, request) for node_id, request in asked if request]

    def _source_lost(self, pull: Pull, why: str, now: float, *, cut: bool = False) -> None:
        """Nothing (more) comes from there. The home may know somebody; without it (``cut``: its connection is
        lost) we try whom it has named; or the same again a little later."""
        if pull.request:
            self._forget_request(pull)
        if pull.home_request:  # another one was to send it: let the home think again
            self._send(pull.home, PullRefused(pull.home_request, why))
            self._requests.pop(pull.home_request)
            pull.home_request = 0
        pull.why = why
        pull.tries += not pull.searched  # then each is asked once, and that is the end
        if pull.homeless and not pull.others and not pull.searched:
            self._search(pull)
        if pull.tries > TRIES:
            self._fail_lost(pull)
        elif pull.others and (pull.homeless or (cut and pull.source == pull.home)):
            self._ask(pull, pull.others.pop(0))
        elif pull.homeless:
            self._fail_lost(pull)
        elif pull.source != pull.home:
            self._ask(pull, pull.home)
        else:
            pull.state, pull.due = RESTING, now + REST_S * pull.tries

    def _search(self, pull: Pull) -> None:
        """Its home is dead. Others may have copies that were made before."""
        pull.searched, pull.why_lost = True, pull.why
        living = (one for one in self._living() if one not in (self._node_id, pull.home))
        pull.others = list(islice(living, SEARCHED))

    def _fail_lost(self, pull: Pull) -> None:
        where, why = f"node {pull.home.hex()[:8]}", pull.why_lost or pull.why
        self._fail(pull, f"no copy of it could be fetched, from {where} or another: {why}", "lost")

    def _fail(self, pull: Pull, reason: str, kind: str) -> None:
        self._effects.append(("failed", pull.object_id, reason, kind))
        self._end(pull)

    def _stop(self, pull: Pull, why: str) -> None:
        pull.state, pull.why = STOPPING, why
        self._effects.append(("stop", pull.object_id))

    def _finish(self, pull: Pull) -> None:
        for node_id, request in self._open(pull):
            del self._requests[request]
            self._send(node_id, PullDone(request))
        self._guests[pull.object_id] = (pull.home, pull.home_request)
        if not pull.home_request and not pull.homeless:
            self._lost_touch.setdefault(pull.home, {})[pull.object_id] = None
        pull.request = pull.home_request = 0
        self._effects.append(("seal", pull.object_id, pull.number, pull.version))
        pull.has_room = False
        self._end(pull)

    def _end(self, pull: Pull) -> None:
        del self._pulls[pull.object_id]
        self._lane(pull).leave(pull)
        if pull.has_room:
            self._effects.append(("release", pull.number))

    def _heard(self, node_id: bytes) -> None:
        """That node lives. Of guests that came from it before our connection broke it knows nothing any more."""
        for object_id in self._lost_touch.pop(node_id, ()):
            self._effects.append(("fade", object_id))

    def _touch(self, home: bytes, object_id: bytes) -> None:
        lost = self._lost_touch.get(home)
        if lost is not None:
            lost.pop(object_id, None)
            if not lost:
                del self._lost_touch[home]

    def _done(self) -> list[Effect]:
        for lane in self._lanes:
            while (pull := lane.next()) is not None:
                pull.state = ROOM
                self._effects.append(("reserve", pull.object_id, pull.number, pull.size))
        effects, self._effects = self._effects, []
        return effects

    def check_invariants(self) -> None:
        """AssertionError if the books disagree."""
        for lane in self._lanes:
            assert lane.bytes == sum(pull.size for pull in lane.started.values())
            assert len(lane.started) <= LANE_PULLS
            assert lane.bytes <= lane.limit or len(lane.started) == 1, f"{lane.bytes} bytes in flight"
            assert all(pull.state == QUEUED for pull in lane.queue)
        for object_id, pull in self._pulls.items():
            assert pull.object_id == object_id
            lane = self._lane(pull)
            assert (object_id in lane.started) != (pull in lane.queue)
            assert pull.has_room == (pull.state not in (QUEUED, ROOM)), f"{pull.state}, room: {pull.has_room}"
            for request in (pull.request, pull.home_request):
                assert not request or self._requests[request] is pull
            if pull.state == ASKED:
                assert pull.request
        assert set(self._requests) == {
            request for p in self._pulls.values() for request in (p.request, p.home_request) if request
        }
        for home, lost in self._lost_touch.items():
            assert lost and all(self._guests[object_id] == (home, 0) for object_id in lost)
        assert not self._effects
