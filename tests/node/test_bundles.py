"""Bundles of placement groups on one node: reserved, opened, used, given back."""

from __future__ import annotations

from typing import Any

import pytest

from minray._base.groups import ANY_BUNDLE, GONE, GroupTarget, in_any, in_bundle, offered, shape_of
from minray._base.resources import UNIT
from minray.node.book import ResourceBook, cpus_of
from minray.wire.messages import (
    ActorEnded,
    BundlesPrepared,
    CommitBundles,
    CreateActor,
    Died,
    LeaseGrant,
    LeaseInfeasible,
    LeaseRevoke,
    PrepareBundles,
    ReleaseBundles,
    Resources,
)

from .support import CPU1, DRIVER, JOB, World, actor_order

GROUP, OTHER = b"g" * 14 + JOB, b"h" * 14 + JOB
CPU2: Resources = {"CPU": 2 * UNIT}


def prepare(world: World, *bundles: Resources, group: bytes = GROUP, attempt: int = 1) -> None:
    order = PrepareBundles(group, attempt, list(enumerate(bundles)))
    world.do(world.table.bundles.order(order, world.now))


def commit(world: World, group: bytes = GROUP, attempt: int = 1) -> None:
    world.do(world.table.bundles.order(CommitBundles(group, attempt), world.now))


def release(world: World, group: bytes = GROUP, attempt: int = -1) -> None:
    world.do(world.table.bundles.order(ReleaseBundles(group, attempt, "it was removed"), world.now))


def answers(world: World) -> list[tuple[bytes, int, bool]]:
    """(group, attempt, ok) of the answers so far, which are then forgotten."""
    found = [(m.group_id, m.attempt, m.ok) for m in world.to_gcs if isinstance(m, BundlesPrepared)]
    world.to_gcs = [m for m in world.to_gcs if not isinstance(m, BundlesPrepared)]
    return found


def target(*bundles: Resources, index: int = ANY_BUNDLE, group: bytes = GROUP) -> GroupTarget:
    return GroupTarget(group, index, None, tuple(map(shape_of, bundles)))


def ready(world: World, *bundles: Resources, group: bytes = GROUP) -> None:
    prepare(world, *bundles, group=group)
    commit(world, group=group)
    assert answers(world) == [(group, 1, True)]


def test_reserved_opened_and_given_back() -> None:
    world = World(cpus=4)
    prepare(world, CPU1, CPU2)
    assert answers(world) == [(GROUP, 1, True)]
    assert world.table.book.available == {"CPU": UNIT}
    commit(world)
    book = world.table.book
    assert book.totals[in_any("CPU", GROUP)] == 3 * UNIT
    assert book.totals[in_bundle("CPU", GROUP, 1)] == 2 * UNIT
    assert book.totals[in_any("bundle", GROUP)] == 2000 * UNIT
    assert book.totals["CPU"] == 4 * UNIT
    release(world)
    assert book.totals == book.available == {"CPU": 4 * UNIT}
    assert answers(world) == []


def test_orders_said_twice_change_nothing() -> None:
    world = World(cpus=2)
    prepare(world, CPU1)
    prepare(world, CPU1)
    assert answers(world) == [(GROUP, 1, True)] * 2
    commit(world)
    commit(world)
    assert world.table.book.totals[in_any("CPU", GROUP)] == UNIT
    release(world)
    release(world)
    assert world.table.book.available == CPU2
    prepare(world, CPU1)
    assert answers(world) == [(GROUP, 1, False)], "a group that is gone stays gone"
    commit(world)
    assert world.table.book.available == CPU2


def test_what_the_machine_can_never_hold_is_refused_at_once() -> None:
    world = World(cpus=2)
    prepare(world, CPU2, CPU1)
    assert answers(world) == [(GROUP, 1, False)]
    assert world.table.bundles.held() == []


def test_all_bundles_of_an_attempt_or_none() -> None:
    world = World(cpus=4, totals={"CPU": 4 * UNIT, "GPU": 2 * UNIT})
    ready(world, {"GPU": 5_000}, {"GPU": 5_000}, group=OTHER)  # half of one GPU each
    assert world.table.book._instances["GPU"].free_units == (0, UNIT)
    prepare(world, CPU1, {"GPU": UNIT}, {"GPU": UNIT})
    assert answers(world) == []
    assert world.table.book.available["CPU"] == 4 * UNIT
    release(world, group=OTHER)
    assert answers(world) == [(GROUP, 1, True)]


def test_an_attempt_that_is_over_is_forgotten_waiting_or_reserved() -> None:
    world = World(cpus=2)
    prepare(world, CPU2)
    prepare(world, CPU2, group=OTHER)
    assert answers(world) == [(GROUP, 1, True)]
    release(world, group=OTHER, attempt=1)
    assert not world.table.bundles.waiting
    release(world, attempt=1)
    assert world.table.book.available == CPU2
    assert answers(world) == []
    prepare(world, CPU2, attempt=2)
    assert answers(world) == [(GROUP, 2, True)]


def test_those_that_wait_are_served_in_their_order_when_there_is_room() -> None:
    world = World(cpus=2)
    ready(world, CPU2)
    for number in (1, 2, 3):
        prepare(world, CPU1, group=bytes([number]) * 14 + JOB)
    assert len(world.table.demands) == 1, "those that need the same wait in one demand"
    release(world)
    assert [group[0] for group, _, _ in answers(world)] == [1, 2]


def test_a_busy_owner_gives_leases_back_for_a_bundle() -> None:
    world = World(cpus=2)
    world.demand(10)
    world.register_all()
    leases = [m.lease_no for m in world.take(LeaseGrant)]
    assert len(leases) == 2
    prepare(world, CPU2)
    world.pass_time(0.1)
    assert [m.lease_no for m in world.take(LeaseRevoke)] == leases
    for no in leases:
        world.ended(no)
    assert answers(world) == [(GROUP, 1, True)]
    assert world.take(LeaseGrant) == []


def test_tasks_take_a_bundle_by_its_names() -> None:
    world = World(cpus=4)
    bundles = (CPU1, CPU2)
    ready(world, *bundles)
    world.demand(3, key=1, resources=target(*bundles, index=1).rename(CPU1))
    world.demand(3, key=2, resources=target(*bundles).rename(CPU1))
    world.register_all()
    keys = [m.key for m in world.take(LeaseGrant)]
    assert len(keys) == 3, "three CPUs are in the group"
    assert keys.count(1) <= 2
    world.demand(0, key=1)
    world.demand(0, key=2)


def test_a_task_that_waits_lends_the_cpu_of_its_bundle() -> None:
    world = World(cpus=2)
    ready(world, CPU1)
    inside = target(CPU1).rename(CPU1)
    world.demand(1, resources=inside)
    world.register_all()
    (grant,) = world.take(LeaseGrant)
    worker = grant.worker[1]
    world.do(world.table.blocked(worker, grant.lease_no, world.now))
    world.demand(1, key=7, owner=worker, depth=1, resources=inside)
    world.register_all()
    assert [m.key for m in world.take(LeaseGrant)] == [7]
    world.do(world.table.unblocked(worker, grant.lease_no, world.now))
    assert world.table.book.available[in_any("CPU", GROUP)] == -UNIT
    assert cpus_of(inside) == {in_any("CPU", GROUP): UNIT}


def test_a_demand_waits_for_its_group_as_long_as_it_takes() -> None:
    world = World(cpus=2)
    inside = target(CPU1).rename(CPU1)
    world.demand(1, resources=inside)
    world.demand(1, key=2, resources=inside)
    assert world.asked == [GROUP], "the GCS is asked once"
    world.pass_time(1000)
    assert world.take(LeaseInfeasible) == []
    ready(world, CPU1)
    world.do(world.table.bundles.known(GROUP, None, world.now))
    world.register_all()
    assert len(world.take(LeaseGrant)) == 1


def test_the_group_of_a_waiting_demand_is_gone() -> None:
    world = World(cpus=2)
    inside = target(CPU1).rename(CPU1)
    world.demand(1, resources=inside)
    world.do(world.table.start_actor(actor_order(placement_resources=inside), world.now))
    world.do(world.table.bundles.known(GROUP, "nobody made it", world.now))
    (told,) = world.take(LeaseInfeasible)
    assert told.fatal
    assert told.text == f"{GONE}: nobody made it"
    (ended,) = [m for m in world.to_gcs if isinstance(m, ActorEnded)]
    assert ended.cause["unschedulable"]
    assert ended.cause["text"].startswith(GONE)
    world.demand(1, resources=inside)
    assert world.take(LeaseInfeasible)[0].fatal, "and it stays gone"
    assert world.asked == [GROUP]


def test_removal_kills_what_runs_and_fails_what_waits() -> None:
    world = World(cpus=4)
    ready(world, CPU2)
    inside = target(CPU2).rename(CPU1)
    world.demand(3, resources=inside)
    world.do(world.table.start_actor(actor_order(1, placement_resources=target(CPU2).rename({})), world.now))
    world.register_all()
    world.do(world.table.start_actor(actor_order(2, placement_resources=inside), world.now))
    assert len(world.take(LeaseGrant)) == 2
    assert len(world.take(CreateActor)) == 1
    release(world)
    assert world.take(LeaseInfeasible)[0].text.startswith(GONE)
    assert sorted(number for number, graceful, _ in world.exits if not graceful) == [1, 2, 3]
    assert [m.actor_id[11] for m in world.to_gcs if isinstance(m, ActorEnded)] == [2]
    assert world.table.book.available == {**world.table.book.available, "CPU": CPU2["CPU"]}, "not free before"
    for number in (1, 2):
        world.exit(number)
    assert len(world.take(Died, DRIVER)) + len([m for m in world.to_gcs if isinstance(m, ActorEnded)]) == 3
    assert world.table.book.available["CPU"] == 2 * UNIT
    world.exit(3)
    assert world.table.book.available == world.table.book.totals == {"CPU": 4 * UNIT}
    world.demand(3, resources=inside)
    assert world.take(LeaseInfeasible)[0].fatal, "a retry of what was killed finds no group"


def test_nothing_is_granted_in_a_group_that_is_closing() -> None:
    world = World(cpus=2)
    ready(world, CPU2)
    inside = target(CPU2).rename(CPU1)
    world.demand(2, resources=inside)
    world.register_all()
    assert len(world.take(LeaseGrant)) == 2
    release(world)
    world.exit(1)  # its CPU is free in the book, but the demand that still wants two workers gets none
    world.register_all()
    assert world.take(LeaseGrant) == []
    world.exit(2)
    assert world.table.book.totals == CPU2


def test_who_still_wants_what_runs_in_a_closing_group_gets_nothing_for_it() -> None:
    """The owner repeats its wish before it has heard of the end; then the first of its leases ends."""
    world = World(cpus=2)
    ready(world, CPU2)
    resources = target(CPU2).rename({})
    world.demand(2, resources=resources)
    world.register_all()
    assert len(world.take(LeaseGrant)) == 2
    world.do(world.table.prestart(JOB, 2, world.now))
    world.register_all()
    release(world)
    world.take(LeaseInfeasible)
    world.demand(2, resources=resources)
    (refused,) = world.take(LeaseInfeasible)
    assert refused.fatal and "it was removed" in refused.text
    world.exit(1)
    assert not world.take(LeaseGrant)
    world.exit(2)
    assert world.table.book.totals == CPU2 and not world.table.demands


def test_gpus_of_a_group_are_those_of_its_bundles() -> None:
    world = World(cpus=4, totals={"CPU": 4 * UNIT, "GPU": 4 * UNIT})
    world.demand(1, key=9, resources={"GPU": UNIT})
    world.register_all()
    assert world.take(LeaseGrant)[0].resource_ids == {"GPU": [(0, UNIT)]}
    bundles = ({"GPU": UNIT}, {"GPU": UNIT})
    ready(world, *bundles)
    world.demand(1, key=1, resources=target(*bundles, index=0).rename({"GPU": UNIT}))
    world.demand(1, key=2, resources=target(*bundles).rename({"GPU": 5_000}))
    world.demand(1, key=3, resources=target(*bundles).rename({"GPU": 5_000}))
    world.register_all()
    ids = [m.resource_ids[in_any("GPU", GROUP)] for m in sorted(world.take(LeaseGrant), key=lambda m: m.key)]
    assert sorted(ids) in ([[(1, 5000)], [(1, 5000)], [(2, UNIT)]], [[(1, UNIT)], [(2, 5000)], [(2, 5000)]])
    assert world.table.book._instances["GPU"].free_units == (0, 0, 0, UNIT)


def test_a_bundle_that_waits_for_actors_says_so() -> None:
    world = World(cpus=2)
    world.do(world.table.start_actor(actor_order(lifetime_resources=CPU1), world.now))
    world.register_all()
    prepare(world, CPU2)
    world.pass_time(20)
    (text,) = world.warnings
    assert GROUP.hex() in text
    assert "actors hold the rest" in text
    release(world)
    ready(world, CPU1, group=OTHER)
    world.demand(1, resources=CPU1)
    world.pass_time(20)
    assert "actors and placement groups hold the rest" in world.warnings[-1]
    assert OTHER.hex() in world.warnings[-1]


def test_the_end_of_a_job_leaves_its_groups_to_the_gcs() -> None:
    world = World(cpus=2)
    ready(world, CPU1)
    prepare(world, CPU2, group=OTHER)
    world.do(world.table.owner_gone(DRIVER, world.now))
    world.do(world.table.job_ends.gone(JOB, world.now))
    assert world.table.bundles.held() == [(GROUP, 1)]
    assert world.table.bundles.waiting


def test_a_book_closes_only_what_is_free() -> None:
    book = ResourceBook({"CPU": 2 * UNIT})
    names = offered(GROUP, 0, CPU1)
    book.open(names, {})
    ids = book.take(target(CPU1).rename(CPU1))
    with pytest.raises(ValueError, match="cannot be closed"):
        book.close(names)
    book.give(target(CPU1).rename(CPU1), ids)
    book.close(names)
    assert book.totals == book.available == {"CPU": 2 * UNIT}


def test_a_second_attempt_adds_to_an_open_group() -> None:
    """Another bundle of the group was on a node that is lost: it comes here, too."""
    world = World(cpus=2)
    ready(world, CPU1)
    order: Any = PrepareBundles(GROUP, 2, [(1, CPU1)])
    world.do(world.table.bundles.order(order, world.now))
    assert answers(world) == [(GROUP, 2, True)]
    commit(world, attempt=2)
    assert world.table.book.totals[in_any("CPU", GROUP)] == 2 * UNIT
    assert world.table.book.totals[in_bundle("CPU", GROUP, 1)] == UNIT
    release(world)
    assert world.table.book.totals == CPU2
