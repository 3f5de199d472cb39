"""Tasks on several nodes: where they run, what becomes of them when somebody dies, what they print."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter

import pytest

import minray as ray
from minray.exceptions import NodeDiedError, TaskUnschedulableError, WorkerCrashedError
from minray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.cluster.conftest import eventually


@ray.remote
def where(_=None):
    return ray.get_runtime_context().get_node_id()


@ray.remote
def meet(folder, name, count):
    """Return when ``count`` of these run at the same time; where this one does."""
    (folder / name).touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.005)
    return ray.get_runtime_context().get_node_id()


@ray.remote
def square(x):
    return x * x


@ray.remote
def fan(n):
    return sum(ray.get([square.remote(i) for i in range(n)]))


def node_with(resource):
    return next(node["NodeID"] for node in ray.nodes() if resource in node["Resources"])


def test_what_does_not_fit_here_runs_there(make_cluster, tmp_path):
    make_cluster({"num_cpus": 2}, {"num_cpus": 1}, head={"num_cpus": 1}).connect()
    found = ray.get([meet.remote(tmp_path, f"{i}", 4) for i in range(4)], timeout=30)
    assert sorted(Counter(found).values()) == [1, 1, 2]


def test_a_cluster_gives_the_answers_of_one_machine(make_cluster):
    make_cluster({"num_cpus": 2}, {"num_cpus": 1}, head={"num_cpus": 1}).connect()
    assert ray.get([square.remote(i) for i in range(500)]) == [i * i for i in range(500)]
    assert ray.get([fan.remote(n) for n in range(12)], timeout=60) == [
        sum(i * i for i in range(n)) for n in range(12)
    ]
    chain = square.remote(2)
    for _ in range(5):
        chain = where.remote(chain)
    assert isinstance(ray.get(chain), str)
    inner = ray.put([square.remote(3)])
    assert ray.get(ray.get(ray.remote(lambda refs: refs).remote(inner))[0]) == 9


def test_a_resource_of_another_node(make_cluster):
    make_cluster({"num_cpus": 1, "resources": {"far": 1}}, head={"num_cpus": 1}).connect()
    far = node_with("far")
    assert ray.get([where.options(resources={"far": 0.5}).remote() for _ in range(10)]) == [far] * 10


def test_spread_uses_every_node(make_cluster, tmp_path):
    make_cluster({"num_cpus": 2}, {"num_cpus": 2}, head={"num_cpus": 2}).connect()
    spread = meet.options(scheduling_strategy="SPREAD")
    found = ray.get([spread.remote(tmp_path, f"{i}", 6) for i in range(6)], timeout=30)
    assert len(set(found)) == 3


def test_affinity(make_cluster):
    make_cluster({"num_cpus": 1, "resources": {"far": 1}}, head={"num_cpus": 1}).connect()
    far = node_with("far")
    hard = where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(far, soft=False))
    assert set(ray.get([hard.remote() for _ in range(5)])) == {far}
    nowhere = "ab" * 28
    gone = NodeAffinitySchedulingStrategy(nowhere, soft=False)
    with pytest.raises(TaskUnschedulableError, match=nowhere):
        ray.get(where.options(scheduling_strategy=gone).remote(), timeout=30)
    soft = NodeAffinitySchedulingStrategy(nowhere, soft=True)
    assert isinstance(ray.get(where.options(scheduling_strategy=soft).remote(), timeout=30), str)


def test_what_no_node_has_is_an_error_that_names_them_all(make_cluster):
    cluster = make_cluster({"num_cpus": 3}, head={"num_cpus": 1}, infeasible_grace_s=0.3)
    cluster.connect()
    with pytest.raises(TaskUnschedulableError) as caught:
        ray.get(where.options(num_cpus=64).remote(), timeout=30)
    assert re.search(r"CPU: 64.*has .*CPU: 1\b.*has .*CPU: 3\b", str(caught.value))


def test_a_node_that_joins_takes_what_waited_for_it(make_cluster):
    cluster = make_cluster(head={"num_cpus": 1}, infeasible_grace_s=30.0)
    cluster.connect()
    ref = where.options(resources={"late": 1}).remote()
    ready, _ = ray.wait([ref], timeout=0.2)
    assert not ready
    cluster.add_node(num_cpus=1, resources={"late": 1})
    assert ray.get(ref, timeout=30) == node_with("late")


def test_a_worker_that_dies_elsewhere(make_cluster, tmp_path):
    make_cluster({"num_cpus": 1, "resources": {"far": 1}}, head={"num_cpus": 1}).connect()

    @ray.remote(resources={"far": 1}, max_retries=1)
    def once(folder):
        try:
            (folder / "ran").touch(exist_ok=False)
        except FileExistsError:
            return "the second time"
        os.kill(os.getpid(), signal.SIGKILL)

    @ray.remote(resources={"far": 1}, max_retries=0)
    def crash():
        os.kill(os.getpid(), signal.SIGKILL)

    assert ray.get(once.remote(tmp_path), timeout=30) == "the second time"
    with pytest.raises(WorkerCrashedError, match="SIGKILL"):
        ray.get(crash.remote(), timeout=30)


def test_a_node_that_dies_under_its_tasks(make_cluster, tmp_path):
    cluster = make_cluster({"num_cpus": 2, "resources": {"b": 1}}, head={"num_cpus": 1})
    third = cluster.add_node(num_cpus=1, resources={"b": 1})
    cluster.connect()

    @ray.remote(resources={"b": 0.5}, max_retries=3)
    def stay(folder, name):
        here = ray.get_runtime_context().get_node_id()
        (folder / f"{name}-{here}").touch()
        while not (folder / "go").exists():
            time.sleep(0.005)
        return here

    there = NodeAffinitySchedulingStrategy(third.node_id, soft=True)
    again = stay.options(scheduling_strategy=there, num_cpus=0.5).remote(tmp_path, "again")
    once = stay.options(scheduling_strategy=there, num_cpus=0.5, max_retries=0).remote(tmp_path, "once")
    eventually(lambda: len(list(tmp_path.iterdir())) == 2, "both run")
    cluster.remove_node(third, allow_graceful=False)
    (tmp_path / "go").touch()
    assert ray.get(again, timeout=30) not in (third.node_id, cluster.head_node.node_id)
    with pytest.raises(NodeDiedError, match=f"its node {third.node_id[:8]} was lost") as caught:
        ray.get(once, timeout=30)
    assert caught.value.cause_info["node_died"]


def test_a_task_that_asks_other_nodes_dies_and_so_do_its_children(make_cluster, tmp_path):
    make_cluster({"num_cpus": 2, "resources": {"far": 2}}, head={"num_cpus": 1}).connect()

    @ray.remote(resources={"far": 1}, max_retries=0)
    def child(folder):
        (folder / "child").write_text(str(os.getpid()))
        time.sleep(600)

    @ray.remote(max_retries=0)
    def parent(folder):
        (folder / "parent").write_text(str(os.getpid()))
        ray.get(child.remote(folder))

    ref = parent.remote(tmp_path)
    eventually(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text(), "the child runs")
    os.kill(int((tmp_path / "parent").read_text()), signal.SIGKILL)
    with pytest.raises(WorkerCrashedError):
        ray.get(ref, timeout=30)
    pid = int((tmp_path / "child").read_text())
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "the child is ended")
    eventually(lambda: ray.available_resources().get("far") == 2.0, "and what it had is free")


def test_lines_of_other_nodes_reach_the_driver(drive):
    driver = drive(
        """
        from minray.cluster_utils import Cluster
        cluster = Cluster(True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1, resources={"far": 1})
        cluster.connect()

        @ray.remote(resources={"far": 1})
        def speak(i):
            print("said there", i)

        ray.get([speak.remote(i) for i in range(20)])
        ray.shutdown()
        cluster.shutdown()
        """
    )
    driver.succeeds()
    lines = re.findall(r"^\(speak pid=\d+, ip=127\.0\.0\.1\) said there (\d+)$", driver.out, re.MULTILINE)
    assert [int(i) for i in lines] == list(range(20))
