"""Objects: B40 to B43, and values of every kind."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import decimal
import enum
import gc
import pickle
import threading

import numpy as np
import pytest

from .target import (
    eventually,
    exceptions,
    load_cloudpickle,
    minray_only,
    needs_concurrency,
    needs_processes,
    not_local,
    ray,
)

LARGE = 200_000  # items of 8 bytes: far over what is sent inline


@ray.remote
def echo(value):
    return value


@ray.remote
def make_array(n):
    return np.arange(n, dtype=np.float64)


# --- B40 ----------------------------------------------------------------------------------------


@not_local("objects stay in this process's heap")
@pytest.mark.parametrize("source", ["put", "task"])
def test_b40_a_large_array_from_get_is_read_only(source):
    ref = ray.put(np.arange(LARGE)) if source == "put" else make_array.remote(LARGE)
    array = ray.get(ref)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    writable = array.copy()
    writable[0] = 5
    assert ray.get(ref)[0] == 0


@not_local("objects stay in this process's heap")
def test_b40_two_gets_share_the_memory():
    ref = ray.put(np.arange(LARGE))
    first, second = ray.get(ref), ray.get(ref)
    assert first.ctypes.data == second.ctypes.data


@not_local("objects stay in this process's heap")
def test_b40_a_large_argument_is_read_only():
    @ray.remote
    def flags(array):
        return array.flags.writeable, float(array.sum())

    assert ray.get(flags.remote(ray.put(np.ones(LARGE)))) == (False, LARGE)
    assert ray.get(flags.remote(np.ones(LARGE))) == (False, LARGE)


@minray_only("small arrays are read-only there too")
def test_b40_small_arrays_come_writable():
    array = ray.get(ray.put(np.zeros(4)))
    array[0] = 1
    assert array.tolist() == [1, 0, 0, 0]


@not_local("objects stay in this process's heap")
def test_b40_arrays_inside_containers_are_zero_copy_too():
    ref = ray.put({"a": [np.zeros(LARGE), np.ones(LARGE)], "b": "text"})
    value = ray.get(ref)
    assert [array.flags.writeable for array in value["a"]] == [False, False]
    assert value["a"][1].sum() == LARGE
    assert ray.get(ref)["a"][0].ctypes.data == value["a"][0].ctypes.data


def test_b40_an_array_outlives_its_ref():
    array = ray.get(ray.put(np.arange(LARGE)))
    gc.collect()
    others = [ray.put(np.zeros(LARGE)) for _ in range(5)]
    assert array.sum() == LARGE * (LARGE - 1) // 2
    del others


def test_b40_a_slice_outlives_its_array():
    part = ray.get(ray.put(np.arange(LARGE)))[10:20]
    gc.collect()
    others = [ray.put(np.zeros(LARGE)) for _ in range(5)]
    assert part.tolist() == list(range(10, 20))
    del others


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(0),
        np.zeros((0, 5)),
        np.array(7),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(24)[::3],
        np.arange(24).reshape(4, 6)[:, ::2],
        np.arange(10)[::-1],
        np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array([1, "two", None, [3]], dtype=object),
        np.array(["text", "längere Wörter"]),
        np.array(["2024-01-01", "2025-06-30"], dtype="datetime64[D]"),
        np.array([1 + 2j]),
        np.array([True, False]),
        np.arange(5, dtype=">i4"),
        np.broadcast_to(np.arange(3), (4, 3)),
        np.ma.masked_array([1, 2, 3], mask=[0, 1, 0]),
        np.float32(1.5),
        np.random.default_rng(1),
    ],
    ids=[
        "empty", "empty2d", "zero-d", "fortran", "strided", "strided2d", "reversed", "structured", "object",
        "unicode", "datetime", "complex", "bool", "big-endian", "broadcast", "masked", "scalar", "generator",
    ],
)  # fmt: skip
def test_b40_arrays_of_every_kind(array):
    for again in (ray.get(ray.put(array)), ray.get(echo.remote(array))):
        assert type(again) is type(array)
        if isinstance(array, np.ndarray):
            assert again.dtype == array.dtype
            assert again.shape == array.shape
            assert again.flags.f_contiguous == array.flags.f_contiguous or not array.flags.forc
            np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("order", ["C", "F"])
def test_b40_large_arrays_keep_their_order(order):
    array = np.asarray(np.arange(LARGE).reshape(100, -1), order=order)
    again = ray.get(echo.remote(array))
    assert again.flags.c_contiguous == (order == "C")
    np.testing.assert_array_equal(again, array)


def test_b40_bytes_of_every_size():
    for size in (0, 1, 100 * 1024 - 1, 100 * 1024, 100 * 1024 + 1, 3_000_000):
        data = bytes(size)
        assert ray.get(ray.put(data)) == data
        assert ray.get(echo.remote(bytearray(data))) == data


def test_b40_a_pandas_frame_if_installed():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(50_000), "b": ["x"] * 50_000})
    pandas.testing.assert_frame_equal(ray.get(echo.remote(frame)), frame)


# --- B41 ----------------------------------------------------------------------------------------


@needs_processes
def test_b41_a_ref_that_was_pickled_out_of_band_is_pinned():
    cloudpickle = load_cloudpickle()

    def pickled():
        return cloudpickle.dumps(ray.put("kept for ever"))

    data = pickled()
    gc.collect()
    assert ray.get(ray.put("something else")) == "something else"
    ref = cloudpickle.loads(data)
    assert isinstance(ref, ray.ObjectRef)
    assert ray.get(ref) == "kept for ever"


@needs_processes
def test_b41_it_can_travel_as_bytes():
    cloudpickle = load_cloudpickle()

    @ray.remote
    def open_(data):
        return ray.get(cloudpickle.loads(data))

    assert ray.get(open_.remote(cloudpickle.dumps(ray.put("by another road")))) == "by another road"


@needs_processes
@minray_only("only its cloudpickle takes a ref")
def test_b41_the_standard_pickle_will_do():
    ref = ray.put(1)
    again = pickle.loads(pickle.dumps(ref))
    assert again == ref
    assert ray.get(again) == 1


# --- B42 ----------------------------------------------------------------------------------------


def test_b42_awaiting_a_ref():
    async def main():
        return await echo.remote(1), await asyncio.gather(echo.remote(2), echo.remote(3))

    assert asyncio.run(main()) == (1, [2, 3])


def test_b42_awaiting_a_ref_whose_task_raised():
    @ray.remote
    def fail():
        raise KeyError("awaited")

    async def main():
        await fail.remote()

    with pytest.raises(KeyError):
        asyncio.run(main())


def test_b42_awaiting_a_ref_whose_task_raised_stop_iteration_is_a_runtime_error():
    @ray.remote
    def stop():
        raise StopIteration

    async def main():
        await stop.remote()

    with pytest.raises(RuntimeError):
        asyncio.run(main())


@needs_concurrency
def test_b42_awaiting_what_is_not_ready(gate):
    async def main():
        waiting = asyncio.ensure_future(gate.ref())
        await asyncio.sleep(0)
        assert not waiting.done()
        await gate.open_ref()
        await waiting

    asyncio.run(main())


def test_b42_asyncio_wait_and_as_completed():
    async def main():
        refs = [echo.remote(i) for i in range(4)]
        done, pending = await asyncio.wait([asyncio.ensure_future(_await(ref)) for ref in refs])
        assert not pending
        first = sorted(task.result() for task in done)
        second = [await future for future in asyncio.as_completed([_await(ref) for ref in refs])]
        return first, sorted(second)

    assert asyncio.run(main()) == ([0, 1, 2, 3], [0, 1, 2, 3])


async def _await(ref):
    return await ref


def test_b42_a_concurrent_future():
    import concurrent.futures

    future = echo.remote(5).future()
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(timeout=30) == 5
    done, _ = concurrent.futures.wait([echo.remote(i).future() for i in range(3)], timeout=30)
    assert sorted(each.result() for each in done) == [0, 1, 2]


def test_b42_a_future_of_a_failed_task_raises():
    @ray.remote
    def fail():
        raise KeyError("future")

    with pytest.raises(KeyError):
        fail.remote().future().result(timeout=30)


# --- B43 ----------------------------------------------------------------------------------------


def test_b43_a_returned_nested_ref_lives():
    @ray.remote
    def make():
        return [ray.put("mine"), echo.remote("made")]

    inner = ray.get(make.remote())
    gc.collect()
    assert ray.get(inner) == ["mine", "made"]


def test_b43_a_ref_returned_as_the_value():
    @ray.remote
    def outer():
        return echo.remote("inner")

    inner = ray.get(outer.remote())
    assert isinstance(inner, ray.ObjectRef)
    assert ray.get(inner) == "inner"


@needs_processes
def test_b43_a_borrowed_ref_can_be_handed_on():
    @ray.remote
    class Shelf:
        def keep(self, refs):
            self.refs = refs

        def lend(self):
            return self.refs

        def read(self):
            return ray.get(self.refs)

    first, second = Shelf.remote(), Shelf.remote()
    ref = ray.put(np.arange(LARGE))
    ray.get(first.keep.remote([ref]))
    del ref
    gc.collect()
    ray.get(second.keep.remote(ray.get(first.lend.remote())))
    ray.get(first.keep.remote(None))
    gc.collect()
    (array,) = ray.get(second.read.remote())
    assert array[-1] == LARGE - 1


@needs_processes
def test_b43_a_dead_owner_is_an_owner_died_error():
    @ray.remote
    class Owner:
        def make(self):
            return [ray.put(np.zeros(LARGE))]

    owner = Owner.remote()
    (ref,) = ray.get(owner.make.remote())
    ray.kill(owner)

    def owner_died():
        try:
            ray.get(ref, timeout=5)
        except exceptions.OwnerDiedError:
            return True
        except exceptions.GetTimeoutError:
            return False
        return False

    eventually(owner_died, "the owner's death was noticed")


@needs_processes
def test_b43_refs_of_refs_of_refs():
    ref = ray.put("core")
    for _ in range(5):
        ref = ray.put([ref])
    gc.collect()

    @ray.remote
    def unpack(box):
        while isinstance(box, list):
            box = ray.get(box[0])
        return box

    assert ray.get(unpack.remote([ref])) == "core"


def test_b43_ten_thousand_refs_in_one_object():
    refs = [ray.put(i) for i in range(10_000)]
    outer = ray.put(refs)

    @ray.remote
    def some(box):
        return len(box), ray.get([box[0], box[5_000], box[-1]])

    assert ray.get(some.remote(outer)) == (10_000, [0, 5_000, 9_999])
    again = ray.get(outer)
    assert again == refs


# --- values -------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a, b):
        self.a, self.b = a, b

    def __eq__(self, other):
        return (self.a, self.b) == (other.a, other.b)

    __hash__ = None


Pair = collections.namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        2**100,
        1.5,
        float("inf"),
        1j,
        "text \u2713 \udc80",
        b"bytes",
        (1, (2, (3,))),
        {"a": {1, 2}, (1, 2): frozenset([3])},
        [[]] * 3,
        range(5),
        slice(1, 2),
        Ellipsis,
        NotImplemented,
        int,
        len,
        collections.OrderedDict(a=1),
        collections.Counter("aab"),
        collections.deque([1, 2], maxlen=3),
        datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
        decimal.Decimal("1.10"),
        Colour.RED,
        Point(1, 2),
        Slotted(1, [2]),
        Pair(1, 2),
        ValueError("as a value"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_survive_the_journey(value):
    for again in (ray.get(ray.put(value)), ray.get(echo.remote(value))):
        assert type(again) is type(value)
        if isinstance(value, Exception):
            assert again.args == value.args
        else:
            assert again == value


def test_singletons_stay_themselves():
    assert ray.get(echo.remote(Colour.BLUE)) is Colour.BLUE
    assert ray.get(echo.remote(None)) is None
    assert ray.get(echo.remote(int)) is int


def test_values_of_classes_made_on_the_fly():
    @dataclasses.dataclass
    class Local:
        x: int

    class Kind(enum.Enum):
        A = 1

    again = ray.get(echo.remote({"local": Local(3), "kind": Kind.A, "function": lambda: Local(4)}))
    assert again["local"].x == 3
    assert again["kind"].name == "A"
    assert again["function"]().x == 4


def test_a_value_that_refers_to_itself():
    loop = [1]
    loop.append(loop)
    again = ray.get(echo.remote(loop))
    assert again[0] == 1
    assert again[1] is again


def test_shared_parts_stay_shared():
    part = [1]
    a, b = ray.get(echo.remote((part, part)))
    assert a is b


@not_local("the value is there, unpickled, before get")
def test_a_value_that_runs_code_when_unpickled_runs_it_in_the_reader():
    class Loud:
        def __reduce__(self):
            return threading.current_thread, ()

    thread = ray.get(ray.put(Loud()))
    assert thread is threading.current_thread()


def test_an_object_is_freed_when_its_last_ref_goes():
    before = ray.available_resources().get("object_store_memory", 0)
    for _ in range(50):
        ref = ray.put(np.zeros(1_000_000))
        assert ray.get(ref)[0] == 0
        del ref
    assert before >= 0
