"""Objects that lie on one node and are read on another: the same bytes, one copy per node, gone when freed."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

import minray as ray
from minray.exceptions import GetTimeoutError, ObjectStoreFullError
from minray.experimental import get_object_locations
from tests.cluster.conftest import ask_node, eventually, objects_at

MIB = 1 << 20
LARGE = 20 * MIB
far = ray.remote(resources={"far": 0.1})


def make(size, seed):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def total(array):
    return int(array.sum())


def total_inside(refs):
    return total(ray.get(refs[0]))


@ray.remote
def nap(seconds):
    time.sleep(seconds)


def node_ids(ref):
    return get_object_locations([ref])[ref]["node_ids"]


def transfers_of(cluster, node):
    return ask_node(cluster, node, "stats")["transfers"]


@pytest.fixture
def two(make_cluster):
    cluster = make_cluster({"num_cpus": 1, "resources": {"far": 1}}, head={"num_cpus": 1})
    cluster.connect()
    return cluster


@pytest.mark.parametrize("size", [200_000, LARGE])
def test_results_and_arguments_cross(two, size):
    result = far(make).remote(size, 7)
    here = ray.get(result)
    assert (here == make(size, 7)).all() and not here.flags.writeable
    argument = ray.put(make(size, 8))
    assert ray.get(far(total).remote(argument)) == int(make(size, 8).sum())
    home, there = node_ids(argument)
    assert {home, there} == {node["NodeID"] for node in ray.nodes()} == set(node_ids(result))
    assert get_object_locations([argument])[argument]["object_size"] >= size


def test_what_nobody_references_goes_on_every_node(two):
    (there,) = two.worker_nodes
    result = far(make).remote(LARGE, 1)
    kept = ray.get(result)
    argument = ray.put(make(LARGE, 2))
    ray.get(far(total).remote(argument))
    assert objects_at(two, there) == objects_at(two, two.head_node) == 2
    del result
    eventually(lambda: objects_at(two, there) == 1, "the result is freed where it was made")
    assert (kept == make(LARGE, 1)).all()
    del kept, argument
    eventually(lambda: objects_at(two, there) + objects_at(two, two.head_node) == 0, "all is freed")


def test_a_nested_reference_is_read_where_it_is_opened(two):
    inner = ray.put(make(LARGE, 3))
    assert ray.get(far(total_inside).remote([inner])) == int(make(LARGE, 3).sum())


def test_one_object_for_many_nodes(make_cluster):
    names = [f"n{i}" for i in range(4)]
    cluster = make_cluster(*({"num_cpus": 1, "resources": {name: 1}} for name in names), head={"num_cpus": 1})
    cluster.connect()
    array = ray.put(make(LARGE, 4))
    sums = [ray.remote(total).options(resources={name: 1}).remote(array) for name in names for _ in range(2)]
    assert set(ray.get(sums)) == {int(make(LARGE, 4).sum())}
    eventually(lambda: len(node_ids(array)) == 5, "its home knows of all copies")
    counts = [transfers_of(cluster, node) for node in cluster.list_all_nodes()]
    assert sum(count["served"] for count in counts) == 4, "one transfer for each node"
    array = sums = None
    eventually(lambda: not any(objects_at(cluster, node) for node in cluster.list_all_nodes()), "all is freed")


def test_copies_make_room(make_cluster):
    cluster = make_cluster(
        {"num_cpus": 1, "resources": {"far": 1}},
        head={"num_cpus": 1, "object_store_memory": 80 * MIB},
    )
    cluster.connect()
    refs = [far(make).remote(LARGE, seed) for seed in range(6)]
    for _ in range(2):
        for seed, ref in enumerate(refs):
            assert total(ray.get(ref)) == total(make(LARGE, seed))
    large = ray.put(np.zeros(60 * MIB, dtype=np.uint8))
    assert len(node_ids(large)) == 1


def test_no_room_for_a_copy_says_so(make_cluster):
    cluster = make_cluster(
        {"num_cpus": 1, "resources": {"far": 1}},
        head={"num_cpus": 1, "object_store_memory": 80 * MIB},
        store_full_grace_s=0.1,
    )
    cluster.connect()
    kept = ray.get(ray.put(np.zeros(70 * MIB, dtype=np.uint8)))
    with pytest.raises(ObjectStoreFullError, match="there is no room on this node"):
        ray.get(far(make).remote(LARGE, 1))
    assert kept is not None


def test_a_copy_outlives_the_node_of_the_original(two):
    (there,) = two.worker_nodes
    result = far(make).remote(LARGE, 5)
    assert total(ray.get(result)) == total(make(LARGE, 5))
    two.remove_node(there)
    eventually(lambda: sum(node["Alive"] for node in ray.nodes()) == 1, "the node is gone")
    assert total(ray.get(result)) == total(make(LARGE, 5))


def test_a_get_with_a_timeout_does_not_wait_for_a_node_that_sleeps(two):
    (there,) = two.worker_nodes
    result = far(make).remote(LARGE, 6)
    ray.wait([result], fetch_local=False)
    os.kill(there.daemon_pid, signal.SIGSTOP)
    try:
        with pytest.raises(GetTimeoutError, match="on the way from another node"):
            ray.get(result, timeout=0)
    finally:
        os.kill(there.daemon_pid, signal.SIGCONT)
    assert total(ray.get(result, timeout=30)) == total(make(LARGE, 6))


def test_locations_before_init():
    with pytest.raises(RuntimeError, match="init"):
        get_object_locations([])


def test_locations_of_what_is_small_not_there_or_no_reference(two):
    small, slow = ray.put(1), nap.remote(30)
    found = get_object_locations([small, slow])
    assert found[small]["node_ids"] == [ray.get_runtime_context().get_node_id()]
    assert found[small]["object_size"] > 0 and found[small]["did_spill"] is False
    assert found[slow] == {"node_ids": [], "object_size": None, "did_spill": False}
    assert get_object_locations([]) == {}
    with pytest.raises(TypeError, match="got int"):
        get_object_locations([1])
    ray.cancel(slow, force=True)


def test_a_spilled_object_crosses_straight_from_its_file(make_cluster, tmp_path):
    """Its home does not bring it back into memory for that, and loses nothing of it."""
    cluster = make_cluster(
        {
            "num_cpus": 1, "resources": {"far": 1}, "object_store_memory": 80 * MIB,
            "object_spilling_directory": tmp_path,
        },
        head={"num_cpus": 1, "object_store_memory": 80 * MIB},
    )  # fmt: skip
    cluster.connect()
    (node,) = cluster.worker_nodes
    refs = [far(make).remote(LARGE, seed) for seed in range(12)]
    ray.wait(refs, num_returns=len(refs), fetch_local=False)
    before = ask_node(cluster, node, "stats")["store"]
    assert before["spilled_bytes"] >= 8 * LARGE and before["restored_bytes"] == 0
    for seed, ref in enumerate(refs):
        assert total(ray.get(ref)) == total(make(LARGE, seed))
    assert ask_node(cluster, node, "stats")["store"]["restored_bytes"] == 0
    assert ray.get(far(total_inside).remote([refs[0]])) == total(make(LARGE, 0))  # there it comes back
    assert ask_node(cluster, node, "stats")["store"]["restored_bytes"] >= LARGE
    refs = ref = None
    eventually(lambda: not any(list(folder.iterdir()) for folder in tmp_path.iterdir()), "its files are gone")
