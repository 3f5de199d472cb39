"""Who still needs an object: the reference table of one process. Pure; no clock, no socket.

Each process that knows an object has one ObjectRecord for it. The **owner**'s record lives while any
of these is there: a local reference, a local hold (an argument of an unfinished task, an outer object
whose value is here, a live view of its memory), or a borrower. A **borrower**'s record lives while it
has local references or holds; when they end, it gives its grants back to the owner.

One law: *every handover keeps the giver's count until the owner knows the taker*. Three ways keep it:

* the giver owns the object: it counts the taker at once (``borrowers[taker] += 1``);
* the giver borrows it in its own right (``entitled``): it tells the owner by BORROWS on the same
  connection that will carry its own RELEASES, which therefore can only arrive later;
* the giver has it only through the arguments of a running task: the caller holds it until the reply, so
  the promise goes up *with the reply*, and the caller makes it good.

A grant that arrives while a process has the object only through arguments does not entitle it: it may be a
promise that this very process, as the caller of the giver, is still to make good.

Grants are counted, not named: a RELEASES that overtakes the BORROWS it answers makes the taker's
count negative for a moment, while the giver's own count keeps the object alive.

Called by worker.core, which carries out the ``effects``: ``("release", owner, id, grants)``,
``("borrow", owner, id, taker)``, ``("watch", address)``, ``("freed", id, record)``.
"""

from __future__ import annotations

from typing import Any

from minray.wire.messages import Address

PENDING, INLINE, STORED, ERROR = 0, 1, 2, 3  # what ``value`` is: nothing yet, payload, stored, payload

Effect = tuple[Any, ...]


class ObjectRecord:
    """All that this process knows of one object. ``value`` is opaque here."""

    __slots__ = (
        "borrowers",
        "contains",
        "entitled",
        "fetchers",
        "grants",
        "held",
        "local",
        "made",
        "owner",
        "pinned",
        "promised",
        "shared",
        "status",
        "task",
        "value",
        "waiters",
    )

    def __init__(self, owner: Address | None) -> None:
        self.owner = owner  # None: this process owns it
        self.status = PENDING
        self.value: Any = None
        self.local = 0
        self.held = 0
        self.grants = 0  # borrower: what it gives back in the end
        self.entitled = False  # borrower: in its own right, not only through a running task's arguments
        self.shared = False  # its location has been told to somebody else
        self.pinned = False  # left the runtime by plain pickle: kept for the owner's life
        self.borrowers: dict[bytes, int] | None = None
        self.promised: list[Address] | None = None
        self.contains: tuple[bytes, ...] = ()
        self.task: Any = None  # the unfinished task that makes it
        self.made: Any = None  # what is kept of the finished one (see lineage)
        self.waiters: list[Any] | None = None  # told once, when it stops being PENDING
        self.fetchers: list[Any] | None = None  # borrowers that asked for its value

    def in_use(self) -> bool:
        """Whether this process itself still needs it."""
        return self.local > 0 or self.held > 0

    def borrowed_away(self) -> bool:
        """Whether another process still needs it (owner's view)."""
        return self.borrowers is not None and any(n > 0 for n in self.borrowers.values())


class ReferenceTable:
    """The records of one process, and the effects that its counts ask for."""

    def __init__(self, me: Address, effects: list[Effect]) -> None:
        self.me = me
        self.objects: dict[bytes, ObjectRecord] = {}
        self.effects = effects
        self._borrowed_from: dict[bytes, set[bytes]] = {}  # owner's worker_id → ids
        self._lent_to: dict[bytes, set[bytes]] = {}  # borrower's worker_id → ids
        self._in_scope: dict[bytes, int] = {}  # id → running tasks that have it in their arguments

    # -- local references ----------------------------------------------------------------------

    def own(self, object_id: bytes, *, local: int = 1) -> ObjectRecord:
        """A new object of this process, with ``local`` references to it."""
        record = self.objects[object_id] = ObjectRecord(None)
        record.local = local
        return record

    def borrow(self, object_id: bytes, owner: Address) -> ObjectRecord:
        """One more local reference, to an object that may be owned elsewhere."""
        record = self._known(object_id, owner)
        record.local += 1
        return record

    def adopt(self, object_id: bytes, owner: Address) -> ObjectRecord:
        """One more local reference, to an object that its owner keeps for life (see PinForever)."""
        record = self.borrow(object_id, owner)
        record.entitled = record.owner is not None
        return record

    def drop(self, object_id: bytes) -> None:
        """One local reference less."""
        record = self.objects.get(object_id)
        if record is None:
            return  # the session that made the reference is over
        record.local -= 1
        if record.local <= 0:
            self._settle(object_id, record)

    def hold(self, object_id: bytes, owner: Address | None = None) -> ObjectRecord:
        """Keep it for another local reason than a reference: see the module's text."""
        record = self.objects.get(object_id)
        if record is None:
            if owner is None or owner[1] == self.me[1]:
                raise KeyError(f"object {object_id.hex()} is not known here and cannot be held")
            record = self._known(object_id, owner)
        record.held += 1
        return record

    def unhold(self, object_id: bytes) -> None:
        """End one hold."""
        record = self.objects.get(object_id)
        if record is None:
            return
        record.held -= 1
        if record.held <= 0:
            self._settle(object_id, record)

    def pin_forever(self, object_id: bytes) -> None:
        """Owner: never free it. (A borrower tells the owner by PinForever.)"""
        record = self.objects.get(object_id)
        if record is not None:
            record.pinned = True

    # -- values that contain references ----------------------------------------------------------

    def set_contains(self, record: ObjectRecord, inner: tuple[bytes, ...]) -> None:
        """``record``'s value is here now and holds references to ``inner`` (all known here)."""
        for object_id in inner:
            self.hold(object_id)
        record.contains = inner

    def receive(self, refs: list[tuple[bytes, Address, bool]]) -> tuple[bytes, ...]:
        """References that came inside a value: (id, owner, whether a grant came with it).

        Returns the ids; the caller holds them at once (``set_contains``) or settles them.
        """
        objects = self.objects
        for object_id, owner, granted in refs:
            record = objects.get(object_id)
            if record is None:
                record = self._known(object_id, owner)
                record.entitled = granted and record.owner is not None
            if not granted:
                continue
            if record.owner is not None:
                record.grants += 1
            else:
                self._take_back(object_id, record, self.me[1], 1)  # it was on its way from us to us
        return tuple(r[0] for r in refs)

    # -- handovers -------------------------------------------------------------------------------

    def give(self, object_id: bytes, taker: Address) -> bool:
        """This process hands the reference to ``taker``. True: a grant goes with it.

        False where the taker needs none, because it owns the object itself.
        """
        record = self.objects[object_id]
        if record.owner is None:
            self._lend(object_id, record, taker)  # also to itself: a worker may run a task of its own
            return True
        if record.owner[1] == taker[1]:
            return False
        if record.entitled:
            self.effects.append(("borrow", record.owner, object_id, taker))
        else:
            if record.promised is None:
                record.promised = []
            record.promised.append(taker)
        return True

    def begin_scope(self, ids: list[bytes]) -> None:
        """A task runs here with ``ids`` in its arguments."""
        for object_id in set(ids):
            self._in_scope[object_id] = self._in_scope.get(object_id, 0) + 1

    def end_scope(self, ids: list[bytes]) -> list[tuple[bytes, Address]] | None:
        """A task that had ``ids`` in its arguments is over here: who keeps which of them?

        The list goes up with the reply; the caller answers for it (``on_retained``). Of several tasks each one
        tells its caller, and only the last one's end entitles: the caller of another may have the object from us
        (or be us), and would answer for it with nothing but our own promise.
        """
        out: list[tuple[bytes, Address]] = []
        for object_id in dict.fromkeys(ids):
            others = self._in_scope.pop(object_id, 1) - 1
            if others:
                self._in_scope[object_id] = others
            record = self.objects.get(object_id)
            if record is None or record.owner is None:
                continue
            if record.promised:
                out.extend((object_id, taker) for taker in record.promised)
                record.promised = None
            if record.in_use():
                if not record.entitled:
                    record.entitled = not others
                    record.grants += 1
                    out.append((object_id, self.me))
            else:
                self._settle(object_id, record)
        return out or None

    def adopt_scope(self, ids: list[bytes]) -> None:
        """An actor's constructor is over: what it kept of its arguments it borrows in its own right.

        The creator holds the arguments for the life of the actor, so telling the owner is enough.
        """
        owners = {i: self.objects[i].owner for i in ids if i in self.objects}
        for object_id, taker in self.end_scope(ids) or ():
            self.effects.append(("borrow", owners[object_id], object_id, taker))

    def on_retained(self, retained: list[tuple[bytes, Address]]) -> None:
        """The reply to a call of ours says who still has our arguments. Before their unhold."""
        for object_id, taker in retained:
            record = self.objects.get(object_id)
            if record is None or (record.owner is None and taker[1] == self.me[1]):
                continue
            self.give(object_id, taker)

    def on_borrows(self, borrows: list[tuple[bytes, Address]]) -> None:
        """Owner: a borrower passed our object on."""
        for object_id, taker in borrows:
            record = self.objects.get(object_id)
            if record is not None and record.owner is None:
                self._lend(object_id, record, taker)
                if not record.in_use():
                    self._settle(object_id, record)

    def on_releases(self, borrower: bytes, releases: list[tuple[bytes, int]]) -> None:
        """Owner: a borrower needs these no more, and returns so many grants of each."""
        for object_id, grants in releases:
            record = self.objects.get(object_id)
            if record is not None and record.owner is None:
                self._take_back(object_id, record, borrower, grants)
                self._settle(object_id, record)

    # -- deaths ----------------------------------------------------------------------------------

    def on_death(self, worker_id: bytes) -> list[bytes]:
        """A process is gone: its borrows end. Returns the ids that it owned and we borrow."""
        for object_id in sorted(self._lent_to.pop(worker_id, ())):
            record = self.objects.get(object_id)
            if record is not None and record.borrowers is not None:
                record.borrowers.pop(worker_id, None)
                self._settle(object_id, record)
        return sorted(i for i in self._borrowed_from.get(worker_id, ()) if i in self.objects)

    # -- inside ----------------------------------------------------------------------------------

    def _known(self, object_id: bytes, owner: Address) -> ObjectRecord:
        record = self.objects.get(object_id)
        if record is None:
            mine = owner[1] == self.me[1]
            record = self.objects[object_id] = ObjectRecord(None if mine else owner)
            if mine:
                record.status, record.value = ERROR, ("freed", object_id)  # before it came home
            else:
                ids = self._borrowed_from.get(owner[1])
                if ids is None:
                    ids = self._borrowed_from[owner[1]] = set()
                    self.effects.append(("watch", owner))
                ids.add(object_id)
        return record

    def _lend(self, object_id: bytes, record: ObjectRecord, taker: Address) -> None:
        worker_id = taker[1]
        if record.borrowers is None:
            record.borrowers = {}
        count = record.borrowers.get(worker_id, 0) + 1
        if count:
            record.borrowers[worker_id] = count
        else:
            del record.borrowers[worker_id]
        lent = self._lent_to.get(worker_id)
        if lent is None:
            lent = self._lent_to[worker_id] = set()
            if worker_id != self.me[1]:
                self.effects.append(("watch", taker))
        if count:
            lent.add(object_id)
        else:
            self._forget_lent(worker_id, object_id)

    def _take_back(self, object_id: bytes, record: ObjectRecord, worker_id: bytes, grants: int) -> None:
        counts = record.borrowers
        if counts is None:
            counts = record.borrowers = {}
        left = counts.get(worker_id, 0) - grants
        if left:
            counts[worker_id] = left
        else:
            counts.pop(worker_id, None)
            self._forget_lent(worker_id, object_id)

    def _forget_lent(self, worker_id: bytes, object_id: bytes) -> None:
        lent = self._lent_to.get(worker_id)
        if lent is not None:
            lent.discard(object_id)

    def _settle(self, object_id: bytes, record: ObjectRecord) -> None:
        """Remove the record if nothing needs it any more, and whatever only it kept alive.

        A stack, not recursion: a chain of references may be longer than Python's stack.
        """
        stack = [(object_id, record)]
        objects = self.objects
        while stack:
            object_id, record = stack.pop()
            if record.local > 0 or record.held > 0 or objects.get(object_id) is not record:
                continue
            owner = record.owner
            if owner is None:
                if record.pinned or (record.borrowers is not None and record.borrowed_away()):
                    continue
                if record.borrowers:
                    for worker_id in record.borrowers:
                        self._forget_lent(worker_id, object_id)
            else:
                if record.promised:
                    continue  # until the reply that carries the promise
                self._borrowed_from[owner[1]].discard(object_id)
                if record.grants:
                    self.effects.append(("release", owner, object_id, record.grants))
            del objects[object_id]
            if record.status == STORED or record.task is not None or owner is not None:
                self.effects.append(("freed", object_id, record))
            if record.made is not None:
                record.made.release()
            if record.contains:
                for inner in record.contains:
                    held = objects.get(inner)
                    if held is not None:
                        held.held -= 1
                        stack.append((inner, held))
                record.contains = ()

    # -- invariants --------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError if the table contradicts itself."""
        holds: dict[bytes, int] = {}
        for record in self.objects.values():
            for inner in record.contains:
                holds[inner] = holds.get(inner, 0) + 1
        for object_id, record in self.objects.items():
            assert record.local >= 0 and record.held >= 0 and record.grants >= 0, f"{object_id.hex()}: negative count"
            assert record.held >= holds.get(object_id, 0), f"{object_id.hex()}: contained but not held"
            if record.owner is None:
                assert record.grants == 0 and not record.promised, f"{object_id.hex()}: owner with borrower's counts"
                assert not record.entitled, f"{object_id.hex()}: owner and entitled borrower"
                assert record.in_use() or record.borrowed_away() or record.pinned, f"{object_id.hex()}: leaked"
            else:
                assert record.borrowers is None, f"{object_id.hex()}: borrower with owner's counts"
                assert record.in_use() or record.promised, f"{object_id.hex()}: leaked by a borrower"
                assert object_id in self._borrowed_from[record.owner[1]], f"{object_id.hex()}: not indexed"
        for object_id in holds:
            assert object_id in self.objects, f"{object_id.hex()}: contained but unknown"
