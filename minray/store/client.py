"""A process's side of the object store: write objects, read objects, give them up. Thread-safe.

Every core worker and driver has one ``StoreClient``; its service gives it a way to send to the node and to
wait, forwards the node's store messages to ``on_message`` (on the reactor's thread: never blocks), and calls
``drain`` when ``wake`` asked for it. The drawing of the protocol is in ``extents.py``.

* **Writing**: room comes from the arena of extents that the node lent; only an extra extent takes a round
  trip. A written object is private until ``report`` (Sealed) tells the node about it, which must happen
  before anybody else hears of it. Private objects are freed without a message. When memory is short (Trim),
  those that nobody reads are reported by themselves, so that the node can move them to disk.
* **Reading**: ``acquire`` gives a ``Hold`` per object. What this process wrote itself is just held here; the
  rest is pinned at the node, one message per call; so is what the node has moved to disk and let us reuse. A
  Hold can be narrowed to parts, one per buffer, so that an array that is kept does not keep its siblings.
* **Finalizers** (of arrays, of Holds) only append to a deque. It is drained by whoever comes next.

Invariants: no byte of an object is given back while a Hold covers it; a location whose place has been reused is
never taken for the new object there (entries have ids); a mapping is not closed under a live view; nothing of the
user's is destroyed, and nobody waits, under the lock; messages leave outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from minray.store.errors import StoreFull, StoreWouldBlock
from minray.store.holds import Entry
from minray.store.ledger import IDLE_S, ClientLedger
from minray.store.mapping import SegmentMap
from minray.store.waiting import Acquisition, Held, Pending, release_all
from minray.wire.messages import ExtentRequest, Free, Location, Pin, Sealed

__all__ = ["IDLE_S", "Chunks", "Room", "StoreClient"]

Chunks = Sequence[tuple[int, Any]]  # (offset in the object, contiguous buffer)


class Room:
    """Space for one object, to be filled through ``map``; ends by ``StoreClient.fill`` or ``.cancel``."""

    __slots__ = ("map", "offset", "segment_id", "size")

    def __init__(self, segment_id: int, offset: int, size: int, segment: SegmentMap) -> None:
        self.segment_id, self.offset, self.size = segment_id, offset, size
        self.map = segment


class StoreClient(ClientLedger):
    """See the module.

    Args:
        segments: the session's implementation (``segments.from_spec``).
        node_id, worker_id: who we are, for locations and as the owner of what we report.
        send: a message to the node; keeps order, never blocks.
        waits: how to wait for its answers.
        memory_waits: how to wait for memory, or for what is on this node: no other task can speed that up, and
            more tasks at once would only need more memory. None: ``waits``.
        before_allocate: called, without locks, before room is looked for: drop references that wait to be
            dropped, so that a loop of puts finds its warm memory again.
        wake: called when a finalizer left the first item to ``drain``; must be safe anywhere.
    """

    # --- writing ----------------------------------------------------------------------------------

    def write(
        self,
        size: int,
        chunks: Chunks,
        object_id: bytes = b"",
        *,
        may_wait: bool = True,
        timeout: float | None = None,
    ) -> Location:
        """Store an object of ``size`` bytes and say where it lies. It is private until ``report``; who
        writes and then neither reports nor frees it has leaked it. Without its id it stays in memory until
        ``report`` names it.

        Raises StoreFull when the node refuses, or the system has no memory; StoreWouldBlock when an extent
        were needed and ``may_wait`` is False; StoreClosed; TimeoutError.
        """
        if self._before_allocate is not None:
            self._before_allocate()
        try:
            entry = self._write_once(object_id, size, chunks, may_wait, timeout)
        except _Shortage:
            self._return_empty()  # keep nothing that we do not use
            try:
                entry = self._write_once(object_id, size, chunks, may_wait, timeout)
            except _Shortage as shortage:
                info = {"os_error": str(shortage), "free": self._segments.free_bytes()}
                raise StoreFull(size, info) from shortage.__cause__
        return (self._node_id, entry.segment_id, entry.offset, size)

    def _write_once(
        self, object_id: bytes, size: int, chunks: Chunks, may_wait: bool, timeout: float | None
    ) -> Entry:
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
        entry = Entry(object_id, (segment_id, offset, size), segment, mine=True)
        with self._lock:
            self._written[segment_id, offset] = entry
        return entry

    def _room(self, size: int, may_wait: bool, timeout: float | None) -> tuple[int, int]:
        """Allocate, with a new extent if need be."""
        with self._lock:
            self._check_open()
            self._drain_locked()
            room = self._arena.allocate(size, self._clock())
            if room is None and not may_wait:
                room = self._arena.allocate(size, self._clock(), anywhere=True)
        self._flush()
        if room is not None:
            return room
        if not may_wait:
            raise StoreWouldBlock(f"no extent at hand has room for {size} bytes")
        return self._wait_for_room(size, timeout)

    def _wait_for_room(self, size: int, timeout: float | None) -> tuple[int, int]:
        """A new extent from the node, or what becomes free here meanwhile."""
        pending = Pending(lambda _: self._waits.notify(waiter), size=size)
        waiter = self._waits.make()
        with self._lock:
            request_id = self._ask(pending)
            self._outbox.append(ExtentRequest(request_id, max(size, 1)))
        self._flush()
        try:
            self._memory_waits.wait(waiter, timeout)
        except BaseException:
            self._forget_request(request_id, pending)
            raise
        room: tuple[int, int] | None = pending.answer
        if room is None and isinstance(pending.error, StoreFull):
            with self._lock:
                room = self._arena.allocate(size, self._clock(), anywhere=True)
        if room is not None:
            return room
        if pending.error is not None:
            raise pending.error
        self._forget_request(request_id, pending)
        raise TimeoutError(f"no extent of {size} bytes within {timeout} s")

    def _forget_request(self, request_id: int, pending: Pending) -> None:
        """The waiter left early. A grant that came, or comes, stays in the arena, unused."""
        with self._lock:
            if self._pending.pop(request_id, None) is None and pending.answer is not None:
                segment_id, offset = pending.answer
                self._arena.free(segment_id, offset, pending.size, self._clock())

    def reserve(self, size: int, done: Callable[[Room | None, Exception | None], None]) -> None:
        """Room for an object whose bytes are still to come. Never waits: ``done(room, None)``, or
        ``done(None, error)``, runs at once or on the reactor's thread. For the node's own copies."""

        def answered(pending: Pending) -> None:
            found = pending.answer
            with self._lock:
                if found is None and isinstance(pending.error, StoreFull):
                    found = self._arena.allocate(size, self._clock(), anywhere=True)
                room = None if found is None else Room(found[0], found[1], size, self._maps[found[0]])
            done(room, None if room is not None else pending.error)

        pending = Pending(answered, size=size)
        with self._lock:
            self._check_open()
            self._drain_locked()
            pending.answer = self._arena.allocate(size, self._clock())
            at_once = pending.answer is not None
            if not at_once:
                self._outbox.append(ExtentRequest(self._ask(pending), max(size, 1)))
        self._flush()
        if at_once:
            answered(pending)

    def fill(self, room: Room, object_id: bytes, owner: bytes) -> Location:
        """All of it is there: report it."""
        location = (self._node_id, room.segment_id, room.offset, room.size)
        with self._lock:
            entry = Entry(b"", location[1:], room.map, mine=True)
            self._written[room.segment_id, room.offset] = entry
        self.report([(object_id, location)], owner)
        return location

    def cancel(self, room: Room) -> None:
        """It will not be filled. Nobody may write there any more."""
        with self._lock:
            self._arena.free(room.segment_id, room.offset, room.size, self._clock())
        if self._pending:
            self._serve_waiting()

    def report(self, objects: Iterable[tuple[bytes, Location]], owner: bytes | None = None) -> None:
        """Tell the node about objects that this process wrote, before anybody else hears of them.

        ``owner``: worker id of the process that owns them; None: this one. What was reported before, or
        is not ours, is left out.
        """
        owner = self._worker_id if owner is None else owner
        sealed = []
        with self._lock:
            for object_id, location in objects:
                entry = self._own(object_id, location)
                if entry is not None and not entry.reported:
                    entry.reported = True
                    entry.object_id = object_id
                    sealed.append((object_id, owner, entry.segment_id, entry.offset, entry.length))
            if sealed:
                self._outbox.append(Sealed(sealed))
        self._flush()

    def free(self, objects: Iterable[tuple[bytes, Location]]) -> None:
        """Their owner, this process, dropped the last reference to these objects, wherever they are."""
        told: list[Any] = [
            (i, *location[1:]) if location[0] == self._node_id else (i, *location[1:], location[0])
            for i, location in objects
            if not self.free_own(i, location)
        ]
        if told:
            with self._lock:
                self._outbox.append(Free(told))
            self._flush()

    def free_own(self, object_id: bytes, location: Location) -> bool:
        """Free a private object: no message is needed. False if it was reported, or is not ours."""
        with self._lock:
            entry = self._own(object_id, location)
            if entry is None or entry.reported:
                return False
            entry.freed = list(entry.owned)
            self._settle(entry)
        if self._room_came and self._pending:
            self._serve_waiting()
        return True

    def _own(self, object_id: bytes, location: Location) -> Entry | None:
        """What this process wrote there, if it is that object: its place may have been reused (see Trim)."""
        node_id, segment_id, offset, _ = location
        entry = self._written.get((segment_id, offset))
        if entry is None or entry.offset != offset or node_id != self._node_id:
            return None
        return entry if entry.object_id in (object_id, b"") else None

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
        here = all(location[0] == self._node_id for _, location in missing.values())
        waits = self._memory_waits if here else self._waits
        try:
            answered = waits.wait(waiter, timeout)
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
        entry = self._own(object_id, location)
        if entry is not None and not entry.freed:
            return entry
        entry = self._pinned.get(object_id)
        # When only parts are held, only they may be pinned: reading the whole again takes a new pin.
        return entry if entry is not None and entry.holds > 0 else None

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
            with self._lock:
                request_id = self._ask(pending)
                for object_id in pending.objects:
                    self._asking[object_id] = self._asking.get(object_id, 0) + 1
                self._outbox.append(Pin(request_id, list(missing.values())))
        except BaseException:
            release_all(held)
            raise
        self._flush()


class _Shortage(Exception):
    """The system has no memory for what is being written."""
