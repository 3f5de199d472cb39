"""What of a demand goes to other nodes. See also tests/sim/test_leases_over_nodes.py."""

from __future__ import annotations

from collections import Counter
from typing import Any

from minray.node.demands import WorkerClass
from minray.node.view import BOOKED_S, View
from minray.wire.messages import (
    ClusterView,
    LeaseDecline,
    LeaseGrant,
    LeaseInfeasible,
    LeaseRevoke,
    LeaseSpill,
    PrepareBundles,
    Resources,
)

from .support import CPU1, DRIVER, JOB, NODE, World

STRANGER = b"s" * 28
A, B = b"a" * 28, b"b" * 28


def row(node_id: bytes, free: Resources, totals: Resources | None = None, **labels: str) -> tuple[Any, ...]:
    return (node_id, f"tcp:{node_id[:1].decode()}:1", "10.0.0.1", totals or free, free, labels, 0)


class Cluster(World):
    def see(self, *rows: tuple[Any, ...], gone: tuple[bytes, ...] = ()) -> None:
        self.table.away.view.apply(ClusterView(list(rows), list(gone)))
        self.do(self.table.view_changed(self.now))

    def stranger(self, wanted: int, **fields: Any) -> None:
        if STRANGER not in self.table.addresses:
            self.table.stranger_joined(STRANGER, (A, STRANGER, "tcp:a:2"), WorkerClass(JOB))
        self.demand(wanted, owner=STRANGER, **fields)

    def spills(self) -> list[tuple[bytes, int, bool]]:
        return [(m.node_id, m.count, m.hold) for m in self.take(LeaseSpill, DRIVER)]


def test_half_of_this_node_is_filled_before_others_are_looked_at() -> None:
    world = Cluster(cpus=4)
    world.see(row(A, {"CPU": 40_000}))
    world.demand(2)
    assert world.spills() == []
    world.register_all()
    assert len(world.take(LeaseGrant)) == 2
    world.demand(4)
    assert world.spills() == [(A, 2, False)]


def test_beyond_half_the_least_used_is_next() -> None:
    world = Cluster(cpus=4)
    world.see(row(A, {"CPU": 20_000}, {"CPU": 80_000}), row(B, {"CPU": 60_000}, {"CPU": 80_000}))
    world.demand(8)
    # here to 2 of 4, B to 4 of 8; then both are at 1/2, A at 6/8: here, B, B (5/8), here (3/4), …
    assert world.spills() == [(B, 4, False)]
    (demand,) = world.table.demands.values()
    assert demand.wanted == 4


def test_what_waits_in_front_counts_as_use() -> None:
    world = Cluster(cpus=2)
    world.demand(2, key=1)
    world.see(row(A, {"CPU": 80_000}))
    world.demand(1, key=2)
    assert world.spills() == [(A, 1, False)]


def test_what_asks_for_nothing_stays_here() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {"CPU": 80_000}))
    world.demand(20, resources={})
    assert world.spills() == []


def test_tasks_go_where_their_arguments_are_as_far_as_there_is_room() -> None:
    world = Cluster(cpus=8)
    world.see(row(A, {"CPU": 20_000}), row(B, {"CPU": 80_000}))
    world.demand(3, strategy=("near", A))
    assert world.spills() == [(A, 2, False)], "the third is packed here: this node is idle"
    world.demand(1, key=2, strategy=("near", A))
    assert world.spills() == [], "what A was asked for counts until its next word"
    world.see(gone=(A,))
    world.demand(2, key=2, strategy=("near", A))
    assert world.spills() == []


def test_labels_that_it_had_better_have() -> None:
    world = Cluster(cpus=4)
    world.see(row(A, {"CPU": 10_000}, disk="ssd"), row(B, {"CPU": 40_000}))
    world.demand(3, strategy=("labels", {}, {"disk": ("in", ("ssd",))}))
    assert world.spills() == [(A, 1, False)]
    world.register_all()
    assert len(world.take(LeaseGrant)) == 2, "the rest makes do without"


def test_soft_labels_do_not_outweigh_hard_ones() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {"CPU": 10_000}, disk="ssd"), row(B, {"CPU": 10_000}, zone="b"))
    hard, soft = {"zone": ("in", ("b",))}, {"disk": ("in", ("ssd",)), "zone": ("in", ("a",))}
    world.demand(1, strategy=("labels", hard, soft))
    assert world.spills() == [(B, 1, False)]


def test_an_unknown_label_is_named_with_what_the_nodes_have() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {"CPU": 10_000}, zone="a"), row(B, {"CPU": 10_000}, zone="a"))
    world.demand(1, strategy=("labels", {"zone": ("in", ("x",))}, {}))
    (warning,) = world.take(LeaseInfeasible)
    assert f"2 nodes ({A.hex()[:8]}, {B.hex()[:8]}) have CPU: 1, zone=a each" in warning.text
    assert "has CPU: 1, no label zone in all" in warning.text


def test_room_elsewhere_is_shared_by_all_who_wait() -> None:
    world = Cluster(cpus=1)
    others = {DRIVER: 1000, b"e" * 28: 3, b"f" * 28: 50}
    for owner, wanted in others.items():
        world.demand(wanted, owner=owner)
    world.register_all()
    given: Counter[bytes] = Counter()
    for _ in range(6):
        world.see(row(A, {"CPU": 10_000}))
        given.update(owner for owner, m in world.sent if isinstance(m, LeaseSpill))
        world.sent.clear()
    assert given == dict.fromkeys(others, 2)
    world.see(row(A, {"CPU": 10_000}), row(B, {"CPU": 10_000}))
    assert {owner for owner, m in world.sent if isinstance(m, LeaseSpill)} <= set(others)
    assert len(world.take(LeaseSpill)) == 2


def test_a_flood_that_cannot_run_here_is_held_at_many_nodes() -> None:
    world = Cluster(cpus=1)
    names = [bytes([number]) * 28 for number in range(65, 105)]
    world.see(*(row(name, {}, {"GPU": 10_000}) for name in names))
    world.demand(160, resources={"GPU": 10_000})
    assert sorted(world.spills()) == [(name, 4, True) for name in names]


def test_what_lacks_resources_goes_where_they_seem_free() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {"CPU": 20_000}), row(B, {"CPU": 10_000}))
    world.demand(6)
    assert sorted(world.spills()) == [(A, 2, False), (B, 1, False)]
    world.see(row(A, {"CPU": 10_000}, {"CPU": 20_000}))
    assert world.spills() == [(A, 1, False)], "news of the others are looked at"


def test_a_refusal_that_the_owner_has_not_heard_of_is_not_asked_for_twice() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {"CPU": 20_000}))
    world.demand(3)
    assert world.spills() == [(A, 2, False)]
    world.demand(4)  # sent before the spill was heard
    (demand,) = world.table.demands.values()
    assert demand.wanted == 2
    world.demand(2, refused=2)
    assert demand.wanted == 2


def test_a_demand_that_can_never_run_here_is_held_where_it_can() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {}, {"GPU": 10_000}), row(B, {"CPU": 10_000}))
    world.demand(3, resources={"GPU": 10_000})
    assert world.spills() == [(A, 3, True)]
    assert not world.table.demands


def test_what_nobody_can_hold_is_said_with_all_totals_and_tried_when_a_node_joins() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {"CPU": 30_000}))
    world.demand(1, resources={"TPU": 10_000})
    (warning,) = world.take(LeaseInfeasible)
    assert not warning.fatal
    assert "TPU: 1" in warning.text and "CPU: 1" in warning.text and "CPU: 3" in warning.text
    world.see(row(B, {"TPU": 10_000}))
    assert world.spills() == [(B, 1, False)]
    world.pass_time(60)
    assert world.take(LeaseInfeasible) == []


def test_affinity() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {}, {"CPU": 10_000}))
    world.demand(2, key=1, strategy=("affinity", A, False))
    assert world.spills() == [(A, 2, True)]
    world.demand(1, key=2, strategy=("affinity", B, False))
    assert world.take(LeaseInfeasible) == [], "it may just have joined"
    world.pass_time(2)
    (fatal,) = world.take(LeaseInfeasible)
    assert fatal.fatal and B.hex() in fatal.text and "not alive" in fatal.text
    world.demand(1, key=3, strategy=("affinity", B, True))
    world.register_all()
    assert len(world.take(LeaseGrant)) == 1


def test_hard_affinity_to_a_node_that_is_heard_of_a_little_later() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {}, {"CPU": 10_000}))
    world.demand(2, strategy=("affinity", B, False))
    world.see(row(B, {"CPU": 10_000}))
    assert world.spills() == [(B, 2, True)]
    world.pass_time(60)
    assert world.take(LeaseInfeasible) == []
    world.see(gone=(B,))
    world.demand(2, key=2, strategy=("affinity", B, False))
    (fatal,) = world.take(LeaseInfeasible)
    assert fatal.fatal, "that it has gone is known"


def test_hard_affinity_to_a_node_that_is_too_small_is_an_error_at_once() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {}, {"CPU": 10_000, "node:x": 10_000}))
    for key, node_id, has in ((1, A, "CPU: 1"), (2, world.table.node_id, "CPU: 1")):
        world.demand(1, key=key, resources={"CPU": 20_000}, strategy=("affinity", node_id, False))
        (fatal,) = world.take(LeaseInfeasible)
        assert fatal.fatal and f"too small for CPU: 2: it has {has} in all" in fatal.text
    assert not world.table.demands
    world.see(row(B, {"CPU": 20_000}))
    world.demand(1, key=3, resources={"CPU": 20_000}, strategy=("affinity", A, True))
    assert world.spills() == [(B, 1, False)]


def test_labels() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {"CPU": 10_000}, zone="a"), row(B, {"CPU": 10_000}, zone="b"))
    world.demand(1, strategy=("labels", {"zone": ("in", ("b",))}, {}))
    assert world.spills() == [(B, 1, False)]
    world.demand(1, key=2, strategy=("labels", {"zone": ("in", ("c",))}, {}))
    (warning,) = world.take(LeaseInfeasible)
    assert "zone in (c)" in warning.text


def test_spread_goes_round() -> None:
    world = Cluster(cpus=4)
    world.see(row(A, {"CPU": 40_000}), row(B, {"CPU": 40_000}))
    world.demand(6, strategy="SPREAD")
    assert sorted(world.spills()) == [(A, 2, False), (B, 2, False)]


def test_spread_goes_round_also_one_by_one() -> None:
    world = Cluster(cpus=4)
    world.see(row(A, {"CPU": 40_000}), row(B, {"CPU": 40_000}))
    where = []
    for _ in range(6):
        world.demand(1, strategy="SPREAD", refused=sum(name is not None for name in where))
        where.append(next((node_id for node_id, _, _ in world.spills()), None))
        world.demand(0, strategy="SPREAD", refused=sum(name is not None for name in where))
    assert where == [None, A, B] * 2


def test_spread_of_a_demand_that_grows() -> None:
    """While its first workers start here: what was left for them is not given to others, too."""
    world = Cluster(cpus=4)
    world.see(row(A, {"CPU": 40_000}), row(B, {"CPU": 40_000}))
    sent: list[bytes] = []
    for wanted in (1, 2, 4, 9):
        world.demand(wanted - len(sent), strategy="SPREAD", refused=len(sent))
        for node_id, count, _ in world.spills():
            sent += [node_id] * count
    assert (sent.count(A), sent.count(B)) == (3, 3)


def test_spread_asks_nobody_for_more_than_there_is() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {"CPU": 10_000}), row(B, {"CPU": 20_000}))
    world.demand(9, strategy="SPREAD")
    assert sorted(world.spills()) == [(A, 1, False), (B, 2, False)]


def test_a_stranger_gets_what_is_free_and_a_no_for_the_rest() -> None:
    world = Cluster(cpus=1)
    world.stranger(3)
    world.register_all()
    assert len(world.take(LeaseGrant, STRANGER)) == 1
    assert world.take(LeaseDecline) == []
    world.pass_time(0.1)
    assert world.take(LeaseDecline, STRANGER) == [LeaseDecline(1, 2)]
    world.pass_time(60)
    assert world.take(LeaseDecline) == []


def test_for_a_stranger_leases_are_taken_back_that_nobody_needs_but_no_others() -> None:
    world = Cluster(cpus=2)
    world.demand(2)
    world.register_all()
    first, _ = world.take(LeaseGrant)
    world.pass_time(10)
    world.stranger(1)
    assert world.take(LeaseRevoke) == []
    world.demand(1)  # one of the two is not needed any more: which, only the owner knows
    assert {revoke.lease_no for revoke in world.take(LeaseRevoke)} == {first.lease_no}
    world.ended(first.lease_no)
    assert len(world.take(LeaseGrant, STRANGER)) == 1
    assert world.take(LeaseDecline) == []


def test_a_stranger_that_asks_for_what_is_not_here_hears_no() -> None:
    world = Cluster(cpus=1)
    world.stranger(2, resources={"GPU": 10_000})
    assert world.take(LeaseDecline, STRANGER) == [LeaseDecline(1, 2)]


def test_a_stranger_may_wait_if_it_is_to_be_held() -> None:
    world = Cluster(cpus=1)
    world.demand(1)
    world.register_all()
    (mine,) = world.take(LeaseGrant)
    world.stranger(1, hold=True)
    assert world.take(LeaseDecline) == []
    world.do(world.table.returned(DRIVER, mine.lease_no, False, world.now))
    assert len(world.take(LeaseGrant, STRANGER)) == 1


def test_what_is_held_goes_when_another_node_has_room() -> None:
    world = Cluster(cpus=1)
    world.demand(1)
    world.register_all()
    world.stranger(3, hold=True)
    world.stranger(1, key=2, hold=True, strategy=("affinity", world.table.node_id, True))
    world.pass_time(1)
    world.see(row(B, {}, {"CPU": 20_000}))
    assert world.take(LeaseDecline) == []
    world.see(row(B, {"CPU": 20_000}))
    assert world.take(LeaseDecline, STRANGER) == [LeaseDecline(1, 2)]
    assert world.take(LeaseSpill) == []


def test_what_was_asked_of_a_node_that_says_nothing_is_not_believed_for_ever() -> None:
    """It has granted nothing, so its use has not changed, so it has nothing to report."""
    world = Cluster(cpus=1)
    world.demand(1)
    world.register_all()
    world.see(row(B, {"CPU": 10_000}))
    world.stranger(2, hold=True)
    world.pass_time(0.1)
    assert world.take(LeaseDecline, STRANGER) == [LeaseDecline(1, 1)]
    world.pass_time(0.5)
    assert world.take(LeaseDecline, STRANGER) == []
    world.pass_time(1.0)
    assert world.take(LeaseDecline, STRANGER) == [LeaseDecline(1, 1)]


def test_what_is_booked_is_forgotten_with_the_next_word_or_in_time() -> None:
    view = View(NODE)
    view.apply(ClusterView([row(A, {"CPU": 20_000}), row(B, {"CPU": 20_000})], []))
    assert view.expire(0.0) is None
    view.book(A, {"CPU": 5_000}, 2)
    assert view.expire(1.0) == 1.0 + BOOKED_S
    view.book(B, {"CPU": 20_000})
    assert view.expire(1.5) == 1.0 + BOOKED_S
    assert view.nodes[A].available == {"CPU": 10_000} and view.nodes[B].available == {"CPU": 0}
    assert view.expire(2.0) == 1.5 + BOOKED_S
    assert view.nodes[A].available == {"CPU": 20_000} and view.nodes[B].available == {"CPU": 0}
    view.apply(ClusterView([row(B, {"CPU": 10_000})], []))
    assert view.expire(2.1) is None and view.nodes[B].available == {"CPU": 10_000}
    view.book(A, {"CPU": 5_000})
    view.apply(ClusterView([], [A]))
    assert view.expire(9.0) is None
    view.check_invariants()


def test_nothing_is_spilled_for_strangers() -> None:
    world = Cluster(cpus=1)
    world.see(row(B, {"CPU": 80_000}))
    world.stranger(3)
    assert world.take(LeaseSpill) == []


def test_an_owner_that_is_gone_is_forgotten() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, {"CPU": 20_000}))
    world.demand(3, strategy="SPREAD")
    world.stranger(1)
    for owner in (DRIVER, STRANGER):
        world.do(world.table.owner_gone(owner, world.now))
    away = world.table.away
    assert not away.strangers and not away._refused and not away._turns


def test_cpu_free_requests_are_spilled_nowhere_when_they_fit() -> None:
    world = Cluster(cpus=1)
    world.see(row(A, CPU1))
    world.demand(3, resources={})
    world.register_all()
    assert len(world.take(LeaseGrant)) == 3
    assert world.spills() == []


def test_bundles_of_placement_groups_wait_here() -> None:
    """Which node they are for, the GCS has decided."""
    world = Cluster(cpus=1)
    world.demand(1)
    world.register_all()
    world.do(world.table.bundles.order(PrepareBundles(b"g" * 14 + JOB, 1, [(0, CPU1)]), world.now))
    world.see(row(A, {"CPU": 80_000}))
    world.now += 10.0
    world.do(world.table.tick(world.now))
    world.do(world.table.schedule(world.now))
    assert len(world.table.queue) == 1
    assert world.spills() == []
