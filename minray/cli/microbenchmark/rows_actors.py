"""Rows about actors, ordinary and asyncio: one caller, several callers, several actors; creation.

``n`` is half the number of CPUs, at least 1, as in Ray's own microbenchmark: on two cores the rows with
n actors have one. Ordinary actors and clients need no CPU; asyncio actors have the default of 1 to be
placed and 0 to live.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

from .row import Api, Bench, RowList, Sample

rows = RowList()


def _half_the_cpus() -> int:
    return max(1, multiprocessing.cpu_count() // 2)


def _actor(ray: Api) -> Any:
    @ray.remote(num_cpus=0)
    class Actor:
        def small_value(self) -> bytes:
            return b"ok"

        def small_value_arg(self, _: Any) -> bytes:
            return b"ok"

    return Actor


def _async_actor(ray: Api) -> Any:
    @ray.remote
    class AsyncActor:
        async def small_value(self) -> bytes:
            return b"ok"

        async def small_value_arg(self, _: Any) -> bytes:
            return b"ok"

    return AsyncActor


def _client(ray: Api) -> Any:
    @ray.remote(num_cpus=0)
    class Client:
        def __init__(self, servers: list[Any]) -> None:
            self.servers = servers

        def call(self, number: int) -> None:
            ray.get([server.small_value.remote() for server in self.servers for _ in range(number)])

        def call_with_argument(self, number: int) -> None:
            argument = ray.put(0)
            calls = (server.small_value_arg for server in self.servers for _ in range(number))
            ray.get([call.remote(argument) for call in calls])

    return Client


def _sync_calls(bench: Bench, actor: Any) -> Sample:
    ray = bench.ray
    return bench.rate(lambda: ray.get(actor.small_value.remote()))


def _async_calls(bench: Bench, actor: Any) -> Sample:
    ray, count = bench.ray, bench.size(1000)
    return bench.rate(lambda: ray.get([actor.small_value.remote() for _ in range(count)]), count)


def _one_to_n(bench: Bench, cls: Any) -> Sample:
    """One client actor calls n actors, 5,000 times each."""
    ray, count = bench.ray, bench.size(5000)
    actors = [cls.remote() for _ in range(_half_the_cpus())]
    client = _client(ray).remote(actors)
    return bench.rate(lambda: ray.get(client.call.remote(count)), count * len(actors))


def _n_to_n(bench: Bench, cls: Any) -> Sample:
    """Four tasks call n actors, 5,000 calls per task."""
    ray, count, tasks = bench.ray, bench.size(5000), 4
    actors = [cls.remote() for _ in range(_half_the_cpus())]

    @ray.remote
    def call_all(targets: list[Any]) -> None:
        ray.get([targets[i % len(targets)].small_value.remote() for i in range(count)])

    return bench.rate(lambda: ray.get([call_all.remote(actors) for _ in range(tasks)]), tasks * count)


@rows.add("actor_sync", "actor calls, sync")
def actor_sync(bench: Bench) -> Sample:
    """Call one actor, get the result."""
    return _sync_calls(bench, _actor(bench.ray).remote())


@rows.add("actor_async", "actor calls, async")
def actor_async(bench: Bench) -> Sample:
    """Call one actor a thousand times, get all the results."""
    return _async_calls(bench, _actor(bench.ray).remote())


@rows.add("actor_concurrent", "actor calls, concurrent")
def actor_concurrent(bench: Bench) -> Sample:
    """The same to an actor with 16 threads."""
    return _async_calls(bench, _actor(bench.ray).options(max_concurrency=16).remote())


@rows.add("actor_1_n", "actor calls, 1:n")
def actor_1_n(bench: Bench) -> Sample:
    """One client, n actors."""
    return _one_to_n(bench, _actor(bench.ray))


@rows.add("actor_n_n", "actor calls, n:n")
def actor_n_n(bench: Bench) -> Sample:
    """Four tasks, n actors."""
    return _n_to_n(bench, _actor(bench.ray))


@rows.add("actor_n_n_arg", "actor calls, n:n, with argument")
def actor_n_n_arg(bench: Bench) -> Sample:
    """n clients with an actor each; every call takes one reference that the client put."""
    ray, count, cls = bench.ray, bench.size(1000), _actor(bench.ray)
    client = _client(ray)
    clients = [client.remote([cls.remote()]) for _ in range(_half_the_cpus())]

    def call() -> None:
        ray.get([one.call_with_argument.remote(count) for one in clients])

    return bench.rate(call, count * len(clients))


@rows.add("asyncio_sync", "asyncio actor, sync")
def asyncio_sync(bench: Bench) -> Sample:
    """Call one asyncio actor, get the result."""
    return _sync_calls(bench, _async_actor(bench.ray).remote())


@rows.add("asyncio_async", "asyncio actor, async")
def asyncio_async(bench: Bench) -> Sample:
    """Call one asyncio actor a thousand times, get all the results."""
    return _async_calls(bench, _async_actor(bench.ray).remote())


@rows.add("asyncio_args", "asyncio actor, async, with argument")
def asyncio_args(bench: Bench) -> Sample:
    """The same with a small argument."""
    ray, count = bench.ray, bench.size(1000)
    actor = _async_actor(ray).remote()
    return bench.rate(lambda: ray.get([actor.small_value_arg.remote(i) for i in range(count)]), count)


@rows.add("asyncio_1_n", "asyncio actors, 1:n")
def asyncio_1_n(bench: Bench) -> Sample:
    """One client, n asyncio actors."""
    return _one_to_n(bench, _async_actor(bench.ray))


@rows.add("asyncio_n_n", "asyncio actors, n:n")
def asyncio_n_n(bench: Bench) -> Sample:
    """Four tasks, n asyncio actors."""
    return _n_to_n(bench, _async_actor(bench.ray))


@rows.add("actor_creation", "actors created")
def actor_creation(bench: Bench) -> Sample:
    """Create twenty actors and call each once; ending them is not measured."""
    ray, count = bench.ray, bench.size(20, least=2)
    cls = _actor(ray)

    def create() -> float:
        start = bench.clock()
        actors = [cls.remote() for _ in range(count)]
        ray.get([actor.small_value.remote() for actor in actors])
        elapsed = bench.clock() - start
        for actor in actors:
            ray.kill(actor)
        for actor in actors:
            try:
                ray.get(actor.small_value.remote())
            except ray.exceptions.RayActorError:
                continue
        return elapsed

    create()
    times: list[float] = []
    while sum(times) < bench.seconds:
        times.append(create())
    rates = [count / elapsed for elapsed in times]
    mean = count * len(times) / sum(times)
    return Sample(mean, max(rates) - min(rates) if len(rates) > 1 else 0.0, count * len(times))
