"""Many nodes and many actors for real, on one machine. Small here; ``tox -e scale`` is 16 nodes and 1,000 actors.

Each node is two processes and each actor one, so memory decides how many there can be. Prints (``-s``) how long
everything took and what it weighs: proportional memory, with shared pages divided among those who share them.
"""

from __future__ import annotations

import os
import time
from collections import Counter

import psutil
import pytest

import minray as ray
from tests.cluster.conftest import eventually
from tests.cluster.test_losses import leaves_nothing

NODES = int(os.environ.get("MINRAY_TEST_NODES", "3"))
ACTORS = int(os.environ.get("MINRAY_TEST_ACTORS", "24")) // 2 * 2
LIMIT_S = 60 + 0.5 * ACTORS
MB_PER_ACTOR = 15  # about what a worker weighs

pytestmark = pytest.mark.timeout(4 * LIMIT_S)


def make_class():
    """The actors' class, which travels by value: no worker imports this file, and pytest with it."""

    @ray.remote(num_cpus=0)
    class Cell:
        def __init__(self, number):
            self.number = number
            self.neighbour = None

        def where(self):
            return ray.get_runtime_context().get_node_id(), os.getpid()

        def meet(self, neighbour):
            self.neighbour = neighbour

        def value(self):
            return self.number

        def sum(self):
            return self.number + ray.get(self.neighbour.value.remote())

    return Cell


def memory_of(pids):
    """MB, shared pages divided among those who share them."""
    total = 0
    for pid in pids:
        info = psutil.Process(pid).memory_full_info()
        total += getattr(info, "pss", info.uss)
    return total / 1e6


class Stopwatch:
    def __init__(self):
        self.at = time.perf_counter()

    def say(self, what):
        now = time.perf_counter()
        print(f"{now - self.at:7.1f} s  {what}", flush=True)
        self.at = now


def test_many_actors_on_many_nodes(make_cluster):
    free = psutil.virtual_memory().available / 1e6
    if free < ACTORS * MB_PER_ACTOR:
        pytest.skip(f"{free:.0f} MB are free, and {ACTORS} actors may need {ACTORS * MB_PER_ACTOR}")
    watch, cell = Stopwatch(), make_class()
    nodes = [{"num_cpus": 1} for _ in range(NODES - 1)]
    cluster = make_cluster(*nodes, head={"num_cpus": 1}, node_timeout_s=30.0, heartbeat_s=1.0)
    cluster.connect()
    watch.say(f"{NODES} nodes are there")
    actors = [cell.remote(number) for number in range(ACTORS)]
    places = ray.get([actor.where.remote() for actor in actors], timeout=LIMIT_S)
    watch.say(f"{ACTORS} actors have answered")
    pids = [pid for _, pid in places]
    assert len(set(pids)) == ACTORS
    spread = Counter(node_id for node_id, _ in places)
    assert set(spread) == {node["NodeID"] for node in ray.nodes()}
    assert max(spread.values()) <= 2 * ACTORS / NODES, spread
    ray.get([actor.meet.remote(actors[i - 1]) for i, actor in enumerate(actors)], timeout=LIMIT_S)
    for half in (0, 1):  # whoever asks its neighbour cannot answer the other one meanwhile
        sums = ray.get([actor.sum.remote() for actor in actors[half::2]], timeout=LIMIT_S)
        assert sums == [2 * i - 1 if i else ACTORS - 1 for i in range(half, ACTORS, 2)]
    watch.say("each has called its neighbour on another node")
    assert sum(ray.get([actor.value.remote() for actor in actors])) == sum(range(ACTORS))
    watch.say("each was called once more")
    daemons = [pid for node in cluster.list_all_nodes() for pid in (node.daemon_pid, node.zygote_pid) if pid]
    print(f"{memory_of(pids) / ACTORS:7.1f} MB per actor, {memory_of(daemons) / NODES:.1f} MB per node besides")
    for actor in actors:
        ray.kill(actor)
    eventually(lambda: not any(map(psutil.pid_exists, pids)), "their processes end", limit=LIMIT_S)
    watch.say("all are killed and gone")
    everything = cluster.list_all_nodes()
    again = [cell.remote(number) for number in range(NODES)]
    assert ray.get([actor.value.remote() for actor in again], timeout=LIMIT_S) == list(range(NODES))
    cluster.shutdown()
    watch.say("the cluster has ended")
    assert not any(map(psutil.pid_exists, daemons))
    for node in everything:
        leaves_nothing(node)
