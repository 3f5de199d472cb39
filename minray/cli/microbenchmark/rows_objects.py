"""Rows about objects: get, put, references inside objects, wait.

The workloads are those of Ray's own microbenchmark: the same numbers of calls, objects and bytes (times
``--scale`` for the big ones). Tasks are defined inside the rows: see ``row``.
"""

from __future__ import annotations

from typing import Any

from .row import Bench, Metric, RowList, Sample, summary

rows = RowList()


@rows.add("get_small", "get, small object")
def get_small(bench: Bench) -> Sample:
    """get() of one small object that is there, over and over."""
    ray = bench.ray
    ref = ray.put(0)
    return bench.rate(lambda: ray.get(ref))


@rows.add("put_small", "put, small object")
def put_small(bench: Bench) -> Sample:
    """put() of a small object whose reference is dropped at once."""
    ray = bench.ray
    return bench.rate(lambda: ray.put(0))


@rows.add("put_small_clients", "put, small object, several clients")
def put_small_clients(bench: Bench) -> Sample:
    """Ten tasks that put a hundred small objects each."""
    ray = bench.ray
    tasks, puts = 10, 100

    @ray.remote
    def put_many() -> None:
        for _ in range(puts):
            ray.put(0)

    return bench.rate(lambda: ray.get([put_many.remote() for _ in range(tasks)]), tasks * puts)


@rows.add("put_gigabytes", Metric("put_gigabytes", "put, gigabytes", "GB/s"))
def put_gigabytes(bench: Bench) -> Sample:
    """put() of one array of 800 MiB, dropped at once."""
    import numpy

    ray = bench.ray
    array = numpy.zeros(bench.size(100 * 1024 * 1024), dtype=numpy.int64)
    return bench.rate(lambda: ray.put(array), array.nbytes / 1e9)


@rows.add("put_gigabytes_clients", Metric("put_gigabytes_clients", "put, gigabytes, several clients", "GB/s"))
def put_gigabytes_clients(bench: Bench) -> Sample:
    """Ten tasks that put ten arrays of 80 MiB each."""
    ray = bench.ray
    tasks, puts, items = 10, 10, bench.size(10 * 1024 * 1024)

    @ray.remote
    def put_large() -> None:
        import numpy

        for _ in range(puts):
            ray.put(numpy.zeros(items, dtype=numpy.int64))

    def call() -> None:
        ray.get([put_large.remote() for _ in range(tasks)])

    return bench.rate(call, tasks * puts * items * 8 / 1e9)


@rows.add("get_10k_refs", "get, object holding 10k refs")
def get_10k_refs(bench: Bench) -> Sample:
    """get() of one list of 10,000 references, put by a task."""
    ray = bench.ray
    count = bench.size(10_000)

    @ray.remote
    def make_refs() -> list[Any]:
        return [ray.put(1) for _ in range(count)]

    ref = make_refs.remote()
    return bench.rate(lambda: ray.get(ref))


@rows.add("wait_1k", "wait on 1k refs, one by one")
def wait_1k(bench: Bench) -> Sample:
    """A thousand tasks, taken one at a time by wait(), which is called a thousand times."""
    ray = bench.ray
    count = bench.size(1000)

    @ray.remote
    def small_value() -> bytes:
        return b"ok"

    def call() -> None:
        pending = [small_value.remote() for _ in range(count)]
        fetch = True  # asking once per object is enough
        while pending:
            _, pending = ray.wait(pending, fetch_local=fetch)
            fetch = False

    return bench.rate(call)


@rows.add("wait_10k", Metric("wait_10k", "wait(num_returns=1) over 10k refs", "s", lower_is_better=True))
def wait_10k(bench: Bench) -> Sample:
    """One call of wait() over 10,000 tasks that were just submitted. Submitting is not measured."""
    ray = bench.ray
    count = bench.size(10_000)

    @ray.remote
    def small_value() -> bytes:
        return b"ok"

    ray.get([small_value.remote() for _ in range(100)])
    times: list[float] = []
    begin = bench.clock()
    while not times or (len(times) < 5 and bench.clock() - begin < bench.seconds):
        refs = [small_value.remote() for _ in range(count)]
        start = bench.clock()
        ray.wait(refs, num_returns=1)
        times.append(bench.clock() - start)
        ray.get(refs)
    return summary(times)
