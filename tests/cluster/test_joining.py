"""Nodes join and leave; drivers find the cluster; actors run where they have to."""

from __future__ import annotations

import os
import re

import pytest

import minray as ray
from minray.cluster_utils import Cluster
from minray.exceptions import ActorUnschedulableError, RaySystemError
from minray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from minray.worker import connect
from minray.worker.joined import JoinedCluster
from minray.worker.launch import launch
from minray.worker.session_folder import SessionInfo
from tests.cluster.conftest import alive, ask_node, eventually


@ray.remote(num_cpus=0)
class Where:
    """An actor that says where it is."""

    def node(self):
        return ray.get_runtime_context().get_node_id()

    def pid(self):
        return os.getpid()

    def echo(self, value):
        return value


def test_a_cluster_of_three(make_cluster):
    cluster = make_cluster({"num_cpus": 2, "resources": {"b": 1}, "labels": {"zone": "b"}}, {"node_name": "third"})
    cluster.wait_for_nodes()
    assert re.fullmatch(r"127\.0\.0\.1:\d+", cluster.address)
    context = cluster.connect(namespace="here")
    assert context["address"] == cluster.address and context["node_id"] == cluster.head_node.node_id
    nodes = {node["NodeID"]: node for node in ray.nodes()}
    assert set(nodes) == {node.node_id for node in cluster.list_all_nodes()} == alive(cluster)
    (second,) = [node for node in nodes.values() if "b" in node["Resources"]]
    assert second["Labels"]["zone"] == "b" and second["Resources"]["CPU"] == 2.0
    assert "third" in [node["NodeName"] for node in nodes.values()]
    total = ray.cluster_resources()
    assert (total["CPU"], total["b"], total["node:__internal_head__"]) == (4.0, 1.0, 1.0)
    assert ray.get_runtime_context().namespace == "here"


def test_actors_go_where_their_resources_are_and_are_called_there(make_cluster):
    cluster = make_cluster({"resources": {"b": 2}}, {"resources": {"c": 1}})
    cluster.connect()
    second, third = [node["NodeID"] for key in "bc" for node in ray.nodes() if key in node["Resources"]]
    b = Where.options(resources={"b": 1}).remote()
    c = Where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(third, soft=False)).remote()
    assert ray.get([b.node.remote(), c.node.remote()]) == [second, third]
    assert ray.get([b.echo.remote(i) for i in range(100)]) == list(range(100))
    eventually(lambda: ray.available_resources().get("b") == 1.0, "what is taken there is known here")
    ray.kill(b)
    eventually(lambda: ray.available_resources().get("b") == 2.0, "and what is free again")
    with pytest.raises(ActorUnschedulableError, match="not alive"):
        gone = NodeAffinitySchedulingStrategy("ff" * 28, soft=False)
        ray.get(Where.options(scheduling_strategy=gone).remote().node.remote())


def test_actors_of_actors_on_other_nodes(make_cluster):
    cluster = make_cluster({"resources": {"b": 1}}, {"resources": {"c": 1}})
    cluster.connect(namespace="n")

    @ray.remote(num_cpus=0, resources={"b": 1})
    class Parent:
        def have(self):
            self.child = Where.options(resources={"c": 1}, name="child").remote()
            return ray.get(self.child.node.remote())

    parent = Parent.remote()
    (third,) = [node["NodeID"] for node in ray.nodes() if "c" in node["Resources"]]
    assert ray.get(parent.have.remote()) == third
    assert ray.get(ray.get_actor("child").node.remote()) == third


def test_an_actor_that_no_node_can_hold_waits_for_one_that_joins(make_cluster):
    cluster = make_cluster({}, infeasible_grace_s=20.0)
    cluster.connect()
    actor = Where.options(resources={"late": 1}).remote()
    node = actor.node.remote()
    assert ray.wait([node], timeout=0.1) == ([], [node])
    late = cluster.add_node(resources={"late": 1})
    assert ray.get(node, timeout=20) == late.node_id


def test_a_node_that_leaves_in_good_order(make_cluster):
    cluster = make_cluster({}, {})
    node = next(iter(cluster.worker_nodes))
    folder = node.session_dir
    cluster.remove_node(node)
    cluster.wait_for_nodes()
    assert not os.path.exists(folder) and node.node_id not in alive(cluster)
    (dead,) = [n for n in ask_node(cluster, cluster.head_node, "nodes") if not n["Alive"]]
    assert dead["DeathReasonMessage"] == "its driver hung up"
    with pytest.raises(ValueError, match="not a node of this cluster"):
        cluster.remove_node(node)


def test_the_end_of_a_driver_is_the_end_of_its_workers_everywhere(make_cluster):
    cluster = make_cluster({"resources": {"b": 1}}, shutdown_grace_s=0.1)
    cluster.connect()
    actor = Where.options(resources={"b": 1}).remote()
    pid = ray.get(actor.pid.remote())
    ray.shutdown()
    (node,) = cluster.worker_nodes
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "the actor's worker ends")
    eventually(lambda: not any(ask_node(cluster, node, "stats")["workers"].values()), "no worker is left")
    assert alive(cluster) == {node.node_id for node in cluster.list_all_nodes()}
    cluster.connect()  # and the next one comes
    assert ray.get(Where.options(resources={"b": 1}).remote().node.remote()) == node.node_id


def test_detached_actors_outlive_the_driver_that_made_them(make_cluster):
    cluster = make_cluster({"resources": {"b": 1}})
    cluster.connect(namespace="n")
    made = Where.options(resources={"b": 1}, name="keeper", lifetime="detached").remote()
    pid = ray.get(made.pid.remote())
    ray.shutdown()
    cluster.connect(namespace="n")
    keeper = ray.get_actor("keeper")
    assert ray.get(keeper.pid.remote()) == pid
    ray.kill(keeper)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "it ends when it is killed")


def test_the_records_of_a_cluster(make_cluster):
    cluster = make_cluster({})
    (node,) = cluster.worker_nodes
    infos = {n: SessionInfo.read(n.session_dir) for n in (cluster.head_node, node)}
    assert {info.gcs for info in infos.values()} == {f"tcp:{cluster.address}"}
    assert infos[cluster.head_node].is_head and not infos[node].is_head
    assert infos[node].node_id == node.node_id
    assert infos[node].token() == infos[cluster.head_node].token()
    unix, tcp = infos[node].endpoint.split(" ")
    assert unix.startswith("unix:") and tcp.startswith("tcp:127.0.0.1:")


def test_a_wrong_token_is_said_by_the_node_that_has_it(make_cluster):
    cluster = make_cluster()
    gcs = {"endpoint": f"tcp:{cluster.address}", "token": b"wrong" * 8}
    stranger = launch(cluster._config, {"num_cpus": 1}, cluster={"host": "127.0.0.1", "port": 0}, gcs=gcs)
    try:
        eventually(lambda: stranger.daemon.poll() is not None, "it ends")
        assert "wrong token" in stranger.explain_end()
    finally:
        stranger.stop()
    assert alive(cluster) == {cluster.head_node.node_id}


def test_an_address_where_nobody_is(make_cluster):
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1'.*no node of it"):
        ray.init(address="127.0.0.1:1")
    gcs = {"endpoint": "tcp:127.0.0.1:1", "token": b"x" * 32}
    cluster = make_cluster()
    lost = launch(cluster._config, {"num_cpus": 1}, cluster={"host": "127.0.0.1", "port": 0}, gcs=gcs)
    try:
        eventually(lambda: lost.daemon.poll() is not None, "it ends", limit=5.0)
        assert "no connection to the head at tcp:127.0.0.1:1" in lost.explain_end()
    finally:
        lost.stop()


def test_a_port_in_use_is_named(make_cluster):
    cluster = make_cluster()
    port = int(cluster.address.rpartition(":")[2])
    with pytest.raises(RaySystemError, match=f"127.0.0.1:{port}.*in use"):
        launch(cluster._config, cluster={"host": "127.0.0.1", "port": port})


def test_misuse(make_cluster):
    with pytest.raises(RuntimeError, match="uninitialized"):
        Cluster(connect=True)
    empty = Cluster()
    assert empty.address == "" and empty.list_all_nodes() == []
    with pytest.raises(RuntimeError, match="no head"):
        empty.connect()
    with pytest.raises(TypeError, match="num_cpu;"):
        empty.add_node(num_cpu=3)
    with pytest.raises(ValueError, match="num_cpus"):
        empty.add_node(num_cpus=-1)
    empty.shutdown()
    with make_cluster() as cluster:
        cluster.connect()
        with pytest.raises(ValueError, match="connected"):
            cluster.remove_node(cluster.head_node)
    assert not ray.is_initialized() and cluster.list_all_nodes() == []


def test_a_driver_on_a_machine_that_is_not_the_head(make_cluster, monkeypatch):
    cluster = make_cluster({"resources": {"b": 1}}, {"resources": {"c": 1}})
    (node,) = [n for n in cluster.worker_nodes if n._started.info.node_id == resource_node(cluster, "b")]
    monkeypatch.setattr(connect, "_find", lambda config, address: JoinedCluster(node._started.info))
    context = ray.init(address=cluster.address, namespace="n")
    assert context["node_id"] == node.node_id and context["address"] == cluster.address
    assert ray.get_runtime_context().get_node_id() == node.node_id
    assert len(ray.nodes()) == 3
    actors = [Where.options(resources={key: 1}).remote() for key in "bc"]
    assert ray.get([actor.node.remote() for actor in actors], timeout=20) == [
        resource_node(cluster, "b"), resource_node(cluster, "c")
    ]  # fmt: skip
    named = Where.options(name="named").remote()
    ray.get(named.pid.remote())
    assert ray.get(ray.get_actor("named").node.remote()) == ray.get(named.node.remote())
    pids = ray.get([actor.pid.remote() for actor in actors])
    ray.shutdown()
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "the actors end with their driver")
    jobs = ask_node(cluster, cluster.head_node, "jobs")
    assert [job["is_dead"] for job in jobs] == [True]


def resource_node(cluster, name):
    nodes = ask_node(cluster, cluster.head_node, "nodes")
    (found,) = [node["NodeID"] for node in nodes if node["Alive"] and name in node["Resources"]]
    return found
