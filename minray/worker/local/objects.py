"""Local mode's objects: what a ref stands for when everything is in one process.

A value is kept as the runtime's pickler made it, and unpickled for each ``get``, exactly as between
processes: nobody can change another's value by accident, arrays come back read-only, and what cannot be
pickled fails here as it would there. Only functions and actors are the live Python objects, so that a
debugger steps into them.

Called by ``worker.local`` and its parts, from any thread. Everything is under ``changed``, which is
notified whenever an object gets its value. Callbacks and user code run outside it.

Invariants: an object's status leaves PENDING once; an object is in the table while its count is above 0; an
object's nested refs are held as ObjectRefs, so they count themselves.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from minray.exceptions import RaySystemError
from minray.object_ref import ObjectRef, make_ref
from minray.worker import errors
from minray.worker.serialization import deserialize, serialize

PENDING, VALUE, ERROR = 0, 1, 2
UNKNOWN_OWNER = (
    "You are trying to access an object whose owner is unknown: {} was made in an earlier session, by "
    "ObjectRef.from_random(), or everybody who referenced it is gone"
)

Encoded = tuple[bytes, list[bytes], list[ObjectRef[Any]]]  # in-band pickle, buffers, nested refs


def encode(value: Any) -> Encoded:
    """Pickle a value. Buffers are copied: the value must not change when the user's array does."""
    made = serialize(value)
    return made.data, [bytes(buffer) for buffer in made.buffers], made.refs


def decode(encoded: Encoded) -> Any:
    """A fresh value from ``encode``."""
    return deserialize(*encoded)


class LocalObject:
    """One object. ``value`` is what ``encode`` made, or an error value (see worker.errors)."""

    __slots__ = ("callbacks", "count", "status", "value")

    def __init__(self) -> None:
        self.count = 1
        self.status = PENDING
        self.value: Any = None
        self.callbacks: list[Callable[[], None]] | None = None


class ObjectTable:
    """The objects of a local runtime."""

    def __init__(self, rt: Any) -> None:
        self._rt = rt
        self._objects: dict[bytes, LocalObject] = {}
        self.changed = threading.Condition()
        self.released: deque[bytes] = deque()  # counts given back by __del__, applied by ``drain``

    def new(self, object_id: bytes) -> ObjectRef[Any]:
        """A pending object and its first ref."""
        with self.changed:
            assert object_id not in self._objects, f"object {object_id.hex()} is there already"
            self._objects[object_id] = LocalObject()
        return make_ref(object_id, None, self._rt)

    def find(self, ref: ObjectRef[Any]) -> LocalObject:
        """The object of a ref. ValueError if this session does not know it."""
        found = self._objects.get(ref._id)
        if found is None or (ref._rt is not None and ref._rt is not self._rt):
            raise ValueError(UNKNOWN_OWNER.format(ref))
        return found

    def again(self, object_id: bytes) -> ObjectRef[Any]:
        """One more ref to an object that is there."""
        with self.changed:
            found = self._objects.get(object_id)
            if found is None:
                raise ValueError(UNKNOWN_OWNER.format(f"object {object_id.hex()}"))
            found.count += 1
        return make_ref(object_id, None, self._rt)

    def pin(self, object_id: bytes) -> None:
        """Keep it until the session ends."""
        with self.changed:
            if object_id in self._objects:
                self._objects[object_id].count += 1

    def settle(self, object_id: bytes, status: int, value: Any) -> None:
        """It has a value or an error now. Nothing happens if nobody references it, or it has one."""
        with self.changed:
            found = self._objects.get(object_id)
            if found is None or found.status != PENDING:
                return
            found.status, found.value = status, value
            callbacks, found.callbacks = found.callbacks, None
            self.changed.notify_all()
        for callback in callbacks or ():
            callback()

    def when_settled(self, found: LocalObject, callback: Callable[[], None]) -> bool:
        """Call back once it has a value or error. False: it has, and nothing will be called."""
        with self.changed:
            if found.status != PENDING:
                return False
            if found.callbacks is None:
                found.callbacks = []
            found.callbacks.append(callback)
            return True

    def read(self, found: LocalObject) -> Any:
        """A fresh copy of its value; raises its error."""
        if found.status == ERROR:
            raise errors.to_exception(found.value)
        try:
            return decode(found.value)
        except Exception as error:  # what a class of the user raises when it is unpickled
            raise RaySystemError(f"the value cannot be unpickled: {type(error).__name__}: {error}") from error

    def drain(self) -> list[bytes]:
        """Apply what ``__del__`` gave back. The ids of the objects that are gone."""
        gone: list[bytes] = []
        dropped: list[LocalObject] = []  # destroyed after the lock: their nested refs release in turn
        released = self.released
        with self.changed:
            while released:
                object_id = released.popleft()
                found = self._objects.get(object_id)
                if found is None:
                    continue
                found.count -= 1
                if found.count == 0:
                    dropped.append(self._objects.pop(object_id))
                    gone.append(object_id)
        dropped.clear()
        return gone

    def settle_all(self, error_value: Any) -> None:
        """The session ends: whoever waits is told."""
        with self.changed:
            pending = [key for key, found in self._objects.items() if found.status == PENDING]
        for object_id in pending:
            self.settle(object_id, ERROR, error_value)

    def __len__(self) -> int:
        return len(self._objects)

    def check_invariants(self) -> None:
        """Raise AssertionError where the table contradicts itself."""
        with self.changed:
            for object_id, found in self._objects.items():
                assert found.count > 0, f"{object_id.hex()} is unreferenced but here"
                assert found.status == PENDING or found.callbacks is None, "a callback was forgotten"
