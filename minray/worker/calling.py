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
            return self.outgoing(running, value, task_id + b"\x01\x00\x00\x00", scope)
        if n == 0:
            return MULTI, []
        if n == DYNAMIC:
            refs = DynamicObjectRefGenerator([self.rt.put(item) for item in value])
            return self.outgoing(running, refs, task_id + b"\x01\x00\x00\x00", scope)
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
        ids = [task_id + (1 + i).to_bytes(4, "little") for i in range(n)]
        encoded = self._encode_all(ids, values)
        return MULTI, [self._give(running, i, *one, scope) for i, one in zip(ids, encoded, strict=True)]

    def _encode_all(self, ids: list[bytes], values: list[Any]) -> list[tuple[int, Any, list[ObjectRef[Any]]]]:
        """All of them before any is given away: if one cannot be encoded, the owner never hears of the others."""
        rt = self.rt
        encoded: list[tuple[int, Any, list[ObjectRef[Any]]]] = []
        try:
            for object_id, value in zip(ids, values, strict=True):
                encoded.append(rt.encode(value, object_id))
        except BaseException:
            for object_id, (status, stored, _) in zip(ids, encoded, strict=False):
                if status == STORED:
                    rt.store.free_own(object_id, stored[0])
            raise
        return encoded

    def outgoing(self, running: Running, value: Any, object_id: bytes, scope: list[bytes]) -> tuple[int, Any]:
        """One value on its way to the owner, with the grants for the references inside it."""
        status, stored, nested = self.rt.encode(value, object_id)
        if status == INLINE and type(stored) is bytes:  # as most are: a call less
            return status, stored
        return self._give(running, object_id, status, stored, nested, scope)

    def _give(
        self,
        running: Running,
        object_id: bytes,
        status: int,
        stored: Any,
        nested: list[ObjectRef[Any]],
        scope: list[bytes],
    ) -> tuple[int, Any]:
        if status == INLINE and type(stored) is bytes:
            return status, stored
        rt, owner = self.rt, running.owner
        with rt.lock:
            if status == STORED:
                rt.store.report([(object_id, stored[0])], owner[1])
            refs = []
            me = rt.core.me
            for ref in nested:
                i = ref._id
                granted = i not in scope and rt.core.refs.give(i, owner)
                refs.append((i, ref._owner or me, granted))
            rt.leave()
        return status, (stored[0], stored[1], refs)

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
        status, value = self.outgoing(running, item, object_id, scope)
        rt = self.rt
        with rt.lock:
            self.outbox.add(
                running.owner, (running.seq, running.attempt, ITEM, (index, status, value), -1, None)
            )
            self.outbox.flush()
            rt.leave()

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
