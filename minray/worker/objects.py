"""Values at the edge of the core: encode, decode, put, get, wait.

A value is encoded outside the lock (pickling runs user code) and decoded outside of it (so does
unpickling). Small ones travel and live as payloads; large ones are written to shared memory, and come back
as read-only views that hold their object until the last of them is gone.

Used by worker.submission and worker.executor (arguments, results) and by the public face (put, get, wait).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pickle import loads
from time import monotonic
from typing import Any

from minray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OwnerDiedError,
    RayError,
    RaySystemError,
)
from minray.object_ref import ObjectRef, make_ref
from minray.store.errors import StoreFull
from minray.store.holds import Gone, Hold
from minray.wire.messages import Address, PinForever, pack
from minray.wire.reactor import Waiter
from minray.worker import errors
from minray.worker.link import Link
from minray.worker.references import ObjectRecord
from minray.worker.serialization import Serialized, deserialize, layout, load_object, serialize
from minray.worker.tasks import ERROR, INLINE, STORED

PENDING = 0
SAY_AFTER_S = 60.0  # a get that has waited this long says on what
READ_S = 1.0  # what our node gets, at least, to say where an object of its own is: usually in memory
ASK_S = 0.1  # what our node gets, at least, to say that it has a copy of what lies on another


def is_lost(hold: Hold | Gone | None) -> bool:
    """Whether its owner is to be asked for it once more. It says "freed" though a living owner frees nothing that is
    borrowed: then the word was about an earlier life of the object, and came late; or the owner is dead."""
    return isinstance(hold, Gone) and hold.kind in ("lost", "freed")


class GetWaiter(Waiter):
    """Waits for all of some objects, or the first error among them."""

    __slots__ = ("reactor", "remaining")

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self.reactor = reactor
        self.remaining = 0

    def ready(self, _id: bytes | None, record: Any) -> None:
        self.remaining -= 1
        if self.remaining <= 0 or record.status == ERROR:
            self.reactor.notify(self)


class ObjectOps(Link):
    """put, get, wait and the encoding of values."""

    # -- encoding ------------------------------------------------------------------------------------

    def encode(self, value: Any, object_id: bytes) -> tuple[int, Any, list[ObjectRef[Any]]]:
        """(status, value without its references, nested ObjectRefs) of that object. Not under the lock."""
        s = serialize(value, self.config.inline_limit)
        if s.total <= self.config.inline_limit:
            if not s.buffers and not s.refs:
                return INLINE, s.data, s.refs
            return INLINE, (s.data, [bytes(b) for b in s.buffers]), s.refs
        return STORED, self.write(s, object_id), s.refs

    def write(self, s: Serialized, object_id: bytes) -> tuple[Any, int]:
        """Large: into shared memory. Blocks while the store is full; ObjectStoreFullError, OutOfDiskError."""
        if self.owned():
            self.must_not_wait("storing a large value")
        size, chunks = layout(s)
        try:
            return self.store.write(size, chunks, object_id), size
        except StoreFull as error:
            if error.info.get("disk_error"):
                raise OutOfDiskError(str(error)) from None
            raise ObjectStoreFullError(str(error), error.info) from None

    def with_refs(self, value: Any, refs: list[tuple[bytes, Address, bool]]) -> Any:
        """The value as it travels: with its nested references."""
        return value if type(value) is bytes else (value[0], value[1], refs)

    # -- decoding ------------------------------------------------------------------------------------

    def decode(self, object_id: bytes, status: int, value: Any, owner: Address | None) -> Any:
        """The Python value. Not under the lock; the caller keeps the object in use meanwhile."""
        if status == INLINE:
            if type(value) is bytes:
                return loads(value)
            return deserialize(value[0], value[1], self.take_refs(value[2]))
        if status == STORED:
            return self.open_stored([(object_id, value, owner)])[0]
        raise errors.to_exception(value)

    def take_refs(self, refs: list[tuple[bytes, Address, bool]]) -> list[ObjectRef[Any]]:
        """ObjectRefs for the references inside a value that is here."""
        if not refs:
            return []
        borrow, me = self.core.refs.borrow, self.core.me[1]
        with self.lock:
            for object_id, owner, _ in refs:
                borrow(object_id, owner)
            made = [make_ref(i, None if o[1] == me else o, self) for i, o, _ in refs]
            self.leave()
        return made

    def open_stored(
        self, objects: list[tuple[bytes, Any, Address | None]], deadline: float | None = None
    ) -> list[Any]:
        """The values of stored objects (id, stored value, owner), with at most one question to the node.
        GetTimeoutError if they are on another node and not here by the deadline.

        The references are held until the memory is pinned; from then on the pins (or, for what this
        process wrote, the store's own books) keep what arrays still read, part by part.
        """
        refs = self.core.refs
        with self.lock:
            for object_id, _, owner in objects:
                refs.hold(object_id, owner)
        try:
            return self._load_stored(objects, deadline)
        finally:
            with self.lock:
                for object_id, _, _ in objects:
                    refs.unhold(object_id)
                self.leave()

    def _acquire(self, wanted: list[tuple[bytes, Any]], deadline: float | None) -> list[Hold | Gone]:
        timeout = None
        if deadline is not None:
            here = all(location[0] == self.node_id for _, location in wanted)
            timeout = max(READ_S if here else ASK_S, deadline - monotonic())
        try:
            held: list[Hold | Gone] = self.store.acquire(wanted, timeout)
        except TimeoutError:
            what = f"{len(wanted)} stored objects are" if len(wanted) > 1 else f"object {wanted[0][0].hex()} is"
            raise GetTimeoutError(f"get timed out: {what} on the way from another node, or from disk") from None
        return held

    def _load_stored(
        self, objects: list[tuple[bytes, Any, Address | None]], deadline: float | None
    ) -> list[Any]:
        holds: list[Any] = self._acquire([(object_id, value[0]) for object_id, value, _ in objects], deadline)
        while self.core.lineage is not None and any(map(is_lost, holds)):
            objects = self._find_again(objects, holds, deadline)
        values = []
        failure: Exception | None = None
        for (object_id, value, owner), hold in zip(objects, holds, strict=True):
            if isinstance(hold, Gone):
                failure = self._gone_error(object_id, owner, hold)
            elif hold is None:  # small, now that it was made again
                values.append(self.decode(object_id, INLINE, value, owner))
            elif failure is not None:
                hold.release()
            else:
                try:
                    values.append(load_object(hold, self.take_refs(value[2])))
                except Exception as error:  # user code in unpickling; the other holds must still go
                    failure = RaySystemError(f"object {object_id.hex()} cannot be unpickled here: {error!r}")
                    failure.__cause__ = error
        if failure is not None:
            raise failure
        return values

    def _find_again(
        self, objects: list[tuple[bytes, Any, Address | None]], holds: list[Any], deadline: float | None
    ) -> list[tuple[bytes, Any, Address | None]]:
        """Some are lost: have them made again, and wait for it. Changes ``holds`` (None: an inline value)."""
        lost = [i for i, hold in enumerate(holds) if is_lost(hold)]
        try:
            records = self._made_again([(objects[i][0], objects[i][1][0], holds[i].reason) for i in lost], deadline)
            stored = [i for i, record in zip(lost, records, strict=True) if record.status == STORED]
            found = list(objects)
            for i, record in zip(lost, records, strict=True):
                found[i] = (objects[i][0], record.value, objects[i][2])
                holds[i] = None
            again = self._acquire([(found[i][0], found[i][1][0]) for i in stored], deadline)
        except BaseException:
            for hold in holds:
                if isinstance(hold, Hold):
                    hold.release()
            raise
        for i, hold in zip(stored, again, strict=True):
            holds[i] = hold
        return found

    def _made_again(self, lost: list[tuple[bytes, Any, str]], deadline: float | None) -> list[ObjectRecord]:
        """The records of lost objects (id, location, reason) when their values are there once more."""
        waiter = GetWaiter(self.reactor)
        core = self.core
        assert core.lineage is not None
        with self.lock:
            records = [core.objects[object_id] for object_id, _, _ in lost]
            for object_id, location, reason in lost:
                core.lineage.on_unreadable(object_id, location, reason)
            for (object_id, _, _), record in zip(lost, records, strict=True):
                if record.status == PENDING:
                    waiter.remaining += 1
                    core.when_ready(object_id, record, waiter)
            core.calls.flush()
            self.leave()
        failed = next((record for record in records if record.status == ERROR), None)
        if waiter.remaining > 0 and failed is None:
            self._sleep(waiter, None if deadline is None else max(0.0, deadline - monotonic()), lambda: records)
        self._check_ready(records, "while a lost object is made again")
        return records

    def _gone_error(self, object_id: bytes, owner: Address | None, gone: Gone) -> Exception:
        """In a session of one node nothing is made again, and a living owner frees nothing that is borrowed: if it was
        freed, its owner is dead, announced or not yet."""
        reason = gone.reason
        if gone.kind == "full":
            return ObjectStoreFullError(f"object {object_id.hex()} cannot be brought into this node's memory: {reason}")
        if gone.kind == "lost" or owner is None or owner[1] == self.core.me[1]:
            return ObjectLostError(object_id.hex(), None, "", reason)
        return OwnerDiedError(object_id.hex(), None, "", f"its owner, worker {owner[1].hex()[:8]}, is dead: {reason}")

    # -- put -----------------------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef[Any]:
        """See the contract."""
        core = self.core
        object_id = core.object_id(core.next_seq(), 0)
        status, stored, nested = self.encode(value, object_id)
        ref = make_ref(object_id, None, self)
        if self.owned():
            self.inbox.append(partial(self._put, object_id, status, stored, nested))
            return ref
        with self.lock:
            self._put(object_id, status, stored, nested)
            if self.inbox or core.effects:
                self.leave()
        return ref

    def _put(self, object_id: bytes, status: int, stored: Any, nested: list[ObjectRef[Any]]) -> None:
        if self.closed:
            raise self.over()
        refs = self.core.refs
        record = refs.own(object_id)
        record.status = status
        if nested:
            ids = tuple(r._id for r in nested)
            me = self.core.me
            record.value = (stored[0], stored[1], [(r._id, r._owner or me, False) for r in nested])
            refs.set_contains(record, ids)
        else:
            record.value = self.with_refs(stored, [])

    # -- get -----------------------------------------------------------------------------------------

    def get(self, refs: list[ObjectRef[Any]], timeout: float | None) -> list[Any]:
        """See the contract."""
        if self.owned():
            self.must_not_wait("get")
        deadline = None if timeout is None else monotonic() + timeout
        records = self._await(refs, timeout)
        out: list[Any] = []
        stored: list[int] = []
        for ref, record in zip(refs, records, strict=True):
            value = record.value
            if record.status == STORED:
                stored.append(len(out))
                out.append(None)
                continue
            try:
                if record.status == INLINE and type(value) is bytes:
                    out.append(loads(value))
                else:
                    out.append(self.decode(ref._id, record.status, value, ref._owner))
            except Exception as error:  # whatever user code raises in unpickling
                raise self._unreadable(ref, error) from error
        if stored:
            wanted = [(refs[i]._id, records[i].value, refs[i]._owner) for i in stored]
            loaded = self.open_stored(wanted, deadline)
            for i, value in zip(stored, loaded, strict=True):
                out[i] = value
        return out

    def _unreadable(self, ref: ObjectRef[Any], error: Exception) -> Exception:
        if isinstance(error, RayError):
            return error
        return RaySystemError(f"the value of {ref!r} cannot be unpickled here: {type(error).__name__}: {error}")

    def _await(self, refs: list[ObjectRef[Any]], timeout: float | None) -> list[ObjectRecord]:
        """Their records, none of them pending; raises the first error without waiting for the others."""
        waiter: GetWaiter | None = None
        with self.lock:
            objects = self.core.objects
            if self.inbox:
                self.drain()
            records = []
            for ref in refs:
                record = objects.get(ref._id)
                if record is None:
                    record = self._unknown(ref)
                records.append(record)
                if record.status == PENDING:
                    if waiter is None:
                        waiter = GetWaiter(self.reactor)
                    waiter.remaining += 1
                    self.core.when_ready(ref._id, record, waiter)
                elif record.status == ERROR and waiter is None:
                    raise errors.to_exception(record.value)
            if waiter is not None:
                self.core.calls.flush()
            self.leave()
        if waiter is None:
            return records
        if any(r.status == ERROR for r in records):
            waiter.done = True  # an error that is there already, behind one that is not
        else:
            self._sleep(waiter, timeout, lambda: records)
        self._check_ready(records, f"after {timeout} s")
        return records

    def _check_ready(self, records: list[ObjectRecord], why: str) -> None:
        """Raise the first error among them, or GetTimeoutError if one is not there."""
        for record in records:
            if record.status == ERROR:
                raise errors.to_exception(record.value)
        if any(r.status == PENDING for r in records):
            if self.closed:
                raise self.over()
            raise GetTimeoutError(f"get timed out {why}: {self._on_what(records)}")

    def _unknown(self, ref: ObjectRef[Any]) -> ObjectRecord:
        if self.closed:
            raise self.over()
        raise ValueError(
            f"{ref!r} is not known in this session: it was made by an earlier session, or by "
            "ObjectRef(bytes). Get refs from .remote() or put()"
        )

    def _sleep(
        self, waiter: Waiter, timeout: float | None, records: Callable[[], list[ObjectRecord]]
    ) -> None:
        """Wait; say on what if it takes long."""
        self.must_not_wait("get or wait")
        deadline = None if timeout is None else monotonic() + timeout
        wait = self.reactor.wait
        while not self.closed or self.exiting:
            left = SAY_AFTER_S if deadline is None else min(SAY_AFTER_S, max(0.0, deadline - monotonic()))
            if self.wait_in_user_code(wait, waiter, left):
                return
            if deadline is not None and monotonic() >= deadline:
                return
            print(
                f"minray: still waiting after {SAY_AFTER_S:.0f} s: {self._on_what(records())}",
                file=sys.stderr,
            )

    def wait_in_user_code(self, wait: Callable[..., bool], waiter: Waiter, timeout: float | None) -> bool:
        """A worker's executor overrides this: others may have its CPU meanwhile."""
        return wait(waiter, timeout)

    def wait_for_memory(self, wait: Callable[..., bool], waiter: Waiter, timeout: float | None) -> bool:
        """Wait for the store. A worker overrides this: it keeps its CPU."""
        return self.wait_in_user_code(wait, waiter, timeout)

    def _on_what(self, records: list[ObjectRecord]) -> str:
        """One line about the unfinished among them."""
        with self.lock:
            pending = [r for r in records if r.status == PENDING]
            names: dict[str, int] = {}
            for record in pending:
                what = self._describe(record)
                names[what] = names.get(what, 0) + 1
        parts = [f"{n} × {what}" if n > 1 else what for what, n in names.items()]
        return f"{len(pending)} of {len(records)} not ready: " + "; ".join(parts[:5])

    def _describe(self, record: ObjectRecord) -> str:
        task = record.task
        if record.owner is not None:
            return f"an object owned by worker {record.owner[1].hex()[:8]}"
        if task is None or isinstance(task, str):
            return "an object that nobody makes"
        if task.unresolved:
            return f"task {task.name} (waits for {task.unresolved} arguments)"
        if task.actor is not None:
            actor = task.actor
            why = str(actor.cause.get("text") or "") if actor.state == "RESTARTING" else ""
            where = "was sent" if task.seq in actor.inflight else f"actor is {actor.state}" + (why and f": {why}")
            return f"call {actor.class_name}.{task.name} ({where})"
        if task.lease is None:
            return f"task {task.name} (queued: no worker is free for {task.function.key.description})"
        return f"task {task.name} (sent to worker {task.lease.worker[1].hex()[:8]})"

    # -- references that leave or come back by plain pickle --------------------------------------------

    def pin_forever(self, ref: ObjectRef[Any]) -> Address | None:
        """See the contract."""
        if self.owned():
            self.inbox.append(partial(self._pin, ref))
        else:
            with self.lock:
                self._pin(ref)
                self.leave()
        return ref._owner or self.core.me

    def _pin(self, ref: ObjectRef[Any]) -> None:
        if ref._owner is None:
            self.core.refs.pin_forever(ref._id)
        else:
            self.peer(ref._owner).send(pack(PinForever(ref._id)))

    def adopt_ref(self, object_id: bytes, owner: Address | None) -> ObjectRef[Any]:
        """See the contract. The object is pinned, so no grant is needed."""
        mine = owner is None or owner[1] == self.core.me[1]
        with self.lock:
            if owner is None:
                if object_id not in self.core.objects:
                    return ObjectRef(object_id)
                owner = self.core.me
            record = self.core.refs.borrow(object_id, owner)
            if mine and record.status == ERROR and record.value is None:
                record.value = ("freed", object_id)
            self.leave()
        return make_ref(object_id, None if mine else owner, self)
