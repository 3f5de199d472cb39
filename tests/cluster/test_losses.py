"""Nodes are killed, stopped and cut off: who notices, what goes on, what is left."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil
import pytest

import minray as ray
from minray._base.process import is_alive
from minray.exceptions import ActorDiedError, NodeDiedError, OwnerDiedError
from minray.worker import connect
from minray.worker.joined import JoinedCluster
from tests.cluster.conftest import QUICK, alive, ask_node, eventually


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Survivor:
    def node(self):
        return ray.get_runtime_context().get_node_id()


@ray.remote(resources={"nowhere": 1})
def never():
    """Nobody runs it."""


@ray.remote(num_cpus=0)
class Keeper:
    """Owns an object that never comes to be."""

    def make(self):
        self.ref = never.remote()
        return [self.ref]

    def pid(self):
        return os.getpid()


@ray.remote(num_cpus=0, max_concurrency=2)
class Borrower:
    def take(self, boxed):
        self.ref = boxed[0]

    def wait(self):
        return ray.get(self.ref, timeout=60)


def processes_of(node):
    """The living processes of a node: daemon, zygote, and the zygote's session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            leader = os.getsid(process.pid) in (node.zygote_pid, node.daemon_pid)
            if leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def leaves_nothing(node):
    prefix = os.path.basename(node.session_dir).removeprefix("s_")
    eventually(lambda: not processes_of(node), "its processes end", limit=5.0)
    eventually(lambda: not os.path.exists(node.session_dir), "its folder goes", limit=5.0)
    left = [name for name in os.listdir("/dev/shm") if prefix in name] if os.path.isdir("/dev/shm") else []
    assert left == []


def of_resource(cluster, name):
    (found,) = [n["NodeID"] for n in ray.nodes() if n["Alive"] and name in n["Resources"]]
    (node,) = [node for node in cluster.list_all_nodes() if node.node_id == found]
    return node


@pytest.mark.parametrize("victim", ["daemon", "zygote"])
def test_an_actor_whose_node_is_killed_restarts_on_a_third(make_cluster, victim):
    cluster = make_cluster({"resources": {"b": 1}}, {"resources": {"b": 1}})
    cluster.connect()
    actor = Survivor.options(resources={"b": 1}).remote()
    first = ray.get(actor.node.remote())
    (node,) = [node for node in cluster.worker_nodes if node.node_id == first]
    os.kill(node.daemon_pid if victim == "daemon" else node.zygote_pid, signal.SIGKILL)
    leaves_nothing(node)
    second = ray.get(actor.node.remote(), timeout=20)
    assert second != first and second != cluster.head_node.node_id
    (dead,) = [n for n in ray.nodes() if not n["Alive"]]
    assert dead["NodeID"] == first
    assert ("zygote" if victim == "zygote" else "connection") in dead["DeathReasonMessage"]
    with pytest.raises(ray.exceptions.RaySystemError, match="does not run"):
        cluster.wait_for_nodes(timeout=5)
    cluster.remove_node(node, allow_graceful=False)
    cluster.wait_for_nodes()


def test_an_actor_without_restarts_dies_with_its_node(make_cluster):
    cluster = make_cluster({"resources": {"b": 1}})
    cluster.connect()
    actor = Keeper.options(resources={"b": 1}).remote()
    ray.get(actor.pid.remote())
    cluster.remove_node(of_resource(cluster, "b"), allow_graceful=False)
    with pytest.raises(ActorDiedError, match="connection to the head"):
        ray.get(actor.pid.remote(), timeout=20)


def test_a_node_that_is_stopped_for_too_long_is_fenced_when_it_goes_on(make_cluster):
    cluster = make_cluster({"resources": {"b": 1}}, {"resources": {"b": 1}})
    cluster.connect()
    actor = Survivor.options(resources={"b": 1}).remote()
    first = ray.get(actor.node.remote())
    (node,) = [node for node in cluster.worker_nodes if node.node_id == first]
    os.kill(node.daemon_pid, signal.SIGSTOP)
    try:
        eventually(lambda: first not in alive(cluster), "the head notices")
        assert ray.get(actor.node.remote(), timeout=20) != first
        assert node.alive()
    finally:
        os.kill(node.daemon_pid, signal.SIGCONT)
    eventually(lambda: not node.alive(), "it ends by itself")
    assert "the head counts it as dead: it has not reported for 1.5 s" in node.explain_end()
    leaves_nothing(node)


@ray.remote(num_cpus=0)
class Spot:
    def __init__(self):
        self.nodes = []

    def came(self, node):
        self.nodes.append(node)

    def all(self):
        return self.nodes


@ray.remote(resources={"b": 1})
def visits(spot):
    spot.came.remote(ray.get_runtime_context().get_node_id())
    time.sleep(1000)


@pytest.mark.parametrize("retries", [False, True])
def test_a_task_on_a_machine_that_freezes(make_cluster, retries):
    """No connection ends: who waits hears of it through the head."""
    cluster = make_cluster({"resources": {"b": 1}}, {} if not retries else {"resources": {"b": 1}})
    cluster.connect()
    spot = Spot.options(resources={"node:__internal_head__": 0.001}).remote()
    task = visits.options(max_retries=3 * retries).remote(spot)
    first = eventually(lambda: ray.get(spot.all.remote()), "it runs")[0]
    (node,) = [node for node in cluster.worker_nodes if node.node_id == first]
    frozen = processes_of(node)
    assert len(frozen) > 2  # daemon, zygote, worker
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        if retries:
            second = eventually(lambda: ray.get(spot.all.remote())[1:], "it runs again")[0]
            assert second != first and ray.wait([task], timeout=0)[0] == []
        else:
            with pytest.raises(NodeDiedError, match=f"its node {first[:8]} was lost: it has not reported"):
                ray.get(task, timeout=20)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    leaves_nothing(node)


def test_a_node_that_is_stopped_for_a_moment_stays(make_cluster):
    cluster = make_cluster({})
    (node,) = cluster.worker_nodes
    os.kill(node.daemon_pid, signal.SIGSTOP)
    time.sleep(QUICK["node_timeout_s"] / 4)  # that is the moment
    os.kill(node.daemon_pid, signal.SIGCONT)
    assert ask_node(cluster, node, "node_info")["node_id"].hex() == node.node_id
    assert node.node_id in alive(cluster)


@pytest.mark.parametrize("victim", ["owner", "node"])
def test_an_owner_on_another_node_dies(make_cluster, victim):
    """Watch and Died cross three nodes."""
    cluster = make_cluster({"resources": {"b": 1}}, {"resources": {"c": 1}}, infeasible_grace_s=100.0)
    cluster.connect()
    keeper = Keeper.options(resources={"b": 1}).remote()
    borrower = Borrower.options(resources={"c": 1}).remote()
    ray.get(borrower.take.remote(keeper.make.remote()), timeout=20)
    waits = borrower.wait.remote()
    assert ray.wait([waits], timeout=0.1)[0] == []
    if victim == "owner":
        os.kill(ray.get(keeper.pid.remote()), signal.SIGKILL)
    else:
        cluster.remove_node(of_resource(cluster, "b"), allow_graceful=False)
    with pytest.raises(OwnerDiedError):
        ray.get(waits, timeout=20)
    ray.shutdown()
    eventually(lambda: ask_node(cluster, cluster.head_node, "gcs_stats")["watches"] == 0, "nobody asks any more")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_head_is_the_end_of_the_nodes(make_cluster, how):
    cluster = make_cluster({}, {})
    nodes = cluster.list_all_nodes()
    os.kill(cluster.head_node.daemon_pid, how)
    eventually(lambda: not any(node.alive() for node in nodes), "all end")
    for node in nodes:
        leaves_nothing(node)
    (worker, _) = cluster.worker_nodes
    said = worker.explain_end()
    assert ("the head of the cluster has ended" if how == signal.SIGTERM else "no connection to the head") in said


def test_a_head_that_hangs_is_named_by_who_waits_for_it(make_cluster, monkeypatch):
    """Tasks and calls go on without it; questions end with an error."""
    monkeypatch.setenv("MINRAY_GCS_ANSWER_S", "0.5")
    cluster = make_cluster({"resources": {"b": 1}}, node_timeout_s=60.0)
    (node,) = cluster.worker_nodes
    monkeypatch.setattr(connect, "_find", lambda config, address: JoinedCluster(node._started.info))
    cluster.connect()
    there = Survivor.options(resources={"b": 0.1}).remote()
    assert ray.get(there.node.remote(), timeout=20) == node.node_id
    head = cluster.head_node.daemon_pid
    os.kill(head, signal.SIGSTOP)
    try:
        assert ray.get(there.node.remote(), timeout=20) == node.node_id
        questions = (ray.nodes, lambda: ray.get_actor("nobody"), lambda: ray.kill(there), Survivor.remote)
        for ask in questions:
            with pytest.raises(ray.exceptions.RaySystemError, match=r"within 0.5 s: the head of the cluster hangs"):
                ask()
    finally:
        os.kill(head, signal.SIGCONT)
    eventually(lambda: len(answered()) == 2, "it is there again")


def answered():
    try:
        return ray.nodes()
    except ray.exceptions.RaySystemError:
        return []


CLUSTER = """
from minray.cluster_utils import Cluster
cluster = Cluster(True, head_node_args={"_system_config": {"prestart": False}})
cluster.add_node(resources={"b": 1})
for node in cluster.list_all_nodes():
    say("session", node.session_dir)
cluster.connect()

@ray.remote(resources={"b": 1})
class A:
    def pid(self):
        return os.getpid()

a = A.remote()
say("actor", ray.get(a.pid.remote()))
say("ready")
"""


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "", "raise ValueError('x')", "os._exit(3)", "cluster.shutdown()"]
)
def test_the_end_of_the_process_that_made_it_is_the_end_of_everything(drive, end):
    driver = drive(CLUSTER + end)
    driver.await_word("ready")
    driver.wait()
    driver.leaves_nothing()
    assert len(driver.said("session")) == 2


def test_drivers_come_and_go_and_the_cluster_stays(make_cluster, drive, tmp_path):
    cluster = make_cluster({"resources": {"b": 1}})
    root = os.path.dirname(cluster.head_node.session_dir)
    program = """
    ray.init()

    @ray.remote(resources={"b": 1})
    class A:
        def pid(self):
            return os.getpid()

    a = A.remote()
    say("actor", ray.get(a.pid.remote()))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    for _ in range(2):
        env = {"MINRAY_ADDRESS": cluster.address, "MINRAY_TEMP_DIR": root}
        driver = drive(program, env=env)
        driver.wait()
        pid = int(driver.await_word("actor"))
        eventually(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), "its actor ends")
    assert alive(cluster) == {node.node_id for node in cluster.list_all_nodes()}
    sockets = [name for name in os.listdir(cluster.head_node.session_dir) if name[:1] == "d" and len(name) == 13]
    assert sockets == []


def test_lives_are_recorded(make_cluster):
    cluster = make_cluster({})
    for node in cluster.list_all_nodes():
        info = node._started.info
        assert is_alive(*info.daemon) and is_alive(*info.zygote) and info.driver[0] == os.getpid()
