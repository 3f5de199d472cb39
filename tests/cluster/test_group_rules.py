"""The rules of placement groups (T2 and B24 of RAY_BEHAVIOUR.md) where their bundles are on three nodes."""

from __future__ import annotations

import logging
import pickle
import time

import pytest

import minray as ray
from minray.exceptions import ActorDiedError, RayError, RaySystemError, TaskPlacementGroupRemoved
from minray.util import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from tests.cluster.conftest import eventually
from tests.cluster.test_groups import InGroup, Resident, cpus_free, group_here, nodes_of, three, where

__all__ = ["three"]


@pytest.fixture
def spread(three):
    """A group with a bundle on each of three nodes."""
    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD", name="spread")
    assert ray.get(group.ready(), timeout=30) == group
    return group


@ray.remote
def current():
    """This task's group, and what it knows of it on its node."""
    group = get_current_placement_group()
    return group, group.bundle_specs, group.bundle_count, group.wait(30)


@ray.remote
def hang():
    time.sleep(600)


def test_the_group_is_the_same_value_on_every_node(spread):
    assert get_current_placement_group() is None
    found = ray.get([current.options(scheduling_strategy=InGroup(spread, i)).remote() for i in range(3)], timeout=30)
    assert found == [(spread, [{"CPU": 1.0}] * 3, 3, True)] * 3
    assert len({spread, get_placement_group("spread"), pickle.loads(pickle.dumps(spread)), *[f[0] for f in found]}) == 1
    assert placement_group_table()[spread.id.hex()] == placement_group_table(spread)


def test_removal_kills_what_runs_in_it_on_every_node(spread):
    actors = [Resident.options(scheduling_strategy=InGroup(spread, i)).remote() for i in range(3)]
    assert ray.get([actor.where.remote() for actor in actors], timeout=30) == nodes_of(spread)
    for actor in actors[:2]:
        ray.kill(actor)
    outside = Resident.options(num_cpus=0).remote()
    assert ray.get(outside.where.remote(), timeout=30)
    running = [hang.options(scheduling_strategy=InGroup(spread, i), max_retries=0).remote() for i in range(2)]
    assert ray.wait(running, timeout=0.5)[0] == []
    remove_placement_group(spread)
    for ref in running:
        with pytest.raises(RayError):
            ray.get(ref, timeout=30)
    with pytest.raises(ActorDiedError):
        ray.get(actors[2].where.remote(), timeout=30)
    assert ray.get(outside.where.remote(), timeout=30), "others live on"
    eventually(lambda: cpus_free() == 8, "all of it comes back")
    assert placement_group_table(spread)["state"] == "REMOVED"


def test_a_removed_group_takes_nothing_more_from_any_process(spread):
    @ray.remote(num_cpus=0)
    class Elsewhere:
        def use(self, group):
            return ray.get(where.options(scheduling_strategy=InGroup(group)).remote())

        def wait(self, group):
            return group.wait(30)

    other = Elsewhere.remote()
    assert ray.get(other.use.remote(spread), timeout=30) in nodes_of(spread)
    remove_placement_group(spread)
    assert placement_group_table(spread)["state"] == "REMOVED"  # else another process may be faster than the news
    with pytest.raises(TaskPlacementGroupRemoved, match=spread.id.hex()):
        ray.get(other.use.remote(spread), timeout=30)
    with pytest.raises(ValueError, match="removed"):
        ray.get(other.wait.remote(spread), timeout=30)


def test_capture_is_off_and_inherited_across_nodes(spread):
    @ray.remote
    def child(depth):
        if depth == 0:
            return ray.get(group_here.remote())
        return ray.get(child.remote(depth - 1))

    captured = InGroup(spread, 1, placement_group_capture_child_tasks=True)
    assert ray.get(child.options(scheduling_strategy=captured).remote(2), timeout=60) == spread.id.hex()
    assert ray.get(child.options(scheduling_strategy=InGroup(spread, 1)).remote(2), timeout=60) is None


@pytest.mark.parametrize("index", [3, -2, 1000])
def test_a_bundle_index_that_it_does_not_have(spread, index):
    with pytest.raises(ValueError, match=str(index)):
        where.options(scheduling_strategy=InGroup(spread, index)).remote()


def test_what_is_wrong_is_said_at_once(spread, caplog):
    for bundles, options in (
        ([{"CPU": 1}], {"strategy": "SCATTER"}),
        ([], {}),
        ([{}], {}),
        ([{"CPU": 0}], {}),
        ([{"CPU": -1}], {}),
        ([{"CPU": 1}], {"lifetime": "for ever"}),
    ):
        with pytest.raises(ValueError):
            placement_group(bundles, **options)
    with pytest.raises(RaySystemError, match="'spread' already exists"):
        placement_group([{"CPU": 1}], name="spread")
    with pytest.raises(ValueError, match="nobody"):
        get_placement_group("nobody")
    with pytest.raises(ValueError, match="does not fit"):
        where.options(num_cpus=2, scheduling_strategy=InGroup(spread, 0)).remote()
    with caplog.at_level(logging.WARNING):
        hopeless = placement_group([{"CPU": 1}, {"CPU": 5}])
        assert hopeless.wait(0) is False
    (text,) = [record.getMessage() for record in caplog.records if hopeless.id.hex() in record.getMessage()]
    assert "CPU: 5" in text
    assert all(node["NodeID"][:8] in text for node in ray.nodes())
    assert placement_group_table(hopeless)["state"] == "PENDING"
