"""An owner and the other nodes that its own one sends it to. See also tests/sim/test_leases_over_nodes.py."""

from __future__ import annotations

from minray.wire.messages import Address, KillWorker, LeaseDecline, LeaseDemand, LeaseReturn, LeaseSpill

from .support import NODE, OwnerWorld

FAR = b"f" * 28
DOOR = "tcp:10.0.0.2:7"


class World(OwnerWorld):
    def spill(self, count: int, *, node: bytes = FAR, hold: bool = False) -> None:
        self.do(self.owner.on_spill, LeaseSpill(1, count, node, DOOR, hold))

    def decline(self, count: int) -> None:
        self.do(self.owner.on_decline, FAR, LeaseDecline(1, count))

    def asked(self) -> list[tuple[int, int, bool]]:
        """What the other node was told: workers, refusals counted, whether to hold."""
        sent = [entry for entry in self.did() if entry[0] == "at"]
        assert all(entry[1:3] == (FAR, DOOR) for entry in sent)
        return [(m.wanted, m.refused, m.hold) for m in (entry[3] for entry in sent) if isinstance(m, LeaseDemand)]

    def there(self, name: str) -> Address:
        return (FAR, name.encode().ljust(28, b"."), f"tcp:10.0.0.2:8 unix:/{name}")


def demands_at_home(world: World) -> list[tuple[int, int]]:
    return [(demand.wanted, demand.refused) for demand in world.take(LeaseDemand)]


def test_the_other_node_is_asked_for_what_was_spilled() -> None:
    world = World()
    world.submit(4)
    assert demands_at_home(world) == [(1, 0), (2, 0), (4, 0)]
    world.spill(3)
    assert world.asked() == [(3, 0, False)]
    world.spill(1, hold=True)
    assert world.asked() == [(4, 0, True)]
    assert world.key.told == 0, "its own node does not count these any more"


def test_more_tasks_are_asked_for_at_home() -> None:
    world = World()
    world.submit(2)
    world.spill(2)
    world.did()
    world.submit(1)
    assert demands_at_home(world) == [(1, 2)]


def test_what_is_declined_is_asked_for_at_home_again() -> None:
    world = World()
    world.submit(2)
    world.spill(2)
    world.did()
    world.decline(2)
    assert demands_at_home(world) == [(2, 2)]
    world.spill(2)
    assert world.asked() == [(2, 2, False)], "it hears how much of its no was heard"


def test_when_one_no_follows_another_it_pauses_before_it_asks_again() -> None:
    world = World()
    world.submit(8)
    world.spill(8)
    world.did()
    world.decline(2)
    assert demands_at_home(world) == [(2, 8)], "the first time at once"
    world.decline(3)
    world.decline(1)
    assert demands_at_home(world) == []
    world.pass_time(0.2)
    assert demands_at_home(world) == [(6, 8)]
    for pause in (0.2, 0.4, 0.8, 1.6, 1.6):
        world.spill(6)
        world.decline(3)
        world.decline(3)
        world.did()
        world.pass_time(pause * 0.9)
        assert demands_at_home(world) == []
        world.pass_time(pause * 0.2)
        assert [wanted for wanted, _ in demands_at_home(world)] == [6]
    world.grant(worker=world.there("w"))
    assert world.key.pause == 0.0
    world.pass_time(5)


def test_when_every_task_has_a_worker_all_nodes_are_told() -> None:
    world = World()
    world.submit(2)
    world.spill(1)
    world.did()
    world.grant(worker=world.there("w"))
    world.grant()
    assert world.did()[-2:] == [
        ("at", FAR, DOOR, LeaseDemand(1, 0, {"CPU": 10_000}, 0, None, {}, "task f1", 0, False, True)),
        ("node", LeaseDemand(1, 0, {"CPU": 10_000}, 0, None, {}, "task f1", 1, False, True)),
    ]


def test_a_spill_that_is_not_needed_any_more_asks_nobody() -> None:
    world = World()
    (task,) = world.submit()
    world.cancel(task)
    world.did()
    world.spill(1)
    assert world.did() == []
    world.submit()
    assert demands_at_home(world) == [(1, 1)]


def test_a_lease_is_returned_and_killed_where_it_was_granted() -> None:
    world = World()
    task, _ = world.submit(2)
    world.spill(2)
    lease = world.grant(worker=world.there("w"))
    world.did()
    world.cancel(task, force=True)
    assert ("at", FAR, DOOR, KillWorker(lease.lease_no)) in world.did()
    other = world.grant(worker=world.there("v"))
    world.answer(next(iter(other.inflight.values())))
    world.did()
    world.pass_time(3)
    assert ("at", FAR, DOOR, LeaseReturn(other.lease_no, False)) in world.did()


def test_a_node_that_is_lost_is_not_counted_on() -> None:
    world = World()
    world.submit(2)
    world.spill(2)
    world.did()
    world.do(world.owner.on_node_lost, FAR)
    assert demands_at_home(world) == [(2, 2)]
    world.do(world.owner.on_node_lost, b"x" * 28)
    assert world.did() == []


def test_spread_keeps_no_worker_warm() -> None:
    world = World()
    world.key.strategy = "SPREAD"
    world.owner.clustered = True
    first, second = world.submit(2)
    lease = world.grant()
    world.answer(first)
    assert world.take(LeaseReturn) == [], "there is a second task"
    world.answer(second)
    assert world.take(LeaseReturn) == [LeaseReturn(lease.lease_no, False)]
    (task,) = world.submit()
    lease = world.grant()
    world.lost(lease)
    world.died(lease, running=task)
    world.pass_time(5)
    assert not world.key.leases


def test_leases_at_home_are_returned_at_home() -> None:
    world = World()
    (task,) = world.submit()
    lease = world.grant()
    assert lease.worker[0] == NODE
    world.answer(task)
    world.did()
    world.pass_time(3)
    assert world.take(LeaseReturn) == [LeaseReturn(lease.lease_no, False)]


def test_after_a_final_no_of_another_node_later_tasks_are_asked_for_again() -> None:
    """Such as: somebody else has removed the placement group that this key's tasks are to run in."""
    world = World()
    world.submit(3)
    world.spill(1, hold=True)
    world.did()
    world.do(world.owner.on_infeasible, 1, "its placement group is gone")
    assert [seq for seq, _ in world.finished] == [1, 2, 3]
    nobody = LeaseDemand(1, 0, {"CPU": 10_000}, 0, None, {}, "task f1", 0, True, True)
    assert world.did() == [
        ("at", FAR, DOOR, nobody),
        ("node", LeaseDemand(1, 0, {"CPU": 10_000}, 0, None, {}, "task f1", 1, False, True)),
    ], "neither is to grant what nobody waits for"
    world.submit()
    assert demands_at_home(world) == [(1, 1)], "it does not count on the node that said no"


def test_who_waits_for_a_silent_worker_of_a_spread_key_does_not_spin() -> None:
    """Leases of such keys are returned at once, by a timer of no time; it must not be the one that waits."""
    world = World()
    world.owner.clustered = True
    world.key.strategy = "SPREAD"
    world.submit(1)
    lease = world.grant(worker=world.there("w"))
    world.do(world.owner.on_peer_lost, lease.worker[1])
    assert lease.broken and world.owner.leases
    world.pass_time(1.0)  # would never end
    assert sum(entry[0] == "watch" for entry in world.did()) == 1
