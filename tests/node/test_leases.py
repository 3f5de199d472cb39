"""Leases: granting, returning, blocking, infeasibility, deaths. No process, no time."""

from __future__ import annotations

from minray.node.worker_pool import IDLE, LEASED, LEAVING
from minray.wire.messages import (
    ActorEnded,
    CreateActor,
    Died,
    LeaseConfirm,
    LeaseGrant,
    LeaseInfeasible,
    LeaseRevoke,
)

from .support import CLASS, CPU1, DRIVER, JOB, NODE, OTHER_JOB, World, actor_order


def test_a_demand_starts_workers_and_is_granted_when_they_arrive() -> None:
    world = World(cpus=2)
    world.demand(5)
    assert len(world.ordered) == 2, "no more workers than the CPUs can feed"
    world.register_all()
    grants = world.take(LeaseGrant, DRIVER)
    assert [g.lease_no for g in grants] == [1, 2]
    assert {g.worker[2] for g in grants} == {"unix:/w1", "unix:/w2"}
    confirms = world.take(LeaseConfirm)
    assert [(c.lease_no, c.owner[1], c.resources) for c in confirms] == [(1, DRIVER, CPU1), (2, DRIVER, CPU1)]


def test_an_idle_worker_is_granted_in_the_same_turn() -> None:
    world = World()
    world.do(world.table.prestart(JOB, 2, world.now))
    world.register_all()
    world.demand(1)
    assert len(world.take(LeaseGrant)) == 1
    assert world.ordered == []


def test_a_returned_worker_is_granted_again_under_a_larger_number() -> None:
    world = World(cpus=1)
    world.demand(1)
    world.register_all()
    first = world.take(LeaseGrant)[0]
    world.demand(0)
    world.do(world.table.returned(DRIVER, first.lease_no, False, world.now))
    assert world.pool.workers[1].state == IDLE
    world.demand(1, key=2)
    second = world.take(LeaseGrant)[0]
    assert second.worker == first.worker
    assert second.lease_no > first.lease_no


def test_retire_ends_the_worker_and_another_takes_its_place() -> None:
    world = World(cpus=1)
    world.demand(1)
    world.register_all()
    lease_no = world.take(LeaseGrant)[0].lease_no
    world.do(world.table.returned(DRIVER, lease_no, True, world.now))
    assert world.exits == [(1, True, "max_calls is reached")]
    assert world.pool.workers[1].state == LEAVING
    world.register_all()
    assert world.number_of(world.take(LeaseGrant)[0].worker[1]) == 2


def test_strangers_cannot_return_or_kill_a_lease() -> None:
    world = World(cpus=1)
    world.demand(1)
    world.register_all()
    lease_no = world.take(LeaseGrant)[0].lease_no
    for effects in (
        world.table.returned(b"x" * 28, lease_no, False, world.now),
        world.table.kill(b"x" * 28, lease_no, world.now),
        world.table.returned(DRIVER, lease_no + 1, False, world.now),
        world.table.ended(b"x" * 28, lease_no, world.now),
        world.table.blocked(b"x" * 28, lease_no, world.now),
    ):
        assert effects == []
    assert world.pool.workers[1].state == LEASED


def test_kill_is_by_force() -> None:
    world = World(cpus=1)
    world.demand(1)
    world.register_all()
    lease_no = world.take(LeaseGrant)[0].lease_no
    world.do(world.table.kill(DRIVER, lease_no, world.now))
    assert world.exits == [(1, False, "its owner cancelled the task by force")]
    world.exit(1, (lease_no, 7, 2), signal=9)
    died = world.take(Died, DRIVER)[0]
    assert (died.lease_no, died.running_seq, died.running_attempt) == (lease_no, 7, 2)


def test_blocking_lends_the_cpu_and_nothing_else() -> None:
    world = World(cpus=1, totals={"CPU": 10_000, "GPU": 10_000, "disk": 10_000})
    world.demand(1, resources={"CPU": 10_000, "GPU": 10_000, "disk": 5_000})
    world.register_all()
    grant = world.take(LeaseGrant)[0]
    assert grant.resource_ids == {"GPU": [(0, 10_000)]}
    world.demand(1, key=2)
    assert world.take(LeaseGrant) == []
    worker_id = grant.worker[1]
    world.do(world.table.blocked(worker_id, grant.lease_no, world.now))
    assert world.table.book.available == {"CPU": 10_000, "GPU": 0, "disk": 5_000}
    world.register_all()
    second = world.take(LeaseGrant)[0]
    world.do(world.table.unblocked(worker_id, grant.lease_no, world.now))
    assert world.table.book.available["CPU"] == -10_000, "it goes on at once"
    world.demand(0, key=2)
    world.do(world.table.returned(DRIVER, second.lease_no, False, world.now))
    assert world.table.book.available["CPU"] == 0


def test_the_end_of_a_blocked_lease_gives_back_only_what_it_still_holds() -> None:
    world = World(cpus=1)
    world.demand(1)
    world.register_all()
    grant = world.take(LeaseGrant)[0]
    world.do(world.table.blocked(grant.worker[1], grant.lease_no, world.now))
    world.demand(0)
    world.exit(1)
    assert world.table.book.available == CPU1


def test_what_was_said_for_an_older_lease_is_ignored() -> None:
    world = World(cpus=1)
    world.demand(1)
    world.register_all()
    first = world.take(LeaseGrant)[0]
    world.do(world.table.returned(DRIVER, first.lease_no, False, world.now))
    second = world.take(LeaseGrant)[0]
    assert second.worker == first.worker
    world.do(world.table.blocked(first.worker[1], first.lease_no, world.now))
    assert world.table.book.available["CPU"] == 0
    world.do(world.table.ended(first.worker[1], first.lease_no, world.now))
    assert second.lease_no in world.table.leases


def test_deeper_tasks_first_then_owners_in_turn() -> None:
    world = World(cpus=1)
    a, b = b"a" * 28, b"b" * 28
    world.demand(9, key=1, owner=a)
    world.demand(9, key=2, owner=a)
    world.demand(9, key=1, owner=b)
    world.demand(1, key=9, owner=b, depth=3)
    served = []
    world.register_all()
    for _ in range(7):
        ((owner, grant),) = [(t, m) for t, m in world.sent if isinstance(m, LeaseGrant)]
        world.sent.clear()
        served.append((owner, grant.key))
        if grant.key == 9:
            world.demand(0, key=9, owner=b, depth=3)
        world.ended(grant.lease_no)
    assert served == [(b, 9), (a, 1), (b, 1), (a, 2), (b, 1), (a, 1), (b, 1)]


def test_more_than_the_machine_has_warns_at_once_and_fails_after_the_grace() -> None:
    world = World(cpus=2)
    world.demand(3, resources={"CPU": 30_000}, description="task big")
    (warning,) = world.take(LeaseInfeasible, DRIVER)
    assert not warning.fatal
    assert "task big asks for CPU: 3" in warning.text
    assert "has CPU: 2 in all" in warning.text
    world.demand(4, resources={"CPU": 30_000}, description="task big")
    assert world.take(LeaseInfeasible) == [], "warned once"
    world.pass_time(9.9)
    assert world.take(LeaseInfeasible) == []
    world.pass_time(0.2)
    (error,) = world.take(LeaseInfeasible, DRIVER)
    assert error.fatal
    assert error.key == 1
    assert world.table.demands == {}
    assert world.table.next_deadline() is None


def test_a_withdrawn_infeasible_demand_does_not_fail() -> None:
    world = World(cpus=2)
    world.demand(3, resources={"GPU": 10_000})
    world.take(LeaseInfeasible)
    world.demand(0, resources={"GPU": 10_000})
    world.pass_time(60)
    assert world.take(LeaseInfeasible) == []


def test_hard_affinity_to_another_node_fails_at_once_and_soft_runs_here() -> None:
    world = World()
    world.demand(1, key=1, strategy=("affinity", b"z" * 28, False))
    (error,) = world.take(LeaseInfeasible)
    assert error.fatal
    assert (b"z" * 28).hex() in error.text
    world.demand(1, key=2, strategy=("affinity", b"z" * 28, True))
    world.demand(1, key=3, strategy=("affinity", NODE, False))
    world.register_all()
    assert {g.key for g in world.take(LeaseGrant)} == {2, 3}


def test_workers_are_shared_only_among_equals() -> None:
    world = World(cpus=2)
    world.demand(1, key=1)
    world.register_all()
    world.demand(0, key=1)
    world.do(world.table.returned(DRIVER, 1, False, world.now))
    world.demand(1, key=2, env_vars={"A": "1"})
    assert len(world.ordered) == 1
    world.register_all()
    stranger = b"s" * 28
    world.demand(1, key=1, owner=stranger, job=OTHER_JOB)
    assert len(world.ordered) == 1
    world.register_all()
    numbers = [world.number_of(g.worker[1]) for g in world.take(LeaseGrant)]
    assert numbers == [1, 2, 3]


def test_an_owners_death_takes_its_leases_and_stops_what_runs() -> None:
    world = World(cpus=2)
    owner = b"o" * 28
    world.demand(5, owner=owner)
    world.register_all()
    first, second = world.take(LeaseGrant, owner)
    world.do(world.table.owner_gone(owner, world.now))
    assert len(world.take(LeaseRevoke)) == 2
    world.ended(first.lease_no)
    assert world.pool.workers[1].state == IDLE, "it had nothing to do: it can be used again"
    world.pass_time(2)
    assert world.exits == [(2, False, "its owner has died")]
    world.exit(2)
    assert world.table.leases == {}
    assert second.lease_no not in world.table.leases


def test_a_dead_workers_own_demands_vanish() -> None:
    world = World(cpus=2)
    world.demand(1)
    world.register_all()
    worker_id = world.take(LeaseGrant)[0].worker[1]
    world.demand(5, owner=worker_id, depth=1)
    world.exit(1, signal=11)
    assert all(d.owner == DRIVER for d in world.table.demands.values())
    world.register_all()
    assert len(world.take(LeaseGrant, DRIVER)) == 1, "what was wanted is granted anew"


def test_workers_that_never_arrive_fail_the_demand_with_the_reason() -> None:
    world = World(cpus=1, max_starting=1)
    world.demand(1)
    for _ in range(3):
        world.exit(world.ordered.pop(), text="exit code 1: ModuleNotFoundError: numpy")
        world.pass_time(0.0)
    (error,) = world.take(LeaseInfeasible)
    assert error.fatal
    assert "3 in a row" in error.text
    assert "ModuleNotFoundError: numpy" in error.text
    assert world.table.next_deadline() is None


def test_a_worker_that_hangs_at_its_start_is_given_up() -> None:
    world = World(cpus=1, start_s=5.0)
    world.demand(1)
    number = world.ordered.pop()
    world.pass_time(5.1)
    assert world.exits[0][:2] == (number, False)
    assert len(world.ordered) == 1, "another one is on its way"


def test_gpus_are_given_by_instance() -> None:
    world = World(cpus=4, totals={"CPU": 40_000, "GPU": 20_000})
    world.demand(3, resources={"GPU": 5_000})
    world.demand(1, key=2, resources={"GPU": 10_000})
    world.register_all()
    ids = {(g.key, tuple(g.resource_ids["GPU"])) for g in world.take(LeaseGrant)}
    whole = [i for k, i in ids if k == 2]
    if whole:
        assert all(i[0][0] != whole[0][0][0] for k, i in ids if k == 1)
    world.table.check_invariants()
    assert len(world.pool.workers) <= 4, "a request that no instance suits does not start workers for ever"


# -- actors ----------------------------------------------------------------------------------------


def test_a_default_actor_needs_a_cpu_to_be_placed_and_none_to_live() -> None:
    world = World(cpus=1)
    for number in range(3):
        world.do(world.table.start_actor(actor_order(number), world.now))
    world.register_all()
    assert len(world.take(CreateActor)) == 3
    assert world.table.book.available == CPU1
    world.demand(1)
    world.register_all()
    assert len(world.take(LeaseGrant)) == 1


def test_an_actor_waits_while_no_cpu_is_free() -> None:
    world = World(cpus=1)
    world.demand(1)
    world.register_all()
    world.demand(1)
    world.do(world.table.start_actor(actor_order(), world.now))
    world.register_all()
    assert world.take(CreateActor) == []
    world.pass_time(1)
    (revoke,) = world.take(LeaseRevoke)
    world.ended(revoke.lease_no)
    assert len(world.take(CreateActor)) + len(world.ordered) >= 1


def test_explicit_resources_stay_booked_for_life() -> None:
    world = World(cpus=2)
    order = actor_order(lifetime_resources=CPU1)
    world.do(world.table.start_actor(order, world.now))
    world.register_all()
    assert world.table.book.available == CPU1
    worker_id = world.table.actors.running()[order.actor_id]
    world.do(world.table.blocked(worker_id, -1, world.now))
    assert world.table.book.available == {"CPU": 20_000}
    world.do(world.table.unblocked(worker_id, -1, world.now))
    assert world.table.book.available == CPU1
    world.exit(1, signal=11)
    assert world.table.book.available == {"CPU": 20_000}
    (ended,) = world.to_gcs
    assert isinstance(ended, ActorEnded)
    assert (ended.actor_id, ended.incarnation) == (order.actor_id, 0)
    assert not ended.cause["intended"]


def test_orders_are_idempotent() -> None:
    world = World()
    order = actor_order()
    world.do(world.table.start_actor(order, world.now))
    world.do(world.table.start_actor(order, world.now))
    world.register_all()
    world.do(world.table.start_actor(order, world.now))
    world.register_all()
    assert len(world.take(CreateActor)) == 1
    world.do(world.table.stop_actor(order.actor_id, 0, world.now, graceful=False, reason="kill"))
    assert world.exits == [(1, False, "kill")]
    world.exit(1, expected=True)
    world.do(world.table.start_actor(order, world.now))
    assert world.take(CreateActor) == []
    ends = [m for m in world.to_gcs if isinstance(m, ActorEnded)]
    assert ends[0].cause["intended"] and ends == ends[:1] * 2, "whoever orders it again is told again how it ended"
    world.do(world.table.start_actor(actor_order(incarnation=1), world.now))
    world.register_all()
    assert len(world.take(CreateActor)) == 1


def test_stopping_an_actor_that_waits_ends_the_waiting() -> None:
    world = World(cpus=1)
    order = actor_order(placement_resources={"CPU": 10_000})
    world.do(world.table.start_actor(order, world.now))
    world.do(world.table.stop_actor(order.actor_id, 0, world.now, graceful=True, reason="out of scope"))
    world.register_all()
    assert world.take(CreateActor) == []
    (ended,) = world.to_gcs
    assert isinstance(ended, ActorEnded)
    assert ended.cause["intended"]


def test_a_stop_that_overtakes_its_start_voids_it() -> None:
    world = World()
    order = actor_order()
    world.do(world.table.stop_actor(order.actor_id, 0, world.now, graceful=False, reason="kill"))
    world.do(world.table.start_actor(order, world.now))
    assert world.ordered == []


def test_an_actor_that_no_machine_can_hold_is_unschedulable_after_the_grace() -> None:
    world = World()
    order = actor_order(placement_resources={"GPU": 10_000})
    world.do(world.table.start_actor(order, world.now))
    assert "actor Counter asks for GPU: 1" in world.warnings[0]
    world.pass_time(10.1)
    (ended,) = world.to_gcs
    assert isinstance(ended, ActorEnded)
    assert ended.cause["unschedulable"]
    assert "GPU" in ended.cause["text"]


def test_the_end_of_a_job_spares_detached_actors_and_their_helpers() -> None:
    world = World(cpus=8)
    world.do(world.table.start_actor(actor_order(1, lifetime="detached"), world.now))
    world.do(world.table.start_actor(actor_order(2), world.now))
    world.register_all()
    detached = world.table.actors.running()[actor_order(1).actor_id]
    world.demand(1, owner=detached, depth=1)
    world.demand(1)
    world.register_all()
    helper = world.take(LeaseGrant, detached)[0].worker[1]
    world.do(world.table.owner_gone(DRIVER, world.now))
    world.do(world.table.job_ends.gone(JOB, world.now))
    world.register_all()
    gone = {number for number, _, _ in world.exits}
    alive = {w.worker_id for w in world.pool.workers.values() if w.number not in gone}
    assert alive == {detached, helper}


def test_the_end_of_a_job_leaves_owners_on_other_nodes_to_their_own_ends() -> None:
    """They may be detached actors, or work for some: only the driver itself is known to be gone."""
    far, driver = b"f" * 28, b"D" * 28
    world = World(cpus=8)
    for owner, key in ((far, 1), (driver, 2)):
        world.table.stranger_joined(owner, (b"o" * 28, owner, "tcp:o:1"), CLASS)
        world.demand(key, owner=owner)
    for number, owner in ((1, far), (2, driver)):
        spec = {"owner": (b"o" * 28, owner, "tcp:o:1")}
        world.do(world.table.start_actor(actor_order(number, **spec), world.now))
    world.register_all()
    leased = {owner: world.take(LeaseGrant, owner)[0].worker[1] for owner in (far, driver)}
    actors = world.table.actors.running()
    world.do(world.table.job_ends.gone(JOB, world.now, driver))
    world.register_all()
    gone = {number for number, _, _ in world.exits}
    alive = {w.worker_id for w in world.pool.workers.values() if w.number not in gone}
    assert alive == {leased[far], actors[actor_order(1).actor_id]}


def test_the_last_work_for_an_ended_job_takes_its_idle_workers_with_it() -> None:
    """An owner on another node outlives the driver for a moment, or, as a detached actor, for long."""
    far = b"f" * 28
    world = World(cpus=4)
    world.table.stranger_joined(far, (b"o" * 28, far, "tcp:o:1"), CLASS)
    world.demand(2, owner=far)
    world.register_all()
    first, second = world.take(LeaseGrant, far)
    world.do(world.table.job_ends.gone(JOB, world.now, b"D" * 28))
    world.demand(0, owner=far)
    world.do(world.table.returned(far, first.lease_no, False, world.now))
    assert not world.exits, "somebody may want it once more"
    world.do(world.table.owner_gone(far, world.now))
    world.do(world.table.ended(second.worker[1], second.lease_no, world.now))
    gone = {number for number, graceful, _ in world.exits if graceful}
    assert gone == {w.number for w in world.pool.workers.values() if w.worker_class.job_id == JOB}


def test_an_owner_that_gives_up_what_nobody_has_takes_the_idle_workers_of_its_ended_job_with_it() -> None:
    """Nothing else needs to happen here for long after that."""
    far = b"f" * 28
    world = World(cpus=1)
    world.table.stranger_joined(far, (b"o" * 28, far, "tcp:o:1"), CLASS)
    world.demand(1, owner=far)
    world.register_all()
    (grant,) = world.take(LeaseGrant, far)
    world.do(world.table.job_ends.gone(JOB, world.now, b"D" * 28))
    world.demand(1, key=2, owner=far, resources={"GPU": 10_000}, hold=True)
    world.demand(0, owner=far)
    world.do(world.table.returned(far, grant.lease_no, False, world.now))
    assert not world.exits, "somebody may want it once more"
    world.demand(0, key=2, owner=far, resources={"GPU": 10_000}, hold=True)
    assert world.exits == [(1, True, "its job has ended")]


def test_an_actor_that_waits_for_nothing_any_more_leaves_no_worker_of_an_ended_job() -> None:
    """Its restart was ordered by a GCS that had not heard of the end, or for a detached actor that was killed then."""
    for arrives_before in (True, False):
        world = World(cpus=1)
        world.demand(1, job=OTHER_JOB, owner=b"e" * 28)  # has the CPU
        world.register_all()
        world.table.job_ends.over(JOB)
        order = actor_order(1, placement_resources=CPU1, lifetime="detached")
        world.do(world.table.start_actor(order, world.now))
        world.do(world.table.prestart(JOB, 1, world.now))
        if arrives_before:
            world.register_all()
        stop = world.table.stop_actor(order.actor_id, 0, world.now, graceful=False, reason="it was killed by kill()")
        world.do(stop)
        world.register_all()
        (worker,) = [w for w in world.pool.workers.values() if w.worker_class.job_id == JOB]
        assert worker.state == LEAVING


def test_a_leased_worker_that_has_hung_up_is_given_to_nobody_when_it_is_returned() -> None:
    world = World(cpus=1)
    world.demand(1)
    world.register_all()
    lease_no = world.take(LeaseGrant)[0].lease_no
    world.demand(0)
    world.table.connection_lost(1, world.now)
    world.do(world.table.returned(DRIVER, lease_no, False, world.now))
    order = actor_order(1, placement_resources=CPU1)
    world.do(world.table.start_actor(order, world.now))
    assert not world.take(CreateActor)
    world.exit(1)
    world.register_all()
    assert world.take(CreateActor, world.pool.workers[2].worker_id)
