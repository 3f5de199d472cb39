"""One call at the worker, from spec to result: what tasks and all kinds of actors have in common.

Decode the arguments, call, encode what comes out, and say in the reply who kept which of the arguments'
references. Outside the lock, but for the counting. Results are gathered per owner and leave in batches:
at once when nothing else is to do, and after about a millisecond otherwise (the reactor's background
thread sends them if user code is busy longer).

Called by worker.executor and worker.actor_executor.
"""

from __future__ import annotations

import pickle
from time import monotonic
from typing import Any

from minray import exceptions
from minray._base.options import covers
from minray.object_ref import DynamicObjectRefGenerator, ObjectRef
from minray.wire.messages import RESULTS, Address
from minray.wire.reactor import Waiter
from minray.worker import errors
from minray.worker.running import Running
from minray.worker.tasks import DYNAMIC, END, ERROR, INLINE, ITEM, MULTI, RETRY, STORED

FLUSH_AFTER_S = 0.001

Result = tuple[Any, ...]
Encoded = tuple[bytes, int, Any, list[ObjectRef[Any]]]  # object id, status, value without its references, these


class Outbox:
    """Results that have not been sent yet, per owner. Under the runtime's lock."""

    def __init__(self, rt: Any) -> None:
        self._rt = rt
        self._waiting: dict[bytes, tuple[Address, list[Result]]] = {}
        self._since = 0.0
        rt.before_releases = self.flush

    def add(self, owner: Address, result: Result) -> None:
        """One more; sent by ``flush``."""
        entry = self._waiting.get(owner[1])
        if entry is None:
            if not self._waiting:
                self._since = monotonic()
            self._waiting[owner[1]] = (owner, [result])
        else:
            entry[1].append(result)

    def flush(self) -> None:
        """Send all."""
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            for owner, results in waiting.values():
                self._rt.core.effects.append(("send", owner, (RESULTS, results)))

    def flush_old(self) -> None:
        """Send all if the oldest has waited long enough."""
        if self._waiting and monotonic() - self._since >= FLUSH_AFTER_S:
            self.flush()


class Caller:
    """Decoding, encoding and accounting of calls, for one worker."""

    def __init__(self, rt: Any, outbox: Outbox) -> None:
        self.rt = rt
        self.outbox = outbox
        self._far: set[bytes] = set()  # owners on other nodes for whom something was stored here

    # -- in ------------------------------------------------------------------------------------------

    def arguments(
        self, payload: Any, extra: dict[str, Any] | None
    ) -> tuple[Any, dict[str, Any], list[bytes]]:
        """(args, kwargs, ids of the references and stored values that came with them)."""
        scope: list[bytes] = []
        if payload == b"":
            args: Any = ()
            kwargs: dict[str, Any] = {}
        else:
            args, kwargs = self._decode_payload(payload, scope)
        if extra is not None and "top" in extra:
            args = list(args)
            for where, status, value, object_id, owner in extra["top"]:
                decoded = self._decode_top(status, value, object_id, owner, scope)
                if isinstance(where, int):
                    args[where] = decoded
                else:
                    kwargs[where] = decoded
        if scope:
            with self.rt.lock:
                self.rt.core.refs.begin_scope(scope)
        return args, kwargs, scope

    def _decode_payload(self, payload: Any, scope: list[bytes]) -> tuple[Any, dict[str, Any]]:
        rt = self.rt
        if type(payload) is bytes:
            value = rt.decode(b"", INLINE, payload, None)
        elif payload[0] == "stored":
            _, stored, object_id, owner = payload
            scope.append(object_id)
            scope.extend(r[0] for r in stored[2])
            value = rt.decode(object_id, STORED, stored, owner)
        else:
            scope.extend(r[0] for r in payload[2])
            value = rt.decode(b"", INLINE, payload, None)
        if type(value) is list:
            return value[0], value[1]
        return value, {}

    def _decode_top(
        self, status: int, value: Any, object_id: bytes, owner: Address, scope: list[bytes]
    ) -> Any:
        if status == STORED:
            scope.append(object_id)
        if type(value) is not bytes:
            scope.extend(r[0] for r in value[2])
        return self.rt.decode(object_id, status, value, owner)

    # -- out -----------------------------------------------------------------------------------------

    def result(self, running: Running, value: Any, scope: list[bytes]) -> tuple[int, Any]:
        """(status, value) of what a call returned, or ValueError if it is not what it promised."""
        n = running.num_returns
        task_id = self.task_object(running)
        if n == 1:
            return self._one(running, value, task_id + b"\x01\x00\x00\x00", scope)
        if n == 0:
            return MULTI, []
        if n == DYNAMIC:
            refs = DynamicObjectRefGenerator([self.rt.put(item) for item in value])
            return self._one(running, refs, task_id + b"\x01\x00\x00\x00", scope)
        try:
            values = list(value)
        except TypeError:
            raise ValueError(
                f"{self.name(running)} has num_returns={n} but returned one {type(value).__name__}: "
                f"return {n} values"
            ) from None
        if len(values) != n:
            raise ValueError(
                f"Task returned {len(values)} objects, but num_returns={n}: {self.name(running)} must return "
                f"exactly {n} values"
            )
        return MULTI, self._outgoing(
            running, [(task_id + (1 + i).to_bytes(4, "little"), v) for i, v in enumerate(values)], scope
        )

    def _one(self, running: Running, value: Any, object_id: bytes, scope: list[bytes]) -> tuple[int, Any]:
        """One value on its way to the owner."""
        status, stored, nested = self.rt.encode(value, object_id)
        if status == INLINE and type(stored) is bytes:
            return status, stored
        encoded = (object_id, status, stored, nested)
        self._report(running.owner, encoded)
        with self.rt.lock:
            outgoing = self._give(running.owner, encoded, scope)
            self.rt.leave()
        return outgoing

    def _outgoing(
        self, running: Running, values: list[tuple[bytes, Any]], scope: list[bytes], item: int | None = None
    ) -> list[tuple[int, Any]]:
        """Values (object id, value) on their way to the owner, or, if one of them cannot be, none: references are given
        when all are encoded. ``item``: they are the stream's item of that number; send it."""
        encoded: list[Encoded] = []
        outgoing: list[tuple[int, Any]] = []
        try:
            for object_id, value in values:
                encoded.append((object_id, *self.rt.encode(value, object_id)))  # before it is reported: see below
                self._report(running.owner, encoded[-1])
            with self.rt.lock:  # in one go: what is given is sent, though user code may be interrupted
                outgoing = [self._give(running.owner, one, scope) for one in encoded]
                if item is not None:
                    answer = (running.seq, running.attempt, ITEM, (item, *outgoing[0]), -1, None)
                    self.outbox.add(running.owner, answer)
                    self.outbox.flush()
                self.rt.leave()
        finally:
            if not outgoing:  # nobody will hear of them
                self.rt.store.free([(one[0], one[2][0]) for one in encoded if one[1] == STORED])
        return outgoing

    def _report(self, owner: Address, encoded: Encoded) -> None:
        """If it is stored, the node hears of it: before its owner does, and so that it may go to disk."""
        if encoded[1] == STORED:
            if owner[0] != self.rt.core.me[0] and owner[1] not in self._far:
                self._watch(owner)
            self.rt.store.report([(encoded[0], encoded[2][0])], owner[1])
            self.rt.reach_node()

    def _watch(self, owner: Address) -> None:
        """A caller of another node need not be known to ours, whose store has to hear of its end, too."""
        self._far.add(owner[1])
        with self.rt.lock:
            self.rt.core.effects.append(("watch", owner))
            self.rt.leave()

    def _give(self, owner: Address, encoded: Encoded, scope: list[bytes]) -> tuple[int, Any]:
        """It gets the grants for the references inside. Under the lock."""
        _, status, stored, nested = encoded
        me, give = self.rt.core.me, self.rt.core.refs.give
        refs = [(r._id, r._owner or me, r._id not in scope and give(r._id, owner)) for r in nested]
        return status, self.rt.with_refs(stored, refs)

    def stream(self, running: Running, items: Any, scope: list[bytes]) -> tuple[int, Any]:
        """Send the items of a generator as they come."""
        index = 0
        limit = int(running.extra.get("backpressure") or running.meta.get("backpressure") or 0)
        for item in items:
            self.send_item(running, index, item, scope)
            index += 1
            if limit > 0 and index - running.consumed >= limit:
                self._wait_for_consumer(running, index, limit)
            if running.cancelled:
                raise KeyboardInterrupt
        return END, index

    def send_item(self, running: Running, index: int, item: Any, scope: list[bytes]) -> None:
        """One item of a stream."""
        object_id = self.task_object(running) + (2 + index).to_bytes(4, "little")
        self._outgoing(running, [(object_id, item)], scope, item=index)

    def _wait_for_consumer(self, running: Running, produced: int, limit: int) -> None:
        rt = self.rt
        while produced - running.consumed >= limit and not running.cancelled:
            waiter = Waiter()
            with rt.lock:
                if produced - running.consumed < limit:
                    return
                running.waiter = waiter
            rt.wait_in_user_code(rt.reactor.wait, waiter, 3600.0)

    def failure(self, running: Running, error: BaseException) -> tuple[int, Any]:
        """(status, error value) of what a call raised."""
        name = self.name(running)
        if isinstance(error, KeyboardInterrupt):
            return ERROR, ("cancelled", name)
        if isinstance(error, exceptions.TaskCancelledError) and running.cancelled:
            return ERROR, ("cancelled", name)
        actor = self.rt.actor
        value = errors.from_exception(
            error,
            name,
            proctitle=f"ray::{name}()",
            actor_repr=_safe_repr(actor.instance) if actor is not None else None,
            actor_id=actor.actor_id.hex() if actor is not None else None,
        )
        return (RETRY if self._retryable(running, error) else ERROR), value

    def _retryable(self, running: Running, error: BaseException) -> bool:
        retry: Any = running.extra.get("retry") if running.method else running.meta.get("retry")
        if isinstance(retry, bytes):
            retry = pickle.loads(retry)
        return bool(retry) and covers(retry, error)

    def finish(self, running: Running, status: int, value: Any, exec_ns: int, scope: list[bytes]) -> None:
        """Queue the reply; under the lock. The arguments are gone by now."""
        rt = self.rt
        retained = None
        if scope:
            rt.drain()
            retained = rt.core.refs.end_scope(scope)
        self.outbox.add(running.owner, (running.seq, running.attempt, status, value, exec_ns, retained))

    def name(self, running: Running) -> str:
        """As messages say it: ``f`` or ``A.m``."""
        given = running.extra.get("name")
        if given is None:
            name = running.meta["name"]
            given = f"{name}.{running.method}" if running.method else name
        return str(given)

    def task_object(self, running: Running) -> bytes:
        """The 24 bytes of the running task's id."""
        object_id: bytes = self.rt.task_id_of(running)
        return object_id


def _safe_repr(instance: Any) -> str:
    try:
        return repr(instance)
    except Exception as error:  # a user's __repr__
        return f"<{type(instance).__name__}, whose repr raised {type(error).__name__}>"
