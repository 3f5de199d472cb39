"""Somebody dies while an object is on its way between nodes: other copies go on, errors come, nothing is left."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest

import minray as ray
from minray.exceptions import ObjectLostError
from minray.experimental import get_object_locations
from minray.worker.tool import Tool
from tests.cluster.conftest import ask_node, eventually, objects_at

SIZE = 100 << 20
OBJECTS = 4
STORE = {"object_store_memory": (OBJECTS + 1) * SIZE}


def make(seed):
    return np.resize(np.random.default_rng(seed).integers(0, 256, 999_999, dtype=np.uint8), SIZE)


def total(array):
    return int(array.sum())


def at(function, name, **options):
    """As a task on the node with that resource, once."""
    return ray.remote(function).options(resources={name: 1}, max_retries=0, **options)


def transfers_of(cluster, node):
    return ask_node(cluster, node, "stats")["transfers"]


@pytest.fixture
def three(make_cluster):
    """The head, a, and b; and OBJECTS objects that lie on a."""
    a, b = ({"num_cpus": 1, "resources": {name: 1}, **STORE} for name in "ab")
    cluster = make_cluster(a, b, head={"num_cpus": 1, **STORE}, node_timeout_s=30.0)  # who stands still is not dead
    cluster.connect()
    refs = [at(make, "a").remote(seed) for seed in range(OBJECTS)]
    ray.wait(refs, num_returns=OBJECTS, fetch_local=False)
    return cluster, refs


def node_with(cluster, name):
    (found,) = [node["NodeID"] for node in ray.nodes() if name in node["Resources"]]
    (node,) = [node for node in cluster.list_all_nodes() if node.node_id == found]
    return node


@contextmanager
def in_the_middle(
    cluster: Any, taker: Any, refs: list[Any], fetch: Callable[[Any], Any]
) -> Iterator[tuple[int, Any, Future[Any]]]:
    """``fetch`` brings one object after the other to ``taker``, until one has been caught on its way: a, where they
    lie, stands still then. Yields its number, a, and the future of ``fetch``."""
    source, node = node_with(cluster, "a"), taker._started
    with ThreadPoolExecutor(1) as pool, Tool(cluster._config, node.endpoint, node.token) as tool:

        def arrived():
            return tool.ask("stats")["transfers"]["arriving_bytes"]

        for number, ref in enumerate(refs):
            got = pool.submit(fetch, ref)
            while not got.done() and not arrived():
                pass
            os.kill(source.daemon_pid, signal.SIGSTOP)
            try:
                while (before := arrived()) != arrived():  # what was in the sockets
                    pass
                if 0 < before < SIZE:
                    yield number, source, got
                    return
            finally:
                with suppress(ProcessLookupError):  # it was killed, and has been reaped
                    os.kill(source.daemon_pid, signal.SIGCONT)
            got.result()
    raise AssertionError("each of them was there at once")


def drop(refs):
    refs.clear()
    gc.collect()


def test_the_source_dies_in_the_middle_and_another_copy_goes_on(three):
    cluster, refs = three
    sums = ray.get([at(total, "b").remote(ref) for ref in refs])
    sizes = [get_object_locations([ref])[ref]["object_size"] for ref in refs]
    with in_the_middle(cluster, cluster.head_node, refs, ray.get) as (number, source, got):
        os.kill(source.daemon_pid, signal.SIGKILL)
        assert total(got.result(timeout=60)) == sums[number]
    came = transfers_of(cluster, cluster.head_node)["received_bytes"]
    assert came == sum(sizes[: number + 1]), "what was here already did not come again"


def test_a_copy_is_read_elsewhere_though_its_home_is_long_dead(three):
    cluster, refs = three
    sums = ray.get([at(total, "b").remote(ref) for ref in refs])
    cluster.remove_node(node_with(cluster, "a"), allow_graceful=False)
    eventually(lambda: sum(node["Alive"] for node in ray.nodes()) == 2, "the head knows")
    assert [total(ray.get(ref, timeout=60)) for ref in refs] == sums


def test_without_another_copy_the_reader_is_told(three):
    cluster, refs = three
    with in_the_middle(cluster, cluster.head_node, refs, ray.get) as (_, source, got):
        os.kill(source.daemon_pid, signal.SIGKILL)
        with pytest.raises(ObjectLostError):
            got.result(timeout=60)
    eventually(lambda: transfers_of(cluster, cluster.head_node)["rooms"] == 0, "its room is given back")
    with pytest.raises(ObjectLostError):
        ray.get(refs[-1], timeout=60)


def test_the_node_that_asks_dies_in_the_middle(three):
    cluster, refs = three
    taker = node_with(cluster, "b")

    def fetch(ref):
        return ray.get(at(total, "b").remote(ref))

    with in_the_middle(cluster, taker, refs, fetch) as (number, source, got):
        os.kill(taker.daemon_pid, signal.SIGKILL)
        os.kill(source.daemon_pid, signal.SIGCONT)
        with pytest.raises(ray.exceptions.RayError):
            got.result(timeout=60)
    eventually(lambda: not transfers_of(cluster, source)["loans"], "nothing is pinned for the dead")
    eventually(lambda: not transfers_of(cluster, source)["senders"], "nobody sends to the dead")
    assert total(ray.get(refs[number])) == total(make(number))
    del got  # it has an error, and that has frames, and they have references
    drop(refs)
    eventually(lambda: not objects_at(cluster, source), "all is freed")
    eventually(lambda: not objects_at(cluster, cluster.head_node), "all is freed")


def test_the_worker_that_asks_dies_in_the_middle(three):
    cluster, refs = three
    taker = node_with(cluster, "b")
    actor = ray.remote(Reader).options(resources={"b": 1}).remote()
    pid = ray.get(actor.pid.remote())

    def fetch(ref):
        return ray.get(actor.read.remote([ref]))

    with in_the_middle(cluster, taker, refs, fetch) as (_, source, got):
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not transfers_of(cluster, taker)["pulls"], "nobody waits for it any more")
        os.kill(source.daemon_pid, signal.SIGCONT)
        with pytest.raises(ray.exceptions.ActorDiedError):
            got.result(timeout=60)
    eventually(lambda: not transfers_of(cluster, source)["loans"], "nothing is pinned for it")
    assert not transfers_of(cluster, taker)["rooms"]
    del got  # it has an error, and that has frames, and they have references
    drop(refs)
    for node in (source, taker):
        eventually(lambda node=node: not objects_at(cluster, node), "all is freed")


class Reader:
    """Fetches inside."""

    def pid(self):
        return os.getpid()

    def read(self, refs):
        return total(ray.get(refs[0]))
