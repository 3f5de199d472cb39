"""Placement groups and strategies on three nodes and more: T2 of RAY_BEHAVIOUR.md, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter

import pytest

import minray as ray
from minray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
)
from minray.util import (
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from minray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)
from tests.cluster.conftest import eventually

InGroup = PlacementGroupSchedulingStrategy
ZONES = [{"num_cpus": 2, "labels": {"zone": "a", "disk": "ssd"}}, {"num_cpus": 4, "labels": {"zone": "b"}}]


@ray.remote
def where():
    return ray.get_runtime_context().get_node_id()


@ray.remote
def group_here():
    return ray.get_runtime_context().get_placement_group_id()


@ray.remote
class Resident:
    def where(self):
        return ray.get_runtime_context().get_node_id()

    def restarted(self):
        return ray.get_runtime_context().was_current_actor_reconstructed


@pytest.fixture
def three(make_cluster):
    """A head of 2 CPUs, a node of 2 and one of 4."""
    cluster = make_cluster(*ZONES, head={"num_cpus": 2, "labels": {"zone": "head"}})
    cluster.connect(namespace="groups")
    return cluster


def nodes_of(group):
    """Where its bundles are, in their order; "" for none."""
    placed = placement_group_table(group)["bundles_to_node_id"]
    return [placed[i] for i in sorted(placed)]


def zone_of():
    return {node["NodeID"]: node["Labels"].get("zone") for node in ray.nodes()}


def cpus_free():
    return ray.available_resources().get("CPU", 0)


# --- strategies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "bundles", "on"),
    [
        ("PACK", [2, 2], 1),
        ("PACK", [2, 2, 2], 2),
        ("PACK", [2, 2, 2, 2], 3),
        ("SPREAD", [1, 1], 2),
        ("SPREAD", [1, 1, 1], 3),
        ("SPREAD", [1, 1, 1, 1, 1], 3),
        ("STRICT_PACK", [1, 1, 2], 1),
        ("STRICT_PACK", [3, 2], None),
        ("STRICT_SPREAD", [1, 1, 1], 3),
        ("STRICT_SPREAD", [4, 2, 2], 3),
        ("STRICT_SPREAD", [1, 1, 1, 1], None),
    ],
)
def test_where_bundles_go(three, strategy, bundles, on):
    group = placement_group([{"CPU": n} for n in bundles], strategy=strategy)
    if on is None:
        assert group.wait(0.5) is False
        assert placement_group_table(group)["state"] == "PENDING"
        assert nodes_of(group) == [""] * len(bundles)
        return
    assert group.wait(30)
    assert len(set(nodes_of(group))) == on
    for node, used in Counter(dict.fromkeys(nodes_of(group), 0)).items():
        used = sum(n for n, at in zip(bundles, nodes_of(group), strict=True) if at == node)
        assert used <= next(n["Resources"]["CPU"] for n in ray.nodes() if n["NodeID"] == node)
    eventually(lambda: cpus_free() == 8 - sum(bundles), "the head knows what is free")
    remove_placement_group(group)
    eventually(lambda: cpus_free() == 8, "all of it comes back")


def test_tasks_and_actors_run_where_their_bundle_is(three):
    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
    ray.get(group.ready(), timeout=30)
    places = nodes_of(group)
    for index, node in enumerate(places):
        here = InGroup(group, index)
        assert ray.get([where.options(scheduling_strategy=here).remote() for _ in range(3)], timeout=30) == [node] * 3
        assert ray.get(Resident.options(scheduling_strategy=here).remote().where.remote(), timeout=30) == node
    anywhere = ray.get([where.options(scheduling_strategy=InGroup(group)).remote() for _ in range(6)], timeout=30)
    assert set(anywhere) <= set(places)


def test_any_bundle_uses_all_of_them(three, tmp_path):
    @ray.remote
    def meet(folder, name, count):
        (folder / name).touch()
        while len(list(folder.iterdir())) < count:
            time.sleep(0.005)
        return ray.get_runtime_context().get_node_id()

    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
    any_bundle = meet.options(scheduling_strategy=InGroup(group))
    found = ray.get([any_bundle.remote(tmp_path, f"{i}", 3) for i in range(3)], timeout=30)
    assert sorted(found) == sorted(nodes_of(group))
    actors = [Resident.options(num_cpus=1, scheduling_strategy=InGroup(group)).remote() for _ in range(3)]
    assert sorted(ray.get([a.where.remote() for a in actors], timeout=30)) == sorted(nodes_of(group))


def test_captured_children_stay_in_the_group_on_other_nodes_too(three):
    @ray.remote
    def parent():
        return ray.get([group_here.remote() for _ in range(4)])

    group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
    captured = InGroup(group, 0, placement_group_capture_child_tasks=True)
    assert ray.get(parent.options(scheduling_strategy=captured).remote(), timeout=30) == [group.id.hex()] * 4
    assert ray.get(parent.options(scheduling_strategy=InGroup(group, 0)).remote(), timeout=30) == [None] * 4


def test_bundles_by_labels(three):
    group = placement_group(
        [{"CPU": 1}] * 3, bundle_label_selector=[{"zone": "b"}, {"zone": "!b"}, {"zone": "in(a, x)"}]
    )
    assert group.wait(30)
    zones = [zone_of()[node] for node in nodes_of(group)]
    assert zones[0] == "b"
    assert zones[1] in ("a", "head")
    assert zones[2] == "a"


# --- waiting, racing, leaving ---------------------------------------------------------------------


def test_a_group_waits_for_nodes_that_join(three):
    group = placement_group([{"CPU": 1}] * 4, strategy="STRICT_SPREAD", name="four")
    task = where.options(scheduling_strategy=InGroup(group, 3)).remote()
    call = Resident.options(scheduling_strategy=InGroup(group, 2)).remote().where.remote()
    assert ray.wait([task, call, group.ready()], timeout=0.5)[0] == []
    assert cpus_free() == 8, "it holds nothing meanwhile"
    three.add_node(num_cpus=1)
    assert group.wait(30)
    assert ray.get([task, call], timeout=30) == [nodes_of(group)[3], nodes_of(group)[2]]


def test_removed_while_tasks_and_actors_wait_for_it(three):
    group = placement_group([{"CPU": 1}] * 4, strategy="STRICT_SPREAD")
    task = where.options(scheduling_strategy=InGroup(group)).remote()
    call = Resident.options(scheduling_strategy=InGroup(group)).remote().where.remote()
    assert ray.wait([task, call], timeout=0.3)[0] == []
    remove_placement_group(group)
    with pytest.raises(TaskPlacementGroupRemoved, match=group.id.hex()):
        ray.get(task, timeout=30)
    with pytest.raises(ActorPlacementGroupRemoved, match=group.id.hex()):
        ray.get(call, timeout=30)


def test_groups_that_race_for_all_nodes(three):
    groups = [placement_group([{"CPU": 2}] * 3, strategy="STRICT_SPREAD") for _ in range(6)]
    for _ in range(6):
        created = eventually(
            lambda: [g for g in groups if placement_group_table(g)["state"] == "CREATED"], "one of them is there"
        )
        assert len(created) == 1
        assert ray.get(group_here.options(scheduling_strategy=InGroup(created[0])).remote(), timeout=30)
        remove_placement_group(created[0])
        groups.remove(created[0])
    eventually(lambda: cpus_free() == 8, "all of it comes back")


def test_many_groups_from_many_tasks(three):
    @ray.remote(num_cpus=0)
    def churn(i):
        for n in range(5):
            group = placement_group([{"CPU": 0.5}] * (1 + (i + n) % 3), strategy="SPREAD")
            assert group.wait(60)
            assert ray.get(group_here.options(num_cpus=0.5, scheduling_strategy=InGroup(group)).remote())
            remove_placement_group(group)
        return i

    assert ray.get([churn.remote(i) for i in range(8)], timeout=120) == list(range(8))
    eventually(lambda: cpus_free() == 8, "nothing leaks")
    assert not [name for name in ray.available_resources() if "_group_" in name]


def test_busy_nodes_make_room(three):
    @ray.remote
    def short():
        time.sleep(0.02)

    refs = [short.remote() for _ in range(600)]
    group = placement_group([{"CPU": 2}] * 3, strategy="STRICT_SPREAD")
    assert group.wait(60)
    remove_placement_group(group)
    ray.get(refs, timeout=120)


def test_several_drivers_race_for_all_nodes(three, drive):
    """Each wants most of it, again and again; none waits for ever, nothing leaks, not even of one that dies."""
    program = f"""
        import random
        from minray.util import placement_group, remove_placement_group
        from minray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup
        ray.init(address={three.address!r}, _temp_dir={three._config.temp_dir!r})
        number = int(os.environ["NUMBER"])
        choice = random.Random(number)

        @ray.remote
        def one():
            return 1

        for _ in range(8):
            size, strategy = choice.choice([(3, "STRICT_SPREAD"), (3, "SPREAD"), (2, "PACK"), (1, "STRICT_PACK")])
            group = placement_group([{{"CPU": 2}}] * size, strategy=strategy)
            assert group.wait(60), "for ever"
            if choice.random() < 0.7:
                assert ray.get(one.options(scheduling_strategy=InGroup(group)).remote()) == 1
            remove_placement_group(group)
        say("done")
        if number == 2:
            placement_group([{{"CPU": 2}}] * 3, strategy="STRICT_SPREAD")
            os._exit(1)
    """
    drivers = [drive(program, env={"NUMBER": str(number)}) for number in range(3)]
    for driver in drivers:
        driver.await_word("done", limit=120)
    eventually(lambda: cpus_free() == 8, "nothing leaks")
    assert {g["state"] for g in placement_group_table().values()} == {"REMOVED"}


def test_status_tells_which_groups_wait(three):
    group = placement_group([{"CPU": 3}, {"CPU": 3}], strategy="STRICT_SPREAD", name="too much")
    task = where.options(scheduling_strategy=InGroup(group)).remote()

    def shown():
        env = {**os.environ, "PYTHONPATH": os.getcwd(), "MINRAY_TEMP_DIR": three._config.temp_dir}
        command = [sys.executable, "-m", "minray.cli.main", "status", "--address", three.address]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout if "its placement group is not there yet" in done.stdout else None

    text = eventually(shown, "status tells of the task")
    assert f"placement group {group.id.hex()} ('too much')" in text
    assert "STRICT_SPREAD 2 × (CPU: 3)" in text and "can never hold it" in text
    remove_placement_group(group)
    with pytest.raises(TaskPlacementGroupRemoved):
        ray.get(task, timeout=30)


# --- losses ---------------------------------------------------------------------------------------


def test_bundles_of_a_lost_node_are_placed_anew(three):
    spare = three.add_node(num_cpus=1)
    group = placement_group([{"CPU": 1}] * 4, strategy="STRICT_SPREAD")
    assert group.wait(30)
    lost = nodes_of(group).index(spare.node_id)
    here = InGroup(group, lost)
    actor = Resident.options(scheduling_strategy=here, max_restarts=1, max_task_retries=-1).remote()
    assert ray.get(actor.where.remote(), timeout=30) == spare.node_id
    three.remove_node(spare, allow_graceful=False)
    eventually(lambda: placement_group_table(group)["state"] == "RESCHEDULING", "the loss is noticed")
    kept = nodes_of(group)
    assert kept[lost] == ""
    call = actor.where.remote()
    task = where.options(scheduling_strategy=here).remote()
    assert group.wait(0.3) is False
    new = three.add_node(num_cpus=1)
    assert group.wait(30)
    assert nodes_of(group) == [new.node_id if node == "" else node for node in kept]
    assert ray.get([call, task], timeout=30) == [new.node_id] * 2
    assert ray.get(actor.restarted.remote(), timeout=30)
    remove_placement_group(group)
    eventually(lambda: cpus_free() == 9, "all of it comes back")


def test_a_node_is_lost_while_groups_come_and_go(three):
    victim = three.add_node(num_cpus=2)
    groups = [placement_group([{"CPU": 1}] * 3, strategy="SPREAD") for _ in range(8)]
    three.remove_node(victim, allow_graceful=False)
    three.wait_for_nodes()
    for group in groups:
        remove_placement_group(group)
    eventually(lambda: cpus_free() == 8, "all of it comes back")
    whole = placement_group([{"CPU": 2}, {"CPU": 2}, {"CPU": 4}], strategy="STRICT_SPREAD")
    assert whole.wait(30)


def test_groups_and_the_drivers_that_made_them(three):
    program = f"""
import minray as ray
from minray.util import placement_group
ray.init(address={three.address!r}, namespace="groups", _temp_dir={three._config.temp_dir!r})
assert placement_group([{{"CPU": 1}}], name="stays", lifetime="detached").wait(30)
assert placement_group([{{"CPU": 1}}], name="goes").wait(30)
"""
    environ = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    eventually(lambda: cpus_free() == 7, "one of the two is gone with its driver")
    stays = get_placement_group("stays")
    assert stays.bundle_specs == [{"CPU": 1.0}]
    assert ray.get(group_here.options(scheduling_strategy=InGroup(stays)).remote(), timeout=30) == stays.id.hex()
    with pytest.raises(ValueError, match="goes"):
        get_placement_group("goes")
    remove_placement_group(stays)
    eventually(lambda: cpus_free() == 8, "all of it comes back")


# --- without a group ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hard", "zones"),
    [
        ({"zone": In("a")}, {"a"}),
        ({"zone": In("a", "b")}, {"a", "b"}),
        ({"zone": NotIn("a", "head")}, {"b"}),
        ({"disk": Exists()}, {"a"}),
        ({"disk": DoesNotExist()}, {"b", "head"}),
        ({"disk": NotIn("ssd"), "zone": NotIn("head")}, {"b"}),
    ],
    ids=["in", "in-2", "notin", "exists", "absent", "two"],
)
def test_labels(three, hard, zones):
    strategy = NodeLabelSchedulingStrategy(hard=hard)
    found = ray.get([where.options(scheduling_strategy=strategy).remote() for _ in range(10)], timeout=30)
    assert {zone_of()[node] for node in found} <= zones
    actors = [Resident.options(scheduling_strategy=strategy).remote() for _ in range(4)]
    assert {zone_of()[node] for node in ray.get([a.where.remote() for a in actors], timeout=30)} <= zones


def test_label_selectors(three):
    for selector, zones in (("a", {"a"}), ("!a", {"b", "head"}), ("in(a, b)", {"a", "b"}), ("!in(a, b)", {"head"})):
        chosen = {"label_selector": {"zone": selector}}
        found = ray.get([where.options(**chosen).remote() for _ in range(6)], timeout=30)
        assert {zone_of()[node] for node in found} <= zones
        assert zone_of()[ray.get(Resident.options(**chosen).remote().where.remote(), timeout=30)] in zones


def test_soft_labels(three):
    wish = NodeLabelSchedulingStrategy(hard={}, soft={"zone": In("b")})
    assert zone_of()[ray.get(Resident.options(scheduling_strategy=wish).remote().where.remote(), timeout=30)] == "b"
    nowhere = NodeLabelSchedulingStrategy(hard={"zone": Exists()}, soft={"zone": In("x")})
    assert ray.get(where.options(scheduling_strategy=nowhere).remote(), timeout=30)


def test_what_no_node_has(make_cluster):
    make_cluster(*ZONES, head={"num_cpus": 1}, infeasible_grace_s=0.3).connect()
    for options in ({"label_selector": {"zone": "x"}}, {"label_selector": {"zone": "a"}, "num_cpus": 3}):
        with pytest.raises(TaskUnschedulableError, match="zone"):
            ray.get(where.options(**options).remote(), timeout=30)
        with pytest.raises(ActorUnschedulableError, match="zone"):
            ray.get(Resident.options(**options).remote().where.remote(), timeout=30)


def test_affinity_on_each_node(three):
    for node in ray.nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        assert ray.get(where.options(scheduling_strategy=there).remote(), timeout=30) == node["NodeID"]
        actor = Resident.options(scheduling_strategy=there).remote()
        assert ray.get(actor.where.remote(), timeout=30) == node["NodeID"]
