"""Which node an actor goes to: what is free, labels, bounces; the price of it; reports and deadlines."""

from __future__ import annotations

from typing import Any

import pytest

from minray.gcs.nodes import NodeTable, Unplaceable
from minray.wire.messages import NodeReport

CPU = {"CPU": 10_000}
HERE = (b"\x00" * 28, b"o" * 28, "")


def name(number: int) -> bytes:
    return number.to_bytes(28, "big")


def table_of(count: int, cpus: int = 1, **labels: Any) -> NodeTable:
    table = NodeTable()
    for number in range(count):
        info = {"node_id": name(number), "resources": {"CPU": cpus * 10_000}}
        table.add({**info, "labels": {key: value(number) for key, value in labels.items()}}, now=1.0)
    return table


def spec(**more: Any) -> dict[str, Any]:
    return {"placement_resources": CPU, "owner": HERE, **more}


def report(table: NodeTable, number: int, cpus: float, load: int = 0, **totals: int) -> tuple[bool, bool]:
    has = {"CPU": 10_000, **totals}
    return table.report(name(number), NodeReport({"CPU": int(cpus * 10_000)}, has, load, []))


def test_free_nodes_come_first() -> None:
    table = table_of(3)
    report(table, 0, 0)
    report(table, 2, 0)
    assert table.place(spec(), {name(1): 9}) == name(1)
    table.check_invariants()


def test_what_was_placed_counts_until_the_next_report() -> None:
    table = table_of(4)
    placed = [table.place(spec(), {}) for _ in range(4)]
    assert sorted(placed) == [name(number) for number in range(4)]
    report(table, 2, 1)
    assert table.place(spec(), {}) == name(2)


def test_reports_are_not_changed_by_placing() -> None:
    table = table_of(2)
    message = NodeReport({"CPU": 10_000}, {"CPU": 10_000}, 0, [])
    table.report(name(0), message)
    table.report(name(1), message)
    table.place(spec(), {})
    assert message.available == {"CPU": 10_000}


def test_what_a_report_changes() -> None:
    table = table_of(1)
    assert report(table, 0, 1) == (False, False)
    assert report(table, 0, 0) == (True, False)
    assert report(table, 0, 0, load=3) == (True, False)
    assert report(table, 0, 0, load=3, bundle=5) == (True, True)
    assert table.totals() == {"CPU": 1.0, "bundle": 0.0005}
    assert table.row(name(0))[3:] == ({"CPU": 10_000, "bundle": 5}, {"CPU": 0}, {}, 3)
    table.check_invariants()


def test_the_node_that_refused_is_the_last_to_be_asked_again() -> None:
    table = table_of(2)
    assert table.place(spec(), {name(1): 5}, name(0)) == name(1)
    table.lost(name(1), "gone")
    assert table.place(spec(), {}, name(0)) == name(0)


def test_labels() -> None:
    table = table_of(6, zone=lambda n: "ab"[n % 2], gpu=lambda n: "yes" if n == 5 else "no")
    hard = {"zone": ("in", ("b",))}
    found = {table.place(spec(strategy=("labels", hard, {})), {}) for _ in range(9)}
    assert found == {name(1), name(3), name(5)}
    soft = {"gpu": ("in", ("yes",))}
    assert {table.place(spec(strategy=("labels", hard, soft)), {}) for _ in range(5)} == {name(5)}
    hopeless = {"zone": ("in", ("c",))}
    assert table.place(spec(strategy=("labels", hopeless, {})), {}) == name(0)  # the owner's: it reports that


def test_spread_goes_around() -> None:
    table = table_of(3, cpus=4)
    actors: dict[bytes, int] = {}
    for _ in range(9):
        node = table.place(spec(strategy="SPREAD"), actors)
        assert node is not None
        actors[node] = actors.get(node, 0) + 1
    assert set(actors.values()) == {3}


def test_soft_affinity_to_a_node_that_could_never_hold_it() -> None:
    table = table_of(1)
    table.add({"node_id": name(9), "resources": {"CPU": 10_000, "GPU": 10_000}}, now=1.0)
    wish = spec(placement_resources={"GPU": 10_000}, strategy=("affinity", name(0), True))
    assert table.place(wish, {}) == name(9)


def test_the_price_of_a_decision_does_not_grow_with_the_cluster() -> None:
    def price(count: int) -> float:
        table = table_of(count)
        looked = 0
        holds = table._index.holds

        def counting(*args: Any) -> bool:
            nonlocal looked
            looked += 1
            return holds(*args)

        table._index.holds = counting  # type: ignore[method-assign]
        for _ in range(500):
            table.place(spec(), {})
        return looked / 500

    assert price(1000) <= 1.5 * price(10) <= 1.5 * 8


def test_who_died_stays_dead() -> None:
    table = table_of(2)
    assert table.why_fenced(name(0)) is None and table.why_fenced(name(7)) is None
    table.lost(name(0), "no heartbeat")
    assert table.why_fenced(name(0)) == table.death_of(name(0)) == "no heartbeat"
    assert "does not know" in table.death_of(name(7))


def test_of_an_earlier_life_only_the_living_may_return() -> None:
    table = table_of(2)
    rows = [effect[2:] for number in (0, 1) for effect in table.lost(name(number), "gone")[1]]
    rows[1] = (rows[1][0], ({**rows[1][1][0], "alive": True},))
    again = NodeTable()
    again.restore(rows)
    assert again.why_fenced(name(0)) == "gone" and again.why_fenced(name(1)) is None
    again.add({"node_id": name(1)}, now=1.0)
    again.check_invariants()


def test_what_only_an_expected_node_may_have_waits_for_it() -> None:
    first, rows = NodeTable(), {}
    for number, cpus, head in ((0, 1, True), (1, 4, False)):
        info = {"node_id": name(number), "resources": {"CPU": cpus * 10_000}, "is_head": head}
        rows.update((key, row) for _, _, key, row in first.add(info, 1.0))
    table = NodeTable()
    table.restore(list(rows.items()))
    assert table.expected() == [name(0), name(1)] and table.was_head(name(0)) and not table.was_head(name(1))
    large, bound = spec(placement_resources={"CPU": 40_000}), spec(strategy=("affinity", name(1), False))
    assert [table.place(one, {}) for one in (large, bound, spec())] == [None, None, None], "nobody is there"
    table.add({"node_id": name(2), "resources": CPU}, 2.0)
    assert [table.place(one, {}) for one in (large, bound, spec())] == [None, None, name(2)]
    assert table.strangers([name(0), name(1), name(3)]) == [name(3)]
    assert table.lost(name(0), "killed")[0] and not table.lost(name(0), "killed")[0]
    table.check_invariants()
    assert table.why_fenced(name(0), again=True) == "killed" and table.why_fenced(name(1), again=True) is None
    table.lost(name(1), "silent")
    assert table.place(large, {}) == name(2), "it will never come: that node says so"
    with pytest.raises(Unplaceable, match="not alive"):
        table.place(bound, {})
    table.check_invariants()


def test_who_was_let_in_by_another_head_is_no_node_of_this_one() -> None:
    table = table_of(1)
    assert table.why_fenced(name(7)) is None and "does not know it" in str(table.why_fenced(name(7), again=True))
    assert table.why_fenced(name(0), again=True) is None


def test_those_who_may_return_are_not_forgotten() -> None:
    table = table_of(5)
    rows = [(node_id, (row,)) for node_id, row in table._nodes.items()]
    again = NodeTable(keep_dead=2)
    again.restore(rows)
    for number in range(10, 14):
        again.add({"node_id": name(number)}, now=1.0)
        again.lost(name(number), "gone")
        again.check_invariants()
    assert all(again.why_fenced(name(number), again=True) is None for number in range(5))
    assert again.why_fenced(name(13)) == "gone" and again.why_fenced(name(10)) is None


def test_deadlines() -> None:
    table = table_of(3)
    assert table.next_deadline(10.0) is None and table.overdue(1e9, 10.0) == []
    for number, at in ((0, 1.0), (1, 2.0), (0, 5.0)):
        table.heard(name(number), at)
    assert table.next_deadline(10.0) == 12.0
    assert table.overdue(11.9, 10.0) == [] and table.overdue(12.0, 10.0) == [name(1)]
    assert table.overdue(15.0, 10.0) == [name(1), name(0)]
    table.pardon(100.0)
    assert table.overdue(109.0, 10.0) == []
    table.lost(name(1), "no heartbeat")
    table.check_invariants()
    assert table.overdue(110.0, 10.0) == [name(0)]


def test_status_is_for_humans() -> None:
    table = table_of(1)
    table.report(name(0), NodeReport({"CPU": 5_000}, CPU, 2, [("task f", {"CPU": 20_000}, 7)]))
    (shown,) = table.status()
    assert shown["totals"] == {"CPU": 1.0} and shown["available"] == {"CPU": 0.5}
    assert shown["load"] == 2 and shown["waiting"] == [("task f", {"CPU": 2.0}, 7)]
    table.lost(name(0), "gone")
    (shown,) = table.status()
    assert not shown["alive"] and shown["death_reason"] == "gone" and shown["totals"] == {}


def test_an_unknown_operator_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="no operator"):
        table_of(2, a=lambda n: "b").place(spec(strategy=("labels", {"a": ("like", ())}, {})), {})
