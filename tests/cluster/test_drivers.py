"""Several drivers of one cluster, one after the other and side by side: what one leaves, and what it does not touch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import minray as ray
from tests.cluster.conftest import eventually, objects_at
from tests.e2e.support import ROOT

HEAD = {"node:__internal_head__": 0.001}
LARGE = 1 << 20


@ray.remote(num_cpus=0, max_restarts=0)
class Child:
    def pid(self):
        return os.getpid()

    def env(self):
        return {name: value for name, value in os.environ.items() if name.startswith("T_")}


@ray.remote(num_cpus=0, max_retries=0)
def environment():
    return {name: value for name, value in os.environ.items() if name.startswith("T_")}


@ray.remote(num_cpus=0)
class Gate:
    def __init__(self):
        self.open = False
        self.waiting = 0

    def may_go(self):
        self.waiting += not self.open
        return self.open

    def arrived(self):
        return self.waiting

    def let_go(self):
        self.open = True


@ray.remote(max_retries=0)
def passes(gate):
    while not ray.get(gate.may_go.remote()):
        pass
    return "through"


@ray.remote(num_cpus=0)
class Parent:
    """Has work done, by actors and tasks, here and elsewhere."""

    def have_child(self, where):
        self.child = Child.options(resources=where).remote()
        return ray.get(self.child.pid.remote())

    def ask_child(self):
        return ray.get(self.child.pid.remote())

    def start(self, where):
        self.gate = Gate.options(resources=HEAD).remote()
        self.work = passes.options(resources=where).remote(self.gate)
        while not ray.get(self.gate.arrived.remote()):
            pass

    def finish(self):
        self.gate.let_go.remote()
        return ray.get(self.work)

    def environments(self, where):
        child = Child.options(resources=where).remote()
        own = Child.options(resources=where, runtime_env={"env_vars": {"T_CHILD": "c"}}).remote()
        return ray.get([environment.options(resources=where).remote(), child.env.remote(), own.env.remote()])


@pytest.mark.parametrize("where", [HEAD, {"b": 0.1}], ids=["the same node", "another node"])
def test_who_works_for_a_detached_actor_outlives_the_driver_with_it(make_cluster, where):
    cluster = make_cluster({"resources": {"b": 1}}, shutdown_grace_s=0.1)
    cluster.connect(namespace="n")
    parent = Parent.options(name="parent", lifetime="detached", resources=HEAD).remote()
    child = ray.get(parent.have_child.remote(where))
    ray.get(parent.start.remote(where))
    mine = Child.options(resources=where).remote()
    gone = ray.get(mine.pid.remote())
    ray.shutdown()
    eventually(lambda: not os.path.exists(f"/proc/{gone}"), "the driver's own actor ends")
    cluster.connect(namespace="n")
    parent = ray.get_actor("parent")
    assert ray.get(parent.ask_child.remote(), timeout=20) == child
    assert ray.get(parent.finish.remote(), timeout=20) == "through"
    ray.get(parent.start.remote(where), timeout=20)  # and it may begin something new
    assert ray.get(parent.finish.remote(), timeout=20) == "through"
    ray.kill(parent)
    eventually(lambda: not os.path.exists(f"/proc/{child}"), "the child ends with its parent")


def test_a_detached_actor_uses_a_node_that_has_joined_after_its_driver_had_ended(make_cluster):
    cluster = make_cluster()
    cluster.connect(namespace="n")
    ray.get(Parent.options(name="parent", lifetime="detached", resources=HEAD).remote().__ray_ready__.remote())
    ray.shutdown()
    cluster.add_node(resources={"b": 1})
    cluster.connect(namespace="n")
    parent = ray.get_actor("parent")
    ray.get(parent.start.remote({"b": 0.1}), timeout=20)
    assert ray.get(parent.finish.remote(), timeout=20) == "through"
    assert ray.get(parent.have_child.remote({"b": 0.1}), timeout=20)
    ray.kill(parent)


def test_workers_of_drivers_that_have_ended_leave_no_files(make_cluster):
    """A node may live for months."""
    cluster = make_cluster({"resources": {"b": 1}}, shutdown_grace_s=0.1)
    (node,) = cluster.worker_nodes
    before = set(os.listdir(node.session_dir))
    for _ in range(5):
        cluster.connect()
        ray.get([environment.options(resources={"b": 0.1}).remote() for _ in range(4)])
        ray.get(Child.options(resources={"b": 0.1}).remote().pid.remote())
        ray.shutdown()
    allowed = before | {"status0", "logs"}
    eventually(lambda: set(os.listdir(node.session_dir)) <= allowed, "what workers had made is gone")


@pytest.mark.parametrize("where", [HEAD, {"b": 0.1}], ids=["the same node", "another node"])
def test_what_a_worker_creates_has_its_environment_wherever_it_runs(make_cluster, where):
    cluster = make_cluster({"resources": {"b": 1}})
    cluster.connect()
    parent = Parent.options(resources=HEAD, runtime_env={"env_vars": {"T_PARENT": "p"}}).remote()
    task, child, own = ray.get(parent.environments.remote(where), timeout=20)
    assert task == child == {"T_PARENT": "p"} and own == {"T_PARENT": "p", "T_CHILD": "c"}


@ray.remote(num_cpus=0)
class Library:
    """Its results go to shared memory."""

    def one(self):
        return bytes(LARGE)

    def several(self):
        return bytes(LARGE), bytes(LARGE)

    def stream(self):
        yield bytes(LARGE)


@pytest.mark.parametrize("where", [HEAD, {"b": 0.1}], ids=["the same node", "another node"])
def test_large_results_of_another_jobs_actor_arrive_and_are_freed(make_cluster, where):
    """They are objects of the caller, so the actor has to name them as the caller does."""
    cluster = make_cluster({"resources": {"b": 1}})
    cluster.connect(namespace="n")
    library = Library.options(name="library", lifetime="detached", resources=where).remote()
    ray.get(library.__ray_ready__.remote())
    ray.shutdown()
    cluster.connect(namespace="n")
    library = ray.get_actor("library")
    refs = [library.one.remote(), *library.several.options(num_returns=2).remote()]
    refs += library.stream.options(num_returns="streaming").remote()
    assert [len(value) for value in ray.get(refs, timeout=30)] == [LARGE] * 4
    del refs
    nodes = cluster.list_all_nodes()
    eventually(lambda: not any(objects_at(cluster, node) for node in nodes), "their memory is free again")


CALLER = """
import os
import minray as ray

@ray.remote(num_cpus=0)
class Library:
    def one(self):
        return bytes(1 << 20)

ray.init({address!r}, namespace="n")
library = Library.options(resources={{"b": 0.1}}, **{options!r}).remote()
ref = library.one.remote()
ray.wait([ref], fetch_local=False)
os._exit(7)
"""


@pytest.mark.parametrize("options", [{}, {"name": "library", "lifetime": "detached"}], ids=["own", "detached"])
def test_what_an_actor_had_stored_for_a_caller_of_another_node_ends_with_that(make_cluster, options):
    cluster = make_cluster({"resources": {"b": 1}})
    (node,) = cluster.worker_nodes
    program = CALLER.format(address=cluster.address, options=options)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=environ, timeout=60).returncode == 7
    eventually(lambda: not objects_at(cluster, node), "it is freed")
