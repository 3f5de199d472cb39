"""Waiting for objects without taking their values: wait, on_ready, and where objects lie.

In a session of several nodes an object that was made on another one is *here* once our node has a copy of it: that
is what ``wait(fetch_local=True)``, ``await`` and futures wait for. Asking starts the transfer; the copy stays for as
long as our node has room. If no copy can be had, the object is made again (``lineage``), and we wait for that.

Between worker.objects (values) and worker.submission.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from minray.object_ref import ObjectRef
from minray.store.holds import Gone, Hold
from minray.wire.reactor import Waiter
from minray.worker.objects import ASK_S, PENDING, ObjectOps, is_lost
from minray.worker.references import ObjectRecord
from minray.worker.tasks import INLINE, STORED


class CountWaiter(Waiter):
    """Waits for a number of objects, whatever they become."""

    __slots__ = ("reactor", "remaining")

    def __init__(self, reactor: Any, remaining: int) -> None:
        super().__init__()
        self.reactor = reactor
        self.remaining = remaining

    def ready(self, _id: bytes | None, _record: Any) -> None:
        self.remaining -= 1
        if self.remaining == 0:
            self.reactor.notify(self)


class _Arrivals(Waiter):
    """Waits for a number of objects to be here, or to have failed."""

    __slots__ = ("here", "ops", "pending", "wanted")

    def __init__(self, ops: WaitOps, wanted: int) -> None:
        super().__init__()
        self.ops = ops
        self.wanted = wanted
        self.here: set[bytes] = set()
        self.pending: dict[bytes, ObjectRecord] = {}  # those that we asked for, or that are not made yet

    def ready(self, object_id: bytes, record: ObjectRecord) -> None:
        """It has a value, or an error. Under the lock."""
        self.pending[object_id] = record
        self.ops.bring(object_id, record, self, partial(self.arrived, object_id))

    def arrived(self, object_id: bytes) -> None:
        """A copy is here."""
        self.here.add(object_id)
        if len(self.here) >= self.wanted:
            self.ops.reactor.notify(self)


class _Callback:
    """on_ready: a function to call, once. While one waits, somebody must read: the background thread."""

    __slots__ = ("function", "ops")

    def __init__(self, ops: WaitOps, function: Callable[[], None]) -> None:
        self.ops = ops
        self.function = function
        ops.callbacks += 1
        if ops.callbacks == 1:
            ops.reactor.set_background_demand(True)

    def ready(self, object_id: bytes, record: ObjectRecord) -> None:
        if record.status == STORED:
            self.ops.bring(object_id, record, self, self.arrived)
        else:
            self.arrived()

    def arrived(self) -> None:
        ops = self.ops
        ops.callbacks -= 1
        if ops.callbacks == 0:
            ops.reactor.set_background_demand(False)
        self.function()


class WaitOps(ObjectOps):
    """wait and on_ready."""

    callbacks = 0  # unanswered on_ready

    # -- wait ----------------------------------------------------------------------------------------

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout: float | None, fetch_local: bool
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """See the contract."""
        if self.owned():
            self.must_not_wait("wait")
        if fetch_local and self.clustered:
            return self._wait_here(refs, num_returns, timeout)
        ready, rest = self._split(refs, num_returns)
        if len(ready) == num_returns or timeout == 0:
            return ready, rest
        with self.lock:
            objects = self.core.objects
            waiter = CountWaiter(self.reactor, 0)
            pending = []
            have = 0
            for ref in refs:
                record = objects.get(ref._id)
                if record is None:
                    record = self._unknown(ref)
                if record.status == PENDING:
                    pending.append(record)
                    self.core.when_ready(ref._id, record, waiter)
                else:
                    have += 1
            waiter.remaining += num_returns - have
            self.core.calls.flush()
            self.leave()
        try:
            if waiter.remaining > 0:
                self._sleep(waiter, timeout, lambda: pending)
        finally:
            with self.lock:
                _forget_waiter(waiter, pending)
        if self.closed:
            raise self.over()
        return self._split(refs, num_returns)

    def _wait_here(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout: float | None
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """wait, where values may lie on other nodes."""
        arrivals = _Arrivals(self, num_returns)
        with self.lock:
            if self.inbox:
                self.drain()
            for ref in refs:
                record = self.core.objects.get(ref._id) or self._unknown(ref)
                if record.status == PENDING:
                    arrivals.pending[ref._id] = record
                    self.core.when_ready(ref._id, record, arrivals)
                else:
                    arrivals.ready(ref._id, record)
            self.core.calls.flush()
            self.leave()
            left = [record for object_id, record in arrivals.pending.items() if object_id not in arrivals.here]
        if timeout is not None and any(record.status == STORED for record in left):
            timeout = max(timeout, ASK_S)  # our node may have what we do not know of
        try:
            if not arrivals.done and (timeout is None or timeout > 0):
                self._sleep(arrivals, timeout, lambda: left)
        finally:
            with self.lock:
                _forget_waiter(arrivals, arrivals.pending.values())
        if self.closed:
            raise self.over()
        ready = [ref for ref in refs if ref._id in arrivals.here][:num_returns]
        chosen = {ref._id for ref in ready}
        return ready, [ref for ref in refs if ref._id not in chosen]

    def bring(self, object_id: bytes, record: ObjectRecord, waiter: Any, then: Callable[[], None]) -> None:
        """``then()`` once it is here: at once, or on the reactor's thread. ``waiter.ready`` is called again if it is
        not to be had and is being made once more. Under the lock."""
        if record.status != STORED or record.value[0][0] == self.node_id:
            then()
            return
        location = record.value[0]
        self.core.refs.hold(object_id)

        def done(held: list[Hold | Gone], error: Exception | None) -> None:
            with self.lock:
                self._brought(object_id, location, waiter, then, held[0] if error is None else None)
                self.leave()

        self.store.acquire_async([(object_id, location)], done)

    def _brought(
        self, object_id: bytes, location: Any, waiter: Any, then: Callable[[], None], found: Hold | Gone | None
    ) -> None:
        core = self.core
        record = core.objects[object_id]
        if core.lineage is not None and isinstance(found, Gone) and is_lost(found):
            core.lineage.on_unreadable(object_id, location, found.reason)
        if record.status == PENDING:
            core.when_ready(object_id, record, waiter)
        elif record.status == STORED and record.value[0] != location:
            waiter.ready(object_id, record)  # it was made again meanwhile
        else:
            then()  # also if it cannot be had: whoever reads it hears why
        if isinstance(found, Hold):
            found.release()  # the node keeps the copy as long as it has room
        core.refs.unhold(object_id)

    def _split(
        self, refs: list[ObjectRef[Any]], num_returns: int
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """The first ``num_returns`` that are ready, and the rest, in order."""
        ready = []
        with self.lock:
            if self.inbox:
                self.drain()
            objects = self.core.objects
            for i, ref in enumerate(refs):
                record = objects.get(ref._id)
                if record is None:
                    record = self._unknown(ref)
                if record.status != PENDING:
                    ready.append(i)
                    if len(ready) == num_returns:
                        break
            self.leave()
        if len(ready) == 1:
            i = ready[0]
            return [refs[i]], refs[:i] + refs[i + 1 :]
        chosen = set(ready)
        return [refs[i] for i in ready], [r for i, r in enumerate(refs) if i not in chosen]

    def on_ready(self, ref: ObjectRef[Any], callback: Callable[[], None]) -> None:
        """See the contract."""
        with self.lock:
            record = self.core.objects.get(ref._id)
            if record is None:
                record = self._unknown(ref)
            pending = record.status == PENDING and not self.closed
            if pending:
                self.core.when_ready(ref._id, record, _Callback(self, callback))
                self.core.calls.flush()
            elif record.status == STORED and record.value[0][0] != self.node_id and not self.closed:
                _Callback(self, callback).ready(ref._id, record)
                pending = True
            self.leave()
        if not pending:
            callback()

    def object_locations(self, refs: list[ObjectRef[Any]]) -> list[tuple[list[bytes], int | None, bool]]:
        """See the contract."""
        found: list[tuple[list[bytes], int | None, bool]] = []
        stored: dict[int, bytes] = {}
        with self.lock:
            for ref in refs:
                record = self.core.objects.get(ref._id) or self._unknown(ref)
                value = record.value
                if record.status == STORED:
                    stored[len(found)] = ref._id
                    found.append(([value[0][0]], value[1], False))
                elif record.status == INLINE:
                    size = len(value) if type(value) is bytes else len(value[0]) + sum(map(len, value[1]))
                    found.append(([(record.owner or self.core.me)[0]], size, False))
                else:
                    found.append(([], None, False))
            self.leave()
        if stored:
            known = self.request(self.node, "object_copies", (list(stored.values()),), None)
            for i, (nodes, did_spill) in zip(stored, known, strict=True):
                found[i] = (list(dict.fromkeys(found[i][0] + nodes)), found[i][1], did_spill)
        return found


def _forget_waiter(waiter: Any, records: Iterable[ObjectRecord]) -> None:
    """It waits no more."""
    for record in records:
        if record.waiters is not None:
            record.waiters = [one for one in record.waiters if one is not waiter] or None
