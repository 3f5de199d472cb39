"""Values to bytes and back: every kind of value, references by number, arrays without a copy."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import gc
import itertools
import os
import pathlib
import pickle
import re
import subprocess
import sys
import threading
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minray.object_ref import ObjectRef, make_ref
from minray.store.segments import choose
from minray.worker import pickling, serialization
from minray.worker.serialization import (
    INLINE_LIMIT,
    Serialized,
    deserialize,
    layout,
    load_object,
    make_views,
    parse,
    serialize,
)
from tests.store.support import MIB, World, object_id


def again(value: Any) -> Any:
    """Through one process's encoder and another's decoder, as a small value travels."""
    s = serialize(value)
    return deserialize(s.data, [bytes(b) for b in s.buffers], s.refs)


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.x, self.y))


class Slotted:
    __slots__ = ("__weakref__", "a", "b")

    def __init__(self, a: Any) -> None:
        self.a = a


@dataclasses.dataclass(frozen=True)
class Frozen:
    name: str
    items: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class SlottedData:
    name: str
    other: Any = None


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Flag(enum.IntFlag):
    A = 1
    B = 2


class Pair(NamedTuple):
    left: int
    right: str


class WithState:
    def __getstate__(self) -> dict[str, int]:
        return {"kept": 1}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__dict__.update(state, restored=True)


class NewArgs:
    def __new__(cls, value: int) -> NewArgs:
        made = super().__new__(cls)
        made.value = value  # type: ignore[attr-defined]
        return made

    def __getnewargs__(self) -> tuple[int]:
        return (self.value,)  # type: ignore[attr-defined]


class MyDict(dict[str, int]):
    pass


def module_function(x: int) -> int:
    return x + 1


# --- plain values ---------------------------------------------------------------------------------

SIMPLE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()
)
VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
        st.sets(st.integers(), max_size=4),
        st.frozensets(st.text(max_size=3), max_size=4),
    ),
    max_leaves=15,
)


@given(VALUES)
def test_builtin_values(value: Any) -> None:
    s = serialize(value)
    assert deserialize(s.data, s.buffers, s.refs) == value
    assert s.total == len(s.data) and not s.buffers and not s.refs
    assert s.data == pickle.dumps(value, 5)


@pytest.mark.parametrize(
    "value",
    [
        Point(1, 2),
        [Point(1, 2), {"k": Point(3, 4)}],
        Frozen("a", [1]),
        SlottedData("x", [1, 2]),
        Color.RED,
        [Color.BLUE, Flag.A | Flag.B],
        Pair(1, "x"),
        MyDict(a=1),
        datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
        datetime.timedelta(1),
        decimal.Decimal("1.5"),
        uuid.UUID(int=5),
        pathlib.PurePosixPath("/a/b"),
        collections.OrderedDict(a=1),
        collections.deque([1, 2], 5),
        collections.Counter("abca"),
        collections.defaultdict(list, a=[1]),
        re.compile("a+"),
        1 + 2j,
        range(3),
        slice(1, 2),
        bytearray(b"abc"),
        ...,
        NotImplemented,
        int,
        len,
        np.float64(1.5),
        np.dtype("f4"),
        Point,
        Frozen,
        module_function,
        type(None),
    ],
    ids=repr,
)
def test_objects(value: Any) -> None:
    back = again(value)
    assert back == value and type(back) is type(value)


def test_objects_without_equality() -> None:
    slotted = again(Slotted([1]))
    assert slotted.a == [1] and not hasattr(slotted, "b")
    assert vars(again(WithState())) == {"kept": 1, "restored": True}
    assert again(NewArgs(3)).value == 3
    assert again(functools.partial(module_function, 4))() == 5
    assert again(itertools.islice)([1, 2], 1).__next__() == 1
    assert again("abc".upper)() == "ABC"
    assert again(str.upper)("a") == "A"
    assert list(again({"a": 1}.keys())) == ["a"]
    assert bytes(again(memoryview(b"abc"))) == b"abc"


def test_lambdas_and_local_classes_go_by_value() -> None:
    factor = 3

    class Local:
        def value(self) -> int:
            return factor

    assert again([lambda x: x * factor])[0](2) == 6
    back = again({"deep": [(Local(),)]})
    assert back["deep"][0][0].value() == 3


def test_recursive_structures() -> None:
    items: list[Any] = [1]
    items.append(items)
    back = again(items)
    assert back[1] is back
    table: dict[str, Any] = {}
    table["self"] = [table]
    assert again(table)["self"][0].keys() == {"self"}
    point: Any = Point(1, 2)
    point.me = point
    assert again(point).me.x == 1
    shared = [1]
    one, two = again((shared, shared))
    assert one is two

    def loop(n: int) -> int:
        return 0 if n == 0 else loop(n - 1)

    assert again(loop)(3) == 0


def test_too_deep_is_a_recursion_error() -> None:
    value: list[Any] = []
    for _ in range(sys.getrecursionlimit() * 40):
        value = [value]
    with pytest.raises(RecursionError):
        serialize(value)
    assert again([1]) == [1]
    while value:  # or its own destruction recurses
        value = value.pop()


def test_what_a_failure_leaves_does_not_disturb_the_next() -> None:
    for _ in range(3):
        with pytest.raises(TypeError):
            serialize([np.zeros(10), make_ref(object_id(1), None, None), threading.Lock()])
        s = serialize([1])
        assert deserialize(s.data) == [1] and not s.refs and not s.buffers


def test_a_nested_call_from_a_reduce_method() -> None:
    class Nesting:
        def __reduce__(self) -> Any:
            return pickle.loads, (serialize(["inner", np.arange(3)]).data,)

    assert again([Nesting(), 1])[0][0] == "inner"


def test_many_threads() -> None:
    errors: list[Any] = []

    def work(number: int) -> None:
        for step in range(300):
            value = {"n": [number, step], "a": np.full(5, step)}
            back = again(value)
            if back["n"] != [number, step] or back["a"].sum() != 5 * step:
                errors.append(back)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_registered_reducer_is_used_even_for_known_types() -> None:
    import cloudpickle

    again(decimal.Decimal(1))  # known from now on
    table = cloudpickle.Pickler.dispatch_table
    table[decimal.Decimal] = lambda d: (str, ("custom",))
    try:
        assert again([decimal.Decimal(1)]) == ["custom"]
    finally:
        del table[decimal.Decimal]
    assert again([decimal.Decimal(1)]) == [1]


# --- exceptions -----------------------------------------------------------------------------------


class OwnInit(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"{code}: {hint}")
        self.code, self.hint = code, hint


class OwnNew(ValueError):
    def __new__(cls, a: int, b: int) -> OwnNew:
        return super().__new__(cls, a, b)

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a}{b}")


class OwnOSError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "missing", path)
        self.path = path


class OwnUnicode(UnicodeDecodeError):
    def __init__(self, position: int) -> None:
        super().__init__("utf-8", b"abcdef", position, position + 1, "bad")


class OwnSlots(Exception):
    __slots__ = ("extra",)

    def __init__(self, extra: int, also: int) -> None:
        self.extra = extra


class OwnReduce(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__("reduced")
        self.a = a

    def __reduce__(self) -> Any:
        return OwnReduce, (self.a, 0)


class OwnState(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__("state")
        self.a = a

    def __setstate__(self, state: Any) -> None:
        self.a = state["a"] + 100


def test_exceptions_with_their_own_init() -> None:
    error = OwnInit(5, hint="x")
    error.add_note("a note") if hasattr(error, "add_note") else None
    back = again(error)
    assert type(back) is OwnInit and str(back) == "5: x" and vars(back) == vars(error)
    back = again({"deep": [OwnNew(1, 2)]})["deep"][0]
    assert type(back) is OwnNew and back.args == ("12",)
    back = again(OwnOSError("/f"))
    assert (back.errno, back.filename, back.path, str(back)) == (2, "/f", "/f", "[Errno 2] missing: '/f'")
    back = again(OwnUnicode(3))
    assert (back.start, back.reason) == (3, "bad")
    assert again(OwnSlots(4, 5)).extra == 4
    assert again(OwnReduce(6, 7)).a == 6
    assert again(OwnState(1, 2)).a == 101
    back = again(KeyError("k"))
    assert back.args == ("k",)


def test_local_exceptions_with_their_own_init() -> None:
    class Local(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(a)
            self.b = b

    back = again(Local(1, 2))
    assert back.args == (1,) and back.b == 2 and type(back).__name__ == "Local"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups")
def test_exception_groups() -> None:
    group = ExceptionGroup("g", [OwnInit(1, hint="a"), ValueError(2)])  # noqa: F821
    back = again(group)
    assert back.message == "g" and back.exceptions[0].code == 1


# --- arrays ---------------------------------------------------------------------------------------

STRUCTURED = np.dtype([("a", "i4"), ("b", "f8"), ("c", "S3")])
ARRAYS: dict[str, Any] = {
    "ints": lambda n: np.arange(n),
    "empty": lambda n: np.empty((0, 3)),
    "empty1": lambda n: np.array([]),
    "scalar array": lambda n: np.array(3.5),
    "bool": lambda n: np.arange(n) % 2 == 0,
    "2d": lambda n: np.arange(n * 4.0).reshape(n, 4),
    "fortran": lambda n: np.asfortranarray(np.arange(n * 4.0).reshape(n, 4)),
    "transposed": lambda n: np.arange(n * 6).reshape(n, 2, 3).transpose(2, 0, 1),
    "every other": lambda n: np.arange(2 * n)[::2],
    "backwards": lambda n: np.arange(n)[::-1],
    "broadcast": lambda n: np.broadcast_to(np.arange(4), (n, 4)),
    "structured": lambda n: np.array([(i, i / 2, b"xy") for i in range(n)], STRUCTURED),
    "field": lambda n: np.zeros(n, STRUCTURED)["b"],
    "record": lambda n: np.zeros(n, STRUCTURED).view(np.recarray),
    "void": lambda n: np.zeros(n, "V7"),
    "object": lambda n: np.array([{"i": i} for i in range(min(n, 50))], dtype=object),
    "dates": lambda n: np.arange(n).astype("M8[s]"),
    "durations": lambda n: np.arange(n).astype("m8[ms]"),
    "strings": lambda n: np.array([str(i) for i in range(n)]),
    "byte strings": lambda n: np.array([b"%d" % i for i in range(n)]),
    "big endian": lambda n: np.arange(n, dtype=">i4"),
    "half": lambda n: np.arange(n, dtype="f2"),
    "long double": lambda n: np.arange(n, dtype="g"),
    "complex": lambda n: np.arange(n) * 1j,
    "masked": lambda n: np.ma.masked_array(np.arange(n), np.arange(n) % 2),
    "matrix dtype": lambda n: np.zeros(n, np.dtype(("i4", (2,)))),
}


def same(one: Any, two: Any) -> None:
    assert type(one) is type(two) and one.dtype == two.dtype and one.shape == two.shape
    if isinstance(one, np.ma.MaskedArray):
        assert (one.mask == two.mask).all()
        one, two = one.filled(0), two.filled(0)
    assert one.tolist() == two.tolist()


@pytest.mark.parametrize("size", [3, 30_000], ids=["small", "large"])
@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays(make: Any, size: int) -> None:
    array = make(size)
    s = serialize({"a": [array]})
    back = deserialize(s.data, s.buffers, s.refs)["a"][0]
    same(back, array)
    assert s.total == len(s.data) + sum(b.nbytes for b in s.buffers)
    if array.nbytes > INLINE_LIMIT and type(array) is np.ndarray and not array.dtype.hasobject:
        assert len(s.data) < 10_000, "a large array belongs out of band"
        assert back.flags.f_contiguous == array.flags.f_contiguous or not array.flags.forc
    if s.total < INLINE_LIMIT:
        assert not s.buffers
        assert back.flags.writeable or type(array) is np.ma.MaskedArray


def test_a_small_piece_of_a_read_only_array_arrives_writable() -> None:
    array = np.arange(100)
    array.flags.writeable = False
    assert again(array[10:20]).flags.writeable
    assert again(array).tolist() == list(range(100))


def test_many_small_arrays_stay_small_together() -> None:
    s = serialize([np.zeros(1000, np.uint8) for _ in range(500)])
    assert not s.buffers  # a view for each would cost more than its bytes
    s = serialize([np.zeros(50_000, np.uint8) for _ in range(10)])
    assert len(s.buffers) == 8 and len(s.data) < 2 * INLINE_LIMIT
    assert len(serialize([np.zeros(50_000, np.uint8)] * 10).data) < INLINE_LIMIT  # the same one: once


def test_the_limit_is_the_callers() -> None:
    array = np.zeros(50_000, np.uint8)
    assert serialize(array, 10_000).buffers and not serialize(array).buffers
    assert serialize(array, 10_000).buffers


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_large_bytes_are_not_copied_into_the_pickle(kind: Any) -> None:
    value = kind(os.urandom(INLINE_LIMIT + 1))
    s = serialize(value)
    assert len(s.data) < 100 and s.buffers[0].obj is value
    back = deserialize(s.data, s.buffers)
    assert back == value and type(back) is kind and back is not value
    assert again([value]) == [value]


def test_numpy_is_not_imported_for_what_does_not_need_it() -> None:
    code = (
        "import sys; from minray.worker.serialization import serialize, deserialize\n"
        "import collections, datetime\n"
        "big = b'x' * 200000\n"
        "for v in (1, [big], big, {'a': datetime.date(2024, 1, 1)}, collections.Counter()):\n"
        "    s = serialize(v); assert deserialize(s.data, s.buffers, s.refs) == v\n"
        "assert 'numpy' not in sys.modules and 'cloudpickle' not in sys.modules, sorted(sys.modules)\n"
    )
    run_python(code)


def test_pandas_frames() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(50_000), "b": [str(i) for i in range(50_000)]})
    s = serialize(frame)
    back = deserialize(s.data, s.buffers)
    pandas.testing.assert_frame_equal(back, frame)
    assert any(b.nbytes >= 400_000 for b in s.buffers)


# --- references -----------------------------------------------------------------------------------


class _Runtime:
    def __init__(self) -> None:
        self.released: list[bytes] = []
        self.pinned: list[Any] = []

    def release(self, oid: bytes) -> None:
        self.released.append(oid)

    def pin_forever(self, ref: ObjectRef[Any]) -> None:
        self.pinned.append(ref._id)


def test_references_are_found_in_order_and_put_back() -> None:
    runtime = _Runtime()
    refs = [make_ref(object_id(n), None, runtime) for n in range(4)]
    value = {
        "a": refs[0],
        "b": [refs[1], (refs[0], np.arange(3))],
        "c": Point(refs[2], 0),
        "d": lambda: refs[3],
    }  # type: ignore[arg-type]
    s = serialize(value)
    assert s.refs == [refs[0], refs[1], refs[2], refs[3]] or len(s.refs) >= 4
    others = [make_ref(ref._id, None, runtime) for ref in s.refs]
    back = deserialize(s.data, s.buffers, others)
    assert back["a"] is others[0] and back["b"][0] is others[1] and back["b"][1][0] is others[0]
    assert back["c"].x is others[s.refs.index(refs[2])]
    assert back["d"]() == refs[3]
    assert runtime.pinned == []  # in band: counted, not pinned


def test_a_plain_container_of_references() -> None:
    refs = [make_ref(object_id(n), None, _Runtime()) for n in range(1000)]
    s = serialize([refs, refs[:10]])
    assert s.refs == refs
    back = deserialize(s.data, s.buffers, s.refs)
    assert back == [refs, refs[:10]] and back[0][5] is refs[5]


def test_a_pickle_with_references_needs_them() -> None:
    s = serialize([make_ref(object_id(1), None, _Runtime())])
    with pytest.raises(pickle.UnpicklingError, match="nested reference 0"):
        deserialize(s.data)


# --- in shared memory -----------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(choose("auto", str(tmp_path)), capacity=64 * MIB)
    yield made
    made.settle()
    made.check()
    made.close()


class Stored:
    """A value in the store, read by another process."""

    def __init__(self, world: World, value: Any) -> None:
        self.writer, self.reader = world.client("w"), world.client("r")
        self.s = serialize(value)
        size, chunks = layout(self.s)
        self.location = self.writer.write(size, chunks)
        self.id = object_id(1)
        self.writer.report([(self.id, self.location)])
        self.world = world
        self.ended = 0

    def load(self) -> Any:
        (hold,) = self.reader.acquire([(self.id, self.location)])
        return load_object(hold, self.s.refs, self.end)  # type: ignore[arg-type]

    def end(self) -> None:
        self.ended += 1

    def free(self) -> int:
        """Bytes that the writer has still allocated after the object is freed."""
        self.writer.free([(self.id, self.location)])
        self.world.settle()
        return self.writer.stats()["allocated_bytes"]


def test_layout_and_parse() -> None:
    arrays = [np.full(60_000, n, np.uint8) for n in range(3)]
    s = serialize(arrays)
    size, chunks = layout(s)
    memory = bytearray(size)
    for offset, data in chunks:
        view = memoryview(data).cast("B")
        memory[offset : offset + view.nbytes] = view
    data, spans = parse(memoryview(memory))
    assert data == s.data and len(spans) == len(s.buffers) == 2
    assert all(start % 64 == 0 and end <= size for start, end in spans)
    with pytest.raises(pickle.UnpicklingError, match="not an object of this store"):
        parse(memoryview(bytes(100)))


def test_arrays_are_read_only_views_and_hold_their_object(world: World) -> None:
    stored = Stored(world, {"a": np.arange(100_000), "b": 5})
    value = stored.load()
    array = value["a"]
    assert array.sum() == sum(range(100_000)) and not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    piece = array[10:20].reshape(2, 5).T
    del value, array
    gc.collect()
    assert stored.free() > 0 and stored.ended == 0
    assert piece.tolist() == [[10, 15], [11, 16], [12, 17], [13, 18], [14, 19]]
    del piece
    gc.collect()
    world.settle()
    assert stored.ended == 1 and stored.writer.stats()["allocated_bytes"] == 0


def test_one_kept_array_does_not_keep_its_siblings(world: World) -> None:
    stored = Stored(world, [np.full(200_000, n, np.uint8) for n in range(20)])
    kept = stored.load()[7]
    gc.collect()
    world.settle()
    assert stored.free() <= 200_000 + 128
    stored.writer.write(1_000_000, [(0, bytes(1_000_000))])
    assert (kept == 7).all() and stored.ended == 0
    del kept
    gc.collect()
    assert stored.ended == 1


@pytest.mark.parametrize(
    "value", [b"x" * 200_000, bytearray(200_000), ["a" * 300_000], [[]] * 100_000], ids=str
)
def test_objects_without_views_are_released_at_once(world: World, value: Any) -> None:
    value = value[:1000] if isinstance(value, str) else value
    stored = Stored(world, value)
    assert stored.load() == value
    stored.reader.drain()
    assert stored.ended == 1 and stored.reader.stats()["held"] == 0
    assert stored.free() == 0


def test_a_value_that_cannot_be_loaded_holds_nothing(world: World) -> None:
    stored = Stored(world, [np.zeros(300_000), Refusing()])
    with pytest.raises(RuntimeError, match="will not load"):
        stored.load()
    gc.collect()
    assert stored.ended == 1 and stored.free() == 0


class Refusing:
    def __reduce__(self) -> Any:
        return refuse, ()


def refuse() -> None:
    raise RuntimeError("will not load")


def test_structured_fortran_and_dates_come_back_as_views(world: World) -> None:
    value = {
        name: ARRAYS[name](40_000)
        for name in ("structured", "fortran", "dates", "strings", "transposed", "empty")
    }
    back = Stored(world, value).load()
    for name, array in value.items():
        same(back[name], array)
        assert not back[name].flags.writeable or array.size == 0
    del back, array
    gc.collect()


def test_a_buffer_that_is_not_an_array(world: World) -> None:
    value = pickle.PickleBuffer(bytearray(b"0123456789" * 20_000))
    back = Stored(world, [value]).load()
    assert bytes(back[0][:5]) == b"01234"
    del back
    gc.collect()


def test_nested_references_in_the_store(world: World) -> None:
    refs = [make_ref(object_id(n), None, _Runtime()) for n in range(10)]
    back = Stored(world, [refs, np.zeros(200_000)]).load()
    assert back[0] == refs
    del back
    gc.collect()


def test_views_of_nothing() -> None:
    released: list[int] = []
    views = make_views([memoryview(b""), memoryview(b"abc")], released.append)
    assert released == [0] and bytes(views[1]) == b"abc"
    derived = np.frombuffer(views[1], np.uint8)[1:]
    del views
    assert released == [0]
    del derived
    assert released == [0, 1]


def test_finalizers_do_not_run_when_the_interpreter_ends() -> None:
    run_python(
        "import numpy as np\n"
        "from minray.worker.serialization import make_views\n"
        "views = make_views([memoryview(b'abc')], lambda i: print('released', i))\n"
        "kept = np.frombuffer(views[0], np.uint8)\n"
    )
    assert weakref.finalize.atexit  # the class's default is untouched


def test_repr_is_short() -> None:
    assert len(repr(Serialized(b"", [], [], 0))) < 100
    assert len(repr(serialize(np.zeros(1_000_000)))) < 300


# --- processes ------------------------------------------------------------------------------------


def run_python(code: str, *arguments: str, cwd: Any = None, path: str = "") -> str:
    root = str(Path(serialization.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "error", *(("-c", code) if code else ()), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, path)))},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_what_is_defined_in_main_goes_by_value(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import dataclasses, enum, pathlib
from minray.worker.serialization import serialize
from minray.worker.functions import dumps_function
import numpy as np
LIMIT = 10
@dataclasses.dataclass
class Config:
    n: int
    def double(self): return min(2 * self.n, LIMIT)
class Kind(enum.Enum):
    A = 1
class Failure(Exception):
    def __init__(self, a, b): super().__init__(a); self.b = b
def f(x): return Config(x).double()
arrays = [np.array([Config(1)], dtype=object)]
value = [1, {"deep": (Config(3), Kind.A, Failure(1, 2), f, {Config: 1}), "arrays": arrays}]
pathlib.Path("value").write_bytes(serialize(value).data)
pathlib.Path("function").write_bytes(dumps_function(f))
pathlib.Path("class").write_bytes(dumps_function(Config))
"""
    )
    run_python("", str(script), cwd=tmp_path)
    out = run_python(
        "import pathlib, pickle\n"
        "load = lambda name: pickle.loads(pathlib.Path(name).read_bytes())\n"
        "value, function, cls = load('value'), load('function'), load('class')\n"
        "config, kind, failure, f, table = value[1]['deep']\n"
        "print(config.double(), kind.name, failure.args, failure.b, f(100), function(4), cls(2).double())\n"
        "print(value[1]['arrays'][0][0].n, list(table)[0] is type(config))\n",
        cwd=tmp_path,
    )
    assert out.split("\n")[:2] == ["6 A (1,) 2 10 8 4", "1 True"]


def test_modules_that_workers_cannot_import_go_by_value(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "faraway.py").write_text(
        "class Far:\n    def hello(self): return helper()\ndef helper(): return 'from far'\n"
    )
    (tmp_path / "near.py").write_text("class Near:\n    def hello(self): return 'from near'\n")
    script = """
import importlib.util, pathlib, sys, types
import near, numpy.linalg
from minray.worker.serialization import serialize
from minray.worker import pickling
pickling.set_worker_path(list(sys.path))
spec = importlib.util.spec_from_file_location("faraway", "far/faraway.py")
faraway = sys.modules["faraway"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faraway)
dynamic = sys.modules["dynamic"] = types.ModuleType("dynamic")
exec("class Made:\\n    def hello(self): return 'made'", dynamic.__dict__)
sys.path.append("later"); sys.path.insert(0, "far")  # too late for the workers
print(*(pickling.importable(name) for name in ("faraway", "dynamic", "near", "os.path", "numpy.linalg")))
value = [faraway.Far(), near.Near(), dynamic.Made(), lambda: faraway.helper()]
pathlib.Path("value").write_bytes(serialize(value).data)
"""
    out = run_python(script, cwd=tmp_path, path=str(tmp_path))
    assert out == "False False True True True\n"
    out = run_python(
        "import pathlib, pickle; v = pickle.loads(pathlib.Path('value').read_bytes())\n"
        "print(*(x.hello() for x in v[:3]), v[3]())",
        cwd=tmp_path,
        path=str(tmp_path),
    )
    assert out == "from far from near made from far\n"


def test_a_loaded_module_that_another_file_hides(tmp_path: Path) -> None:
    """The name can be found, but it is another module."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twin.py").write_text(f"def where(): return {folder!r}\n")
    out = run_python(
        "import sys; sys.path.insert(0, 'one'); import twin; sys.path[0] = 'two'\n"
        "from minray.worker import pickling\n"
        "print(pickling.importable('twin'), pickling.by_reference(twin.where))\n",
        cwd=tmp_path,
    )
    assert out == "False False\n"


def test_a_class_that_was_replaced_goes_by_value() -> None:
    global Replaced

    class Old:
        value = "old"

    Old.__qualname__ = "Replaced"
    Old.__module__ = __name__
    Replaced = type("Replaced", (), {"__module__": __name__, "value": "new"})  # type: ignore[misc]
    assert again(Old()).value == "old"
    assert again(Replaced()).value == "new"


Replaced: Any = None


def test_what_the_user_registered_by_value_goes_by_value() -> None:
    import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        assert len(serialize(module_function).data) > 200
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert len(serialize(module_function).data) < 200


def test_importable_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pickling.importable("decimal") and pickling.importable("numpy.random")
    monkeypatch.setattr(pickling, "_find_spec", lambda *_: pytest.fail("asked again"))
    assert pickling.importable("numpy.random")
