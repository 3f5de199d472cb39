"""Rows about tasks: one at a time, many at once, from several clients.

``tasks_and_get`` and ``tasks_async`` are the same work told in two units (batches and tasks), as in Ray's
own microbenchmark.
"""

from __future__ import annotations

from typing import Any

from .row import Api, Bench, RowList, Sample

rows = RowList()


def _small_value(ray: Api) -> Any:
    @ray.remote
    def small_value() -> bytes:
        return b"ok"

    return small_value


@rows.add("tasks_sync", "tasks, sync")
def tasks_sync(bench: Bench) -> Sample:
    """Submit one task, get its result."""
    ray, small_value = bench.ray, _small_value(bench.ray)
    return bench.rate(lambda: ray.get(small_value.remote()))


@rows.add("tasks_async", "tasks, async")
def tasks_async(bench: Bench) -> Sample:
    """Submit a thousand tasks, get all the results; per task."""
    ray, small_value = bench.ray, _small_value(bench.ray)
    count = bench.size(1000)
    return bench.rate(lambda: ray.get([small_value.remote() for _ in range(count)]), count)


@rows.add("tasks_clients", "tasks, several clients")
def tasks_clients(bench: Bench) -> Sample:
    """Four actors that submit ten thousand tasks each and get the results; per task."""
    ray, small_value = bench.ray, _small_value(bench.ray)
    clients, count = 4, bench.size(10_000)

    class Client:
        def submit(self, number: int) -> None:
            ray.get([small_value.remote() for _ in range(number)])

    cls = ray.remote(num_cpus=0)(Client)
    actors = [cls.remote() for _ in range(clients)]
    return bench.rate(lambda: ray.get([actor.submit.remote(count) for actor in actors]), clients * count)


@rows.add("tasks_and_get", "1,000 tasks and get")
def tasks_and_get(bench: Bench) -> Sample:
    """Submit a thousand tasks, get all the results; per thousand."""
    ray, small_value = bench.ray, _small_value(bench.ray)
    count = bench.size(1000)
    return bench.rate(lambda: ray.get([small_value.remote() for _ in range(count)]))
