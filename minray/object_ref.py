"""ObjectRef and the generators of refs: names of objects that live, or will live, somewhere in the cluster.

A public leaf: it imports ``_base`` alone and knows the runtime only as the object in ``_rt`` that made the
ref. An ObjectRef is made on the hot path, so it is three slots and nothing else.

Invariants
* Each ObjectRef with a runtime is one local count: who calls ``make_ref`` has already counted it, and
  ``__del__`` gives exactly that count back by ``rt.release(id)``, which only appends to a queue. Copies made
  by ``copy`` are the same object, so they need no count.
* A ref without a runtime (``nil``, ``from_random``, ``ObjectRef(binary)``) is a name and counts nothing.
* ``__reduce__`` always means *out of band* (plain pickle): the object is pinned for the life of its owner.
  In-band refs are recognised by the runtime's own Pickler before ``__reduce__`` is asked.
* An ObjectRefGenerator is the only holder of its stream: no copy, no pickle; its ``__del__`` releases it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from minray._base import current

if TYPE_CHECKING:
    from concurrent.futures import Future

    from minray._base.ids import JobID, TaskID

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

OBJECT_ID_SIZE = 28
TASK_ID_SIZE = 24
JOB_ID_SIZE = 4
_NIL = b"\xff" * OBJECT_ID_SIZE

Owner = tuple[bytes, bytes, str]  # wire's Address: node_id, worker_id, endpoint


class ObjectRef(Generic[T_co]):
    """A reference to an object: the result of a task, or what ``put`` stored.

    ``get(ref)`` returns its value; ``await ref`` does so in a coroutine; as a top-level argument of a task it
    is replaced by its value. Compares and hashes by its 28-byte id.
    """

    __slots__ = ("__weakref__", "_id", "_owner", "_rt")

    _id: bytes
    _owner: Owner | None  # None: this process owns it, or nobody knows
    _rt: Any  # the contract.Runtime that counts it, or None

    def __init__(self, id: bytes) -> None:
        """Name an object by the 28 bytes of its id. It keeps nothing alive. ValueError on another size."""
        self._rt = None
        self._owner = None
        if not isinstance(id, bytes):
            raise TypeError(f"an object id is bytes, got {type(id).__name__}: {id!r}")
        if len(id) != OBJECT_ID_SIZE:
            raise ValueError(f"ID string needs to have length {OBJECT_ID_SIZE}, got {len(id)}: {id!r}")
        self._id = id

    def __del__(self) -> None:
        rt = self._rt
        if rt is not None:
            rt.release(self._id)

    # --- names ------------------------------------------------------------------------------------

    @classmethod
    def nil(cls) -> ObjectRef[Any]:
        """The ref that names nothing: 28 bytes 0xff."""
        return cls(_NIL)

    @classmethod
    def from_random(cls) -> ObjectRef[Any]:
        """A ref to an object that does not exist."""
        return cls(os.urandom(OBJECT_ID_SIZE))

    @classmethod
    def from_binary(cls, id: bytes) -> ObjectRef[Any]:
        """The ref with these 28 bytes; ValueError on another size."""
        return cls(id)

    @classmethod
    def from_hex(cls, text: str) -> ObjectRef[Any]:
        """The ref with these 56 hexadecimal digits; ValueError for anything else."""
        return cls(bytes.fromhex(text))

    @staticmethod
    def size() -> int:
        """Length of an object id in bytes: 28."""
        return OBJECT_ID_SIZE

    def binary(self) -> bytes:
        """The 28 bytes of the id."""
        return self._id

    def hex(self) -> str:
        """The id as 56 hexadecimal digits."""
        return self._id.hex()

    def is_nil(self) -> bool:
        """Whether this is ``ObjectRef.nil()``."""
        return self._id == _NIL

    def task_id(self) -> TaskID:
        """The task that makes, or made, the object."""
        from minray._base.ids import TaskID

        return TaskID(self._id[:TASK_ID_SIZE])

    def job_id(self) -> JobID:
        """The job that the object belongs to."""
        from minray._base.ids import JobID

        return JobID(self._id[TASK_ID_SIZE - JOB_ID_SIZE : TASK_ID_SIZE])

    def owner_address(self) -> Owner | None:
        """Where the owner is: (node id, worker id, endpoint); None where this process owns it."""
        return self._owner

    def call_site(self) -> str:
        """Where the ref was made. Not recorded: always ""."""
        return ""

    # --- waiting without blocking -----------------------------------------------------------------

    def future(self) -> Future[T_co]:
        """A ``concurrent.futures.Future`` of the value. Cancelling it does not cancel the task."""
        from minray.awaiting import future_of

        return future_of(self)

    def as_future(self) -> Any:
        """An ``asyncio.Future`` of the value, on the running loop. Cancelling it leaves the task alone."""
        from minray.awaiting import asyncio_future_of

        return asyncio_future_of(self)

    def __await__(self) -> Generator[Any, None, T_co]:
        result: Generator[Any, None, T_co] = self.as_future().__await__()
        return result

    # --- identity ---------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ObjectRef):
            return self._id == other._id
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"ObjectRef({self._id.hex()})"

    def __copy__(self) -> ObjectRef[T_co]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ObjectRef[T_co]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        rt = self._rt
        owner = self._owner if rt is None else rt.pin_forever(self)
        return _from_out_of_band, (self._id, owner)


ObjectID = ObjectRef  # its old name

_new = object.__new__


def make_ref(id: bytes, owner: Owner | None, rt: Any) -> ObjectRef[Any]:
    """For runtimes only: the ref of an object that ``rt`` has just counted once more. Checks nothing."""
    ref: ObjectRef[Any] = _new(ObjectRef)
    ref._id = id
    ref._owner = owner
    ref._rt = rt
    return ref


def _from_out_of_band(id: bytes, owner: Owner | None) -> ObjectRef[Any]:
    """What a ref that went through plain pickle becomes again."""
    rt = current.get()
    if rt is None:
        ref: ObjectRef[Any] = ObjectRef(id)
        ref._owner = owner
        return ref
    adopted: ObjectRef[Any] = rt.adopt_ref(id, owner)
    return adopted


class ObjectRefGenerator(Generic[T_co]):
    """The refs that a streaming generator task yields, in order, each as soon as it is there.

    ``for ref in generator`` blocks for the next item; ``async for`` does so in a coroutine. An exception in
    the task arrives as one more ref, whose ``get`` raises it; then the iteration ends. ``wait`` takes a
    generator too: it is ready when its next item is.
    """

    __slots__ = ("__weakref__", "_rt", "_stream")

    _stream: bytes  # 24 bytes: the id of the task that streams
    _rt: Any

    def __init__(self) -> None:
        raise TypeError("an ObjectRefGenerator is what .remote() of a generator function returns")

    def __del__(self) -> None:
        rt = getattr(self, "_rt", None)
        if rt is not None:
            rt.release_stream(self._stream)

    def __iter__(self) -> Iterator[ObjectRef[T_co]]:
        return self

    def __next__(self) -> ObjectRef[T_co]:
        """The next ref, whose value is there. StopIteration after the last."""
        ref: ObjectRef[T_co] | None = self._rt.stream_next(self._stream, None)
        if ref is None:
            raise StopIteration
        return ref

    def _next_sync(self, timeout_s: float | None = None) -> ObjectRef[Any]:
        """As ``next``, but ``ObjectRef.nil()`` once ``timeout_s`` seconds have passed."""
        from minray.exceptions import GetTimeoutError

        try:
            ref = self._rt.stream_next(self._stream, timeout_s)
        except GetTimeoutError:
            return ObjectRef.nil()
        if ref is None:
            raise StopIteration
        result: ObjectRef[Any] = ref
        return result

    def __aiter__(self) -> AsyncIterator[ObjectRef[T_co]]:
        return self

    async def __anext__(self) -> ObjectRef[T_co]:
        from minray.awaiting import until_ready

        await until_ready(self._rt, self._rt.stream_peek(self._stream))
        ref: ObjectRef[T_co] | None = self._rt.stream_next(self._stream, 0)
        if ref is None:
            raise StopAsyncIteration
        return ref

    def completed(self) -> ObjectRef[Any]:
        """A ref that is ready when the task has ended. Its value is None, also if the body raised (that error
        is the last item); ``get`` raises if the task was cancelled or its process died."""
        ref: ObjectRef[Any] = self._rt.stream_completed_ref(self._stream)
        return ref

    def next_ready(self) -> bool:
        """Whether ``next`` would return an item without blocking."""
        if self.is_finished():
            return False
        ready, _ = self._rt.wait([self._peek()], 1, 0, False)
        return bool(ready) and not self.is_finished()

    def is_finished(self) -> bool:
        """Whether the task has ended and every item was taken."""
        return bool(self._rt.stream_finished(self._stream))

    def _peek(self) -> ObjectRef[Any]:
        """The ref of the next item, without taking it; ready when the item, or the end, is there."""
        ref: ObjectRef[Any] = self._rt.stream_peek(self._stream)
        return ref

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "You cannot return or pass a generator to other task: an ObjectRefGenerator belongs to the "
            "process that called .remote(). Pass the refs that it yields, e.g. list(generator)."
        )

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._stream.hex()})"


def make_generator(stream_id: bytes, rt: Any) -> ObjectRefGenerator[Any]:
    """For runtimes only: the one generator over the stream that task ``stream_id`` (24 bytes) feeds."""
    generator: ObjectRefGenerator[Any] = _new(ObjectRefGenerator)
    generator._stream = stream_id
    generator._rt = rt
    return generator


class DynamicObjectRefGenerator(Generic[T_co]):
    """The value of a task with ``num_returns="dynamic"``: the refs of all that it yielded. Pickles."""

    __slots__ = ("_refs",)

    def __init__(self, refs: list[ObjectRef[T_co]]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[ObjectRef[T_co]]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index: int) -> ObjectRef[T_co]:
        return self._refs[index]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return DynamicObjectRefGenerator, (self._refs,)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DynamicObjectRefGenerator):
            return self._refs == other._refs
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"DynamicObjectRefGenerator({self._refs!r})"
