"""Placement groups that wait: what tools are told of them, who counts as overtaken, how often reports are looked at."""

from __future__ import annotations

from minray.gcs.placement_groups import LOOK_S, PlacementGroupTable
from minray.wire.messages import PrepareBundles
from tests.gcs.test_placement_groups import C1, C2, C4, CPU, A, B, Head, gid


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
