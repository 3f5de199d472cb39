"""The head is killed by SIGKILL and started again: what ran goes on, nothing is lost, nothing is there twice.

How much runs meanwhile: MINRAY_TEST_HEAD_TASKS and MINRAY_TEST_HEAD_ACTORS (10000 and 100 for the promise of
docs/reliability.md); the times that it took are printed (-s).
"""

from __future__ import annotations

import os
import threading
import time

import pytest

import minray as ray
from minray.exceptions import RaySystemError
from minray.util.placement_group import placement_group, placement_group_table
from minray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.cluster.conftest import alive, ask_node, eventually

TASKS = int(os.environ.get("MINRAY_TEST_HEAD_TASKS", "300"))
ACTORS = int(os.environ.get("MINRAY_TEST_HEAD_ACTORS", "10"))
LASTING = {"gcs_reconnect_s": 60.0, "node_timeout_s": 3.0}
FAR = {"num_cpus": 2, "resources": {"far": 1000}}
far = {"num_cpus": 0, "resources": {"far": 1}}


@ray.remote(**far)
class Counter:
    """Leaves a mark for each time that it is made."""

    def __init__(self, marks=None, name=""):
        self.count = 0
        if marks is not None:
            with open(marks, "a") as file:
                file.write(f"{name}\n")

    def add(self):
        self.count += 1
        return self.count

    def pid(self):
        return os.getpid()


@pytest.fixture
def cluster(make_cluster):
    """A head without CPUs, two nodes; this process is at the first of these."""
    made = make_cluster(dict(FAR), dict(FAR), head={"num_cpus": 0}, **LASTING)
    made.connect(node=min(made.worker_nodes, key=lambda node: node.node_id))
    return made


def the_first(cluster):
    return min(cluster.worker_nodes, key=lambda node: node.node_id)


def the_other(cluster):
    return max(cluster.worker_nodes, key=lambda node: node.node_id)


def test_under_load_all_results_arrive_and_no_actor_is_lost_or_doubled(cluster, tmp_path):
    marks = tmp_path / "marks"

    @ray.remote(num_cpus=1)
    def work(x):
        time.sleep(0.002)
        return x * x

    kinds = [{"name": f"a{i}", "lifetime": "detached"} if i % 3 == 0 else {"max_restarts": 1} for i in range(ACTORS)]
    actors = [Counter.options(**kind).remote(str(marks), f"a{i}") for i, kind in enumerate(kinds)]
    pids = ray.get([actor.pid.remote() for actor in actors], timeout=120)
    results = [work.remote(i) for i in range(TASKS)]
    counts = [actor.add.remote() for actor in actors]
    ray.wait(results, num_returns=TASKS // 10, timeout=120)

    cluster.kill_head()
    counts += [actor.add.remote() for actor in actors]
    assert ray.get(counts, timeout=120) == [1] * ACTORS + [2] * ACTORS  # while there is no head
    made, errors = [], []

    def create():
        try:
            made.append(Counter.options(name="late").remote(str(marks), "late"))
            made.append(ray.get(made[0].add.remote(), timeout=120))
        except Exception as error:  # for the assertion below
            errors.append(error)

    thread = threading.Thread(target=create)
    thread.start()
    began = time.monotonic()
    cluster.restart_head()
    serves = time.monotonic() - began
    thread.join(120)
    print(f"\nthe head serves again after {serves:.2f} s, a new actor answers after {time.monotonic() - began:.2f} s")
    assert not errors and made[1] == 1

    assert ray.get(results, timeout=600) == [i * i for i in range(TASKS)]
    assert ray.get([actor.pid.remote() for actor in actors], timeout=120) == pids
    pairs = zip(kinds, actors, strict=True)
    again = [ray.get_actor(kind["name"]) if "name" in kind else actor for kind, actor in pairs]
    assert ray.get([actor.add.remote() for actor in again], timeout=120) == [3] * ACTORS
    assert sorted(marks.read_text().split()) == sorted([*(f"a{i}" for i in range(ACTORS)), "late"])
    assert ask_node(cluster, cluster.head_node, "gcs_stats")["actors"] == {
        "ALIVE": ACTORS + 1, "PENDING": 0, "RESTARTING": 0, "DEAD": 0,
    }  # fmt: skip


def test_it_can_be_killed_again_and_again(cluster):
    actor = Counter.options(name="one", max_restarts=0).remote()
    for turn in range(1, 4):
        assert ray.get(actor.add.remote(), timeout=60) == turn
        cluster.kill_head()
        cluster.restart_head()
    assert ray.get(ray.get_actor("one").add.remote(), timeout=60) == 4
    eventually(lambda: len(alive(cluster)) == 3, "all nodes are there")
    assert len(ray.nodes()) == 6  # and the three that went with their heads, as dead ones


def test_placement_groups_go_on(cluster):
    group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD", name="g")
    assert group.wait(60)
    strategy = PlacementGroupSchedulingStrategy(group)
    inside = ray.remote(num_cpus=1, scheduling_strategy=strategy)(lambda: ray.get_runtime_context().get_node_id())
    where = {ray.get(inside.remote(), timeout=60) for _ in range(2)}
    before = placement_group_table(group)["bundles_to_node_id"]
    cluster.kill_head()
    assert ray.get(inside.remote(), timeout=60) in before.values()
    late = []
    thread = threading.Thread(target=lambda: late.append(placement_group([{"CPU": 1}, {"CPU": 1}], strategy="PACK")))
    thread.start()
    cluster.restart_head()
    thread.join(60)
    assert late[0].wait(60)
    assert placement_group_table(group)["bundles_to_node_id"] == before and where <= set(before.values())
    assert ray.get(inside.remote(), timeout=60) in before.values()
    ray.util.remove_placement_group(ray.util.get_placement_group("g"))
    eventually(lambda: ray.available_resources().get("CPU") == 2.0, "what the first one held is free")


def test_what_dies_while_the_head_is_away_is_noticed_when_it_is_back(cluster):
    """A worker, with its cause; an owner, with what it owns; a whole node."""
    mortal = Counter.options(max_restarts=1, max_task_retries=-1).remote()
    on_other = {"scheduling_strategy": ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        the_other(cluster).node_id, soft=True)}  # fmt: skip
    mover = Counter.options(max_restarts=1, max_task_retries=-1, **on_other).remote()
    final = Counter.options(max_restarts=0, **on_other).remote()
    pid = ray.get(mortal.pid.remote(), timeout=60)
    ray.get([mover.add.remote(), final.add.remote()], timeout=60)
    cluster.kill_head()
    os.kill(pid, 9)
    cluster.remove_node(the_other(cluster), allow_graceful=False)
    cluster.restart_head()
    assert ray.get(mortal.pid.remote(), timeout=60) != pid
    assert ray.get(mover.add.remote(), timeout=60) == 1
    with pytest.raises(ray.exceptions.RayActorError, match="has not"):
        ray.get(final.add.remote(), timeout=60)
    assert alive(cluster) == {cluster.head_node.node_id, the_first(cluster).node_id}


DRIVER = """
ray.init(_node_id=os.environ["NODE"], namespace="n")

@ray.remote(num_cpus=0, resources={"far": 1})
class A:
    def pid(self):
        return os.getpid()

own, detached = A.remote(), A.options(name="d", lifetime="detached").remote()
say("own", ray.get(own.pid.remote()))
say("detached", ray.get(detached.pid.remote()))
time.sleep(600)
"""


def test_a_driver_on_the_heads_machine_ends_with_its_node_and_its_job_is_over(cluster, drive):
    root = os.path.dirname(cluster.head_node.session_dir)
    env = {"MINRAY_ADDRESS": cluster.address, "MINRAY_TEMP_DIR": root, "NODE": cluster.head_node.node_id}
    driver = drive(DRIVER, env=env)
    own, detached = int(driver.await_word("own")), int(driver.await_word("detached"))
    cluster.kill_head()
    cluster.restart_head()
    eventually(lambda: not os.path.exists(f"/proc/{own}"), "what it owned ends")
    found = ray.get_actor("d", namespace="n")
    assert ray.get(found.pid.remote(), timeout=60) == detached
    driver.end()


def test_a_driver_that_ends_while_the_head_is_away(cluster, drive):
    root = os.path.dirname(cluster.head_node.session_dir)
    env = {"MINRAY_ADDRESS": cluster.address, "MINRAY_TEMP_DIR": root, "NODE": the_first(cluster).node_id}
    driver = drive(DRIVER, env=env)
    own, detached = int(driver.await_word("own")), int(driver.await_word("detached"))
    cluster.kill_head()
    driver.process.kill()
    cluster.restart_head()
    eventually(lambda: not os.path.exists(f"/proc/{own}"), "what it owned ends")
    assert ray.get(ray.get_actor("d", namespace="n").pid.remote(), timeout=60) == detached
    eventually(lambda: len([j for j in ask_node(cluster, cluster.head_node, "jobs") if not j["is_dead"]]) == 1, "job")


def test_requests_give_up_when_it_stays_away(make_cluster):
    cluster = make_cluster(dict(FAR), head={"num_cpus": 0}, gcs_reconnect_s=0.3)
    (node,) = cluster.worker_nodes
    cluster.connect(node=node)
    cluster.kill_head()
    with pytest.raises((RaySystemError, ray.exceptions.RayError), match=r"session is over|has not answered"):
        ray.get_actor("nobody")
    eventually(lambda: not node.alive(), "a node that gives the head up ends")
    with pytest.raises(RuntimeError, match="restart_head"):
        cluster.add_node()
    ray.shutdown()
    cluster.restart_head()
    assert alive(cluster) >= {cluster.head_node.node_id}


def test_what_cannot_be_restarted_says_so(make_cluster):
    cluster = make_cluster()
    with pytest.raises(RuntimeError, match="kill_head"):
        cluster.restart_head()
    cluster.connect()
    with pytest.raises(ValueError, match="connect"):
        cluster.kill_head()
    ray.shutdown()
    cluster.connected = False
    cluster.kill_head()
    with pytest.raises(RuntimeError, match="no head that runs"):
        cluster.kill_head()
    tables = cluster._head.head.tables
    with open(tables, "wb") as file:
        file.write(b"no database" * 500)
    os.unlink(tables + "-wal")  # or SQLite would repair it
    with pytest.raises(RaySystemError, match="damaged, or no tables of minray"):
        cluster.restart_head()
