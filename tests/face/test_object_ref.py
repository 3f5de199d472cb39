"""ObjectRef and its generators, on a fake runtime."""

from __future__ import annotations

import asyncio
import copy
import pickle

import pytest

import minray
from minray._base import current
from minray.exceptions import GetTimeoutError
from minray.object_ref import DynamicObjectRefGenerator, ObjectRef, ObjectRefGenerator, make_ref

from .conftest import FakeRuntime

ID = bytes(range(28))


def test_a_ref_is_its_id() -> None:
    ref = ObjectRef(ID)
    assert ref == ObjectRef(ID) and hash(ref) == hash(ObjectRef(ID)) and ref != 5
    assert repr(ref) == f"ObjectRef({ID.hex()})"
    assert ref.task_id().binary() == ID[:24]
    assert ref.job_id().binary() == ID[20:24]
    assert ObjectRef.from_hex(ref.hex()) == ref
    assert ObjectRef.nil().is_nil() and not ref.is_nil()
    assert ObjectRef[int].__origin__ is ObjectRef  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [b"", b"x", bytes(27), bytes(29)])
def test_another_size_is_a_value_error(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="28"):
        ObjectRef(wrong)


def test_what_is_not_bytes_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="abc"):
        ObjectRef("abc")  # type: ignore[arg-type]


def test_each_ref_gives_one_count_back(rt: FakeRuntime) -> None:
    ref = make_ref(ID, None, rt)
    same = copy.deepcopy([copy.copy(ref)])[0]
    assert same is ref
    del same
    assert rt.released == []
    del ref
    assert rt.released == [ID]


def test_plain_pickle_pins_and_adopts(rt: FakeRuntime) -> None:
    data = pickle.dumps(make_ref(ID, None, rt))
    assert rt.pinned == [ID]
    again = pickle.loads(data)
    assert again._rt is rt
    assert ("adopt_ref", ID, (rt.node_id, rt.worker_id, "unix:/x")) in rt.asked


def test_without_a_runtime_an_unpickled_ref_is_a_name() -> None:
    rt = FakeRuntime()
    data = pickle.dumps(make_ref(ID, None, rt))
    again = pickle.loads(data)
    assert again == ObjectRef(ID) and again._rt is None and again._owner[2] == "unix:/x"


def test_a_generator_is_not_made_copied_or_pickled(rt: FakeRuntime) -> None:
    with pytest.raises(TypeError, match="remote"):
        ObjectRefGenerator()
    generator = rt.new_generator()
    with pytest.raises(TypeError, match="generator"):
        pickle.dumps(generator)
    with pytest.raises(TypeError, match="generator"):
        copy.copy(generator)
    del generator
    assert rt.released_streams == [b"s" * 24]


def test_a_generator_iterates_and_ends(rt: FakeRuntime) -> None:
    first, second = rt.stream = [rt.new_ref(), rt.new_ref()]
    generator = rt.new_generator()
    assert not generator.is_finished()
    assert generator.next_ready() is False
    rt.settle(first, 1)
    assert generator.next_ready() is True
    assert list(generator) == [first, second]
    assert generator.is_finished() and not generator.next_ready()


def test_next_sync_gives_nil_after_its_timeout(rt: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(stream_id: bytes, timeout: float | None) -> None:
        raise GetTimeoutError("late")

    monkeypatch.setattr(rt, "stream_next", late)
    assert rt.new_generator()._next_sync(0).is_nil()


def test_async_iteration_waits_for_the_peeked_ref(rt: FakeRuntime) -> None:
    first = rt.new_ref()
    rt.stream = [first]

    async def consume() -> list[ObjectRef[int]]:
        generator = rt.new_generator()
        asyncio.get_running_loop().call_soon(rt.settle, first, 1)
        taken = [await anext(generator)]
        with pytest.raises(StopAsyncIteration):
            rt.on_ready = lambda ref, callback: callback()  # type: ignore[method-assign]
            await anext(generator)
        return taken

    assert asyncio.run(consume()) == [first]


def test_wait_takes_generators_by_their_next_item(rt: FakeRuntime) -> None:
    item, ref = rt.new_ref(), rt.new_ref()
    rt.stream = [item]
    rt.settle(item, 1)
    generator = rt.new_generator()
    assert minray.wait([ref, generator]) == ([generator], [ref])


def test_a_dynamic_generator_is_a_value() -> None:
    made = DynamicObjectRefGenerator([ObjectRef(ID)])
    again = pickle.loads(pickle.dumps(made))
    assert again == made and len(again) == 1 and list(again) == [ObjectRef(ID)] and again[0] == ObjectRef(ID)
    assert current.get() is None
