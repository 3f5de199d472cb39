"""A process's side of the object store: write objects, read objects, give them up. Thread-safe.

Every core worker and driver has one ``StoreClient``; its service gives it a way to send to the node and to
wait, forwards the node's store messages to ``on_message`` (on the reactor's thread: never blocks), and calls
``drain`` when ``wake`` asked for it. The drawing of the protocol is in ``extents.py``.

* **Writing**: room comes from the arena of extents that the node lent; only an extra extent takes a round
  trip. A written object is private until ``report`` (Sealed) tells the node about it, which must happen
  before anybody else hears of it. Private objects are freed without a message.
* **Reading**: ``acquire`` gives a ``Hold`` per object. What this process wrote itself is just held here; the
  rest is pinned at the node, one message per call. A Hold can be narrowed to parts, one per buffer, so
  that an array that is kept does not keep its siblings.
* **Finalizers** (of arrays, of Holds) only append to a deque. It is drained by whoever comes next.

Invariants: no byte of an object is given back while a Hold covers it; a mapping is not closed under a live
view; nothing of the user's is destroyed, and nobody waits, under the lock; messages leave outside of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from minray.store import ranges as rg
from minray.store.arena import Arena
from minray.store.errors import SegmentGone, StoreClosed, StoreError, StoreFull, StoreWouldBlock
from minray.store.holds import Entry, Gone, Hold
from minray.store.mapping import SegmentMap, aligned
from minray.store.segments import Segments
from minray.store.waiting import Acquisition, Held, Pending, ThreadWaits, Waits, release_all
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

Chunks = Sequence[tuple[int, Any]]  # (offset in the object, contiguous buffer)
IDLE_S = 10.0  # an empty extent goes back to the node when it was unused for so long


class StoreClient:
    """See the module.

    Args:
        segments: the session's implementation (``segments.from_spec``).
        node_id, worker_id: who we are, for locations and as the owner of what we report.
        send: a message to the node; keeps order, never blocks.
        waits: how to wait for its answers.
        before_allocate: called, without locks, before room is looked for: drop references that wait to be
            dropped, so that a loop of puts finds its warm memory again.
        wake: called when a finalizer left the first item to ``drain``; must be safe anywhere.
    """

    messages = (ExtentGrant, ExtentRefused, Freed, Pinned, SegmentsGone, Trim)  # what ``on_message`` takes

    def __init__(
        self,
        segments: Segments,
        *,
        node_id: bytes,
        worker_id: bytes,
        send: Callable[[Message], None],
        waits: Waits | None = None,
        before_allocate: Callable[[], None] | None = None,
        wake: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._segments = segments
        self._node_id = node_id
        self._worker_id = worker_id
        self._send = send
        self._waits: Waits = ThreadWaits() if waits is None else waits
        self._before_allocate = before_allocate
        self._wake = wake
        self._clock = clock
        self._lock = threading.Lock()
        self._arena = Arena()
        self._maps: dict[int, SegmentMap] = {}
        # What this process wrote, under (segment, offset) of each piece of it that is not freed.
        self._written: dict[tuple[int, int], Entry] = {}
        self._pinned: dict[bytes, Entry] = {}  # what others wrote and this process reads: the newest of each
        self._pending: dict[int, Pending] = {}
        self._last_request = 0
        self._given: deque[tuple[Entry, rg.Range | None]] = deque()
        self._wake_asked = False
        self._unclosed: list[SegmentMap] = []  # gone, but views of it live
        self._closed: Exception | None = None

    def __repr__(self) -> str:
        return f"<StoreClient {len(self._written) + len(self._pinned)} objects, {self._arena!r}>"

    # --- writing ----------------------------------------------------------------------------------

    def write(
        self, size: int, chunks: Chunks, *, may_wait: bool = True, timeout: float | None = None
    ) -> Location:
        """Store an object of ``size`` bytes and say where it lies. It is private until ``report``; who
        writes and then neither reports nor frees it has leaked it.

        Raises StoreFull when the node refuses, or the system has no memory; StoreWouldBlock when an extent
        were needed and ``may_wait`` is False; StoreClosed; TimeoutError.
        """
        if self._before_allocate is not None:
            self._before_allocate()
        try:
            entry = self._write_once(size, chunks, may_wait, timeout)
        except _Shortage:
            self._return_empty()  # keep nothing that we do not use
            try:
                entry = self._write_once(size, chunks, may_wait, timeout)
            except _Shortage as shortage:
                info = {"os_error": str(shortage), "free": self._segments.free_bytes()}
                raise StoreFull(size, info) from shortage.__cause__
        return (self._node_id, entry.segment_id, entry.offset, size)

    def _write_once(self, size: int, chunks: Chunks, may_wait: bool, timeout: float | None) -> Entry:
        segment_id, offset = self._room(size, may_wait, timeout)
        segment = self._maps[segment_id]
        try:
            for at, data in chunks:
                segment.write(offset + at, data)
        except BaseException as error:
            with self._lock:
                self._arena.free(segment_id, offset, size, self._clock())
            if isinstance(error, OSError):
                raise _Shortage(str(error)) from error
            raise
        entry = Entry(b"", (segment_id, offset, size), segment, mine=True)
        with self._lock:
            self._written[segment_id, offset] = entry
        return entry

    def _room(self, size: int, may_wait: bool, timeout: float | None) -> tuple[int, int]:
        """Allocate, with a new extent if need be."""
        with self._lock:
            self._check_open()
            messages = self._drain_locked()
            room = self._arena.allocate(size, self._clock())
        self._send_all(messages)
        if room is not None:
            return room
        if not may_wait:
            raise StoreWouldBlock(f"no extent at hand has room for {size} bytes")
        pending = Pending(lambda _: self._waits.notify(waiter), size=size)
        waiter = self._waits.make()
        request_id = self._ask(pending)
        self._send(ExtentRequest(request_id, max(size, 1)))
        try:
            answered = self._waits.wait(waiter, timeout)
        except BaseException:
            self._forget_request(request_id, pending)
            raise
        if not answered:
            self._forget_request(request_id, pending)
            raise TimeoutError(f"no extent of {size} bytes within {timeout} s")
        if pending.error is not None:
            raise pending.error
        found: tuple[int, int] = pending.answer
        return found

    def _forget_request(self, request_id: int, pending: Pending) -> None:
        """The waiter left early. A grant that came, or comes, stays in the arena, unused."""
        with self._lock:
            if self._pending.pop(request_id, None) is None and pending.answer is not None:
                segment_id, offset = pending.answer
                self._arena.free(segment_id, offset, pending.size, self._clock())

    def report(self, objects: Iterable[tuple[bytes, Location]], owner: bytes | None = None) -> None:
        """Tell the node about objects that this process wrote, before anybody else hears of them.

        ``owner``: worker id of the process that owns them; None: this one. What was reported before, or
        is not ours, is left out.
        """
        owner = self._worker_id if owner is None else owner
        sealed = []
        with self._lock:
            for object_id, location in objects:
                entry = self._own(location)
                if entry is not None and not entry.reported:
                    entry.reported = True
                    entry.object_id = object_id
                    sealed.append((object_id, owner, entry.segment_id, entry.offset, entry.length))
        if sealed:
            self._send(Sealed(sealed))

    def free(self, objects: Iterable[tuple[bytes, Location]]) -> None:
        """Their owner, this process, dropped the last reference to these objects, wherever they are."""
        told = [(i, *location[1:]) for i, location in objects if not self.free_own(location)]
        if told:
            self._send(Free(told))

    def free_own(self, location: Location) -> bool:
        """Free a private object: no message is needed. False if it was reported, or is not ours."""
        with self._lock:
            entry = self._own(location)
            if entry is None or entry.reported:
                return False
            entry.freed = list(entry.owned)
            self._settle(entry)
            return True

    def is_own(self, location: Location) -> bool:
        """Whether this process wrote it, so that reading it needs no pin."""
        with self._lock:
            return self._own(location) is not None

    def _own(self, location: Location) -> Entry | None:
        node_id, segment_id, offset, _ = location
        entry = self._written.get((segment_id, offset))
        return entry if entry is not None and entry.offset == offset and node_id == self._node_id else None

    # --- reading ----------------------------------------------------------------------------------

    def acquire(self, objects: Sequence[tuple[bytes, Location]], timeout: float | None = None) -> Held:
        """A Hold or a Gone for each object; at most one round trip to the node.

        Raises TimeoutError, holding nothing; StoreClosed.
        """
        held, missing = self._acquire_here(objects)
        if not missing:
            return held
        waiter = self._waits.make()
        acquisition = Acquisition()

        def done(held: Held, error: Exception | None) -> None:
            acquisition.done(held, error)
            self._waits.notify(waiter)

        self._ask_pins(held, missing, done)
        try:
            answered = self._waits.wait(waiter, timeout)
        except BaseException:
            acquisition.abandon()
            raise
        if acquisition.error is not None:
            raise acquisition.error
        if not answered or acquisition.held is None:
            acquisition.abandon()
            raise TimeoutError(f"objects were not pinned within {timeout} s")
        return acquisition.held

    def acquire_async(
        self, objects: Sequence[tuple[bytes, Location]], done: Callable[[Held, Exception | None], None]
    ) -> None:
        """As ``acquire``, but never waits: ``done(holds, error)`` runs at once or on the reactor's thread."""
        held, missing = self._acquire_here(objects)
        if missing:
            self._ask_pins(held, missing, done)
        else:
            done(held, None)

    def is_here(self, object_id: bytes, location: Location) -> bool:
        """Whether ``acquire`` needs no round trip for it."""
        with self._lock:
            return self._readable(object_id, location) is not None

    def _acquire_here(self, objects: Sequence[tuple[bytes, Location]]) -> tuple[Held, dict[int, Any]]:
        held: list[Any] = [None] * len(objects)
        missing: dict[int, Any] = {}
        with self._lock:
            self._check_open()
            for position, (object_id, location) in enumerate(objects):
                entry = self._readable(object_id, location)
                if entry is not None:
                    held[position] = self._hold(entry)
                else:
                    missing[position] = (object_id, location)
        return held, missing

    def _readable(self, object_id: bytes, location: Location) -> Entry | None:
        """Its entry, if it can be read without asking the node."""
        entry = self._own(location)
        if entry is not None and not entry.freed and entry.object_id in (b"", object_id):
            return entry
        entry = self._pinned.get(object_id)
        # When only parts are held, only they may be pinned: reading the whole again takes a new pin.
        return entry if entry is not None and entry.holds > 0 else None

    def _hold(self, entry: Entry) -> Hold:
        entry.holds += 1
        return Hold(entry, entry.map.view(entry.offset, entry.length), self._given_up, self._also_hold)

    def _ask_pins(
        self, held: Held, missing: dict[int, Any], done: Callable[[Held, Exception | None], None]
    ) -> None:
        def answered(pending: Pending) -> None:
            if pending.error is not None:
                release_all(held)
                done([], pending.error)
                return
            for position, hold in zip(missing, pending.answer, strict=True):
                held[position] = hold
            done(held, None)

        pending = Pending(answered, objects=[object_id for object_id, _ in missing.values()])
        try:
            request_id = self._ask(pending)
        except BaseException:
            release_all(held)
            raise
        self._send(Pin(request_id, list(missing.values())))

    def _given_up(self, entry: Entry, part: rg.Range | None) -> None:
        self._given.append((entry, part))
        if not self._wake_asked:
            self._wake_asked = True
            if self._wake is not None:
                self._wake()

    def _also_hold(self, entry: Entry, parts: list[rg.Range]) -> None:
        with self._lock:
            for part in parts:
                entry.parts[part] = entry.parts.get(part, 0) + 1

    # --- giving up --------------------------------------------------------------------------------

    def drain(self) -> None:
        """Do what finalizers asked for. Cheap when there is nothing."""
        if not self._given:
            return
        with self._lock:
            messages = self._drain_locked()
        self._send_all(messages)

    def _drain_locked(self) -> list[Message]:
        self._wake_asked = False
        given = self._given
        if not given:
            return []
        if self._unclosed:
            self._unclosed = [segment for segment in self._unclosed if not segment.close()]
        changed: dict[int, Entry] = {}
        while given:
            entry, part = given.popleft()
            entry.give_up(part)
            changed[id(entry)] = entry
        unpinned: list[bytes] = []
        narrowed: list[tuple[bytes, list[rg.Range]]] = []
        for entry in changed.values():
            if entry.mine:
                if entry.freed:
                    self._settle(entry)
            elif not entry.is_held:
                unpinned.extend([entry.object_id] * entry.pins)
                entry.pins = 0
                if self._pinned.get(entry.object_id) is entry:
                    del self._pinned[entry.object_id]
            else:
                ranges = entry.narrowed()
                if ranges is not None:
                    narrowed.append((entry.object_id, ranges))
        messages: list[Message] = []
        if unpinned:
            messages.append(Unpin(unpinned))
        if narrowed:
            messages.append(Narrow(narrowed))
        return messages

    def _settle(self, entry: Entry) -> None:
        """Mine: return to the arena what was freed and is not held. Under the lock."""
        before = entry.owned
        returnable = entry.returnable()
        if not returnable:
            return
        now = self._clock()
        for start, end in returnable:
            self._arena.free(entry.segment_id, entry.offset + start, end - start, now)
        for start, _ in before:
            del self._written[entry.segment_id, entry.offset + start]
        for start, _ in entry.owned:
            self._written[entry.segment_id, entry.offset + start] = entry

    def trim_idle(self, now: float | None = None, idle_s: float = IDLE_S) -> float | None:
        """Return extents that are empty and were unused for ``idle_s``; says when to ask again, or None."""
        now = self._clock() if now is None else now
        self.drain()
        self._return_empty(unused_since=now - idle_s)
        with self._lock:
            oldest = self._arena.oldest_empty()
        return None if oldest is None else oldest + idle_s

    def _return_empty(self, *, unused_since: float | None = None) -> None:
        with self._lock:
            empty = self._arena.empty(unused_since=unused_since)
            for segment_id in empty:
                self._arena.remove(segment_id)
                self._unmap(segment_id)
        if empty:
            self._send(ExtentReturn(empty))

    # --- the node's messages ----------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """A store message of the node. Never blocks. TypeError for a message of another kind."""
        if isinstance(message, ExtentGrant):
            self._on_grant(message)
        elif isinstance(message, ExtentRefused):
            self._answer(message.request_id, error=lambda p: StoreFull(p.size, message.info))
        elif isinstance(message, Pinned):
            self._on_pinned(message)
        elif isinstance(message, Freed):
            self._on_freed(message)
        elif isinstance(message, Trim):
            self.drain()
            self._return_empty()
        elif isinstance(message, SegmentsGone):
            with self._lock:
                for segment_id in message.segment_ids:
                    self._unmap(segment_id)
        else:
            raise TypeError(f"not a message for the store's client: {message!r}")

    def fail(self, error: Exception) -> None:
        """The node is lost: every wait, now and later, ends with ``error``."""
        with self._lock:
            self._closed = error
            pendings = list(self._pending.values())
            self._pending.clear()
        for pending in pendings:
            pending.error = error
            pending.callback(pending)

    def close(self) -> None:
        """The session ends: unmap all that no view uses. Views that live stay valid."""
        self.fail(StoreClosed("the object store is shut down"))
        with self._lock:
            for segment_id in list(self._maps):
                self._unmap(segment_id)
            self._unclosed = [segment for segment in self._unclosed if not segment.close()]

    def after_fork_child(self) -> None:
        """This process is a forked child of the one that owns the store: touch nothing any more."""
        self._lock = threading.Lock()
        self._closed = StoreClosed("the object store belongs to the parent of this forked process")
        self._wake = None
        self._send = _send_nothing
        self._pending = {}

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    def _ask(self, pending: Pending) -> int:
        with self._lock:
            self._check_open()
            self._last_request += 1
            self._pending[self._last_request] = pending
            return self._last_request

    def _answer(self, request_id: int, error: Callable[[Pending], Exception]) -> None:
        with self._lock:
            pending = self._pending.pop(request_id, None)
        if pending is not None:
            pending.error = error(pending)
            pending.callback(pending)

    def _on_grant(self, grant: ExtentGrant) -> None:
        try:
            segment = self._segments.open(grant.name, grant.size, writable=True)
        except (OSError, SegmentGone) as error:
            self._send(ExtentReturn([grant.segment_id]))
            failure = StoreError(f"an extent of {grant.size} bytes could not be mapped: {error}")
            self._answer(grant.request_id, error=lambda _: failure)
            return
        with self._lock:
            now = self._clock()
            self._maps[grant.segment_id] = segment
            self._arena.add(grant.segment_id, grant.size, now)
            pending = self._pending.pop(grant.request_id, None)
            if pending is not None:
                pending.answer = self._arena.allocate(pending.size, now)
        if pending is not None:
            pending.callback(pending)

    def _on_pinned(self, message: Pinned) -> None:
        unpin: list[bytes] = []
        with self._lock:
            pending = self._pending.pop(message.request_id, None)
            if pending is not None:
                pending.answer = [
                    self._note_pin(object_id, answer, unpin)
                    for object_id, answer in zip(pending.objects, message.answers, strict=True)
                ]
        if unpin:
            self._send(Unpin(unpin))
        if pending is not None:
            pending.callback(pending)

    def _note_pin(self, object_id: bytes, answer: tuple[Any, ...], unpin: list[bytes]) -> Hold | Gone:
        """One answer of the node, under the lock."""
        if answer[0] == "gone":
            return Gone(answer[1])
        _, name, size, (_, segment_id, offset, length) = answer
        entry = self._pinned.get(object_id)
        if entry is None or (entry.segment_id, entry.offset) != (segment_id, offset):
            segment = self._maps.get(segment_id)
            if segment is None:
                try:
                    segment = self._segments.open(name, size)
                except (OSError, SegmentGone) as error:
                    unpin.append(object_id)
                    return Gone(f"its segment could not be mapped: {error}")
                self._maps[segment_id] = segment
            entry = Entry(object_id, (segment_id, offset, length), segment, mine=False)
            self._pinned[object_id] = entry
        entry.pins += 1
        entry.announced = entry.length
        return self._hold(entry)

    def _on_freed(self, message: Freed) -> None:
        with self._lock:
            messages = self._drain_locked()
            for segment_id, offset, length in message.ranges:
                entry = self._written.get((segment_id, offset)) or self._around(segment_id, offset)
                start = offset - entry.offset
                end = start + length
                if end >= entry.length:  # the rest of its last ALIGN bytes, too
                    end = aligned(max(end, start + 1))
                entry.freed = rg.union(entry.freed, [(start, end)])
                self._settle(entry)
        self._send_all(messages)

    def _around(self, segment_id: int, offset: int) -> Entry:
        """The object of which these bytes are a part."""
        start = max(at for s, at in self._written if s == segment_id and at <= offset)
        return self._written[segment_id, start]

    def _unmap(self, segment_id: int) -> None:
        segment = self._maps.pop(segment_id, None)
        if segment is not None and not segment.close():
            self._unclosed.append(segment)

    def _send_all(self, messages: list[Message]) -> None:
        for message in messages:
            self._send(message)

    # --- looking in -------------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Counts and bytes, for diagnostics and tests."""
        with self._lock:
            return {
                "extents": len(self._arena),
                "extent_bytes": self._arena.total_bytes,
                "allocated_bytes": self._arena.allocated_bytes,
                "mappings": len(self._maps) + len(self._unclosed),
                "written": len(self._written),
                "held": sum(e.is_held for e in (*self._written.values(), *self._pinned.values())),
                "pending": len(self._pending),
            }

    def check_invariants(self) -> None:
        """AssertionError if the books disagree."""
        with self._lock:
            self._arena.check_invariants()
            allocated = 0
            for (segment_id, offset), entry in self._written.items():
                piece = [end - start for start, end in entry.owned if entry.offset + start == offset]
                assert entry.mine and entry.segment_id == segment_id and len(piece) == 1
                assert segment_id in self._arena
                allocated += piece[0]
            # more only while a write is under way
            assert allocated <= self._arena.allocated_bytes
            given = {id(entry) for entry, _ in self._given}
            for object_id, entry in self._pinned.items():
                assert entry.object_id == object_id and not entry.mine
                assert entry.pins > 0 and entry.holds >= 0
                assert entry.is_held or id(entry) in given


class _Shortage(Exception):
    """The system has no memory for what is being written."""


def _send_nothing(message: Message) -> None:
    """What a forked child sends."""
