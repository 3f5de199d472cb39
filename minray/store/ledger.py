"""The books of a process's side of the object store: arena, mappings, entries, unanswered questions.

``StoreClient`` (client.py) adds writing and reading to it; nobody else makes one. Here are the things that
happen by themselves: the node's messages, what finalizers gave up, idle and empty extents, the end.

Invariants: as in client.py. ``_lock`` guards all books; messages are sent, and callbacks run, outside of it.
The deque ``_given`` alone is touched without the lock: by finalizers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from minray.store import ranges as rg
from minray.store.arena import Arena
from minray.store.errors import SegmentGone, StoreClosed, StoreError, StoreFull
from minray.store.holds import Entry, Gone, Hold
from minray.store.mapping import SegmentMap, aligned
from minray.store.segments import Segments
from minray.store.waiting import Pending, ThreadWaits, Waits
from minray.wire.messages import (
    ExtentCancel,
    ExtentGrant,
    ExtentRefused,
    ExtentReturn,
    Freed,
    Message,
    Narrow,
    Pinned,
    Sealed,
    SegmentsGone,
    Trim,
    Trimmed,
    Unpin,
)

IDLE_S = 10.0  # an empty extent goes back to the node when it was unused for so long


class ClientLedger:
    """See the module. The arguments are described in ``StoreClient``."""

    messages = (ExtentGrant, ExtentRefused, Freed, Pinned, SegmentsGone, Trim)  # what ``on_message`` takes

    def __init__(
        self,
        segments: Segments,
        *,
        node_id: bytes,
        worker_id: bytes,
        send: Callable[[Message], None],
        waits: Waits | None = None,
        memory_waits: Waits | None = None,
        before_allocate: Callable[[], None] | None = None,
        wake: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._segments = segments
        self._node_id = node_id
        self._worker_id = worker_id
        self._send = send
        self._waits: Waits = ThreadWaits() if waits is None else waits
        self._memory_waits = self._waits if memory_waits is None else memory_waits
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
        self._asking: dict[bytes, int] = {}  # object → how many of our pins of it are unanswered
        self._outbox: deque[Message] = deque()  # in the order of the changes that they tell of
        self._sending = threading.Lock()
        self._last_request = 0
        self._given: deque[tuple[Entry, rg.Range | None]] = deque()
        self._wake_asked = False
        self._room_came = False  # something was freed since ``_serve_waiting``
        self._unclosed: list[SegmentMap] = []  # gone, but views of it live
        self._closed: Exception | None = None

    def __repr__(self) -> str:
        return f"<StoreClient {len(self._written) + len(self._pinned)} objects, {self._arena!r}>"

    # --- giving up --------------------------------------------------------------------------------

    def drain(self) -> None:
        """Do what finalizers asked for. Cheap when there is nothing."""
        if not self._given:
            return
        with self._lock:
            self._drain_locked()
        self._flush()
        if self._room_came and self._pending:
            self._serve_waiting()

    def _drain_locked(self) -> None:
        self._wake_asked = False
        given = self._given
        if not given:
            return
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
            elif entry.object_id not in self._asking:  # or the answer would be for the whole
                ranges = entry.narrowed()
                if ranges is not None:
                    narrowed.append((entry.object_id, ranges))
        if unpinned:
            self._outbox.append(Unpin(unpinned))
        if narrowed:
            self._outbox.append(Narrow(narrowed))

    def _settle(self, entry: Entry) -> None:
        """Mine: return to the arena what was freed and is not held. Under the lock."""
        before = entry.owned
        returnable = entry.returnable()
        if not returnable:
            return
        self._room_came = True
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
            self._return_empty_locked(unused_since)
        self._flush()

    def _return_empty_locked(self, unused_since: float | None = None) -> None:
        empty = self._arena.empty(unused_since=unused_since)
        for segment_id in empty:
            self._arena.remove(segment_id)
            self._unmap(segment_id)
        if empty:
            self._outbox.append(ExtentReturn(empty))

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

    def _hold(self, entry: Entry) -> Hold:
        entry.holds += 1
        return Hold(entry, entry.map.view(entry.offset, entry.length), self._given_up, self._also_hold)

    def _serve_waiting(self) -> None:
        """Something was freed here: perhaps whoever waits for an extent needs it no more."""
        served = []
        with self._lock:
            self._room_came = False
            for request_id, pending in list(self._pending.items()):
                if pending.size >= 0:
                    pending.answer = self._arena.allocate(pending.size, self._clock())
                    if pending.answer is not None:
                        del self._pending[request_id]
                        self._outbox.append(ExtentCancel(request_id))
                        served.append(pending)
        self._flush()
        for pending in served:
            pending.callback(pending)

    def _offer_locked(self) -> None:
        """Report what is private, ours, and read by nobody: the node may move it to disk."""
        me = self._worker_id[:12]
        sealed = []
        for entry in self._written.values():
            # What was written for another owner is reported by whoever wrote it, at once.
            if not entry.reported and not entry.freed and not entry.is_held and entry.object_id[:12] == me:
                entry.reported = True
                sealed.append((entry.object_id, self._worker_id, entry.segment_id, entry.offset, entry.length))
        if sealed:
            self._outbox.append(Sealed(sealed))

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
            self._on_trim()
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
            self._asking.clear()
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
        self._sending = threading.Lock()
        self._outbox.clear()
        self._closed = StoreClosed("the object store belongs to the parent of this forked process")
        self._wake = None
        self._send = _send_nothing
        self._pending = {}

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    def _ask(self, pending: Pending) -> int:
        """The number of a new question. Under the lock."""
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

    def _on_trim(self) -> None:
        self.drain()
        self._return_empty()
        with self._lock:
            self._offer_locked()
            self._outbox.append(Trimmed())
        self._flush()

    def _on_grant(self, grant: ExtentGrant) -> None:
        try:
            segment = self._segments.open(grant.name, grant.size, writable=True)
        except (OSError, SegmentGone) as error:
            with self._lock:
                self._outbox.append(ExtentReturn([grant.segment_id]))
            self._flush()
            failure = StoreError(f"an extent of {grant.size} bytes could not be mapped: {error}")
            self._answer(grant.request_id, error=lambda _: failure)
            return
        with self._lock:
            now = self._clock()
            self._maps[grant.segment_id] = segment
            pending = self._pending.pop(grant.request_id, None)
            self._arena.add(grant.segment_id, grant.size, now, 0 if pending is None else pending.size)
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
                self._outbox.append(Unpin(unpin))
        self._flush()
        if pending is not None:
            pending.callback(pending)

    def _note_pin(self, object_id: bytes, answer: tuple[Any, ...], unpin: list[bytes]) -> Hold | Gone:
        """One answer of the node, under the lock."""
        asking = self._asking.pop(object_id) - 1
        if asking:
            self._asking[object_id] = asking
        if answer[0] == "gone":
            return Gone(*answer[1:])
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
            self._drain_locked()
            for segment_id, offset, length in message.ranges:
                entry = self._written.get((segment_id, offset)) or self._around(segment_id, offset)
                start = offset - entry.offset
                end = start + length
                if end >= entry.length:  # the rest of its last ALIGN bytes, too
                    end = aligned(max(end, start + 1))
                entry.freed = rg.union(entry.freed, [(start, end)])
                self._settle(entry)
            if message.wanted:
                self._return_empty_locked()
        self._flush()
        if self._pending:
            self._serve_waiting()

    def _around(self, segment_id: int, offset: int) -> Entry:
        """The object of which these bytes are a part."""
        start = max(at for s, at in self._written if s == segment_id and at <= offset)
        return self._written[segment_id, start]

    def _unmap(self, segment_id: int) -> None:
        segment = self._maps.pop(segment_id, None)
        if segment is not None and not segment.close():
            self._unclosed.append(segment)

    def _flush(self) -> None:
        """Send what is in the outbox, in order. If another thread is at it, that one sends ours, too."""
        while self._outbox and self._sending.acquire(blocking=False):
            try:
                while self._outbox:
                    self._send(self._outbox.popleft())
            finally:
                self._sending.release()

    @property
    def flushed(self) -> bool:
        """Whether all that the node has to know of what was done so far has been sent."""
        return not self._outbox and not self._sending.locked()

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


def _send_nothing(message: Message) -> None:
    """What a forked child sends."""
