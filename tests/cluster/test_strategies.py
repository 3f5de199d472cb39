"""How a task finds its node, on three real nodes: default, SPREAD, affinity, labels, arguments, two drivers.

What placement groups and hard labels do is in ``test_groups.py``; the decisions themselves, in
``tests/node/test_spillover.py`` and ``tests/gcs/test_placement.py``.
"""

from __future__ import annotations

import os
import time
from collections import Counter

import numpy as np
import pytest

import minray as ray
from minray.exceptions import ActorUnschedulableError, TaskUnschedulableError
from minray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
)
from tests.cluster.conftest import eventually

NODES = [{"num_cpus": 4, "labels": {"zone": "a", "disk": "ssd"}}, {"num_cpus": 4, "labels": {"zone": "b"}}]
NOWHERE = "ab" * 28


@ray.remote
def where(*_):
    return ray.get_runtime_context().get_node_id()


@ray.remote
def meet(folder, count):
    """Return when ``count`` of these run at the same time; where this one does."""
    (folder / ray.get_runtime_context().get_task_id()).touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.005)
    return ray.get_runtime_context().get_node_id()


@ray.remote
def make(megabytes):
    return np.ones(megabytes * 125_000)


@ray.remote
def nap():
    time.sleep(0.02)


@ray.remote
class Resident:
    def where(self):
        return ray.get_runtime_context().get_node_id()


@pytest.fixture
def three(make_cluster):
    """A head and two nodes of 4 CPUs each."""
    cluster = make_cluster(*NODES, head={"num_cpus": 4, "labels": {"zone": "head"}})
    cluster.connect()
    return cluster


def node_of(zone):
    return next(node["NodeID"] for node in ray.nodes() if node["Labels"]["zone"] == zone)


def idle():
    return ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]


# --- default --------------------------------------------------------------------------------------


def test_half_of_the_own_node_comes_first(three, tmp_path):
    assert ray.get([meet.remote(tmp_path, 2) for _ in range(2)], timeout=30) == [node_of("head")] * 2


def test_beyond_half_the_others_are_next(three, tmp_path):
    found = Counter(ray.get([meet.remote(tmp_path, 4) for _ in range(4)], timeout=30))
    assert found[node_of("head")] == 2


def test_beyond_half_everywhere_it_is_shared(three, tmp_path):
    found = Counter(ray.get([meet.remote(tmp_path, 8) for _ in range(8)], timeout=30))
    assert found.keys() == {node["NodeID"] for node in ray.nodes()}


def test_everything_is_used_before_anybody_waits(three, tmp_path):
    found = Counter(ray.get([meet.remote(tmp_path, 12) for _ in range(12)], timeout=30))
    assert sorted(found.values()) == [4, 4, 4]


# --- SPREAD ---------------------------------------------------------------------------------------


def test_spread_one_task_at_a_time(three):
    spread = where.options(scheduling_strategy="SPREAD")
    found = Counter(ray.get(spread.remote(), timeout=30) for _ in range(9))
    assert sorted(found.values()) == [3, 3, 3]


def test_spread_all_at_once(three, tmp_path):
    spread = meet.options(scheduling_strategy="SPREAD")
    found = Counter(ray.get([spread.remote(tmp_path, 8) for _ in range(8)], timeout=30))
    assert found.keys() == {node["NodeID"] for node in ray.nodes()} and max(found.values()) <= 3


def test_spread_actors(three):
    actors = [Resident.options(scheduling_strategy="SPREAD", num_cpus=1).remote() for _ in range(6)]
    found = Counter(ray.get([actor.where.remote() for actor in actors], timeout=30))
    assert sorted(found.values()) == [2, 2, 2]


# --- affinity -------------------------------------------------------------------------------------


def test_soft_affinity_goes_elsewhere_only_if_it_must(three):
    there = NodeAffinitySchedulingStrategy(node_of("b"), soft=True)
    assert set(ray.get([where.options(scheduling_strategy=there).remote() for _ in range(20)])) == {node_of("b")}
    gone = NodeAffinitySchedulingStrategy(NOWHERE, soft=True)
    assert ray.get(where.options(scheduling_strategy=gone).remote(), timeout=30)
    assert ray.get(Resident.options(scheduling_strategy=gone).remote().where.remote(), timeout=30)


def test_a_busy_node_is_waited_for(three, tmp_path):
    there = NodeAffinitySchedulingStrategy(node_of("b"), soft=False)
    busy = [meet.options(scheduling_strategy=there).remote(tmp_path, 5) for _ in range(4)]
    eventually(lambda: len(list(tmp_path.iterdir())) == 4, "all CPUs there are taken")
    late = where.options(scheduling_strategy=there).remote()
    assert ray.wait([late], timeout=0.3)[0] == []
    (tmp_path / "go").touch()
    assert set(ray.get([late, *busy], timeout=30)) == {node_of("b")}


def test_hard_affinity_that_cannot_be(three):
    for node_id, size, text in ((NOWHERE, 1, NOWHERE), (node_of("b"), 5, "too small")):
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        with pytest.raises(TaskUnschedulableError, match=text):
            ray.get(where.options(scheduling_strategy=there, num_cpus=size).remote(), timeout=30)
    there = NodeAffinitySchedulingStrategy(NOWHERE, soft=False)
    with pytest.raises(ActorUnschedulableError, match=NOWHERE):
        ray.get(Resident.options(scheduling_strategy=there).remote().where.remote(), timeout=30)


def test_a_node_that_dies_takes_hard_affinity_with_it(three):
    there = NodeAffinitySchedulingStrategy(node_of("b"), soft=False)
    assert ray.get(where.options(scheduling_strategy=there).remote(), timeout=30) == there.node_id
    (node,) = [node for node in three.worker_nodes if node.node_id == there.node_id]
    three.remove_node(node, allow_graceful=False)
    eventually(lambda: not [n for n in ray.nodes() if n["NodeID"] == there.node_id and n["Alive"]], "it counts as dead")
    with pytest.raises(TaskUnschedulableError, match="not alive"):
        ray.get(where.options(scheduling_strategy=there).remote(), timeout=30)


# --- labels ---------------------------------------------------------------------------------------


def test_soft_labels_are_a_wish_also_for_tasks(three, tmp_path):
    away = NodeLabelSchedulingStrategy(hard={}, soft={"zone": In("b"), "disk": DoesNotExist()})
    assert ray.get(where.options(scheduling_strategy=away).remote(), timeout=30) == node_of("b")
    wish = NodeLabelSchedulingStrategy(hard={"zone": In("a", "b")}, soft={"disk": Exists()})
    assert ray.get(where.options(scheduling_strategy=wish).remote(), timeout=30) == node_of("a")
    found = Counter(ray.get([meet.options(scheduling_strategy=wish).remote(tmp_path, 8) for _ in range(8)], timeout=30))
    assert found == {node_of("a"): 4, node_of("b"): 4}, "who finds no room there makes do without"


def test_a_node_id_is_a_label(three):
    for node in ray.nodes():
        chosen = {"label_selector": {"ray.io/node-id": node["NodeID"]}}
        assert ray.get(where.options(**chosen).remote(), timeout=30) == node["NodeID"]
        assert ray.get(Resident.options(**chosen).remote().where.remote(), timeout=30) == node["NodeID"]


def test_labels_that_join_late(three):
    ref = where.options(label_selector={"zone": "late"}).remote()
    actor = Resident.options(label_selector={"zone": "!in(a, b, head)"}).remote()
    assert ray.wait([ref], timeout=0.3)[0] == []
    three.add_node(num_cpus=1, labels={"zone": "late"})
    assert ray.get([ref, actor.where.remote()], timeout=30) == [node_of("late")] * 2


# --- arguments ------------------------------------------------------------------------------------


def test_tasks_run_where_most_bytes_of_their_arguments_are(three):
    on = {zone: make.options(label_selector={"zone": zone}) for zone in ("a", "b", "head")}
    a, b, head = on["a"].remote(3), on["b"].remote(2), on["head"].remote(2)
    ray.wait([a, b, head], num_returns=3, fetch_local=False)
    eventually(idle, "nobody works any more")
    assert ray.get(where.remote(a, b, head), timeout=30) == node_of("a")
    assert ray.get(where.remote(b), timeout=30) == node_of("b")
    assert ray.get(where.remote(b, head), timeout=30) == node_of("head")
    assert ray.get(where.remote(b, np.ones(500_000)), timeout=30) == node_of("head"), "4 MB go with the call"
    pinned = NodeAffinitySchedulingStrategy(node_of("b"), soft=False)
    assert ray.get(where.options(scheduling_strategy=pinned).remote(a), timeout=30) == node_of("b")


def test_where_the_arguments_are_is_no_room(three, tmp_path):
    there = {"label_selector": {"zone": "a"}}
    big = make.options(**there).remote(3)
    ray.wait([big], fetch_local=False)
    busy = [meet.options(**there).remote(tmp_path, 5) for _ in range(4)]
    eventually(lambda: len(list(tmp_path.iterdir())) == 4, "all CPUs there are taken")
    assert ray.get(where.remote(big), timeout=30) in (node_of("head"), node_of("b"))
    (tmp_path / "go").touch()
    ray.get(busy, timeout=30)


# --- who comes first ------------------------------------------------------------------------------

FLOOD = """
import pathlib
ray.init(address={address!r}, log_to_driver=False)
folder = pathlib.Path({folder!r})

@ray.remote
def work():
    time.sleep(0.02)

refs = [work.remote() for _ in range(100_000)]
ray.wait(refs, num_returns=20)
say("flooded")
while not (folder / "stop").exists():
    time.sleep(0.01)
ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
say("left", len(refs) - len(ready))
"""


def test_a_flood_of_one_driver_does_not_starve_another_nor_a_kind_its_siblings(three, drive, tmp_path):
    env = {"MINRAY_TEMP_DIR": os.environ.get("MINRAY_TEMP_DIR")}  # where the cluster's token is
    flood = drive(FLOOD.format(address=three.address, folder=str(tmp_path)), temp_dir=False, env=env)
    flood.await_word("flooded")
    for number in range(20):
        assert ray.get(where.options(num_cpus=1 + number % 2).remote(), timeout=30)
    for node in ray.nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        assert ray.get(where.options(scheduling_strategy=there).remote(), timeout=30) == node["NodeID"]
    own = [nap.remote() for _ in range(20_000)]
    assert ray.get([where.options(num_cpus=2).remote() for _ in range(5)], timeout=30)
    assert len(ray.wait(own, num_returns=len(own), timeout=0)[1]) > 0, "the own flood still runs"
    (tmp_path / "stop").touch()
    assert int(flood.await_word("left")) > 0, "the other's, too"
