"""The node's authority over its object store: who may write where, what lies where, who reads it. Pure.

::

   writer                                node: ExtentTable                          reader
     │ ExtentRequest ──────────────────▶ reserve capacity, or queue with a grace       │
     │ ◀──────── ExtentGrant │ Refused   (effect: create the segment)                  │
     │ writes, allocates by itself            │                                        │
     │ Sealed ─────────────────────────▶ object known ◀───────────────────────── Pin   │
     │                                   Pinned: segment, offset, length ────────────▶ │ maps, reads
     │                    owner: Free ─▶ waits for the pins ◀───────────────── Unpin   │
     │ ◀─────────────────────── Freed    the ranges are the writer's again             │
     │ ◀──────── Trim (memory is short)  SegmentsGone (unmap them) ──────────────────▶ │
     │ ExtentReturn ───────────────────▶ (effect: unlink the segment)                  │

``node.service`` feeds it messages and ``now`` and performs the effects in order (or lets
``store.authority`` do so): ``("send", worker_id, Message)``, ``("create", segment_id, name, size)``,
``("unlink", segment_id, name)``. Messages of different connections overtake each other, so a Pin or a Free
may come before the Sealed of a living writer: it waits for it. What a dead writer had written and not
reported is adopted when somebody pins it.

Where there are other nodes (``others``), a Pin may name an object of theirs. The table asks for it once, however
many wait, and the answer follows when the node's own client (whose id is the node's) has written a copy, a
*guest*, or when ``pull_failed`` says why not. Guests go when memory is needed (``evict``). The effects of this:
``("pull", object_id, location)``, ``("unpull", object_id)``: nobody waits any more; ``("freed", object_id)``: others
have a copy; ``("free_at", node_id, (object_id, …))``: for another node; ``("evicted", object_id)``.

Invariants (``check_invariants``): reserved bytes never exceed the capacity; no two live objects overlap;
nothing is given back while pinned; a segment without a writer goes once it is empty; every request is
answered by its deadline, unless it waits for a pull; a pull that was asked for and has not ended has waiters.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minray.store.book import Segment, SegmentBook
from minray.store.catalog import Catalog, Copy, SharedObject, made_by
from minray.store.segments import segment_name
from minray.wire.errors import ProtocolError
from minray.wire.messages import (
    ExtentGrant,
    ExtentRefused,
    ExtentRequest,
    ExtentReturn,
    Free,
    Freed,
    Location,
    Message,
    Narrow,
    Pin,
    Pinned,
    Sealed,
    SegmentsGone,
    Trim,
    Unpin,
)

Effect = tuple[Any, ...]
MIB = 1 << 20
TRIM_EVERY_S = 0.25  # while somebody waits for memory
ADOPT_GRACE_S = 5.0  # how long an empty segment of a dead writer waits for what it did not report
_REMEMBERED = 20_000  # ids of freed objects and of dead processes that are kept against stragglers


@dataclass(frozen=True, slots=True)
class StoreStats:
    """A snapshot of how full a store is, and with what. Sizes in bytes."""

    capacity: int
    reserved: int
    segments: int
    objects: int
    object_bytes: int
    pinned_bytes: int
    unshared_bytes: int  # in extents, but not in shared objects: private to their writers, or free there
    waiting: int
    largest: tuple[tuple[str, int, int], ...]  # (hex of object id, size, processes that read it)

    def as_info(self) -> dict[str, Any]:
        """Built-in values, for ExtentRefused."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _Request:
    worker: bytes
    request_id: int
    size: int
    since: float
    deadline: float


@dataclass(slots=True)
class _PinRequest:
    worker: bytes
    request_id: int
    answers: list[Any]
    missing: dict[int, tuple[bytes, Location]]  # position → what its writer has not reported, or is pulled
    deadline: float | None  # None: it waits for pulls only


class ExtentTable:
    """See the module. One per node; ``capacity`` in bytes, ``prefix`` starts the names of its segments."""

    def __init__(
        self,
        capacity: int,
        *,
        node_id: bytes,
        prefix: str,
        extent_size: int = 64 * MIB,
        grace_s: float = 10.0,
        others: bool = False,
    ) -> None:
        if capacity <= 0:
            raise ValueError(f"the capacity of a store is at least one byte, got {capacity}")
        segment_name(prefix, 0xFFFFFFFF)  # a prefix that is too long is an error here, not later
        self.capacity = capacity
        self.others = others  # there may be other nodes to pull from
        self._node_id = node_id
        self._prefix = prefix
        self._grace_s = grace_s
        self._book = SegmentBook(capacity, extent_size)
        self._catalog = Catalog()
        self._requests: deque[_Request] = deque()
        self._pin_requests: list[_PinRequest] = []
        self._pulling: dict[bytes, None] = {}
        self._early_frees: dict[bytes, int] = {}  # freed before its Sealed came: object → segment
        self._freed: OrderedDict[bytes, None] = OrderedDict()
        self._dead: OrderedDict[bytes, None] = OrderedDict()
        self._next_segment = 1
        self._next_trim = 0.0
        self._effects: list[Effect] = []
        self._returned: dict[bytes, list[Copy]] = {}  # of this step, by writer

    # --- entrances --------------------------------------------------------------------------------

    def handle(self, worker: bytes, message: Message, now: float) -> list[Effect]:
        """A message of ``worker`` (a core worker's id). ProtocolError if it breaks the rules above."""
        handler = _HANDLERS.get(type(message))
        if handler is None:
            raise ProtocolError(f"not a message for the object store: {type(message).__name__}")
        handler(self, worker, message, now)
        return self._done(now)

    def process_died(self, worker: bytes, now: float) -> list[Effect]:
        """Its pins, its objects and its requests end; its segments are adopted."""
        _remember(self._dead, worker)
        self._requests = deque(r for r in self._requests if r.worker != worker)
        self._pin_requests = [r for r in self._pin_requests if r.worker != worker]
        pinned, owned = self._catalog.process_died(worker)
        for segment in self._book.writer_died(worker, now + ADOPT_GRACE_S):
            for object_id in [o for o, s in self._early_frees.items() if s == segment.segment_id]:
                del self._early_frees[object_id]
        self._retry_pins(now)  # what it had not reported is adopted now
        self._drop_pulls()
        for known in pinned:
            self._settle(known)
        for known in owned:
            self._begin_free(known)
        return self._done(now)

    def create_failed(self, segment_id: int, reason: str, now: float) -> list[Effect]:
        """The "create" effect failed: instead of its grant, the requester is refused.

        The caller must not send the ExtentGrant of this segment.
        """
        segment = self._book.segments[segment_id]
        self._book.remove(segment_id)
        info = self.stats().as_info() | {"os_error": reason}
        if segment.writer is not None:
            self._send(segment.writer, ExtentRefused(segment.request_id, info))
        return self._done(now)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed; call it at ``next_deadline()``."""
        for request in [r for r in self._requests if r.deadline <= now]:
            self._requests.remove(request)
            self._refuse(request, now)
        for waiting in [w for w in self._pin_requests if w.deadline is not None and w.deadline <= now]:
            late = {o for o, _ in waiting.missing.values() if o not in self._pulling}
            self._give_up(waiting, late, lambda o: ("gone", f"{o.hex()} was never reported by its writer"))
            waiting.deadline = None
        self._pin_requests = [w for w in self._pin_requests if w.missing]
        return self._done(now)

    def next_deadline(self) -> float | None:
        """When ``tick`` has something to do; None if nothing is waiting."""
        moments = [r.deadline for r in self._requests]
        moments += [w.deadline for w in self._pin_requests if w.deadline is not None]
        if self._requests and self._book.writers():
            moments.append(self._next_trim)
        moments.extend(self._book.grace_ends())
        return min(moments, default=None)

    def shutdown(self) -> list[Effect]:
        """Unlink everything: the session ends."""
        for segment in list(self._book.segments.values()):
            self._book.segments.pop(segment.segment_id)
            self._effects.append(("unlink", segment.segment_id, segment.name))
        effects, self._effects = self._effects, []
        return effects

    # --- extents ----------------------------------------------------------------------------------

    def _on_request(self, worker: bytes, message: ExtentRequest, now: float) -> None:
        if message.size <= 0:
            raise ProtocolError(f"an extent has at least one byte, asked for {message.size}")
        request = _Request(worker, message.request_id, message.size, now, now + self._grace_s)
        hopeless = self._book.least(message.size) > self.capacity
        if hopeless or (self._grace_s <= 0 and not self._fits(request)):
            self._refuse(request, now)
        else:
            self._requests.append(request)

    def _on_return(self, worker: bytes, message: ExtentReturn, now: float) -> None:
        for segment_id in message.segment_ids:
            segment = self._book.writable_by(worker, segment_id)
            if segment.ranges:
                raise ProtocolError(f"segment {segment_id} came back with {len(segment.ranges)} objects")
            self._unlink(segment)

    def _fits(self, request: _Request) -> bool:
        if self._book.least(request.size) > self._book.available:
            for segment in self._book.abandoned(None):
                self._unlink(segment)
        return self._book.least(request.size) <= self._book.available

    def _serve(self, now: float) -> None:
        """Grant what fits, oldest first. For half of its grace a request that does not fit is overtaken;
        then it holds up the later ones, so that a stream of small ones cannot starve it."""
        left: deque[_Request] = deque()
        held_up = False
        for request in self._requests:
            if held_up or not self._fits(request):
                held_up = held_up or 2 * (now - request.since) >= request.deadline - request.since
                left.append(request)
            else:
                self._grant(request)
        self._requests = left
        if left and now >= self._next_trim:
            self._next_trim = now + TRIM_EVERY_S
            for writer in self._book.writers():
                self._send(writer, Trim())

    def _grant(self, request: _Request) -> None:
        segment_id = self._next_segment
        self._next_segment += 1
        name = segment_name(self._prefix, segment_id)
        size = self._book.grant_size(request.worker, request.size)
        self._book.add(Segment(segment_id, name, size, request.worker, request.request_id))
        self._effects.append(("create", segment_id, name, size))
        self._send(request.worker, ExtentGrant(request.request_id, segment_id, name, size))

    def _refuse(self, request: _Request, now: float) -> None:
        info = self.stats().as_info() | {"waited_s": round(now - request.since, 3)}
        self._send(request.worker, ExtentRefused(request.request_id, info))

    def _unlink(self, segment: Segment) -> None:
        self._book.remove(segment.segment_id)
        self._effects.append(("unlink", segment.segment_id, segment.name))
        for reader in segment.readers:
            if reader not in self._dead:
                self._send(reader, SegmentsGone([segment.segment_id]))

    # --- objects ----------------------------------------------------------------------------------

    def _on_sealed(self, worker: bytes, message: Sealed, now: float) -> None:
        for object_id, owner, segment_id, offset, length in message.objects:
            segment = self._book.writable_by(worker, segment_id)
            segment.occupy(object_id, offset, length)
            known = self._catalog.get(object_id)
            if worker == self._node_id:
                self._on_guest(known, object_id, (segment_id, offset, length), now)
                continue
            if known is not None and known.freeing:
                self._early_frees.pop(object_id, None)
                self._give_back([(segment_id, offset, length)])
                continue
            if self._pulling.pop(object_id, 0) is None:  # it was made once more, here
                self._effects.append(("unpull", object_id))
            known = self._catalog.add(object_id, owner, (segment_id, offset, length))
            self._freed.pop(object_id, None)
            if object_id in self._early_frees or owner in self._dead:
                self._retry_pins(now, object_id)  # they came before the end
                self._early_frees.pop(object_id, None)
                self._begin_free(known)
        if self._pin_requests:
            self._retry_pins(now)

    def _on_free(self, worker: bytes, message: Free, now: float) -> None:
        entry: tuple[Any, ...]
        for entry in message.objects:
            object_id, segment_id, offset, length = entry[:4]
            if len(entry) > 4 and entry[4] != self._node_id:  # its node, where that is not the owner's
                self._effects.append(("free_at", entry[4], entry[:4]))
                self._forget(object_id)
                continue
            known = self._catalog.get(object_id)
            reported = known is not None and (segment_id, offset, length) in known.copies
            before = known is None and object_id in self._freed
            if known is not None:
                self._begin_free(known)
            if not reported and not before and self._book.writer_of(segment_id) is not None:
                self._early_frees[object_id] = segment_id

    def _begin_free(self, known: SharedObject) -> None:
        if not known.freeing:
            known.freeing = True
            _remember(self._freed, known.object_id)
            if known.lent:
                self._effects.append(("freed", known.object_id))
        self._settle(known)

    def _settle(self, known: SharedObject) -> None:
        """Give back what nobody reads of an object, after its pins or its freedom changed."""
        if known.freeing:
            if known.object_id in self._catalog.objects:
                self._give_back(self._catalog.release(known))
        elif known.fading and not known.pins:
            self._evict(known)
        elif not known.pins and len(known.copies) > 1 and known.chosen is not None:
            self._give_back(self._catalog.drop_other_copies(known, known.chosen))

    def _give_back(self, ranges: list[Copy]) -> None:
        for segment_id, offset, length in ranges:
            segment = self._book.segments[segment_id]
            segment.vacate(offset, length)
            if segment.writer is not None:
                self._returned.setdefault(segment.writer, []).append((segment_id, offset, length))

    # --- pins -------------------------------------------------------------------------------------

    def _on_pin(self, worker: bytes, message: Pin, now: float) -> None:
        waiting = _PinRequest(worker, message.request_id, [], {}, now + self._grace_s)
        for object_id, hint in message.objects:
            waiting.missing[len(waiting.answers)] = (object_id, hint)
            waiting.answers.append(None)
        self._pin_requests.append(waiting)
        self._try_pins(waiting)
        if not waiting.missing:
            self._pin_requests.pop()
            self._answer_pins(waiting)

    def _retry_pins(self, now: float, object_id: bytes | None = None) -> None:
        for waiting in self._pin_requests:
            if object_id is None or any(object_id == o for o, _ in waiting.missing.values()):
                self._try_pins(waiting)
                if not waiting.missing:
                    self._answer_pins(waiting)
        self._pin_requests = [w for w in self._pin_requests if w.missing]

    def _try_pins(self, waiting: _PinRequest) -> None:
        for position, (object_id, hint) in list(waiting.missing.items()):
            answer = self._try_pin(waiting.worker, object_id, hint)
            if answer is not None:
                waiting.answers[position] = answer
                del waiting.missing[position]

    def _try_pin(self, worker: bytes, object_id: bytes, hint: Location) -> tuple[Any, ...] | None:
        """The answer for one object, or None: its writer lives and will report it."""
        node_id, segment_id, offset, length = hint
        known = self._catalog.get(object_id)
        if known is None:
            segment = self._book.segments.get(segment_id)
            if node_id != self._node_id and self.others and worker != self._node_id:
                if object_id not in self._pulling:
                    self._pulling[object_id] = None
                    self._effects.append(("pull", object_id, hint))
                return None
            if object_id in self._freed:
                return ("gone", "its owner freed it")
            if node_id != self._node_id or segment is None:
                return ("gone", "it is not on this node")
            if segment.writer is not None:
                return None
            if not segment.fits(offset, length):
                return ("gone", "its writer died before it was complete")
            if any(made_by(object_id, dead) for dead in self._dead):
                return ("gone", "its owner died")
            segment.occupy(object_id, offset, length)
            known = self._catalog.add(object_id, None, (segment_id, offset, length))
        elif known.freeing:
            return ("gone", "its owner freed it")
        copy = hint[1:] if hint[1:] in known.copies else known.copies[0]
        known.chosen = copy
        self._catalog.pin(known, worker)
        segment = self._book.segments[copy[0]]
        segment.readers[worker] = None
        moved = "pinned" if (self._node_id, *copy) == tuple(hint) else "moved"
        return (moved, segment.name, segment.size, (self._node_id, *copy))

    def _answer_pins(self, waiting: _PinRequest) -> None:
        self._send(waiting.worker, Pinned(waiting.request_id, waiting.answers))

    def _on_unpin(self, worker: bytes, message: Unpin, now: float) -> None:
        for object_id in message.objects:
            known = self._catalog.get(object_id)
            if known is None or not self._catalog.unpin(known, worker):
                raise ProtocolError(f"{worker.hex()} unpinned {object_id.hex()}, on which it has no pin")
            self._settle(known)

    def _on_narrow(self, worker: bytes, message: Narrow, now: float) -> None:
        for object_id, ranges in message.objects:
            known = self._catalog.get(object_id)
            if known is None or worker not in known.pins:
                raise ProtocolError(f"{worker.hex()} narrowed {object_id.hex()}, on which it has no pin")
            self._catalog.narrow(known, worker, [(start, end) for start, end in ranges])
            self._settle(known)

    # --- guests: copies of objects of other nodes ---------------------------------------------------

    def knows(self, object_id: bytes) -> bool:
        """Whether it is here, and not being freed."""
        known = self._catalog.get(object_id)
        return known is not None and not known.freeing

    def lend(self, object_id: bytes) -> None:
        """Another node asks for it: from now on "freed" will say when it is."""
        known = self._catalog.get(object_id)
        if known is not None:
            known.lent = True

    def pull_failed(self, object_id: bytes, reason: str, kind: str, now: float) -> list[Effect]:
        """A copy cannot be had. ``kind``: see ``store.holds.Gone``."""
        self._pulling.pop(object_id, None)
        self._give_up_all(object_id, ("gone", reason, kind))
        return self._done(now)

    def forget(self, object_id: bytes, now: float) -> list[Effect]:
        """The node that it came from says that its owner has freed it."""
        self._forget(object_id)
        return self._done(now)

    def fade(self, object_id: bytes, now: float) -> list[Effect]:
        """Nobody will tell us when this guest is freed: it goes as soon as nobody reads it."""
        known = self._catalog.get(object_id)
        if known is not None and known.guest:
            known.fading = True
            self._settle(known)
        return self._done(now)

    @property
    def is_short(self) -> bool:
        """Whether somebody waits for memory."""
        return bool(self._requests)

    def evict(self, now: float) -> list[Effect]:
        """Let guests go that nobody reads, as many as whoever waits for memory needs; [] if there are none."""
        short = sum(self._book.least(request.size) for request in self._requests) - self._book.available
        victims: list[SharedObject] = []
        for known in self._catalog.evictable():
            if short <= 0:
                break
            victims.append(known)
            short -= known.copies[0][2]
        for known in victims:
            self._evict(known)
        return self._done(now) if victims else []

    def _evict(self, known: SharedObject) -> None:
        self._effects.append(("evicted", known.object_id))
        self._give_back(self._catalog.end(known))

    def _forget(self, object_id: bytes) -> None:
        """It was freed where it comes from."""
        known = self._catalog.get(object_id)
        if known is not None:
            if known.guest:
                self._begin_free(known)
        elif object_id in self._pulling:
            del self._pulling[object_id]
            self._effects.append(("unpull", object_id))
            self._give_up_all(object_id, ("gone", "its owner freed it"))

    def _on_guest(self, known: SharedObject | None, object_id: bytes, copy: Copy, now: float) -> None:
        """The node's own client has written what was pulled."""
        self._pulling.pop(object_id, None)
        if known is not None:  # made here meanwhile
            self._give_back([copy])
        else:
            self._catalog.add_guest(object_id, copy)
        self._retry_pins(now, object_id)

    def _give_up_all(self, object_id: bytes, answer: tuple[Any, ...]) -> None:
        for waiting in self._pin_requests:
            self._give_up(waiting, {object_id}, lambda _: answer)
        self._pin_requests = [w for w in self._pin_requests if w.missing]

    def _give_up(
        self, waiting: _PinRequest, objects: set[bytes], answer: Callable[[bytes], tuple[Any, ...]]
    ) -> None:
        """These will not come; answers the request if that was all it has waited for."""
        positions = [p for p, (object_id, _) in waiting.missing.items() if object_id in objects]
        for position in positions:
            waiting.answers[position] = answer(waiting.missing.pop(position)[0])
        if positions and not waiting.missing:
            self._answer_pins(waiting)

    def _drop_pulls(self) -> None:
        """Some who waited are gone."""
        if self._pulling:
            wanted = {object_id for w in self._pin_requests for object_id, _ in w.missing.values()}
            for object_id in [o for o in self._pulling if o not in wanted]:
                del self._pulling[object_id]
                self._effects.append(("unpull", object_id))

    # --- the end of every step --------------------------------------------------------------------

    def _send(self, worker: bytes, message: Message) -> None:
        self._effects.append(("send", worker, message))

    def _done(self, now: float) -> list[Effect]:
        for segment in self._book.abandoned(now):
            self._unlink(segment)
        for writer, ranges in self._returned.items():
            self._send(writer, Freed([(s, o, n) for s, o, n in ranges]))
        if self._returned:
            self._returned = {}
            self._next_trim = now  # something may be empty now
        if self._requests:
            self._serve(now)
        effects, self._effects = self._effects, []
        return effects

    @property
    def reserved(self) -> int:
        """Bytes that nobody else can have at this moment."""
        return self._book.reserved

    def stats(self) -> StoreStats:
        """How full the store is, and with what."""
        pinned = [known for known in self._catalog.objects.values() if known.pins]
        by_size = sorted(self._catalog.objects.values(), key=lambda k: -k.copies[0][2])[:3]
        return StoreStats(
            capacity=self.capacity,
            reserved=self._book.reserved,
            segments=len(self._book.segments),
            objects=len(self._catalog),
            object_bytes=self._catalog.bytes,
            pinned_bytes=sum(known.copies[0][2] for known in pinned),
            unshared_bytes=self._book.reserved - self._catalog.bytes,
            waiting=len(self._requests),
            largest=tuple((k.object_id.hex(), k.copies[0][2], len(k.pins)) for k in by_size),
        )

    def check_invariants(self) -> None:
        """AssertionError if the store is not what this module promises."""
        self._book.check_invariants()
        self._catalog.check_invariants()
        expected: dict[int, list[tuple[int, int]]] = {}
        for known in self._catalog.objects.values():
            if known.remaining is not None:
                segment_id, offset, _ = known.copies[0]
                for start, end in known.remaining:
                    expected.setdefault(segment_id, []).append((offset + start, end - start))
            else:
                for segment_id, offset, length in known.copies:
                    expected.setdefault(segment_id, []).append((offset, length))
        for segment_id, segment in self._book.segments.items():
            assert sorted(expected.pop(segment_id, [])) == segment.occupied(), f"segment {segment_id}"
        assert not expected, f"objects in segments that are gone: {expected}"
        assert all(waiting.missing for waiting in self._pin_requests)
        wanted = {object_id for w in self._pin_requests for object_id, _ in w.missing.values()}
        assert set(self._pulling) <= wanted, "a pull for nobody"
        assert not self._effects and not self._returned


def _remember(ids: OrderedDict[bytes, None], item: bytes) -> None:
    ids[item] = None
    if len(ids) > _REMEMBERED:
        ids.popitem(last=False)


_HANDLERS: dict[type[Message], Any] = {
    ExtentRequest: ExtentTable._on_request,
    ExtentReturn: ExtentTable._on_return,
    Sealed: ExtentTable._on_sealed,
    Free: ExtentTable._on_free,
    Pin: ExtentTable._on_pin,
    Unpin: ExtentTable._on_unpin,
    Narrow: ExtentTable._on_narrow,
}
