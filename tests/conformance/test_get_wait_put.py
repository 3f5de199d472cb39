"""get, wait and put: B1 to B6."""

# ruff: noqa: UP028 -- Ray cannot stream a bare `yield from`
from __future__ import annotations

import pytest

from .target import Gate, eventually, exceptions, minray_only, needs_concurrency, needs_processes, ray


@ray.remote
def echo(value):
    return value


@ray.remote
def fail(message="no"):
    raise ValueError(message)


@ray.remote
def hang(gate: Gate):
    gate.wait()


@ray.remote
def count_to(n):
    for i in range(n):
        yield i


# --- B1 -----------------------------------------------------------------------------------------


def test_b01_get_takes_a_ref_or_a_list():
    a, b = echo.remote(1), echo.remote(2)
    assert ray.get(a) == 1
    assert ray.get([a, b, a]) == [1, 2, 1]
    assert ray.get([]) == []


def test_b01_get_of_a_tuple_is_a_value_error():
    with pytest.raises(ValueError):
        ray.get((echo.remote(1), echo.remote(2)))


@pytest.mark.parametrize("bad", [5, "text", {"a": 1}, None, object()], ids=repr)
def test_b01_get_of_something_else_is_a_value_error(bad):
    with pytest.raises(ValueError):
        ray.get(bad)


def test_b01_get_of_a_list_that_holds_something_else_is_an_error():
    with pytest.raises((TypeError, ValueError)):
        ray.get([echo.remote(1), 5])


def test_b01_a_streaming_generator_comes_back_unchanged_from_get():
    stream = count_to.remote(2)
    assert ray.get(stream) is stream
    assert [ray.get(ref) for ref in stream] == [0, 1]


# --- B2 -----------------------------------------------------------------------------------------


@needs_concurrency
def test_b02_get_of_a_list_raises_without_waiting_for_peers_that_hang(gate):
    hanging, failing = hang.remote(gate), fail.remote("first")
    with pytest.raises(ValueError, match="first"):
        ray.get([hanging, failing])
    with pytest.raises(ValueError, match="first"):
        ray.get([failing, hanging])


def test_b02_get_of_a_list_raises_an_error_among_values():
    with pytest.raises(ValueError, match="bad"):
        ray.get([echo.remote(1), fail.remote("bad"), echo.remote(2)])


# --- B3 -----------------------------------------------------------------------------------------


def test_b03_timeout_zero_gives_a_value_that_is_there():
    ref = echo.remote(7)
    ray.wait([ref])
    assert ray.get(ref, timeout=0) == 7


@needs_concurrency
def test_b03_timeout_zero_raises_for_a_value_that_is_not_there(gate):
    ref = hang.remote(gate)
    with pytest.raises(exceptions.GetTimeoutError):
        ray.get(ref, timeout=0)
    with pytest.raises(TimeoutError):
        ray.get([ray.put(1), ref], timeout=0.01)


@needs_concurrency
def test_b03_a_get_that_timed_out_can_be_repeated(gate):
    ref = hang.remote(gate)
    with pytest.raises(exceptions.GetTimeoutError):
        ray.get(ref, timeout=0.01)
    gate.open()
    assert ray.get(ref, timeout=30) is None


# --- B4 -----------------------------------------------------------------------------------------


def test_b04_wait_returns_exactly_num_returns_even_if_more_are_ready():
    refs = [ray.put(i) for i in range(5)]
    for n in range(1, 6):
        ready, rest = ray.wait(refs, num_returns=n)
        assert (len(ready), len(rest)) == (n, 5 - n)


def test_b04_both_lists_of_wait_keep_the_order_of_the_input():
    refs = [ray.put(i) for i in range(6)][::-1]
    ready, rest = ray.wait(refs, num_returns=4)
    assert ready == [ref for ref in refs if ref in set(ready)]
    assert rest == [ref for ref in refs if ref not in set(ready)]
    assert len(ready) == 4


@minray_only("its choice among ready objects is arbitrary")
def test_b04_wait_prefers_the_first_of_those_that_are_ready():
    refs = [ray.put(i) for i in range(6)][::-1]
    assert ray.wait(refs, num_returns=4) == (refs[:4], refs[4:])


@needs_concurrency
def test_b04_wait_skips_what_is_not_ready_and_keeps_the_order(gate):
    slow_a, quick, slow_b = hang.remote(gate), ray.put(1), hang.remote(gate)
    ready, rest = ray.wait([slow_a, quick, slow_b], num_returns=1)
    assert ready == [quick]
    assert rest == [slow_a, slow_b]


@needs_concurrency
def test_b04_wait_with_a_timeout_returns_what_there_is(gate):
    quick, slow = ray.put(1), hang.remote(gate)
    assert ray.wait([slow, quick], num_returns=2, timeout=0.05) == ([quick], [slow])
    assert ray.wait([slow], timeout=0) == ([], [slow])


def test_b04_wait_defaults_to_one():
    refs = [ray.put(i) for i in range(3)]
    ready, rest = ray.wait(refs)
    assert (len(ready), len(rest)) == (1, 2)


def test_b04_a_loop_of_waits_sees_each_ref_once():
    rest = [echo.remote(i) for i in range(20)]
    seen = []
    while rest:
        ready, rest = ray.wait(rest, num_returns=min(3, len(rest)))
        seen += ray.get(ready)
    assert sorted(seen) == list(range(20))


# --- B5 -----------------------------------------------------------------------------------------


def test_b05_wait_for_nothing_returns_nothing():
    assert ray.wait([]) == ([], [])


def test_b05_wait_refuses_duplicates():
    ref = ray.put(1)
    with pytest.raises(ValueError):
        ray.wait([ref, ref])


@pytest.mark.parametrize("count", [0, -1, 3])
def test_b05_wait_refuses_bad_counts(count):
    with pytest.raises(ValueError):
        ray.wait([ray.put(1), ray.put(2)], num_returns=count)


def test_b05_wait_refuses_a_negative_timeout():
    with pytest.raises(ValueError):
        ray.wait([ray.put(1)], timeout=-1)


@pytest.mark.parametrize("wrap", [lambda ref: ref, lambda ref: (ref,), lambda ref: {ref}, lambda ref: [5]])
def test_b05_wait_refuses_what_is_not_a_list_of_refs(wrap):
    with pytest.raises(TypeError):
        ray.wait(wrap(ray.put(1)))


def test_b05_failed_objects_count_as_ready():
    failed = fail.remote()
    assert ray.wait([failed]) == ([failed], [])
    assert ray.wait([failed], fetch_local=False) == ([failed], [])


# --- B6 -----------------------------------------------------------------------------------------


def test_b06_put_of_a_ref_is_a_type_error():
    with pytest.raises(TypeError):
        ray.put(ray.put(1))


def test_b06_put_of_a_list_of_refs_gives_the_refs_back():
    inner = ray.put("inside")
    outer = ray.put([inner])
    (again,) = ray.get(outer)
    assert isinstance(again, ray.ObjectRef)
    assert again == inner
    assert ray.get(again) == "inside"


def test_b06_a_ref_inside_an_object_keeps_its_value_alive():
    outer = ray.put({"deep": [ray.put("inside"), echo.remote("made")]})
    held = ray.get(outer)["deep"]
    assert ray.get(held) == ["inside", "made"]


@needs_processes
def test_b06_a_ref_inside_an_object_stays_alive_in_another_process():
    @ray.remote
    def make():
        return [ray.put("owned by a worker")]

    (inner,) = ray.get(make.remote())
    assert ray.get(inner) == "owned by a worker"


def test_b06_put_copies_so_that_later_changes_are_invisible():
    value = [1, 2]
    ref = ray.put(value)
    value.append(3)
    assert ray.get(ref) == [1, 2]
    ray.get(ref).append(9)
    assert ray.get(ref) == [1, 2]


def test_b06_none_and_falsy_values_are_values():
    for value in [None, 0, "", b"", [], {}, False]:
        ref = ray.put(value)
        assert ray.get(ref) == value
        assert type(ray.get(ref)) is type(value)


@needs_concurrency
def test_wait_wakes_when_a_task_ends(gate):
    refs = [hang.remote(gate) for _ in range(2)]
    assert ray.wait(refs, num_returns=1, timeout=0)[0] == []
    gate.open()
    assert eventually(lambda: len(ray.wait(refs, num_returns=2, timeout=1)[0]) == 2, "both tasks ended")
