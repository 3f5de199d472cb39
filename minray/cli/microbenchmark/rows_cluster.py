"""Rows about several nodes: two of them on this machine, started by ``cluster_utils.Cluster`` of the module under test.

::

    driver ── head's node, 1 CPU ──TCP── second node, 1 CPU, {"far": 1}
      └────────────── tasks that need "far" ──────────▶

Each row makes its own cluster and ends it. ``transfer`` measures by turns with a raw copy between two processes
(``floors.raw_copies``), because both depend on how busy the machine is at that moment.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .floors import raw_copies
from .row import Bench, Metric, RowList, Sample, SkipRow, summary
from .rows_runtime import ask_probe

rows = RowList()

TURNS = 5  # of ``transfer``, at least; the first, into cold memory, is told by itself


@contextmanager
def two_nodes(bench: Bench, store: int = 200 << 20) -> Iterator[None]:
    """This process is a driver at the head's node; the second node is the only one with "far". ``store``: bytes."""
    ray: Any = bench.ray
    try:
        cluster_utils = importlib.import_module(f"{ray.__name__}.cluster_utils")
    except ModuleNotFoundError as error:
        raise SkipRow(f"it has no cluster_utils: {error}") from None
    size = {"num_cpus": 1, "object_store_memory": store}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=size)
    try:
        cluster.add_node(resources={"far": 1}, **size)
        cluster.wait_for_nodes()
        cluster.connect()
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@rows.add(
    "far_tasks",
    Metric("far_sync", "tasks on another node, sync"),
    Metric("far_async", "tasks on another node, async"),
    session=False,
)
def far_tasks(bench: Bench) -> dict[str, Sample]:
    """One task and its result at a time; then a thousand at once, per task."""
    ray, count = bench.ray, bench.size(1000)

    def small_value() -> bytes:
        return b"ok"

    far = ray.remote(resources={"far": 1})(small_value)
    with two_nodes(bench):
        return {
            "far_sync": bench.rate(lambda: ray.get(far.remote())),
            "far_async": bench.rate(lambda: ray.get([far.remote() for _ in range(count)]), count),
        }


@rows.add(
    "transfer",
    Metric("transfer", "array of 1 GB of another node, get()", "GB/s"),
    Metric("transfer_first", "… the first one, into memory that is new", "GB/s"),
    Metric("transfer_raw", "… by turns with a raw loopback TCP copy", "GB/s"),
    Metric("transfer_share", "… as a share of that copy", ""),
    session=False,
)
def transfer(bench: Bench) -> dict[str, Sample]:
    """get() of an array that lies in the other node's store: when it is there, and readable, here.

    Each turn moves a new object, and copies as many bytes from a warm buffer of one process into a warm buffer
    of another.
    """
    ray, size = bench.ray, bench.size(10**9)

    class Source:
        def __init__(self) -> None:
            import numpy

            self.array = numpy.full(size, 7, dtype=numpy.uint8)

        def give(self) -> Any:
            return self.array

    moved: list[float] = []
    copied: list[float] = []
    with two_nodes(bench, store=2 * size + (200 << 20)), raw_copies(size) as copy:
        source = ray.remote(resources={"far": 1})(Source).remote()
        begin = bench.clock()
        while len(moved) < TURNS or bench.clock() - begin < bench.seconds:
            copied.append(size / 1e9 / copy())
            ref = source.give.remote()
            ray.wait([ref], fetch_local=False)
            start = bench.clock()
            array = ray.get(ref)
            moved.append(size / 1e9 / (bench.clock() - start))
            if len(array) != size or array[0] != 7 or array[-1] != 7:
                raise RuntimeError("what came is not what was sent")
            del array, ref
    shares = [m / c for m, c in zip(moved, copied, strict=True)]
    return {
        "transfer": summary(moved[1:]),
        "transfer_first": Sample(moved[0]),
        "transfer_raw": summary(copied[1:]),
        "transfer_share": summary(shares[1:]),
    }


@rows.add(
    "join",
    Metric("join", "minray start --address until its first task", "s", lower_is_better=True),
    session=False,
    ours_only=True,
)
def join(bench: Bench) -> Sample:
    """A task waits for a node; from the command that starts one to the task's result. Three nodes, one by one."""
    return summary(ask_probe(bench, "join", nodes=bench.size(3))["join"])


@rows.add(
    "heartbeats",
    Metric("heartbeats", "100 nodes' heartbeats, CPU of the head", "%", lower_is_better=True),
    Metric("heartbeats_busy", "… and 10 changes/s, told to all", "%", lower_is_better=True),
    session=False,
    ours_only=True,
)
def heartbeats(bench: Bench) -> dict[str, Sample]:
    """A real head, and a process that plays 100 nodes (``minray.testing.crowd``); see ``probes.heartbeats``."""
    seconds = max(5.0 * min(1.0, bench.scale), bench.seconds)
    answer = ask_probe(bench, "heartbeats", nodes=bench.size(100), seconds=seconds)
    return {key: Sample(answer[key]) for key in ("heartbeats", "heartbeats_busy")}
