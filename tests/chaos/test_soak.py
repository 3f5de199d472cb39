"""A mixed load on four nodes, while processes are killed and frozen: every answer is right, and nothing is left.

The driver is on the head's machine, or on another: then the head, too, is killed and started again. The stores are
smaller than what the loads hold, so objects go to disk and come back all the time.

``MINRAY_TEST_CHAOS_S``: for how long (``tox -e chaos``: an hour); ``MINRAY_TEST_CHAOS_SEED``: which history. Threads
and processes are as they are, so a seed repeats the deeds, not the interleaving.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

import minray as ray
from minray.cluster_utils import Cluster
from tests.chaos.loads import LOADS
from tests.chaos.mischief import Mischief
from tests.cluster.conftest import ask_node

SECONDS = float(os.environ.get("MINRAY_TEST_CHAOS_S", "15"))
SEED = int(os.environ.get("MINRAY_TEST_CHAOS_SEED", "1"))
THREADS = 4
NODE = {"num_cpus": 2, "object_store_memory": 64 << 20}
TIMEOUT_S = 4.0
SETTINGS = {"heartbeat_s": 0.3, "node_timeout_s": TIMEOUT_S, "prestart": False}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(True, head_node_args={**NODE, "_system_config": SETTINGS}) as made:
        for _ in range(3):
            made.add_node(**NODE)
        yield made


class Worker(threading.Thread):
    """One thread of the driver that works until the time is over, or an answer is wrong."""

    def __init__(self, number: int, end: float) -> None:
        super().__init__(name=f"load-{number}")
        self.chance = random.Random(f"{SEED}/{number}")
        self.end = end
        self.done: Counter[str] = Counter()
        self.doing = ""
        self.error: BaseException | None = None

    def run(self) -> None:
        while time.monotonic() < self.end and self.error is None:
            load = self.chance.choice(LOADS)
            self.doing = load.__name__
            try:
                load(self.chance)
            except BaseException as error:
                self.error = error
            self.done[self.doing] += 1


def all_free() -> bool:
    free, totals = ray.available_resources(), ray.cluster_resources()
    return all(free.get(name, 0.0) == amount for name, amount in totals.items() if name == "CPU")


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS + 400)
@pytest.mark.parametrize("driver_at", ["head", "another node"])
def test_soak(cluster: Cluster, driver_at: str) -> None:
    at = cluster.head_node if driver_at == "head" else min(cluster.worker_nodes, key=lambda node: node.node_id)
    assert at is not None
    cluster.connect(node=at)
    end = time.monotonic() + SECONDS
    with Mischief(cluster, SEED, spared=at, node=NODE, timeout_s=TIMEOUT_S) as mischief:
        workers = [Worker(number, end) for number in range(THREADS)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers) and not any(worker.error for worker in workers):
            time.sleep(0.1)
        failed = next((worker for worker in workers if worker.error is not None), None)
        for worker in workers:
            worker.end = 0.0
    for worker in workers:
        worker.join()
    done = sum((worker.done for worker in workers), Counter())
    stores = [node["store"] or {} for node in ask_node(cluster, cluster.head_node, "cluster_status")]
    disk = {name: sum(store.get(name, 0) for store in stores) >> 20 for name in ("spilled_bytes", "restored_bytes")}
    print(f"\nseed {SEED}, {SECONDS:g} s: {dict(mischief.done)}; {dict(done)}", file=sys.stderr)
    print(f"of the nodes that live, in MiB: {disk}", file=sys.stderr)
    if failed is not None:
        raise AssertionError(f"{failed.doing} failed; done until then: {dict(mischief.done)}") from failed.error
    limit = time.monotonic() + 30
    while not all_free():
        assert time.monotonic() < limit, f"free at rest: {ray.available_resources()} of {ray.cluster_resources()}"
        time.sleep(0.05)
