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

An object may be on disk instead (see ``admission``). A Pin brings it back: the answer follows when the restorer has
written it into a segment of its own, or when ``restore_failed`` says why not.

Invariants (``check_invariants``): reserved bytes never exceed the capacity; no two live objects overlap;
nothing is given back while pinned; a segment without a writer goes once it is empty; every request is
answered by its deadline, unless it waits for a pull or for the disk; a pull that was asked for and has not ended
has waiters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minray.store.admission import MIB, TRIM_EVERY_S, Admission, Effect, StoreStats, remember
from minray.store.catalog import Copy, SharedObject, made_by
from minray.store.spilling import DISK, READING
from minray.wire.errors import ProtocolError
from minray.wire.messages import (
    ExtentCancel,
    ExtentRequest,
    ExtentReturn,
    Free,
    LeftBehind,
    Location,
    Message,
    Narrow,
    Pin,
    Pinned,
    Sealed,
    Trimmed,
    Unpin,
)

__all__ = ["ADOPT_GRACE_S", "MIB", "TRIM_EVERY_S", "Effect", "ExtentTable", "StoreStats"]

ADOPT_GRACE_S = 5.0  # how long an empty segment of a dead writer waits for what it did not report


@dataclass(slots=True)
class _PinRequest:
    worker: bytes
    request_id: int
    answers: list[Any]
    missing: dict[int, tuple[bytes, Location]]  # position → what is not here (yet): see ``_try_pin``
    deadline: float | None  # None: it waits for pulls, or for the disk
    got: dict[int, tuple[bytes, Location]]  # position → what it has pinned already
    parked: bool = False  # it had to let go of what it had; others come first


class ExtentTable(Admission):
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
        spills: bool = False,
    ) -> None:
        super().__init__(
            capacity, node_id=node_id, prefix=prefix, extent_size=extent_size, grace_s=grace_s, spills=spills
        )
        self.others = others  # there may be other nodes to pull from
        self._node_id = node_id
        self._pin_requests: list[_PinRequest] = []
        self._pulling: dict[bytes, None] = {}
        self._early_frees: dict[tuple[bytes, Copy], None] = {}  # the Free of that making came before its Sealed
        self._ended: OrderedDict[bytes, tuple[Copy, ...]] = OrderedDict()  # freed or lost: where it had lain
        self._lost: OrderedDict[bytes, str] = OrderedDict()  # what the disk did not give back, and why

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
        remember(self._dead, worker)
        for request in [r for r in self._requests if r.worker == worker]:
            self._requests.remove(request)
        self._owing.pop(worker, None)
        self._pin_requests = [r for r in self._pin_requests if r.worker != worker]
        pinned, owned = self._catalog.process_died(worker)
        for segment in self._book.writer_died(worker, now + ADOPT_GRACE_S):
            for early in [early for early in self._early_frees if early[1][0] == segment.segment_id]:
                del self._early_frees[early]
        self._retry_pins(now)  # what it had not reported is adopted now
        self._drop_pulls()
        for known in pinned:
            self._settle(known)
        for known in owned:
            self._begin_free(known)
        self._tell_what_is_left(worker)
        return self._done(now)

    def _tell_what_is_left(self, worker: bytes) -> None:
        """It is dead: owners hear what it had written for them. If it could not say so, they free it."""
        left: dict[bytes, list[tuple[bytes, int, int, int]]] = {}
        for known, copy in self._catalog.left_by(worker):
            if known.owner is not None and not known.freeing:
                left.setdefault(known.owner, []).append((known.object_id, *copy))
        for owner, objects in left.items():
            self._send(owner, LeftBehind(self._node_id, objects))

    def tick(self, now: float) -> list[Effect]:
        """Time has passed; call it at ``next_deadline()``."""
        self._tick_requests(now)
        for waiting in [w for w in self._pin_requests if w.deadline is not None and w.deadline <= now]:
            late = {o for o, _ in waiting.missing.values() if o not in self._pulling and not self.knows(o)}
            self._give_up(waiting, late, lambda o: ("gone", f"{o.hex()} was never reported by its writer"))
            waiting.deadline = None
        self._pin_requests = [w for w in self._pin_requests if w.missing]
        return self._done(now)

    def next_deadline(self) -> float | None:
        """When ``tick`` has something to do; None if nothing is waiting."""
        moments = list(self._moments())
        moments += [w.deadline for w in self._pin_requests if w.deadline is not None]
        moments.extend(self._book.grace_ends())
        return min(moments, default=None)

    def shutdown(self) -> list[Effect]:
        """Unlink everything: the session ends."""
        for segment in list(self._book.segments.values()):
            self._book.segments.pop(segment.segment_id)
            self._effects.append(("unlink", segment.segment_id, segment.name))
        effects, self._effects = self._effects, []
        return effects

    # --- objects ----------------------------------------------------------------------------------

    def _on_sealed(self, worker: bytes, message: Sealed, now: float) -> None:
        for object_id, owner, segment_id, offset, length in message.objects:
            segment = self._book.writable_by(worker, segment_id)
            segment.occupy(object_id, offset, length)
            known = self._catalog.get(object_id)
            if worker == self._node_id:
                self._on_guest(known, object_id, (segment_id, offset, length), now)
                continue
            if worker == self.restorer_id:
                self._on_restored(known, (segment_id, offset, length), now)
                continue
            place = (segment_id, offset, length)
            if known is not None and known.freeing:
                if (object_id, place) in self._early_frees:
                    del self._early_frees[object_id, place]
                else:
                    known.was += (place,)  # its own Free is still to come, perhaps when this is gone
                    self._end_of(known)
                self._give_back([place])
                continue
            if self._pulling.pop(object_id, 0) is None:  # it was made once more, here
                self._effects.append(("unpull", object_id))
            if known is not None and known.disk is not None:
                self._release(known.disk[0], object_id)  # what counts is what was made now
            known = self._catalog.add(object_id, owner, place)
            self._catalog.wrote(known, worker, place)
            self._ended.pop(object_id, None)
            self._lost.pop(object_id, None)
            if (object_id, place) in self._early_frees or owner in self._dead:
                self._retry_pins(now, object_id)  # they came before the end
                self._early_frees.pop((object_id, place), None)
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
            place = (segment_id, offset, length)
            if known is not None and len(known.copies) > 1 and self._takes_back(worker, known, segment_id):
                continue  # the others may be in use; it goes with them
            reported = known is not None and (place in known.copies or place in known.was)
            before = known is None and place in self._ended.get(object_id, ())
            if known is not None:
                self._begin_free(known)
            if not reported and not before and self._book.writer_of(segment_id) is not None:
                self._early_frees[object_id, place] = None

    def _takes_back(self, worker: bytes, known: SharedObject, segment_id: int) -> bool:
        """Whether this is the writer, which has found out that its copy is for nobody, and not the owner."""
        return worker != known.owner and worker == self._book.writer_of(segment_id)

    def _begin_free(self, known: SharedObject) -> None:
        if not known.freeing:
            known.freeing = True
            self._end_of(known)
            self._release_disk(known)
            if known.lent:
                self._effects.append(("freed", known.object_id))
            self._give_up_all(known.object_id, ("gone", "its owner freed it"))  # who waits for the disk
        self._settle(known)

    def _end_of(self, known: SharedObject) -> None:
        """It is not to be had any more: note it, for messages that are late."""
        remember(self._ended, known.object_id, (*known.copies, *known.was))

    def _settle(self, known: SharedObject) -> None:
        """Give back what nobody reads of an object, after its pins or its freedom changed."""
        if known.freeing:
            if known.object_id in self._catalog.objects:
                self._give_back(self._catalog.release(known))
        elif known.fading and not known.pins:
            self._evict(known)
        elif not known.pins and len(known.copies) > 1 and known.chosen is not None:
            self._give_back(self._catalog.drop_other_copies(known, known.chosen))

    # --- pins -------------------------------------------------------------------------------------

    def _on_pin(self, worker: bytes, message: Pin, now: float) -> None:
        waiting = _PinRequest(worker, message.request_id, [], {}, now + self._grace_s, {})
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
            if waiting.parked:
                continue
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
                if answer[0] != "gone":
                    waiting.got[position] = (object_id, hint)

    def _try_pin(self, worker: bytes, object_id: bytes, hint: Location) -> tuple[Any, ...] | None:
        """The answer for one object, or None: its writer lives and will report it, or it is on its way here from
        another node, or from the disk."""
        node_id, segment_id, offset, length = hint
        known = self._catalog.get(object_id)
        if known is None:
            segment = self._book.segments.get(segment_id)
            if node_id != self._node_id and self.others and worker != self._node_id:
                if object_id not in self._pulling:
                    self._pulling[object_id] = None
                    self._effects.append(("pull", object_id, hint))
                return None
            if object_id in self._lost:
                return ("gone", self._lost[object_id], "lost")
            if object_id in self._ended:
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
        if not known.copies:
            if known.state == DISK:
                self._catalog.read(known)
                self._effects.append(("restore", object_id, known.disk, known.size))
            return None
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

    # --- back from disk -----------------------------------------------------------------------------

    def _on_restored(self, known: SharedObject | None, copy: Copy, now: float) -> None:
        """The restorer has written it."""
        if known is None or known.state != READING:  # it was freed, or made again
            self._give_back([copy])
        else:
            self._catalog.here(known, copy)
            self._spills.restored(copy[2])
            self._retry_pins(now, known.object_id)

    def is_read_from(self, object_id: bytes, place: tuple[int, int]) -> bool:
        """Whether this is still what is wanted of the disk."""
        known = self._catalog.get(object_id)
        return known is not None and known.state == READING and known.disk == place

    def restore_failed(self, object_id: bytes, reason: str, kind: str, now: float) -> list[Effect]:
        """It cannot be read: there is no room for it ("full"), or the disk has lost it ("lost")."""
        known = self._catalog.get(object_id)
        if known is None or known.state != READING:
            return []
        self._catalog.here(known, None)
        if kind == "lost":
            remember(self._lost, object_id, reason)
            self._end_of(known)
            self._release_disk(known)
            if known.lent:
                self._effects.append(("freed", object_id))
            self._give_back(self._catalog.end(known))
        self._give_up_all(object_id, ("gone", reason, kind))
        return self._done(now)

    def _park(self) -> bool:
        """Those that wait for several objects hold what is there already. If nothing else can go, all but the first
        of them let go of it: or each would wait for the memory of the other."""
        waiting = [w for w in self._pin_requests if w.got and not w.parked]
        for one in waiting[1:]:
            one.parked = True
            for position, (object_id, hint) in one.got.items():
                known = self._catalog.objects[object_id]
                self._catalog.unpin(known, one.worker)
                one.missing[position] = (object_id, hint)
                self._settle(known)
            one.got = {}
        return len(waiting) > 1

    def _unpark(self, now: float) -> None:
        if not self._pin_requests:
            return
        parked = [w for w in self._pin_requests if w.parked]
        if parked and (not self._requests or len(parked) == len(self._pin_requests)):
            parked[0].parked = False
            self._retry_pins(now)

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

    # --- for tests and the debug setting ------------------------------------------------------------

    def check_invariants(self) -> None:
        """AssertionError if the store is not what this module promises."""
        self._book.check_invariants()
        self._catalog.check_invariants()
        self._spills.check_invariants()
        self._check_files()
        expected: dict[int, list[tuple[int, int]]] = {}
        for known in self._catalog.objects.values():
            if not known.copies:
                continue
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

    def _check_files(self) -> None:
        """What is on disk is there for an object, but for what was freed while its file is written."""
        for number, file in self._spills.files.items():
            for object_id, (offset, length) in file.objects.items():
                known = self._catalog.get(object_id)
                if not file.writing:
                    assert known is not None and known.disk == (number, offset) and known.size == length
        for known in self._catalog.objects.values():
            assert known.disk is None or known.object_id in self._spills.files[known.disk[0]].objects
            assert not known.batch or known.object_id in self._spills.files[known.batch].objects


_HANDLERS: dict[type[Message], Any] = {
    ExtentRequest: ExtentTable._on_request,
    ExtentCancel: ExtentTable._on_cancel,
    ExtentReturn: ExtentTable._on_return,
    Trimmed: ExtentTable._on_trimmed,
    Sealed: ExtentTable._on_sealed,
    Free: ExtentTable._on_free,
    Pin: ExtentTable._on_pin,
    Unpin: ExtentTable._on_unpin,
    Narrow: ExtentTable._on_narrow,
}
