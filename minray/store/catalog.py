"""What the node knows of each shared object: where it lies, who owns it, who reads it. Pure.

Part of ``ExtentTable`` (extents.py), which alone calls it. An object is here from the moment its writer
reports it (Sealed) until nobody references it and nobody reads it. While a process reads, it *pins*; a pin
covers the whole object, or, after a Narrow, some ranges of it.

An object can have more than one *copy* (a retried task wrote it again). A pin whose hint names one of them
settles which one counts; the others go as soon as nobody reads.

An object of another node that this node has pulled is a *guest*: nothing is lost when it goes, so it goes when
memory is needed, the least recently read first. Next go those that are on disk, too; what is nowhere else is
written to disk before it goes (see ``spilling``), also the least recently read first. What is pinned stays.

Invariants (``check_invariants``): a pin count is at least 1; ``pinned_by`` mirrors the objects' pins; an
object that is being freed has pins, and what remains of it is within what these pins cover; what is pinned is in
memory; each object is listed by how it can go: ``_guests``, ``_spare`` (on disk, too), ``_recent`` (only in memory),
or, when only the disk has it, in none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from minray.store.ranges import Range, intersect, subtract, union
from minray.store.spilling import BOTH, DISK, MEMORY, READING, WRITING, Place, moved

Copy = tuple[int, int, int]  # segment id, offset, length


@dataclass(slots=True)
class SharedObject:
    """One object. ``pins`` and ``narrowed`` are per process (worker_id)."""

    object_id: bytes
    owner: bytes | None  # None: adopted from a dead writer, nobody told whose it is
    copies: list[Copy]  # in memory
    size: int  # of the first of them, or of what is on disk
    pins: dict[bytes, int] = field(default_factory=dict)
    narrowed: dict[bytes, list[Range]] | None = None
    freeing: bool = False  # nobody references it any more; it waits for its readers
    remaining: list[Range] | None = None  # of a narrowed object that is being freed
    chosen: Copy | None = None  # the copy that a reader's hint named last
    guest: bool = False  # pulled from another node
    fading: bool = False  # a guest that is to go as soon as nobody reads it
    lent: bool = False  # other nodes have asked for it: they are to hear when it is freed
    state: str = MEMORY  # see ``spilling``
    disk: Place | None = None
    batch: int = 0  # WRITING: the number of its file to be
    was: tuple[Copy, ...] = ()  # where its writers had put it, before that was given back
    restored: bool = False  # its copy was read from disk
    writers: tuple[bytes, ...] = ()  # living processes that wrote it for its owner, which is another one

    def can_be_spilled(self) -> bool:
        """Whether it is only in memory, whole, and nobody reads it."""
        return (
            self.state == MEMORY
            and not self.pins
            and not self.guest
            and not self.freeing
            and len(self.copies) == 1
            and self.size > 0
        )

    def covered(self) -> list[Range]:
        """What the pins cover, relative to the object."""
        narrowed = self.narrowed
        if narrowed is None or any(process not in narrowed for process in self.pins):
            return [(0, self.copies[0][2])]
        return union(*(narrowed[process] for process in self.pins))


def made_by(object_id: bytes, process: bytes) -> bool:
    """Whether ``process`` owns the object, as far as its id tells: task ids start like their maker's id."""
    return object_id[:12] == process[:12]


class Catalog:
    """All shared objects of a node."""

    def __init__(self) -> None:
        self.objects: dict[bytes, SharedObject] = {}
        self._pinned_by: dict[bytes, dict[bytes, None]] = {}  # worker_id → its pinned objects
        self._owned_by: dict[bytes, dict[bytes, None]] = {}
        self._written_by: dict[bytes, dict[bytes, Copy]] = {}  # writer → object → its copy; see ``writers``
        self._adopted: dict[bytes, None] = {}  # those without a known owner
        self._guests: OrderedDict[bytes, None] = OrderedDict()  # these three: the least recently read first
        self._spare: OrderedDict[bytes, None] = OrderedDict()
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._doubled: dict[bytes, None] = {}  # those with more than one copy
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.objects)

    def get(self, object_id: bytes) -> SharedObject | None:
        """The object, also while it is being freed; None if it is not here."""
        return self.objects.get(object_id)

    def add(self, object_id: bytes, owner: bytes | None, copy: Copy) -> SharedObject:
        """A new object, or one more copy of a known one, whose place on disk the caller has released."""
        known = self.objects.get(object_id)
        if known is None:
            known = self.objects[object_id] = SharedObject(object_id, None, [], copy[2])
        known.state = moved(known.state, "again")
        known.disk, known.batch, known.restored = None, 0, False
        known.copies.append(copy)
        known.size = known.copies[0][2]
        self._spare.pop(object_id, None)
        self._recent[object_id] = None
        known.chosen = None  # the new one may be what its owner knows
        if known.guest:
            known.guest = known.fading = False  # made here, too: it counts from now on
            del self._guests[object_id]
        self.bytes += copy[2]
        if len(known.copies) > 1:
            self._doubled[object_id] = None
        if known.owner is None and owner is not None:
            known.owner = owner
            self._adopted.pop(object_id, None)
            self._owned_by.setdefault(owner, {})[object_id] = None
        elif known.owner is None:
            self._adopted[object_id] = None
        return known

    def wrote(self, known: SharedObject, writer: bytes, copy: Copy) -> None:
        """Who wrote that copy, if not its owner."""
        if writer != known.owner:
            if writer not in known.writers:
                known.writers += (writer,)
            self._written_by.setdefault(writer, {})[known.object_id] = copy

    def left_by(self, writer: bytes) -> list[tuple[SharedObject, Copy]]:
        """It is dead: what it had written for others, and is still here."""
        left = [(self.objects[object_id], copy) for object_id, copy in self._written_by.pop(writer, {}).items()]
        for known, _ in left:
            known.writers = tuple(other for other in known.writers if other != writer)
        return left

    def add_guest(self, object_id: bytes, copy: Copy) -> SharedObject:
        """An object of another node, new here."""
        known = self.add(object_id, None, copy)
        known.guest = True
        del self._recent[object_id]
        self._guests[object_id] = None
        return known

    def evictable(self) -> Iterator[SharedObject]:
        """What can go at once: guests that nobody reads, then what is on disk, too; the least recently read first."""
        for object_id in [*self._guests, *self._spare]:
            known = self.objects[object_id]
            if not known.pins and not known.freeing:
                yield known

    def doubled(self) -> list[SharedObject]:
        """What nobody reads and has more than one copy: all but one of them can go at once."""
        found = [self.objects[object_id] for object_id in self._doubled]
        return [known for known in found if not known.pins and not known.freeing]

    def spillable(self) -> Iterator[SharedObject]:
        """What can be written to disk, the least recently read first."""
        for object_id in self._recent:
            known = self.objects[object_id]
            if known.can_be_spilled():
                yield known

    # --- between memory and disk: the moves of ``spilling`` -----------------------------------------

    def spill(self, known: SharedObject, batch: int) -> None:
        """It is being written."""
        known.state = moved(known.state, "spill")
        known.batch = batch

    def written(self, known: SharedObject, place: Place | None) -> None:
        """It is on disk, too; None: that has failed."""
        known.state = moved(known.state, "failed" if place is None else "written")
        known.batch = 0
        if place is not None:
            known.disk = place
            del self._recent[known.object_id]
            self._spare[known.object_id] = None

    def drop_memory(self, known: SharedObject) -> list[Copy]:
        """Only the disk has it from now on; the ranges that it had."""
        assert not known.pins
        known.state = moved(known.state, "drop")
        copies, known.copies, known.chosen = known.copies, [], None
        if not known.restored:
            known.was += tuple(copies)
        known.restored = False
        del self._spare[known.object_id]
        self._doubled.pop(known.object_id, None)
        self.bytes -= sum(copy[2] for copy in copies)
        return copies

    def read(self, known: SharedObject) -> None:
        """It is being read."""
        known.state = moved(known.state, "read")

    def here(self, known: SharedObject, copy: Copy | None) -> None:
        """It is in memory again; None: that has failed."""
        known.state = moved(known.state, "failed" if copy is None else "here")
        if copy is not None:
            known.copies = [copy]
            known.restored = True
            self._spare[known.object_id] = None
            self.bytes += copy[2]

    def forget_disk(self, known: SharedObject) -> None:
        """It is being freed: what is on disk is not needed."""
        known.disk, known.batch = None, 0
        if self._spare.pop(known.object_id, 0) is None:
            self._recent[known.object_id] = None
        if known.copies:
            known.state = MEMORY

    # --- readers ------------------------------------------------------------------------------------

    def pin(self, known: SharedObject, process: bytes) -> None:
        """One more pin of ``process``; it covers everything again."""
        order = self._guests if known.guest else self._spare if known.disk is not None else self._recent
        order.move_to_end(known.object_id)
        known.pins[process] = known.pins.get(process, 0) + 1
        self._pinned_by.setdefault(process, {})[known.object_id] = None
        if known.narrowed is not None:
            known.narrowed.pop(process, None)

    def unpin(self, known: SharedObject, process: bytes) -> bool:
        """One pin fewer; False if there was none."""
        count = known.pins.get(process, 0)
        if count == 0:
            return False
        if count == 1:
            self._drop_pins(known, process)
        else:
            known.pins[process] = count - 1
        return True

    def narrow(self, known: SharedObject, process: bytes, ranges: list[Range]) -> None:
        """``process``, which pins it, reads only these ranges any more."""
        if known.narrowed is None:
            known.narrowed = {}
        known.narrowed[process] = union(ranges)

    def release(self, known: SharedObject) -> list[Copy]:
        """Ranges of an object that is being freed which nobody reads any more; the last ones end it."""
        if not known.pins:
            return self.end(known)
        if len(known.copies) > 1 or known.narrowed is None:
            return []
        segment_id, offset, length = known.copies[0]
        before = [(0, length)] if known.remaining is None else known.remaining
        after = intersect(before, known.covered())
        known.remaining = after
        return [(segment_id, offset + start, end - start) for start, end in subtract(before, after)]

    def drop_other_copies(self, known: SharedObject, keep: Copy) -> list[Copy]:
        """All copies but one, once nobody reads; the caller gives their ranges back."""
        others = [copy for copy in known.copies if copy != keep]
        known.copies, known.size = [keep], keep[2]
        known.was += tuple(others)
        self._doubled.pop(known.object_id, None)
        self.bytes -= sum(copy[2] for copy in others)
        return others

    def process_died(self, process: bytes) -> tuple[list[SharedObject], list[SharedObject]]:
        """Drop its pins. Returns (objects that it pinned, objects that it owned)."""
        pinned = [self.objects[object_id] for object_id in self._pinned_by.get(process, ())]
        for known in pinned:
            self._drop_pins(known, process)
        owned = [self.objects[object_id] for object_id in self._owned_by.get(process, ())]
        owned += [self.objects[object_id] for object_id in self._adopted if made_by(object_id, process)]
        return pinned, owned

    def _drop_pins(self, known: SharedObject, process: bytes) -> None:
        del known.pins[process]
        if known.narrowed is not None:
            known.narrowed.pop(process, None)
        mine = self._pinned_by[process]
        del mine[known.object_id]
        if not mine:
            del self._pinned_by[process]

    def end(self, known: SharedObject) -> list[Copy]:
        """It is here no more; the ranges that it had."""
        del self.objects[known.object_id]
        for order in (self._recent, self._guests, self._spare, self._doubled):
            order.pop(known.object_id, None)
        self.bytes -= sum(copy[2] for copy in known.copies)
        self._adopted.pop(known.object_id, None)
        for writer in known.writers:
            written = self._written_by[writer]
            del written[known.object_id]
            if not written:
                del self._written_by[writer]
        if known.owner is not None:
            owned = self._owned_by[known.owner]
            del owned[known.object_id]
            if not owned:
                del self._owned_by[known.owner]
        if known.remaining is None:
            return known.copies
        segment_id, offset, _ = known.copies[0]
        return [(segment_id, offset + start, end - start) for start, end in known.remaining]

    def check_invariants(self) -> None:
        """AssertionError if the indexes and the objects disagree."""
        pinned: dict[bytes, set[bytes]] = {}
        owned: dict[bytes, set[bytes]] = {}
        for object_id, known in self.objects.items():
            assert known.object_id == object_id
            assert bool(known.copies) == (known.state not in (DISK, READING)), f"{object_id.hex()}: {known}"
            assert (known.disk is not None) == (known.state in (BOTH, DISK, READING))
            assert (known.batch != 0) == (known.state == WRITING)
            assert known.copies or not known.pins
            assert not known.copies or known.size == known.copies[0][2]
            for process, count in known.pins.items():
                assert count >= 1
                pinned.setdefault(process, set()).add(object_id)
            if known.owner is not None:
                owned.setdefault(known.owner, set()).add(object_id)
            assert known.narrowed is None or set(known.narrowed) <= set(known.pins)
            if known.freeing:
                assert known.pins, f"{object_id.hex()} is freed, unread and still here"
            else:
                assert known.remaining is None
        written = {(w, o) for o, known in self.objects.items() for w in known.writers}
        assert {(w, o) for w, objects in self._written_by.items() for o in objects} == written
        assert set(self._adopted) == {o for o, known in self.objects.items() if known.owner is None}
        assert {p: set(objects) for p, objects in self._pinned_by.items()} == pinned
        assert {p: set(objects) for p, objects in self._owned_by.items()} == owned
        assert set(self._guests) == {o for o, known in self.objects.items() if known.guest}
        assert set(self._doubled) == {o for o, known in self.objects.items() if len(known.copies) > 1}
        assert set(self._spare) == {o for o, known in self.objects.items() if known.state == BOTH}
        ordinary = {o for o, known in self.objects.items() if known.state in (MEMORY, WRITING)}
        assert set(self._recent) == ordinary - set(self._guests)
        assert self.bytes == sum(copy[2] for known in self.objects.values() for copy in known.copies)
