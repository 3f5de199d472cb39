"""Placement groups that wait: what tools are told of them, who counts as overtaken, how often reports are looked at."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from minray._base.groups import STRATEGIES
from minray.gcs.placement_groups import LOOK_S, PlacementGroupTable
from minray.wire.messages import BundlesPrepared, PrepareBundles
from tests.gcs.test_placement_groups import C1, C2, C4, CPU, A, B, Head, gid


class Counting(dict):
    """What nodes say is free, and how often anybody looks."""

    count = 0

    def get(self, key, default=None):
        self.count += 1
        return super().get(key, default)


def node(number: int) -> bytes:
    return number.to_bytes(28, "big")


def large(count: int) -> Head:
    """A cluster of so many nodes of 4 CPUs."""
    head = Head()
    for number in range(count):
        head.join(node(number), 4)
    return head


def test_what_tools_are_told_of_those_that_wait() -> None:
    head = Head(a=2, b=2)
    head.create(1, C2, C2, strategy="STRICT_SPREAD", name="whole")
    assert head.table.waiting(9) == [
        (f"placement group {gid(1).hex()} ('whole')", "STRICT_SPREAD 2 × (CPU: 2)", "nodes are reserving it")
    ]
    head.answer()
    assert head.table.waiting(9) == []
    head.create(2, C1)
    head.create(3, C4)
    head.create(4, C1, C2, strategy="STRICT_SPREAD")
    reasons = {what.split()[-1]: why for what, _, why in head.table.waiting(9)}
    assert reasons == {
        gid(2).hex(): "in use on the nodes that could hold it",
        gid(3).hex(): "the nodes that there are can never hold it",
        gid(4).hex(): "in use on the nodes that could hold it",
    }
    assert [asked for _, asked, _ in head.table.waiting(2)] == ["PACK (CPU: 1)", "PACK (CPU: 4)"]


def test_a_group_that_waits_at_a_node_for_tasks_says_at_which() -> None:
    head = Head(a=2)
    head.free[A] = {"CPU": 0}
    head.create(1, C2)
    assert head.table.waiting(9)[0][2] == f"in use on node {A.hex()[:8]}, where it waits"


def test_a_group_that_has_lost_a_node_says_what_it_has() -> None:
    head = Head(a=2, b=2)
    head.create(1, C2, C2, strategy="STRICT_SPREAD")
    head.answer()
    head.do(head.table.node_lost(B, head.now))
    assert head.table.waiting(9)[0][2] == (
        "the nodes that there are can never hold it; 1 of its 2 bundles have a node"
    )


def test_who_is_being_served_is_not_overtaken() -> None:
    head = Head(a=100)
    for number in range(1, 51):
        head.create(number, C1)
    assert len(head.take(PrepareBundles)) == 50, "each was tried at once"


def test_the_order_of_those_that_wait_survives_a_loss() -> None:
    head = Head(a=2, b=2)
    head.create(1, C2, C2, strategy="STRICT_SPREAD")
    head.answer()
    head.create(2, C2)
    head.do(head.table.node_lost(A, head.now))
    assert [what.split()[-1] for what, _, _ in head.table.waiting(9)] == [gid(1).hex(), gid(2).hex()]
    head.join(A, 2)
    head.answer()
    assert head.state(1) == ("CREATED", "ab")
    assert head.state(2)[0] == "PENDING"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_thousand_nodes_cost_little_more_than_ten(strategy: str) -> None:
    looks = {}
    for count in (10, 1000):
        head = large(count)
        asked = head.free = Counting(head.free)
        for number in range(1, 11):
            head.create(number, C1, C1, C1, strategy=strategy)
            head.answer()
            assert head.state(number)[0] == "CREATED"
        looks[count] = asked.count / 10
    assert looks[10] == 10
    assert looks[1000] <= 15


def test_a_large_cluster_that_is_nearly_full_finds_the_last_hole() -> None:
    head = large(100)
    for node_id in head.free:
        head.free[node_id] = {"CPU": 0}
    last = node(77)
    head.free[last] = {"CPU": 4 * CPU}
    for number, strategy in enumerate(["PACK", "STRICT_PACK", "SPREAD"], 1):
        head.create(number, C1, strategy=strategy)
        assert [n for n, _ in head.take(PrepareBundles)] == [last]


def test_in_a_large_cluster_too_each_group_is_spread_or_packed_as_well_as_can_be() -> None:
    head = large(100)
    for number in range(1, 41):
        head.create(number, *[C1] * 4, strategy="SPREAD" if number % 2 else "PACK")
        asked = head.take(PrepareBundles)
        assert len(asked) == (4 if number % 2 else 1)
        for node_id, message in asked:
            head.do(head.table.prepared(node_id, BundlesPrepared(message.group_id, 1, True, node_id), head.now))
    spread = Counter(n for g in head.table.public().values() for n in g["bundles_to_node_id"].values())
    assert len(spread) > 75, "not always the same nodes"


def test_the_nodes_of_a_large_cluster_come_and_go() -> None:
    dice = random.Random(5)
    head = large(60)
    for number in range(1, 200):
        if dice.random() < 0.3 and len(head.table._ledger) > 5:
            gone = dice.choice(head.table._ledger._nodes)
            head.do(head.table.node_lost(gone, head.now))
        if dice.random() < 0.3:
            head.join(node(1000 + number), 4)
        head.create(number, *[C1] * dice.randint(1, 4), strategy=dice.choice(STRATEGIES))
        head.answer(ok=dice.random() < 0.9)
        if number > 20:
            head.remove(number - 20)
        head.pass_time(0.5)
        head.answer()
    assert head.table.counts()["CREATED"] > 10


def test_reports_of_many_nodes_are_looked_at_together(monkeypatch) -> None:
    head = Head(a=2, b=2)
    head.free[A] = head.free[B] = {"CPU": CPU}
    head.create(1, C2, C2, strategy="STRICT_SPREAD")
    head.answer(ok=False)
    looks: list[float] = []
    look = PlacementGroupTable._look
    monkeypatch.setattr(PlacementGroupTable, "_look", lambda table, now: looks.append(now) or look(table, now))
    for _ in range(100):
        head.now += LOOK_S / 1000
        head.do(head.table.view_changed(head.now))
    assert len(looks) == 1
    head.pass_time(LOOK_S)
    assert len(looks) == 2, "and what came meanwhile is looked at soon"
    head.pass_time(10)
    assert len(looks) == 2
