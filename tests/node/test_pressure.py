"""Who waits too long, and what is taken from whom: revocation, fairness, reservation, caps."""

from __future__ import annotations

from minray.wire.messages import LeaseGrant, LeaseInfeasible, LeaseRevoke

from .support import CPU1, DRIVER, World, actor_order

A, B = b"a" * 28, b"b" * 28


def granted(world: World, owner: bytes, key: int = 1) -> int:
    demand = world.table.demands.get((owner, key))
    return len(demand.leases) if demand else 0


def test_warm_leases_go_at_once_when_somebody_waits() -> None:
    world = World(cpus=2)
    world.demand(2, owner=A)
    world.register_all()
    world.demand(0, owner=A)
    assert world.take(LeaseRevoke) == [], "nobody waits"
    world.demand(1, owner=B)
    revoked = world.take(LeaseRevoke)
    assert len(revoked) == 2, "which one is idle only its owner knows"
    world.ended(revoked[0].lease_no)
    assert granted(world, B) == 1


def test_a_lease_is_revoked_once() -> None:
    world = World(cpus=1)
    world.demand(1, owner=A)
    world.register_all()
    world.demand(0, owner=A)
    world.demand(1, owner=B)
    world.demand(2, owner=B)
    world.pass_time(10)
    assert len(world.take(LeaseRevoke)) == 1


def test_one_cpu_is_shared_by_turns() -> None:
    world = World(cpus=1)
    world.demand(1000, owner=A)
    world.register_all()
    world.demand(1000, owner=B)
    assert world.take(LeaseRevoke) == [], "its turn has just begun"
    turns = []
    for _ in range(6):
        world.pass_time(0.06)
        (revoke,) = world.take(LeaseRevoke)
        world.ended(revoke.lease_no)
        (lease,) = world.table.leases.values()
        turns.append(lease.demand.owner)
    assert turns == [B, A, B, A, B, A]


def test_an_odd_cpu_is_not_thrown_to_and_fro() -> None:
    world = World(cpus=3)
    world.demand(1000, owner=A)
    world.register_all()
    world.demand(1000, owner=B)
    world.pass_time(0.06)
    for revoke in world.take(LeaseRevoke):
        world.ended(revoke.lease_no)
    assert (granted(world, A), granted(world, B)) in ((2, 1), (1, 2))
    world.pass_time(10)
    assert world.take(LeaseRevoke) == []


def test_shallow_tasks_do_not_take_from_deeper_ones() -> None:
    world = World(cpus=1)
    world.demand(1, owner=A, depth=2)
    world.register_all()
    world.demand(1, owner=B, depth=0)
    world.pass_time(10)
    assert world.take(LeaseRevoke) == []
    world.demand(1, owner=DRIVER, depth=2)
    world.pass_time(1)
    assert len(world.take(LeaseRevoke)) == 1


def test_nothing_is_revoked_for_what_cannot_be_had() -> None:
    world = World(cpus=2)
    order = actor_order(lifetime_resources=CPU1)
    world.do(world.table.start_actor(order, world.now))
    world.register_all()
    world.demand(1, owner=A)
    world.register_all()
    world.demand(1, owner=B, resources={"CPU": 20_000})
    world.pass_time(10)
    assert world.take(LeaseRevoke) == [], "the actor keeps the other CPU"
    assert world.table.reserved is None


def test_a_large_request_is_not_starved_by_small_ones() -> None:
    world = World(cpus=2)
    world.demand(1000, owner=A)
    world.register_all()
    world.demand(1, owner=B, resources={"CPU": 20_000})
    world.pass_time(0.06)
    revoked = world.take(LeaseRevoke)
    assert len(revoked) == 2
    world.ended(revoked[0].lease_no)
    assert granted(world, A) == 1, "held back for the large one"
    world.ended(revoked[1].lease_no)
    assert granted(world, B) == 1


def test_holding_back_does_not_last_for_ever() -> None:
    world = World(cpus=2)
    world.demand(1000, owner=A)
    world.register_all()
    world.demand(1, owner=B, resources={"CPU": 20_000})
    world.pass_time(0.06)
    first, _slow = world.take(LeaseRevoke)
    world.ended(first.lease_no)
    assert granted(world, A) == 1
    world.pass_time(6)
    world.demand(999, owner=A)
    world.demand(1, key=2, owner=A)
    assert granted(world, A) + granted(world, A, 2) == 2


def test_deeper_tasks_are_not_held_back() -> None:
    world = World(cpus=2)
    world.demand(1000, owner=A)
    world.register_all()
    world.demand(1, owner=B, resources={"CPU": 20_000})
    world.pass_time(0.06)
    revoked = world.take(LeaseRevoke)
    world.demand(1, owner=DRIVER, depth=1)
    world.ended(revoked[0].lease_no)
    assert granted(world, DRIVER) == 1


def test_who_waits_for_what_actors_hold_is_told_once() -> None:
    world = World(cpus=2)
    for number in (1, 2):
        world.do(world.table.start_actor(actor_order(number, lifetime_resources=CPU1), world.now))
    world.register_all()
    world.demand(1)
    assert world.warnings == []
    world.pass_time(10.1)
    (text,) = world.warnings
    assert "task f1 has waited 10 s for CPU: 1" in text
    assert "2 × actor Counter" in text
    world.demand(3)
    world.pass_time(60)
    assert len(world.warnings) == 1
    assert world.table.next_deadline() is None


def test_who_waits_for_tasks_is_not_warned() -> None:
    world = World(cpus=1)
    world.demand(1, owner=A, depth=1)
    world.register_all()
    world.demand(1, owner=B)
    world.pass_time(60)
    assert world.warnings == []


# -- caps ------------------------------------------------------------------------------------------


def recurse(world: World, levels: int) -> list[LeaseGrant]:
    """A chain: each worker's task submits one more and waits for it."""
    grants: list[LeaseGrant] = []
    owner = DRIVER
    for depth in range(levels):
        world.demand(1, key=1, owner=owner, depth=depth, description="task fib")
        world.register_all()
        world.pass_time(0)
        world.register_all()
        made = world.take(LeaseGrant, owner)
        if not made:
            break
        grants += made
        owner = made[0].worker[1]
        world.do(world.table.blocked(owner, made[0].lease_no, world.now))
    return grants


def test_recursion_on_one_cpu_goes_on_beyond_the_soft_cap() -> None:
    world = World(cpus=1, soft=4, hard=50)
    assert len(recurse(world, 40)) == 40


def test_at_the_hard_cap_the_newest_request_fails_with_the_chain() -> None:
    world = World(cpus=1, soft=4, hard=12)
    assert len(recurse(world, 40)) == 12
    (error,) = world.take(LeaseInfeasible)
    assert error.fatal
    assert "all 12 workers" in error.text
    assert "driver → task fib (worker 1) → task fib (worker 2)" in error.text
    assert "… 5 more …" in error.text
    assert error.text.index("(worker 12)") < error.text.index("MINRAY") or "Break the recursion" in error.text


def test_wide_zero_cpu_tasks_stop_at_the_soft_cap_and_then_creep() -> None:
    world = World(cpus=1, soft=4, hard=6, max_starting=100)
    world.demand(100, resources={})
    world.register_all()
    assert granted(world, DRIVER) == 4
    world.pass_time(1.01)
    world.register_all()
    assert granted(world, DRIVER) == 5, "nobody is blocked, so it is not in a hurry"
    world.pass_time(1.01)
    world.register_all()
    assert granted(world, DRIVER) == 6
    world.pass_time(60)
    assert world.ordered == []
    assert world.table.next_deadline() is None, "at the hard cap only an event can help"


def test_actors_do_not_count_towards_the_caps() -> None:
    world = World(cpus=1, soft=2, hard=3)
    for number in range(20):
        world.do(world.table.start_actor(actor_order(number + 1), world.now))
    world.register_all()
    assert len(world.table.actors.running()) == 20
    world.demand(1)
    world.register_all()
    assert granted(world, DRIVER) == 1


def test_idle_workers_of_another_kind_make_room_at_the_cap() -> None:
    world = World(cpus=2, soft=2, hard=2)
    world.demand(2)
    world.register_all()
    for lease in list(world.table.leases.values()):
        world.demand(0)
        world.do(world.table.returned(DRIVER, lease.no, False, world.now))
    world.demand(1, key=2, env_vars={"A": "1"})
    assert [graceful for _, graceful, _ in world.exits] == [True]
    world.register_all()
    assert granted(world, DRIVER, 2) == 1


def test_a_flood_starts_only_a_few_workers_at_once() -> None:
    world = World(cpus=2)
    for number in range(100):
        world.do(world.table.start_actor(actor_order(number + 1), world.now))
    assert len(world.ordered) == world.pool.max_starting == 4
    world.register(world.ordered.pop(0))
    assert len(world.ordered) == 4


# -- memory has run out ----------------------------------------------------------------------------


def test_after_memory_ran_out_nothing_begins_beside_what_runs() -> None:
    world = World(cpus=3)
    world.demand(3)
    world.register_all()
    third = world.take(LeaseGrant)[-1]
    world.table.memory_hold = world.now + 5.0
    world.exit(world.table.leases[third.lease_no].number)
    world.demand(3)
    world.register_all()
    assert world.take(LeaseGrant) == [] and world.ordered == []
    world.pass_time(4.9)
    assert world.take(LeaseGrant) == []
    world.pass_time(0.2)
    world.register_all()
    assert len(world.take(LeaseGrant)) == 1


def test_when_nothing_runs_any_more_one_begins_and_the_others_still_wait() -> None:
    world = World(cpus=3)
    world.demand(1)
    world.register_all()
    (only,) = world.take(LeaseGrant)
    world.table.memory_hold = world.now + 5.0
    world.demand(3, key=2)
    world.register_all()
    assert world.take(LeaseGrant) == []
    world.exit(world.table.leases[only.lease_no].number)
    world.register_all()
    assert len(world.take(LeaseGrant)) == 1
    world.pass_time(5.0)
    world.register_all()
    assert len(world.take(LeaseGrant)) == 2


def test_who_was_held_back_gets_its_turn_when_the_reservation_lapses() -> None:
    """What was coming together is taken by a deeper request; then there is room that nobody is kept from any more."""
    world = World(cpus=3)
    world.demand(3)
    world.register_all()
    first, second, _ = world.take(LeaseGrant)
    world.demand(0)
    world.demand(1, key=2, resources={"CPU": 30_000})
    world.demand(1, key=3)
    world.ended(first.lease_no)
    world.ended(second.lease_no)
    assert world.table.reserved is not None and not world.take(LeaseGrant)
    world.demand(1, key=4, depth=1)
    assert {grant.key for grant in world.take(LeaseGrant)} == {3, 4}
