"""Placement groups and label strategies on one node: T2 of RAY_BEHAVIOUR.md and B24."""

from __future__ import annotations

import copy
import os
import pickle
import time

import pytest

from .target import (
    USAGE_ERRORS,
    eventually,
    exceptions,
    minray_only,
    needs_concurrency,
    needs_processes,
    not_local,
    ray,
    submodule,
    util,
)

INIT = {"num_cpus": 4, "num_gpus": 2, "resources": {"thing": 2}, "namespace": "groups", "labels": {"zone": "a"}}

strategies = submodule("util.scheduling_strategies")
PlacementGroup = submodule("util.placement_group").PlacementGroup
InGroup = strategies.PlacementGroupSchedulingStrategy
STRATEGIES = ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


@pytest.fixture
def make():
    """``placement_group``; what it made is removed when the test ends, and its resources are waited for."""
    made = []

    def make(bundles, **options):
        made.append(util.placement_group(bundles, **options))
        return made[-1]

    yield make
    for group in made:
        util.remove_placement_group(group)
    if made:
        eventually(lambda: ray.available_resources().get("CPU") == 4, "the CPUs came back", 30)
        eventually(lambda: ray.available_resources().get("GPU") == 2, "the GPUs came back", 30)


def state_of(group):
    return util.placement_group_table(group)["state"]


@ray.remote
def where():
    """The group of this task, as hexadecimal digits, and whether its children are captured."""
    context = ray.get_runtime_context()
    return context.get_placement_group_id(), context.should_capture_child_tasks_in_placement_group


@ray.remote
def assigned():
    return ray.get_runtime_context().get_assigned_resources()


@ray.remote
class Member:
    def where(self):
        context = ray.get_runtime_context()
        return context.get_placement_group_id(), context.should_capture_child_tasks_in_placement_group

    def child(self):
        return ray.get(where.remote())

    def assigned(self):
        return ray.get_runtime_context().get_assigned_resources()

    def pid(self):
        return os.getpid()


# --- creating, waiting, removing ------------------------------------------------------------------


def test_a_group_is_made_waited_for_and_removed(make):
    group = make([{"CPU": 1}, {"CPU": 1, "GPU": 1}])
    assert group.wait(timeout_seconds=30) is True
    assert state_of(group) == "CREATED"
    assert ray.available_resources()["CPU"] == 2
    assert ray.available_resources()["GPU"] == 1
    util.remove_placement_group(group)
    eventually(lambda: state_of(group) == "REMOVED", "it is removed")
    eventually(lambda: ray.available_resources().get("CPU") == 4, "the CPUs came back", 30)


def test_ready_is_a_ref(make):
    group = make([{"CPU": 1}])
    ref = group.ready()
    assert isinstance(ref, ray.ObjectRef)
    ray.get(ref, timeout=30)
    ready, rest = ray.wait([group.ready()], timeout=30)
    assert len(ready) == 1
    assert rest == []


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK"])
def test_strategies_that_one_node_can_follow(make, strategy):
    group = make([{"CPU": 1}, {"CPU": 1}], strategy=strategy)
    assert group.wait(30)
    table = util.placement_group_table(group)
    assert table["strategy"] == strategy
    assert set(table["bundles_to_node_id"].values()) == {ray.get_runtime_context().get_node_id()}


def test_strict_spread_needs_as_many_nodes_as_bundles(make):
    group = make([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
    assert group.wait(0.5) is False
    assert state_of(group) == "PENDING"
    one = make([{"CPU": 1}], strategy="STRICT_SPREAD")
    assert one.wait(30)


def test_what_no_node_can_hold_stays_pending(make):
    group = make([{"CPU": 1}, {"CPU": 100}], name="far too large")
    before = time.monotonic()
    assert group.wait(0.5) is False
    assert group.wait(0) is False
    assert time.monotonic() - before < 20
    assert state_of(group) == "PENDING"
    assert ray.available_resources()["CPU"] == 4, "all or nothing"


@minray_only("it says so elsewhere, later")
def test_what_no_node_can_hold_is_warned_of(make, caplog):
    group = make([{"CPU": 1}, {"CPU": 100}], name="far too large")
    (text,) = [record.getMessage() for record in caplog.records]
    for part in ("'far too large'", group.id.hex(), "CPU: 100", "CPU: 4"):
        assert part in text


def test_who_waits_for_a_group_gets_it_when_another_goes(make):
    first, second, small = make([{"CPU": 3}]), make([{"CPU": 3}]), make([{"CPU": 1}])
    assert first.wait(30)
    assert second.wait(0.3) is False
    assert small.wait(30), "a small one passes by"
    util.remove_placement_group(first)
    assert second.wait(30)


@needs_concurrency
def test_a_group_waits_for_tasks_to_end(make, gate):
    @ray.remote(num_cpus=0, resources={"thing": 1})  # a task that waits keeps it, a CPU it would lend
    def hold(gate):
        gate.wait()

    refs = [hold.remote(gate) for _ in range(2)]
    gate.arrivals("go", 2)
    group = make([{"thing": 1}, {"CPU": 1}])
    assert group.wait(0.3) is False
    gate.open()
    assert group.wait(30)
    ray.get(refs)


@needs_concurrency
def test_a_busy_driver_does_not_starve_a_group(make):
    @ray.remote
    def short():
        time.sleep(0.01)

    refs = [short.remote() for _ in range(400)]
    group = make([{"CPU": 4}])
    assert group.wait(60)
    util.remove_placement_group(group)
    ray.get(refs)


def test_removed_twice_is_harmless(make):
    group = make([{"CPU": 1}])
    assert group.wait(30)
    util.remove_placement_group(group)
    util.remove_placement_group(group)


def test_waiting_for_a_removed_group_is_an_error(make):
    group = make([{"CPU": 1}])
    assert group.wait(30)
    util.remove_placement_group(group)
    eventually(lambda: state_of(group) == "REMOVED", "it is removed")
    with pytest.raises(Exception, match=group.id.hex()):
        group.wait(5)


@minray_only("it waits until the time is over")
@needs_concurrency
def test_who_waits_hears_of_the_removal_at_once(make):
    group = make([{"CPU": 100}])

    @ray.remote(num_cpus=0)
    def remove(group):
        time.sleep(0.2)
        util.remove_placement_group(group)

    ref = remove.remote(group)
    with pytest.raises(ValueError, match="was removed by remove_placement_group"):
        group.wait(50)
    ray.get(ref)


@minray_only("there it depends")
def test_waiting_for_a_group_that_nobody_made_is_an_error():
    stranger = PlacementGroup(ray.PlacementGroupID.from_random())
    with pytest.raises(ValueError, match=stranger.id.hex()):
        stranger.wait(5)
    with pytest.raises(ValueError, match=stranger.id.hex()):
        _ = stranger.bundle_specs
    assert util.placement_group_table(stranger) == {}
    util.remove_placement_group(stranger)


def test_many_groups_come_and_go(make):
    for _ in range(30):
        group = make([{"CPU": 4}])
        assert group.wait(30)
        util.remove_placement_group(group)
    groups = [make([{"thing": 0.01}]) for _ in range(100)]
    assert all(group.wait(30) for group in groups)


# --- the value ------------------------------------------------------------------------------------


def test_the_value(make):
    bundles = [{"CPU": 1}, {"CPU": 0.5, "thing": 1}]
    group = make(bundles)
    assert group.bundle_specs == bundles
    assert group.bundle_count == 2
    assert isinstance(group.id, ray.PlacementGroupID)
    assert not group.id.is_nil()
    other = make([{"CPU": 1}])
    for again in (pickle.loads(pickle.dumps(group)), copy.copy(group)):
        assert again == group
        assert hash(again) == hash(group)
        assert again.bundle_specs == bundles
    assert group != other
    assert group != 5
    assert len({group, other, pickle.loads(pickle.dumps(other))}) == 2


def test_a_group_goes_to_tasks_as_an_argument(make):
    group = make([{"CPU": 1}])

    @ray.remote(num_cpus=0)
    def use(group):
        same = util.placement_group_table(group)["placement_group_id"]
        return group.wait(30), group.bundle_specs, same, group

    done, specs, same, back = ray.get(use.remote(group))
    assert done is True
    assert specs == [{"CPU": 1}]
    assert same == group.id.hex()
    assert back == group


def test_whoever_hears_of_a_group_finds_that_it_is_known():
    @ray.remote(num_cpus=0)
    class Reader:
        def state(self, group):
            return util.placement_group_table(group).get("state")

    reader = Reader.remote()
    for _ in range(50):
        group = util.placement_group([{"CPU": 0.01}])
        assert ray.get(reader.state.remote(group)) in ("PENDING", "PREPARED", "CREATED")
        util.remove_placement_group(group)
        assert ray.get(reader.state.remote(group)) == "REMOVED"


@minray_only("it says so a little later")
def test_what_is_removed_is_free_for_whoever_asks():
    for _ in range(20):
        groups = [util.placement_group([{"thing": 1}]) for _ in range(2)]
        assert all(group.wait(30) for group in groups)
        assert ray.available_resources().get("thing", 0) == 0
        for group in groups:
            util.remove_placement_group(group)
        assert ray.available_resources()["thing"] == 2


def test_the_table(make):
    group = make([{"CPU": 1}, {"GPU": 1}], name="shown", strategy="SPREAD")
    assert group.wait(30)
    table = util.placement_group_table(group)
    node_id = ray.get_runtime_context().get_node_id()
    assert table["placement_group_id"] == group.id.hex()
    assert table["name"] == "shown"
    assert table["strategy"] == "SPREAD"
    assert table["state"] == "CREATED"
    assert table["bundles"] == {0: {"CPU": 1.0}, 1: {"GPU": 1.0}}
    assert table["bundles_to_node_id"] == {0: node_id, 1: node_id}
    assert "stats" in table
    assert util.placement_group_table()[group.id.hex()] == table


@pytest.mark.parametrize(
    "bundles",
    [
        None,
        {},
        "x",
        (),
        [],
        [{}],
        [None],
        [5],
        [{"CPU": 0}],
        [{"CPU": 1}, {"GPU": 0}],
        [{"CPU": "a"}],
        [{5: 1}],
        [{"CPU": None}],
    ],
    ids=repr,
)
def test_wrong_bundles_are_refused(bundles):
    with pytest.raises(ValueError, match=r"[Bb]undle"):
        util.placement_group(bundles)


@minray_only("it takes them")
@pytest.mark.parametrize(
    "bundle", [{"CPU": -1}, {"CPU": float("nan")}, {"CPU": 0.00001}, {"GPU": 1.5}, {"": 1}, {"CPU": True}], ids=repr
)
def test_amounts_that_make_no_sense_are_refused(bundle):
    with pytest.raises(ValueError, match=r"CPU|GPU|names"):
        util.placement_group([{"CPU": 1}, bundle])


@pytest.mark.parametrize(
    "options",
    [{"strategy": "pack"}, {"strategy": 5}, {"lifetime": "forever"}, {"lifetime": 5}, {"name": 5}, {"name": None}],
    ids=repr,
)
def test_other_wrong_arguments_are_refused(options):
    with pytest.raises((ValueError, TypeError)):
        util.placement_group([{"CPU": 1}], **options)


def test_bundle_label_selectors(make):
    fits = make([{"CPU": 1}, {"CPU": 1}], bundle_label_selector=[{"zone": "a"}, {"zone": "!b"}])
    assert fits.wait(30)
    with pytest.raises(ValueError, match="bundle"):
        util.placement_group([{"CPU": 1}], bundle_label_selector=[{"zone": "a"}] * 2)
    other = make([{"CPU": 1}], bundle_label_selector=[{"zone": "b"}])
    assert other.wait(0.3) is False


@pytest.mark.parametrize("wrong", [None, 5, "x"])
def test_what_is_no_group_is_refused(wrong):
    with pytest.raises(USAGE_ERRORS):
        util.remove_placement_group(wrong)
    if wrong is not None:
        with pytest.raises(USAGE_ERRORS):
            util.placement_group_table(wrong)


# --- names ----------------------------------------------------------------------------------------


def test_a_group_is_found_by_its_name(make):
    group = make([{"CPU": 1}], name="found")
    found = util.get_placement_group("found")
    assert found == group
    assert found.bundle_specs == [{"CPU": 1.0}]

    @ray.remote(num_cpus=0)
    def find():
        return util.get_placement_group("found")

    assert ray.get(find.remote()) == group


def test_a_name_is_free_again_when_its_group_is_removed(make):
    group = make([{"CPU": 1}], name="again")
    with pytest.raises(exceptions.RaySystemError, match="name 'again' already exists"):
        make([{"CPU": 1}], name="again")
    util.remove_placement_group(group)
    with pytest.raises(ValueError, match="Failed to look up placement group with name: again"):
        eventually(lambda: util.get_placement_group("again") and None, "the name is free")
    assert make([{"CPU": 1}], name="again") != group


@pytest.mark.parametrize("name", [None, ""])
def test_an_empty_name_is_refused(name):
    with pytest.raises(ValueError, match="non-empty"):
        util.get_placement_group(name)


def test_a_name_that_nobody_has():
    with pytest.raises(ValueError, match="Failed to look up placement group with name: nobody"):
        util.get_placement_group("nobody")
    with pytest.raises(TypeError):
        util.get_placement_group(5)


# --- tasks and actors in a group ------------------------------------------------------------------


def test_a_task_runs_in_a_bundle(make):
    group = make([{"CPU": 1}, {"CPU": 1}])
    for index in (-1, 0, 1):
        assert ray.get(where.options(scheduling_strategy=InGroup(group, index)).remote()) == (group.id.hex(), False)
    assert ray.get(where.remote()) == (None, False)
    assert ray.get(where.options(scheduling_strategy=InGroup(None)).remote()) == (None, False)


def test_the_older_options(make):
    group = make([{"CPU": 1}, {"CPU": 1}])
    options = {"placement_group": group, "placement_group_bundle_index": 1}
    assert ray.get(where.options(**options).remote()) == (group.id.hex(), False)
    captured = where.options(placement_group=group, placement_group_capture_child_tasks=True)
    assert ray.get(captured.remote()) == (group.id.hex(), True)
    for none in (None, "default"):
        assert ray.get(where.options(placement_group=none).remote()) == (None, False)


def test_what_it_was_given_has_plain_names(make):
    group = make([{"CPU": 2, "GPU": 1, "thing": 1, "memory": 2**20}])
    here = InGroup(group)
    assert ray.get(assigned.options(scheduling_strategy=here).remote()) == {"CPU": 1}
    full = {"num_cpus": 2, "num_gpus": 1, "resources": {"thing": 1}, "memory": 2**20}
    given = ray.get(assigned.options(scheduling_strategy=here, **full).remote())
    assert given == {"CPU": 2, "GPU": 1, "thing": 1, "memory": 2**20}
    assert ray.get(assigned.options(scheduling_strategy=here, num_cpus=0).remote()) == {}
    assert ray.get(Member.options(scheduling_strategy=here).remote().assigned.remote()) == {}
    assert ray.get(Member.options(scheduling_strategy=here, num_cpus=1).remote().assigned.remote()) == {"CPU": 1}


def test_gpus_of_a_group(make):
    @ray.remote(num_gpus=1, num_cpus=0)
    def gpus():
        return ray.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]

    group = make([{"GPU": 1}])
    ((gpu,), visible) = ray.get(gpus.options(scheduling_strategy=InGroup(group, 0)).remote())
    assert str(gpu) in "01"
    assert str(gpu) == visible


@needs_concurrency
def test_two_bundles_have_two_gpus(make, gate):
    @ray.remote(num_gpus=1, num_cpus=0)
    def gpus(gate):
        gate.arrive()
        gate.wait()
        return ray.get_gpu_ids()

    group = make([{"GPU": 1}, {"GPU": 1}])
    refs = [gpus.options(scheduling_strategy=InGroup(group, index)).remote(gate) for index in (0, 1)]
    gate.arrivals(at_least=2)
    gate.open()
    assert {str(gpu) for (gpu,) in ray.get(refs)} == {"0", "1"}


@needs_concurrency
def test_a_bundle_limits_what_runs_at_once(make, gate):
    @ray.remote(num_cpus=0, resources={"thing": 0.5})  # a task that waits keeps it, a CPU it would lend
    def hold(gate, key):
        gate.arrive(key)
        gate.wait()

    group = make([{"thing": 0.5}, {"thing": 1}])
    first = [hold.options(scheduling_strategy=InGroup(group, 0)).remote(gate, "first") for _ in range(3)]
    second = [hold.options(scheduling_strategy=InGroup(group, 1)).remote(gate, "second") for _ in range(3)]
    gate.arrivals("first", 1)
    gate.arrivals("second", 2)
    assert ray.wait(first + second, timeout=0.2)[0] == []
    assert gate.count("first") == 1
    assert gate.count("second") == 2
    other = hold.remote(gate, "other")
    gate.arrivals("other", 1)  # the last half is in no group
    gate.open()
    ray.get([*first, *second, other])


@needs_concurrency
def test_others_do_not_get_what_a_group_has(make, gate):
    group = make([{"CPU": 4}])
    assert group.wait(30)
    ref = where.remote()
    assert ray.wait([ref], timeout=0.3) == ([], [ref])
    util.remove_placement_group(group)
    assert ray.get(ref, timeout=30) == (None, False)


@needs_processes
def test_b22_a_blocked_task_in_a_group_lends_its_bundle(make):
    @ray.remote
    def inner():
        return "both ran in one bundle"

    @ray.remote
    def outer():
        return ray.get(inner.remote())

    group = make([{"CPU": 1}])
    captured = InGroup(group, placement_group_capture_child_tasks=True)
    assert ray.get(outer.options(scheduling_strategy=captured).remote(), timeout=50) == "both ran in one bundle"


def test_actors_in_a_group(make):
    group = make([{"CPU": 1}, {"CPU": 1}])
    actor = Member.options(scheduling_strategy=InGroup(group, 1)).remote()
    assert ray.get(actor.where.remote(), timeout=30) == (group.id.hex(), False)
    assert ray.get(actor.child.remote(), timeout=30) == (None, False)


@not_local("nothing waits there")
def test_tasks_and_actors_wait_for_their_group(make):
    first = make([{"CPU": 4}])
    assert first.wait(30)
    second = make([{"CPU": 2}])
    here = InGroup(second)
    ref = where.options(scheduling_strategy=here).remote()
    actor = Member.options(scheduling_strategy=here).remote()
    call = actor.where.remote()
    assert ray.wait([ref, call, second.ready()], timeout=0.3)[0] == []
    util.remove_placement_group(first)
    assert ray.get([ref, call], timeout=60) == [(second.id.hex(), False)] * 2


def test_a_request_that_no_bundle_can_hold_is_refused(make):
    group = make([{"CPU": 1}, {"CPU": 1, "GPU": 1}])
    for options in ({"num_cpus": 2}, {"resources": {"thing": 1}}, {"num_gpus": 2}, {"memory": 2**20}):
        with pytest.raises(ValueError, match="fit into any bundle"):
            where.options(scheduling_strategy=InGroup(group), **options).remote()
        with pytest.raises(ValueError, match="fit into any bundle"):
            Member.options(scheduling_strategy=InGroup(group), **options).remote()
    no_cpu = make([{"GPU": 1}])
    with pytest.raises(ValueError, match="CPU"):
        Member.options(scheduling_strategy=InGroup(no_cpu)).remote()
    assert ray.get(where.options(scheduling_strategy=InGroup(no_cpu), num_cpus=0).remote(), timeout=30)


@minray_only("it waits for ever")
def test_a_request_that_the_named_bundle_cannot_hold_is_refused(make):
    group = make([{"CPU": 1}, {"CPU": 1, "GPU": 1}])
    with pytest.raises(ValueError, match="bundle 0"):
        where.options(scheduling_strategy=InGroup(group, 0), num_gpus=1).remote()


# --- B24 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [2, 100, -2])
def test_b24_a_bundle_index_out_of_range(make, index):
    group = make([{"CPU": 1}, {"CPU": 1}])
    with pytest.raises(ValueError, match=rf"bundle index {index} is invalid"):
        where.options(scheduling_strategy=InGroup(group, index)).remote()
    with pytest.raises(ValueError, match=rf"bundle index {index} is invalid"):
        where.options(placement_group=group, placement_group_bundle_index=index).remote()
    with pytest.raises(ValueError, match=rf"bundle index {index} is invalid"):
        Member.options(scheduling_strategy=InGroup(group, index)).remote()


def test_b24_wrong_strategies(make):
    group = make([{"CPU": 1}])
    with pytest.raises(USAGE_ERRORS):
        where.options(scheduling_strategy=InGroup(5)).remote()
    with pytest.raises(USAGE_ERRORS):
        where.options(placement_group="x").remote()
    with pytest.raises(TypeError):
        where.options(placement_group=5).remote()
    with pytest.raises(ValueError, match="scheduling_strategy"):
        where.options(placement_group=group, scheduling_strategy="SPREAD").remote()
    with pytest.raises(ValueError, match="index"):
        where.options(placement_group_bundle_index=0).remote()


@needs_processes
def test_b24_removing_a_group_kills_its_actors(make):
    group = make([{"CPU": 1}])
    actor = Member.options(scheduling_strategy=InGroup(group), max_restarts=-1).remote()
    pid = ray.get(actor.pid.remote())
    util.remove_placement_group(group)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "its process ends")


@minray_only("a restart may hang there")
def test_b24_the_actors_of_a_removed_group_are_dead(make):
    group = make([{"CPU": 1}])
    actor = Member.options(scheduling_strategy=InGroup(group), max_restarts=-1).remote()
    assert ray.get(actor.where.remote()) == (group.id.hex(), False)
    util.remove_placement_group(group)
    with pytest.raises(exceptions.ActorDiedError, match=group.id.hex()):
        eventually(lambda: ray.get(actor.where.remote(), timeout=30) and None, "it is dead")


@needs_processes
def test_b24_removing_a_group_kills_its_tasks(make, gate):
    @ray.remote(max_retries=0)
    def hang(gate):
        gate.wait("never")

    group = make([{"CPU": 1}])
    ref = hang.options(scheduling_strategy=InGroup(group)).remote(gate)
    gate.arrivals("never")
    util.remove_placement_group(group)
    with pytest.raises(exceptions.WorkerCrashedError):
        ray.get(ref, timeout=30)


@minray_only("it hangs there")
@needs_processes
def test_b24_a_task_that_is_retried_finds_no_group(make, gate):
    @ray.remote
    def hang(gate):
        gate.wait("never")

    group = make([{"CPU": 1}])
    refs = [hang.options(scheduling_strategy=InGroup(group)).remote(gate) for _ in range(2)]
    gate.arrivals("never")
    util.remove_placement_group(group)
    for ref in refs:
        with pytest.raises(exceptions.TaskPlacementGroupRemoved, match=group.id.hex()):
            ray.get(ref, timeout=30)


@not_local("nothing waits there")
def test_b24_a_group_removed_while_somebody_waits_for_it_to_be_ready(make):
    group = make([{"CPU": 100}])
    ref = group.ready()
    util.remove_placement_group(group)
    with pytest.raises(exceptions.TaskPlacementGroupRemoved):
        ray.get(ref, timeout=30)
    with pytest.raises(exceptions.TaskPlacementGroupRemoved):
        ray.get(group.ready(), timeout=30)


@minray_only("they hang there")
@not_local("nothing waits there")
def test_b24_a_group_removed_while_tasks_and_actors_wait_for_it(make):
    group = make([{"CPU": 100}])
    here = InGroup(group)
    task = where.options(scheduling_strategy=here).remote()
    actor = Member.options(scheduling_strategy=here).remote()
    call = actor.where.remote()
    assert ray.wait([task, call], timeout=0.3)[0] == []
    util.remove_placement_group(group)
    with pytest.raises(exceptions.TaskPlacementGroupRemoved, match=group.id.hex()):
        ray.get(task, timeout=30)
    with pytest.raises(exceptions.ActorPlacementGroupRemoved, match=group.id.hex()):
        ray.get(call, timeout=30)


@minray_only("they hang there")
def test_b24_using_a_removed_group(make):
    group = make([{"CPU": 1}])
    bound = where.options(scheduling_strategy=InGroup(group))
    ray.get(bound.remote())
    util.remove_placement_group(group)
    with pytest.raises(exceptions.TaskPlacementGroupRemoved, match=group.id.hex()):
        ray.get(bound.remote(), timeout=30)
    with pytest.raises(exceptions.TaskPlacementGroupRemoved, match=group.id.hex()):
        ray.get(where.options(scheduling_strategy=InGroup(group)).remote(), timeout=30)
    with pytest.raises(exceptions.ActorPlacementGroupRemoved, match=group.id.hex()):
        ray.get(Member.options(scheduling_strategy=InGroup(group)).remote().where.remote(), timeout=30)


# --- B24: children --------------------------------------------------------------------------------


@ray.remote
def children(other):
    """Where the children of this task go, by what they say of it."""
    node_id = ray.get_runtime_context().get_node_id()
    affinity = strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
    said = {
        "nothing": {},
        "DEFAULT": {"scheduling_strategy": "DEFAULT"},
        "SPREAD": {"scheduling_strategy": "SPREAD"},
        "None": {"scheduling_strategy": None},
        "affinity": {"scheduling_strategy": affinity},
        "no group": {"scheduling_strategy": InGroup(None)},
        "placement_group=None": {"placement_group": None},
        "placement_group=default": {"placement_group": "default"},
        "capture=False": {"placement_group_capture_child_tasks": False},
        "other": {"scheduling_strategy": InGroup(other)},
    }
    found = {name: ray.get(where.options(**options).remote()) for name, options in said.items()}
    found["actor"] = ray.get(Member.remote().where.remote())
    return found


@pytest.mark.parametrize("capture", [None, False])
def test_b24_children_are_not_captured_by_default(make, capture):
    group, other = make([{"CPU": 1}, {"CPU": 1}]), make([{"CPU": 1}])
    found = ray.get(children.options(scheduling_strategy=InGroup(group, 0, capture)).remote(other), timeout=50)
    assert found.pop("other") == (other.id.hex(), False)
    assert set(found.values()) == {(None, False)}


def test_b24_captured_children_go_where_they_do_not_say_otherwise(make):
    group, other = make([{"CPU": 1}, {"CPU": 1}]), make([{"CPU": 1}])
    found = ray.get(children.options(scheduling_strategy=InGroup(group, 0, True)).remote(other), timeout=50)
    inside, outside = (group.id.hex(), True), (None, False)
    assert found == {
        "nothing": inside,
        "DEFAULT": outside,
        "SPREAD": outside,
        "None": inside,
        "affinity": outside,
        "no group": outside,
        "placement_group=None": outside,
        "placement_group=default": inside,
        "capture=False": outside,
        "other": (other.id.hex(), True),
        "actor": inside,
    }


def test_b24_capture_is_inherited_by_grandchildren(make):
    @ray.remote
    def grow(depth):
        here = ray.get_runtime_context().get_placement_group_id()
        return [here] if depth == 0 else [here, *ray.get(grow.remote(depth - 1))]

    group = make([{"CPU": 2}])
    captured = InGroup(group, placement_group_capture_child_tasks=True)
    found = ray.get(grow.options(scheduling_strategy=captured).remote(3), timeout=50)
    assert found == [group.id.hex()] * 4


def test_b24_an_actor_captures_its_children(make):
    group = make([{"CPU": 1}, {"CPU": 1}])
    captured = InGroup(group, 0, placement_group_capture_child_tasks=True)
    actor = Member.options(num_cpus=1, scheduling_strategy=captured).remote()
    assert ray.get(actor.child.remote(), timeout=50) == (group.id.hex(), True)


def test_b24_a_captured_child_that_does_not_fit_is_refused(make):
    @ray.remote
    def parent():
        try:
            where.options(num_cpus=3).remote()
        except ValueError as error:
            return str(error)

    group = make([{"CPU": 1}])
    captured = InGroup(group, placement_group_capture_child_tasks=True)
    text = ray.get(parent.options(scheduling_strategy=captured).remote(), timeout=50)
    assert "CPU" in text
    assert "bundle" in text


def test_b24_the_current_group(make):
    @ray.remote
    def current():
        group = util.get_current_placement_group()
        context = ray.get_runtime_context()
        return group, group and group.bundle_specs, context.current_placement_group_id

    group = make([{"CPU": 1}])
    for capture in (False, True):
        here = InGroup(group, placement_group_capture_child_tasks=capture)
        found, specs, group_id = ray.get(current.options(scheduling_strategy=here).remote())
        assert found == group
        assert specs == [{"CPU": 1.0}]
        assert group_id == group.id
    found, _, group_id = ray.get(current.remote())
    assert found is None
    assert group_id.is_nil()
    assert util.get_current_placement_group() is None


def test_a_group_made_in_a_task_outlives_it(make):
    @ray.remote(num_cpus=0)
    def create():
        return util.placement_group([{"CPU": 1}], name="made in a task")

    group = ray.get(create.remote())
    assert group.wait(30)
    assert ray.get(where.options(scheduling_strategy=InGroup(group)).remote()) == (group.id.hex(), False)
    util.remove_placement_group(group)


@needs_processes
def test_a_group_made_by_an_actor_outlives_it(make):
    @ray.remote(num_cpus=0)
    class Maker:
        def make(self):
            return util.placement_group([{"thing": 0.5}])

    maker = Maker.remote()
    group = ray.get(maker.make.remote())
    assert group.wait(30)
    ray.kill(maker)
    time.sleep(0.3)
    assert state_of(group) == "CREATED"
    util.remove_placement_group(group)


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hard",
    [
        {"zone": strategies.In("a")},
        {"zone": strategies.In("x", "a")},
        {"zone": strategies.NotIn("b")},
        {"nowhere": strategies.NotIn("b")},
        {"zone": strategies.Exists()},
        {"nowhere": strategies.DoesNotExist()},
        {"zone": strategies.In("a"), "nowhere": strategies.DoesNotExist()},
    ],
    ids=lambda hard: " ".join(f"{label}-{type(c).__name__}" for label, c in hard.items()),
)
def test_labels_that_this_node_has(hard):
    here = strategies.NodeLabelSchedulingStrategy(hard=hard)
    assert ray.get(where.options(scheduling_strategy=here).remote(), timeout=30) == (None, False)
    actor = Member.options(scheduling_strategy=here).remote()
    assert ray.get(actor.where.remote(), timeout=30) == (None, False)


def test_soft_labels_are_a_wish():
    wish = strategies.NodeLabelSchedulingStrategy(hard={}, soft={"zone": strategies.In("b")})
    assert ray.get(where.options(scheduling_strategy=wish).remote(), timeout=30) == (None, False)


@pytest.mark.parametrize("selector", ["a", "!b", "in(a,b)", "!in(b, c)"])
def test_label_selectors_that_this_node_fits(selector):
    assert ray.get(where.options(label_selector={"zone": selector}).remote(), timeout=30) == (None, False)
    actor = Member.options(label_selector={"zone": selector}).remote()
    assert ray.get(actor.where.remote(), timeout=30) == (None, False)


def test_a_label_selector_on_a_label_that_is_missing():
    assert ray.get(where.options(label_selector={"nowhere": "!x"}).remote(), timeout=30) == (None, False)


def test_both_ways_to_name_labels():
    here = strategies.NodeLabelSchedulingStrategy(hard={"zone": strategies.In("a")})
    for more in ({"zone": "a"}, {"nowhere": "!x"}):
        task = where.options(scheduling_strategy=here, label_selector=more)
        assert ray.get(task.remote(), timeout=30) == (None, False)
    spread = where.options(scheduling_strategy="SPREAD", label_selector={"zone": "a"})
    assert ray.get(spread.remote(), timeout=30) == (None, False)


@minray_only("it waits for ever")
@pytest.mark.parametrize(
    "options",
    [
        {"scheduling_strategy": strategies.NodeLabelSchedulingStrategy(hard={"zone": strategies.In("b")})},
        {"scheduling_strategy": strategies.NodeLabelSchedulingStrategy(hard={"zone": strategies.DoesNotExist()})},
        {"label_selector": {"zone": "!a"}},
        {"label_selector": {"nowhere": "in(x, y)"}},
    ],
    ids=["In", "DoesNotExist", "selector-not", "selector-in"],
)
def test_labels_that_no_node_has_are_an_error(options, short_grace):
    with pytest.raises(exceptions.TaskUnschedulableError, match=r"zone|nowhere"):
        ray.get(where.options(**options).remote(), timeout=30)
    with pytest.raises(exceptions.ActorUnschedulableError, match=r"zone|nowhere"):
        ray.get(Member.options(**options).remote().where.remote(), timeout=30)


@pytest.mark.parametrize(
    "selector",
    [
        {"zone": "in()"},
        {"zone": "in(a"},
        {"zone": "!!a"},
        {"zone": " a "},
        {"zone": "a b"},
        {"bad key!": "a"},
        {"zone": 5},
        {5: "a"},
        [],
    ],
    ids=repr,
)
def test_wrong_label_selectors_are_refused(selector):
    with pytest.raises((ValueError, TypeError)):
        where.options(label_selector=selector).remote()
        if selector == []:
            raise TypeError("an empty list is taken for none")


def test_wrong_label_strategies_are_refused():
    for wrong in ((), (5,)):
        with pytest.raises(ValueError, match="In"):
            strategies.In(*wrong)
        with pytest.raises(ValueError, match="NotIn"):
            strategies.NotIn(*wrong)
    for hard in ("x", {"a": "b"}, {5: strategies.In("a")}, None, {}):
        with pytest.raises(ValueError, match="hard"):
            strategies.NodeLabelSchedulingStrategy(hard=hard)
    with pytest.raises(ValueError, match="soft"):
        strategies.NodeLabelSchedulingStrategy(hard={}, soft="x")


@pytest.fixture(scope="module")
def short_grace():
    """Restart the module's runtime with a grace that a test can wait for. (Use it last.)"""
    from .target import start, stop

    stop()
    patch = pytest.MonkeyPatch()
    patch.setenv("MINRAY_INFEASIBLE_GRACE_S", "0.2")
    start(**INIT)
    patch.undo()
    yield
    stop()
    start(**INIT)
