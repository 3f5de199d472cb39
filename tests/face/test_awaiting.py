"""``await ref`` and ``ref.future()``: built on ``on_ready`` alone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any

import pytest

from minray import awaiting

from .conftest import FakeRuntime


def test_a_ref_can_be_awaited(rt: FakeRuntime) -> None:
    ref, late = rt.new_ref(), rt.new_ref()
    rt.settle(ref, "there")

    async def both() -> list[Any]:
        asyncio.get_running_loop().call_soon(rt.settle, late, "late")
        return list(await asyncio.gather(ref.as_future(), late.as_future()))

    assert asyncio.run(both()) == ["there", "late"]


def test_an_error_is_raised_where_it_is_awaited(rt: FakeRuntime) -> None:
    ref = rt.new_ref()
    rt.settle(ref, KeyError("x"))

    async def wait() -> None:
        await ref

    with pytest.raises(KeyError):
        asyncio.run(wait())


def test_b42_stop_iteration_becomes_a_runtime_error(rt: FakeRuntime) -> None:
    ref = rt.new_ref()
    rt.settle(ref, StopIteration("over"))

    async def wait() -> None:
        await ref

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(wait())


def test_b36_cancelling_a_future_leaves_the_task_alone(rt: FakeRuntime) -> None:
    ref = rt.new_ref()

    async def cancel() -> None:
        future = ref.as_future()
        future.cancel()
        rt.settle(ref, 1)
        await asyncio.sleep(0)
        assert future.cancelled()

    asyncio.run(cancel())
    other = rt.new_ref()
    assert other.future().cancel()
    rt.settle(other, 1)
    assert not any(question[0] == "cancel" for question in rt.asked)


def test_many_results_from_another_thread_take_one_wake_up(rt: FakeRuntime) -> None:
    refs = [rt.new_ref() for _ in range(100)]

    async def gather() -> tuple[list[Any], int]:
        loop = asyncio.get_running_loop()
        wake_ups = 0
        real = loop.call_soon_threadsafe

        def count(*args: Any, **kwargs: Any) -> Any:
            nonlocal wake_ups
            wake_ups += 1
            return real(*args, **kwargs)

        loop.call_soon_threadsafe = count  # type: ignore[method-assign]
        futures = [ref.as_future() for ref in refs]
        thread = threading.Thread(target=lambda: [rt.settle(ref, i) for i, ref in enumerate(refs)])
        thread.start()
        thread.join()
        return await asyncio.gather(*futures), wake_ups

    values, wake_ups = asyncio.run(gather())
    assert values == list(range(100)) and wake_ups == 1


def test_a_result_after_the_loop_has_closed_is_dropped(rt: FakeRuntime) -> None:
    ref = rt.new_ref()

    async def start() -> None:
        ref.as_future()

    asyncio.run(start())
    rt.settle(ref, 1)


def test_concurrent_futures(rt: FakeRuntime) -> None:
    good, bad = rt.new_ref(), rt.new_ref()
    futures = [good.future(), bad.future()]
    rt.settle(good, 1)
    rt.settle(bad, ValueError("no"))
    concurrent.futures.wait(futures, timeout=30)
    assert futures[0].result() == 1
    assert isinstance(futures[1].exception(), ValueError)


def test_doors_do_not_keep_loops(rt: FakeRuntime) -> None:
    async def use() -> None:
        awaiting._door_of(asyncio.get_running_loop())

    before = len(awaiting._doors)
    asyncio.run(use())
    import gc

    gc.collect()
    assert len(awaiting._doors) <= before
