"""Who gets memory, in which order, and how it is made when there is none. Pure; a part of ``ExtentTable``.

::

    ExtentRequest ─▶ queue ─(fits)─▶ ExtentGrant
                       │ does not fit
                       ▼
        Trim to all writers ──▶ they return what is empty, report what is private, say Trimmed
                       │ all have answered, or ANSWER_S is over; still short
                       ▼
        guests go, then what is on disk, too ──▶ their writers return … ─▶ again
                       │ there is none
                       ▼
        the least recently read go to disk (effect "spill") ──▶ spilled() ─▶ their ranges are given back ─▶ again
                       │ everything is pinned, or the disk is full
                       ▼
        whoever waits for several objects, and is not first, lets go of those that it has ("parked")
                       │ nothing has moved for the grace
                       ▼
                  ExtentRefused

Requests are served in order of arrival while something moves. When nothing does, a request is overtaken for half of
its grace by smaller ones. Each progress of the disk starts the grace anew, and while it writes or reads, however
slowly, nobody is refused: that happens only when, for all of a grace, everything was pinned or the disk was full.
Memory comes free by whole segments, or, for the writer that asks, by ranges of its own; so a segment of which all can
go is emptied before single objects of others are.

Effects: ``("spill", number, [(object_id, segment name, its size, offset, length), …])``: write them, in this order, to
one file, then call ``spilled`` or ``spill_failed``; ``("unspill", number)``: that file is not needed;
``("restore", object_id, (number, offset), length)``: the node's restorer (a client whose id is ``restorer_id``) is to
write it into the store, between ``read_began`` and ``read_ended``, or ``restore_failed``. With ``spills`` False nothing
is ever written to disk.

While something is on disk, room for one object is kept for the restorer (``_kept_from``), also from writers who would
use at once what they get back (``_is_wanted``). Once something had to go to disk, more is written before anybody asks
(``_write_ahead``), so that the next ones need not wait for the disk; it stays in memory until then.

Invariants: reserved bytes never exceed the capacity; nothing is spilled or dropped while pinned; at most
MAX_WRITING bytes are on their way to the disk, but for one larger object.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from minray.store.book import Segment, SegmentBook
from minray.store.catalog import Catalog, Copy, SharedObject
from minray.store.segments import segment_name
from minray.store.spilling import BOTH, FUSE, MAX_WRITING, SpillBook
from minray.wire.errors import ProtocolError
from minray.wire.messages import (
    ExtentCancel,
    ExtentGrant,
    ExtentRefused,
    ExtentRequest,
    ExtentReturn,
    Freed,
    Message,
    SegmentsGone,
    Trim,
    Trimmed,
)

Effect = tuple[Any, ...]
MIB = 1 << 20
TRIM_EVERY_S = 0.25  # while somebody waits for memory
ANSWER_S = 0.25  # how long a writer may take to answer a Trim before we go on without it
DISK_AGAIN_S = 1.0  # after a failure to write
SPILL_SHARE = 8  # at least this part of the store goes to disk at a time, or FUSE bytes
_REMEMBERED = 20_000  # ids of freed objects and of dead processes that are kept against stragglers


@dataclass(frozen=True, slots=True)
class StoreStats:
    """A snapshot of how full a store is, and with what. Sizes in bytes."""

    capacity: int
    reserved: int
    segments: int
    objects: int  # shared ones, in memory or on disk
    object_bytes: int  # of these, in memory
    pinned_bytes: int
    unshared_bytes: int  # in extents, but not in shared objects: private to their writers, or free there
    waiting: int
    on_disk: int  # bytes on disk now
    spilled_objects: int  # these four: in all
    spilled_bytes: int
    restored_objects: int
    restored_bytes: int
    disk_error: str  # why the last attempt to write to disk failed; "": it did not
    largest: tuple[tuple[str, int, int], ...]  # (hex of object id, size, processes that read it)

    def as_info(self) -> dict[str, Any]:
        """Built-in values, for ExtentRefused."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Request:
    """One process waits for an extent."""

    worker: bytes
    request_id: int
    size: int
    since: float
    deadline: float


class Admission:
    """See the module. The arguments are described in ``ExtentTable``."""

    def __init__(
        self, capacity: int, *, node_id: bytes, prefix: str, extent_size: int, grace_s: float, spills: bool
    ) -> None:
        if capacity <= 0:
            raise ValueError(f"the capacity of a store is at least one byte, got {capacity}")
        segment_name(prefix, 0xFFFFFFFF)  # a prefix that is too long is an error here, not later
        self.capacity = capacity
        self.spills = spills
        self.restorer_id = node_id[:-1] + bytes([node_id[-1] ^ 0xFF])
        self._prefix = prefix
        self._grace_s = grace_s
        self._book = SegmentBook(capacity, extent_size)
        self._catalog = Catalog()
        self._spills = SpillBook()
        self._requests: deque[Request] = deque()
        self._dead: OrderedDict[bytes, None] = OrderedDict()
        self._next_segment = 1
        self._next_trim = 0.0
        self._owing: dict[bytes, int] = {}  # writer → how many Trims it has not answered
        self._owing_until = 0.0
        self._disk_error = ""
        self._disk_again: float | None = None  # after an error: not before that
        self.ahead = min(FUSE, capacity // SPILL_SHARE)  # bytes that could go at once, once something had to
        self._effects: list[Effect] = []
        self._returned: dict[bytes, list[Copy]] = {}  # of this step, by writer

    # --- requests and returns -----------------------------------------------------------------------

    def _on_request(self, worker: bytes, message: ExtentRequest, now: float) -> None:
        if message.size <= 0:
            raise ProtocolError(f"an extent has at least one byte, asked for {message.size}")
        request = Request(worker, message.request_id, message.size, now, now + self._wait_s())
        hopeless = self._book.least(message.size) > self.capacity
        if hopeless or (self._grace_s <= 0 and not self.spills and not self._fits(request)):
            self._refuse(request, now)
        else:
            self._requests.append(request)

    def _on_cancel(self, worker: bytes, message: ExtentCancel, now: float) -> None:
        for request in self._requests:
            if request.worker == worker and request.request_id == message.request_id:
                self._requests.remove(request)
                return

    def _on_return(self, worker: bytes, message: ExtentReturn, now: float) -> None:
        for segment_id in message.segment_ids:
            segment = self._book.writable_by(worker, segment_id)
            if segment.ranges:
                raise ProtocolError(f"segment {segment_id} came back with {len(segment.ranges)} objects")
            self._unlink(segment)

    def _on_trimmed(self, worker: bytes, message: Trimmed, now: float) -> None:
        owed = self._owing.pop(worker, 0) - 1
        if owed > 0:
            self._owing[worker] = owed

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

    def _tick_requests(self, now: float) -> None:
        late = [request for request in self._requests if request.deadline <= now]
        if late and self.spills:
            self._make_room(now)  # whatever the writers still owe
        moves = bool(self._returned) or bool(self._spills.writing) or bool(self._spills.reads)
        for request in late:
            if moves:
                request.deadline = now + self._wait_s()
            elif request in self._requests:  # else it has just got what was kept
                self._requests.remove(request)
                self._refuse(request, now)

    def _wait_s(self) -> float:
        """How long a request waits while nothing moves: if there is a disk, at least until every writer was asked once
        more and may have answered."""
        return max(self._grace_s, TRIM_EVERY_S + ANSWER_S) if self.spills else self._grace_s

    def _moves(self) -> bool:
        """Whether something is under way that may make room."""
        if not self.spills:
            return False
        return bool(self._spills.writing) or bool(self._owing)

    def _moments(self) -> Iterator[float]:
        """When something is due."""
        for request in self._requests:
            yield request.deadline
        if not self._requests:
            return
        if self._book.writers():
            yield self._next_trim
        if self._owing and self.spills:
            yield self._owing_until
        if self._disk_again is not None:
            yield self._disk_again

    def _fits(self, request: Request) -> bool:
        needed = self._book.least(request.size) + self._kept_from(request)
        if needed > self._book.available:
            for segment in self._book.abandoned(None):
                self._unlink(segment)
        return needed <= self._book.available

    def _kept_from(self, request: Request) -> int:
        """Bytes that this request must leave free: with something on disk, the restorer can always bring an object
        back. Otherwise, once the disk is full, nothing could be read any more."""
        if not self._spills.on_disk or request.worker == self.restorer_id:
            return 0
        kept = min(self._book.least(self._spills.largest), self.capacity // 4)
        return max(0, min(kept, self.capacity - self._book.least(request.size)))

    def _serve(self, now: float) -> None:
        """Grant what fits, oldest first, then see to what is missing. While nothing moves, a request that does not
        fit is overtaken for half of its grace; then it holds up the later ones, so that a stream of small ones
        cannot starve it."""
        left: deque[Request] = deque()
        held_up = False
        for request in self._requests:
            if held_up or not self._fits(request):
                waits = self._moves() or 2 * (now - request.since) >= request.deadline - request.since
                held_up = held_up or waits
                left.append(request)
            else:
                self._grant(request)
        self._requests = left
        if not left:
            return
        if self._disk_again is not None and now >= self._disk_again:
            self._disk_again = None
        late = bool(self._owing) and now >= self._owing_until
        if late:
            self._owing.clear()  # whoever has not answered is stopped, or busy: it does so when it can
        if now >= self._next_trim:
            self._next_trim = now + TRIM_EVERY_S
            for writer in self._book.writers():
                self._send(writer, Trim())
                self._owing[writer] = self._owing.get(writer, 0) + 1
            self._owing_until = now + ANSWER_S
        if self.spills and (late or not self._owing):
            self._make_room(now)

    def _grant(self, request: Request) -> None:
        segment_id = self._next_segment
        self._next_segment += 1
        name = segment_name(self._prefix, segment_id)
        size = self._book.grant_size(request.worker, request.size, self._kept_from(request))
        self._book.add(Segment(segment_id, name, size, request.worker, request.request_id))
        self._effects.append(("create", segment_id, name, size))
        self._send(request.worker, ExtentGrant(request.request_id, segment_id, name, size))

    def _refuse(self, request: Request, now: float) -> None:
        info = self.stats().as_info() | {"waited_s": round(now - request.since, 3)}
        if self._book.least(request.size) > self.capacity or next(self._catalog.spillable(), None) is None:
            info["disk_error"] = ""  # a disk with room would not have helped
        self._send(request.worker, ExtentRefused(request.request_id, info))

    def _unlink(self, segment: Segment) -> None:
        self._book.remove(segment.segment_id)
        self._effects.append(("unlink", segment.segment_id, segment.name))
        for reader in segment.readers:
            if reader not in self._dead:
                self._send(reader, SegmentsGone([segment.segment_id]))

    def _give_back(self, ranges: list[Copy]) -> None:
        for segment_id, offset, length in ranges:
            segment = self._book.segments[segment_id]
            segment.vacate(offset, length)
            if segment.writer is not None:
                self._returned.setdefault(segment.writer, []).append((segment_id, offset, length))

    # --- making room ------------------------------------------------------------------------------------

    @property
    def is_short(self) -> bool:
        """Whether somebody waits for memory."""
        return bool(self._requests)

    def _short(self) -> int:
        """How many bytes those who wait need that are not free."""
        needed = sum(self._book.least(request.size) for request in self._requests)
        kept = max((self._kept_from(request) for request in self._requests), default=0)
        return needed + kept - self._book.available

    def evict(self, now: float) -> list[Effect]:
        """Let go what is elsewhere, too, as much as whoever waits for memory needs; [] if there is nothing."""
        return self._done(now) if self._evict_some(self._short()) else []

    def _evict_some(self, short: int) -> bool:
        victims: list[SharedObject] = []
        for known in self._catalog.evictable():
            if short <= 0:
                break
            victims.append(known)
            short -= known.size
        for known in victims:
            self._evict(known)
        return bool(victims)

    def _evict(self, known: SharedObject) -> None:
        if known.guest:
            self._effects.append(("evicted", known.object_id))
            self._give_back(self._catalog.end(known))
        else:
            self._give_back(self._catalog.drop_memory(known))

    def _make_room(self, now: float) -> None:
        """The writers have returned what they could."""
        short = self._short() - self._spills.writing
        if short <= 0 or self._keep_one_of_each() or self._evict_some(short):
            return
        if self._disk_again is not None:
            return
        if not self._write(short) and not self._spills.writing:
            if self._park():
                self._make_room(now)
            elif not self._disk_error:
                self._use_what_is_kept()

    def _write(self, short: int) -> bool:
        """Have objects written to disk; False if there are none that could be."""
        files = self._spills.begin((known.object_id, known.size) for known in self._victims(short))
        for file in files:
            what = []
            for object_id in file.objects:
                known = self._catalog.objects[object_id]
                segment_id, offset, length = known.copies[0]
                segment = self._book.segments[segment_id]
                what.append((object_id, segment.name, segment.size, offset, length))
                self._catalog.spill(known, file.number)
            self._effects.append(("spill", file.number, what))
        return bool(files)

    def _write_ahead(self) -> None:
        """Nobody waits, but soon somebody will: what is on disk by then can go at once."""
        spills, missing = self._spills, self.ahead - self._book.available
        if not spills.on_disk or spills.writing or missing <= 0 or self._disk_error:
            return
        for known in self._catalog.evictable():
            missing -= known.size
            if missing <= 0:
                return
        self._write(0)

    def _keep_one_of_each(self) -> bool:
        """Of what was made more than once, the newest, which its owner knows, if no reader has named another one."""
        doubled = self._catalog.doubled()
        for known in doubled:
            self._give_back(self._catalog.drop_other_copies(known, known.chosen or known.copies[-1]))
        return bool(doubled)

    def _use_what_is_kept(self) -> None:
        """Nothing else can go, and the disk would take more: the restorer's room is better used than a refusal."""
        while self._requests and self._book.least(self._requests[0].size) <= self._book.available:
            self._grant(self._requests.popleft())

    def _park(self) -> bool:
        """Nothing can go: whoever holds pins that it cannot use yet gives them up. Whether somebody has."""
        return False

    def _unpark(self, now: float) -> None:
        """At the end of a step: those who gave up their pins may have them again if nobody waits."""

    def _victims(self, short: int) -> list[SharedObject]:
        """What is to go to disk: whole segments if there are such, the least recently read first."""
        wanted = max(short, min(FUSE, self.capacity // SPILL_SHARE))
        room = MAX_WRITING - self._spills.writing
        chosen: dict[bytes, SharedObject] = {}

        def choose(known: SharedObject) -> None:
            nonlocal wanted, room
            if room >= known.size or room == MAX_WRITING:
                chosen[known.object_id] = known
                wanted, room = wanted - known.size, room - known.size
            else:
                wanted = 0

        segments: dict[int, list[SharedObject]] = {}  # as far as looked at: what to spill, to empty it
        mixed: list[SharedObject] = []
        for known in self._catalog.spillable():
            if wanted <= 0:
                break
            segment_id = known.copies[0][0]
            if segment_id not in segments:
                segments[segment_id] = self._all_of(self._book.segments[segment_id])
                for one in segments[segment_id]:
                    choose(one)
            if not segments[segment_id]:
                mixed.append(known)
        for known in mixed:
            if wanted <= 0:
                break
            choose(known)
        return list(chosen.values())

    def _all_of(self, segment: Segment) -> list[SharedObject]:
        """The objects to spill in it, if then nothing shared is left; else []."""
        found = []
        for object_id in dict.fromkeys(object_id for object_id, _ in segment.ranges.values()):
            known = self._catalog.get(object_id)
            if known is None:
                return []
            if known.can_be_spilled():
                found.append(known)
            elif known.pins or not (known.guest or known.state == BOTH or known.batch):
                return []
        return found

    # --- what the disk says -----------------------------------------------------------------------------

    def spilled(self, number: int, now: float) -> list[Effect]:
        """That file is complete."""
        file = self._spills.written(number)
        self._disk_error, self._disk_again = "", None
        for object_id, (offset, _) in list(file.objects.items()):
            known = self._catalog.get(object_id)
            if known is None or known.batch != number:  # it was freed, or made again
                self._release(number, object_id)
                continue
            self._catalog.written(known, (number, offset))
            if not known.pins and self._requests:
                self._give_back(self._catalog.drop_memory(known))
        self._start_anew(now)
        return self._done(now)

    def _start_anew(self, now: float) -> None:
        """The disk has made progress: whoever waits for memory has all of its grace again."""
        for request in self._requests:
            request.deadline = max(request.deadline, now + self._wait_s())

    def read_began(self) -> None:
        """The restorer has room for an object, and the disk is at it."""
        self._spills.reads += 1

    def read_ended(self, now: float) -> None:
        """Well or not; what follows is told besides."""
        self._spills.reads -= 1
        self._start_anew(now)

    def spill_failed(self, number: int, reason: str, now: float) -> list[Effect]:
        """That file cannot be written; ``reason`` says why. What was to go there stays in memory."""
        for object_id in self._spills.failed(number).objects:
            known = self._catalog.get(object_id)
            if known is not None and known.batch == number:
                self._catalog.written(known, None)
        self._disk_error, self._disk_again = reason, now + DISK_AGAIN_S
        return self._done(now)

    def _release(self, number: int, object_id: bytes) -> None:
        if self._spills.release(number, object_id):
            self._effects.append(("unspill", number))

    def _release_disk(self, known: SharedObject) -> None:
        """What the disk has of it is not needed any more."""
        if known.disk is not None:
            self._release(known.disk[0], known.object_id)
        self._catalog.forget_disk(known)

    def spilled_to(self, object_id: bytes) -> tuple[int, int, int] | None:
        """(file, offset, length) of an object that is on disk and not in memory."""
        known = self._catalog.get(object_id)
        if known is None or known.disk is None or known.copies or known.freeing:
            return None
        return (*known.disk, known.size)

    def did_spill(self, object_id: bytes) -> bool:
        """Whether the disk has it."""
        known = self._catalog.get(object_id)
        return known is not None and known.disk is not None

    def _is_wanted(self, writer: bytes) -> bool:
        """Whether what this writer gets back is for others: for whoever is first, or for the restorer. What it
        may keep it uses again while it is warm, without asking."""
        if not self._requests:
            return False
        first = self._requests[0]
        return first.worker != writer or self._book.available < self._kept_from(first)

    # --- the end of every step --------------------------------------------------------------------------

    def _send(self, worker: bytes, message: Message) -> None:
        self._effects.append(("send", worker, message))

    def _done(self, now: float) -> list[Effect]:
        while True:
            for segment in self._book.abandoned(now):
                self._unlink(segment)
            for writer, ranges in self._returned.items():
                self._send(writer, Freed([(s, o, n) for s, o, n in ranges], self._is_wanted(writer)))
            if self._returned:
                self._returned = {}
                self._next_trim = now  # something may be empty now
            if self._requests:
                self._serve(now)
            if not self._returned:
                break
        self._unpark(now)
        if not self._requests:
            self._write_ahead()
        effects, self._effects = self._effects, []
        return effects

    @property
    def reserved(self) -> int:
        """Bytes that nobody else can have at this moment."""
        return self._book.reserved

    def moved(self) -> dict[str, int]:
        """How much is on disk, and has been moved there and back in all, in bytes; {} if nothing ever was."""
        spills = self._spills
        if not spills.spilled_bytes:
            return {}
        return {
            "on_disk": spills.on_disk,
            "spilled_bytes": spills.spilled_bytes,
            "restored_bytes": spills.restored_bytes,
        }

    def stats(self) -> StoreStats:
        """How full the store is, and with what."""
        pinned = [known for known in self._catalog.objects.values() if known.pins]
        by_size = sorted(self._catalog.objects.values(), key=lambda k: -k.size)[:3]
        spills = self._spills
        return StoreStats(
            capacity=self.capacity,
            reserved=self._book.reserved,
            segments=len(self._book.segments),
            objects=len(self._catalog),
            object_bytes=self._catalog.bytes,
            pinned_bytes=sum(known.size for known in pinned),
            unshared_bytes=self._book.reserved - self._catalog.bytes,
            waiting=len(self._requests),
            on_disk=spills.on_disk,
            spilled_objects=spills.spilled_objects,
            spilled_bytes=spills.spilled_bytes,
            restored_objects=spills.restored_objects,
            restored_bytes=spills.restored_bytes,
            disk_error=self._disk_error,
            largest=tuple((k.object_id.hex(), k.size, len(k.pins)) for k in by_size),
        )


def remember(ids: OrderedDict[bytes, Any], item: bytes, value: Any = None) -> None:
    """Note a recent id; only so many are kept."""
    ids[item] = value
    if len(ids) > _REMEMBERED:
        ids.popitem(last=False)
