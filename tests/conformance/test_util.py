"""util: Queue, ActorPool, as_completed, map_unordered, and the actors for tests."""

from __future__ import annotations

import asyncio
import queue as standard_queue

import pytest

from .target import (
    eventually,
    exceptions,
    load_testing,
    needs_concurrency,
    ray,
    submodule,
    t2,
    util,
)

queue = submodule("util.queue")


@ray.remote
def echo(value):
    return value


@ray.remote
class Doubler:
    def double(self, n):
        return 2 * n

    def double_after(self, gate, n):
        gate.wait(f"pool-{n}")
        return 2 * n

    def fail(self, n):
        raise ValueError(f"item {n}")


# --- Queue --------------------------------------------------------------------------------------


@pytest.fixture
def made():
    """Queues that are shut down when the test ends."""
    queues = []

    def make(*args, **kwargs):
        queues.append(queue.Queue(*args, **kwargs))
        return queues[-1]

    yield make
    for each in queues:
        each.shutdown()


def test_queue_is_first_in_first_out(made):
    q = made()
    for i in range(5):
        q.put(i)
    assert q.size() == q.qsize() == len(q) == 5
    assert [q.get() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert q.empty()


def test_queue_empty_and_full(made):
    q = made(maxsize=2)
    assert q.empty()
    assert not q.full()
    q.put(1)
    q.put(2)
    assert q.full()
    with pytest.raises(queue.Full):
        q.put_nowait(3)
    with pytest.raises(queue.Full):
        q.put(3, block=False)
    assert q.get_nowait() == 1
    assert q.get(block=False) == 2
    with pytest.raises(queue.Empty):
        q.get_nowait()
    with pytest.raises(queue.Empty):
        q.get(block=False)


def test_queue_exceptions_are_the_standard_ones():
    assert issubclass(queue.Empty, standard_queue.Empty)
    assert issubclass(queue.Full, standard_queue.Full)


@needs_concurrency
def test_queue_timeouts(made):
    q = made(maxsize=1)
    with pytest.raises(queue.Empty):
        q.get(timeout=0.05)
    q.put(1)
    with pytest.raises(queue.Full):
        q.put(2, timeout=0.05)
    with pytest.raises(ValueError):
        q.get(timeout=-1)
    with pytest.raises(ValueError):
        q.put(1, timeout=-1)


@needs_concurrency
def test_queue_wakes_a_waiting_consumer(made, gate):
    @ray.remote(num_cpus=0)
    def consume(q, gate):
        gate.arrive()
        return q.get(timeout=30)

    q = made()
    ref = consume.remote(q, gate)
    gate.arrivals()
    q.put("woken")
    assert ray.get(ref) == "woken"


def test_queue_batches(made):
    q = made(maxsize=4)
    q.put_nowait_batch([1, 2, 3])
    with pytest.raises(queue.Full):
        q.put_nowait_batch([4, 5])
    assert q.get_nowait_batch(2) == [1, 2]
    with pytest.raises(queue.Empty):
        q.get_nowait_batch(2)
    assert q.get_nowait_batch(1) == [3]
    with pytest.raises(TypeError):
        q.put_nowait_batch(5)
    with pytest.raises(TypeError):
        q.get_nowait_batch("two")
    with pytest.raises(ValueError):
        q.get_nowait_batch(-1)


def test_queue_async(made):
    q = made(maxsize=1)

    async def main():
        await q.put_async("a")
        with pytest.raises(queue.Full):
            await q.put_async("b", block=False)
        first = await q.get_async()
        with pytest.raises(queue.Empty):
            await q.get_async(block=False)
        return first

    assert asyncio.run(main()) == "a"


@needs_concurrency
def test_queue_of_many_producers_and_consumers(made):
    @ray.remote(num_cpus=0)
    def produce(q, start):
        for i in range(start, start + 10):
            q.put(i)

    @ray.remote(num_cpus=0)
    def consume(q, n):
        return [q.get(timeout=30) for _ in range(n)]

    q = made(maxsize=3)
    consumers = [consume.remote(q, 10) for _ in range(2)]
    ray.get([produce.remote(q, start) for start in (0, 100)])
    items = [item for taken in ray.get(consumers) for item in taken]
    assert sorted(items) == [*range(10), *range(100, 110)]


def test_queue_inside_a_container(made):
    @ray.remote
    def put(box):
        box["queue"].put("through a box")

    q = made()
    ray.get(put.remote({"queue": q}))
    assert q.get() == "through a box"


def test_queue_options_of_its_actor():
    q = queue.Queue(actor_options={"num_cpus": 0, "name": "the-queue"})
    assert ray.get_actor("the-queue") == q.actor
    q.shutdown()


def test_queue_shutdown_ends_its_actor():
    q = queue.Queue()
    q.put(1)
    actor = q.actor
    q.shutdown(force=True)

    def dead():
        try:
            ray.get(actor.qsize.remote())
        except exceptions.RayActorError:
            return True
        return False

    eventually(dead, "the queue's actor died")


# --- ActorPool ----------------------------------------------------------------------------------


def test_pool_map_keeps_the_order():
    pool = util.ActorPool([Doubler.remote() for _ in range(2)])
    assert list(pool.map(lambda actor, n: actor.double.remote(n), range(6))) == [0, 2, 4, 6, 8, 10]


def test_pool_map_unordered_yields_everything():
    pool = util.ActorPool([Doubler.remote() for _ in range(2)])
    assert sorted(pool.map_unordered(lambda actor, n: actor.double.remote(n), range(6))) == [
        0,
        2,
        4,
        6,
        8,
        10,
    ]


@needs_concurrency
def test_pool_map_unordered_yields_the_first_that_is_done(gate):
    pool = util.ActorPool([Doubler.remote() for _ in range(2)])
    for n in (1, 2):
        pool.submit(lambda actor, n: actor.double_after.remote(gate, n), n)
    gate.open("pool-2")
    assert pool.get_next_unordered(timeout=30) == 4
    gate.open("pool-1")
    assert pool.get_next_unordered(timeout=30) == 2


@needs_concurrency
def test_pool_get_next_keeps_the_order_of_submission(gate):
    pool = util.ActorPool([Doubler.remote() for _ in range(2)])
    for n in (1, 2):
        pool.submit(lambda actor, n: actor.double_after.remote(gate, n), n)
    gate.open("pool-2")
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.05)
    gate.open("pool-1")
    assert pool.get_next(timeout=30) == 2
    assert pool.get_next(timeout=30) == 4


@needs_concurrency
def test_pool_timeouts(gate):
    pool = util.ActorPool([Doubler.remote()])
    pool.submit(lambda actor, n: actor.double_after.remote(gate, n), 1)
    with pytest.raises(TimeoutError):
        pool.get_next_unordered(timeout=0.05)
    gate.open("pool-1")
    assert pool.get_next_unordered(timeout=30) == 2


def test_pool_has_next_and_has_free():
    pool = util.ActorPool([Doubler.remote()])
    assert pool.has_free()
    assert not pool.has_next()
    pool.submit(lambda actor, n: actor.double.remote(n), 3)
    assert pool.has_next()
    assert not pool.has_free()
    pool.submit(lambda actor, n: actor.double.remote(n), 4)  # waits for a free actor
    assert [pool.get_next(), pool.get_next()] == [6, 8]
    assert not pool.has_next()
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


def test_pool_push_and_pop_idle():
    a, b = Doubler.remote(), Doubler.remote()
    pool = util.ActorPool([a])
    with pytest.raises(ValueError):
        pool.push(a)
    pool.push(b)
    assert {pool.pop_idle(), pool.pop_idle()} == {a, b}
    assert pool.pop_idle() is None
    assert not pool.has_free()


def test_pool_an_error_reaches_the_caller_and_frees_the_actor():
    pool = util.ActorPool([Doubler.remote()])
    pool.submit(lambda actor, n: actor.fail.remote(n), 1)
    with pytest.raises(ValueError, match="item 1"):
        pool.get_next()
    pool.submit(lambda actor, n: actor.double.remote(n), 2)
    assert pool.get_next() == 4


# --- as_completed, map_unordered ----------------------------------------------------------------


def test_as_completed_yields_all_values():
    refs = [echo.remote(i) for i in range(10)]
    assert sorted(util.as_completed(refs)) == list(range(10))


@needs_concurrency
def test_as_completed_yields_the_first_that_is_done(gate):
    slow, quick = gate.ref(), echo.remote("quick")
    results = util.as_completed([slow, quick], chunk_size=1)
    assert next(results) == "quick"
    gate.open()
    assert len(list(results)) == 1


def test_as_completed_can_yield_refs():
    refs = [echo.remote(i) for i in range(4)]
    assert set(util.as_completed(refs, yield_obj_refs=True)) == set(refs)


def test_as_completed_of_nothing():
    assert list(util.as_completed([])) == []


def test_map_unordered_maps_everything():
    assert sorted(util.map_unordered(echo, range(20), backpressure_size=4)) == list(range(20))


def test_map_unordered_takes_methods_and_refs():
    actor = Doubler.remote()
    assert sorted(util.map_unordered(actor.double, [1, 2, 3])) == [2, 4, 6]
    refs = list(util.map_unordered(echo, [1, 2, 3], yield_obj_refs=True))
    assert sorted(ray.get(refs)) == [1, 2, 3]


def test_map_unordered_never_has_too_many_in_flight():
    taken = []

    def items():
        for i in range(30):
            taken.append(i)
            yield i

    results = util.map_unordered(echo, items(), backpressure_size=5, chunk_size=1)
    next(results)
    assert len(taken) <= 7
    assert len(list(results)) == 29


# --- small things -------------------------------------------------------------------------------


@t2("log_once")
def test_log_once_is_true_once():
    assert util.log_once("conformance-key")
    assert not util.log_once("conformance-key")


@t2("inspect_serializability")
def test_inspect_serializability():
    import threading

    ok, failures = util.inspect_serializability([1, 2], name="fine")
    assert ok
    assert not failures
    lock = threading.Lock()
    ok, failures = util.inspect_serializability(lambda: lock, name="bad")
    assert not ok
    assert failures


@t2("register_serializer")
def test_register_serializer():
    class Odd:
        def __init__(self, value):
            self.value = value

        def __reduce__(self):
            raise TypeError("not by pickle")

    util.register_serializer(Odd, serializer=lambda odd: odd.value, deserializer=Odd)

    @ray.remote
    def read(odd):
        return odd.value

    try:
        assert ray.get(ray.put(Odd(5))).value == 5
        assert ray.get(read.remote(Odd(6))) == 6
    finally:
        util.deregister_serializer(Odd)


# --- the actors for tests -----------------------------------------------------------------------


@needs_concurrency
def test_signal_actor():
    signal = load_testing().SignalActor.remote()

    @ray.remote(num_cpus=0)
    def wait(signal):
        ray.get(signal.wait.remote())
        return "signalled"

    refs = [wait.remote(signal) for _ in range(2)]
    eventually(lambda: ray.get(signal.cur_num_waiters.remote()) == 2, "both wait")
    ray.get(signal.send.remote())
    assert ray.get(refs) == ["signalled"] * 2
    ray.get(signal.wait.remote())
    ray.get(signal.send.remote(clear=True))
    assert ray.wait([signal.wait.remote()], timeout=0.05)[0] == []
    ray.get(signal.wait.remote(should_wait=False))


@needs_concurrency
def test_semaphore():
    semaphore = load_testing().Semaphore.remote(value=1)
    ray.get(semaphore.acquire.remote())
    second = semaphore.acquire.remote()
    assert ray.wait([second], timeout=0.05)[0] == []
    assert ray.get(semaphore.locked.remote()) is True
    ray.get(semaphore.release.remote())
    ray.get(second, timeout=30)
