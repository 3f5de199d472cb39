"""Values to bytes and back: pickle protocol 5, large buffers beside it, nested references by number.

``serialize`` runs before a lock is taken and ``deserialize`` after it is released: both run user code. The
worker's services call them for arguments, results and ``put``; which pickler serves what is decided in
``pickling.py``, how a value lies in shared memory here::

    object in the store:  magic, number of buffers, length of data │ (offset, length) per buffer │ data │ … │
                          buffer │ … │ buffer      each buffer starts at a multiple of 64

``load_object`` reads such an object without copying: its arrays are read-only views of shared memory. Each
view keeps its own part of the object, by a finalizer on the array that all others derive from.

Invariants: ``deserialize(s.data, s.buffers, s.refs)`` equals what was serialized; nothing here knows what a
reference means; numpy is imported only to read an object that has buffers.
"""

from __future__ import annotations

import io
import itertools
import pickle
import struct
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from minray.store.holds import Hold
from minray.store.mapping import aligned
from minray.worker import pickling
from minray.worker.pickling import PROTOCOL, NeedsFull, PlainPickler, load_ref

if TYPE_CHECKING:
    from minray.object_ref import ObjectRef

INLINE_LIMIT = 100 * 1024
_KEEP_PICKLER = 4096  # a pickler that made more bytes may have a large memo, which is slow to clear

_HEAD = struct.Struct("<4sIQ")
_SPAN = struct.Struct("<QQ")
_MAGIC = b"MRO1"


class Serialized(NamedTuple):
    """A value, encoded. ``total`` is the number of bytes of data and buffers."""

    data: bytes  # the pickle, with what is small
    buffers: list[memoryview]  # contiguous bytes of what is large; they keep their arrays alive
    refs: list[ObjectRef[Any]]  # nested references, in the order of their numbers
    total: int


_new = tuple.__new__
_loads = pickle.loads
_picklers: list[PlainPickler] = []  # idle ones: at most one per thread and nesting


def serialize(value: Any, inline_limit: int = INLINE_LIMIT) -> Serialized:
    """Encode a value. TypeError if some part of it cannot be pickled; the text says which.

    Buffers of arrays stay in the pickle (and come back writable) while they are small: up to
    ``inline_limit`` bytes together.
    """
    cls = type(value)
    if (cls is bytes or cls is bytearray) and len(value) > inline_limit:
        return _serialize_large_bytes(value)
    try:
        pickler = _picklers.pop()
    except IndexError:
        pickler = PlainPickler(inline_limit)
    collected = pickler.collected
    if collected.inline_limit != inline_limit:
        collected.inline_limit = inline_limit
    try:
        pickler.dump(value)
    except NeedsFull:  # a pickler that raised is not used again
        return _serialize_fully(value, inline_limit)
    except Exception as error:
        raise _unpicklable(value, error) from error
    chunks, buffers, refs = collected.chunks, collected.buffers, collected.refs
    if len(chunks) == 1:
        data = chunks.pop()
    else:
        data = b"".join(chunks)
        chunks.clear()
    total = size = len(data)
    if buffers or refs:
        collected.buffers, collected.refs = [], []
        for buffer in buffers:
            total += buffer.nbytes
    else:
        buffers, refs = [], []  # the collector keeps its own
    collected.inline_used = 0
    if size < _KEEP_PICKLER:
        pickler.clear_memo()
        _picklers.append(pickler)
    return _new(Serialized, (data, buffers, refs, total))


def _serialize_fully(value: Any, inline_limit: int) -> Serialized:
    """By cloudpickle."""
    collected = pickling.collect(inline_limit)
    try:
        pickling.full_pickler_class()(collected, collected.chunks).dump(value)
    except Exception as error:
        raise _unpicklable(value, error) from error
    data = b"".join(collected.chunks)
    total = len(data) + sum(buffer.nbytes for buffer in collected.buffers)
    return Serialized(data, collected.buffers, collected.refs, total)


def _unpicklable(value: Any, error: Exception) -> Exception:
    if isinstance(error, (RecursionError, MemoryError)):
        return error
    from minray.worker.unpicklable import explain_unpicklable

    return TypeError(f"cannot pickle {explain_unpicklable(value)}: {error}")


class _LargeBytes:
    """Pickles as ``bytes(buffer)`` or ``bytearray(buffer)`` with the buffer out of band."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self.value), (pickle.PickleBuffer(memoryview(self.value).toreadonly()),)


def _serialize_large_bytes(value: bytes | bytearray) -> Serialized:
    data = _BYTES_DATA if type(value) is bytes else _BYTEARRAY_DATA
    return Serialized(data, [memoryview(value)], [], len(data) + len(value))


def _data_of_large(value: bytes | bytearray) -> bytes:
    return pickle.dumps(_LargeBytes(value), PROTOCOL, buffer_callback=lambda _: None)


_BYTES_DATA = _data_of_large(b"")
_BYTEARRAY_DATA = _data_of_large(bytearray())
_COPYING = (_BYTES_DATA, _BYTEARRAY_DATA)  # loading these copies the buffer: no view remains


class _RefUnpickler(pickle.Unpickler):
    """Puts references where ``load_ref`` stands: a C call per reference."""

    def __init__(self, data: Any, buffers: Iterable[Any], refs: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._refs = refs

    def find_class(self, module: str, name: str) -> Any:
        if name == "load_ref" and module == load_ref.__module__:
            return self._refs.__getitem__
        return super().find_class(module, name)


def deserialize(data: Any, buffers: Sequence[Any] = (), refs: Sequence[Any] = ()) -> Any:
    """The value. ``refs`` are put where ``Serialized.refs`` were, by position.

    Raises whatever unpickling raises: also what the classes involved raise.
    """
    if refs:
        return _RefUnpickler(data, buffers, refs).load()
    return _loads(data, buffers=buffers) if buffers else _loads(data)


# --- in shared memory -----------------------------------------------------------------------------


def layout(s: Serialized) -> tuple[int, list[tuple[int, Any]]]:
    """How it lies in the store: the size, and what to write at which offset (``StoreClient.write``)."""
    buffers = s.buffers
    start = _HEAD.size + _SPAN.size * len(buffers)
    at = start + len(s.data)
    head = [_HEAD.pack(_MAGIC, len(buffers), len(s.data))]
    chunks: list[tuple[int, Any]] = []
    for buffer in buffers:
        at = aligned(at)
        head.append(_SPAN.pack(at, buffer.nbytes))
        chunks.append((at, buffer))
        at += buffer.nbytes
    return at, [(0, b"".join(head)), (start, s.data), *chunks]


def parse(view: memoryview) -> tuple[memoryview, list[tuple[int, int]]]:
    """The data, and where in ``view`` each buffer is, as (start, end). The inverse of ``layout``."""
    magic, count, length = _HEAD.unpack_from(view)
    if magic != _MAGIC:
        raise pickle.UnpicklingError(f"not an object of this store: it starts with {bytes(magic)!r}")
    spans = []
    for index in range(count):
        offset, size = _SPAN.unpack_from(view, _HEAD.size + index * _SPAN.size)
        spans.append((offset, offset + size))
    start = _HEAD.size + _SPAN.size * count
    return view[start : start + length], spans


def load_object(
    hold: Hold, refs: Sequence[Any] = (), on_last_release: Callable[[], object] | None = None
) -> Any:
    """The value of a stored object, without copying its buffers. Takes over ``hold``.

    ``on_last_release`` is called once, when the last view of the object is gone (at once if there is
    none); it runs in finalizers, so it may only append to a queue.
    """
    view = hold.view
    if view is None:
        raise ValueError(f"{hold!r} is released")
    views: list[Any] = []
    try:
        data, spans = parse(view)
        if data in _COPYING:
            return deserialize(data, [view[start:end] for start, end in spans], refs)
        if spans:
            hold.also_parts(spans)
            last = None if on_last_release is None else _countdown(len(spans), on_last_release)
            on_last_release = None

            def release(index: int) -> None:
                hold.release_part(index)
                if last is not None:
                    last()

            views = make_views([view[start:end] for start, end in spans], release)
        return deserialize(data, views, refs)
    finally:
        views.clear()
        hold.release()
        if on_last_release is not None:
            on_last_release()


def make_views(buffers: Sequence[memoryview], release: Callable[[int], object]) -> list[Any]:
    """Read-only views of ``buffers``; ``release(i)`` is called once the i-th and all made of it are gone.

    It runs in finalizers, on any thread, but not when the interpreter ends.
    """
    import numpy

    views: list[Any] = []
    for index, buffer in enumerate(buffers):
        if buffer.nbytes == 0:
            views.append(b"")
            release(index)
            continue
        # Arrays can be referenced weakly, and whatever is made of one keeps it alive; memoryviews lack that.
        array = numpy.frombuffer(buffer.toreadonly(), numpy.uint8)
        weakref.finalize(array, release, index).atexit = False
        owner: Any = array  # numpy's stubs of before 3.12's Buffer
        views.append(memoryview(owner))
    return views


def _countdown(count: int, done: Callable[[], object]) -> Callable[[], None]:
    """A function whose call number ``count`` calls ``done``; several threads may call it."""
    calls = itertools.count(1)

    def one_more() -> None:
        if next(calls) == count:
            done()

    return one_more
