"""The index of nodes by resource: random joins, changes and requests against a plain scan; and labels."""

from __future__ import annotations

import random

import pytest

from minray._base.labels import describe_selector, matches
from minray._base.node_index import NodeIndex

NAMES = ("CPU", "GPU", "disk", "node:1")
LABELS = {"zone": ("a", "b", "c"), "rack": ("1", "2"), "id": tuple("0123456789")}


def name(number: int) -> bytes:
    return number.to_bytes(28, "big")


@pytest.mark.parametrize("seed", range(30))
def test_candidates_are_those_of_a_scan(seed: int) -> None:
    dice = random.Random(seed)
    index, truth = NodeIndex(), {}
    for step in range(120):
        node = name(dice.randrange(12))
        if dice.random() < 0.2:
            index.drop(node)
            truth.pop(node, None)
        else:
            truth[node] = {key: dice.randrange(1, 4) for key in NAMES if dice.random() < 0.6}
            index.put(node, truth[node])
        index.check_invariants()
        assert len(index) == len(truth)
        request = {key: dice.randrange(4) for key in NAMES if dice.random() < 0.4}
        wanted = {
            node for node, has in truth.items() if all(has.get(key, 0) >= n for key, n in request.items())
        }
        found = list(index.candidates(request, step))
        assert len(found) == len(set(found)) and set(found) == wanted
        assert index.feasible(request) == bool(wanted)


def some_selector(dice: random.Random) -> dict[str, tuple[str, tuple[str, ...]]]:
    selector = {}
    for label, values in LABELS.items():
        if dice.random() < 0.4:
            op = dice.choice(("in", "notin", "exists", "absent"))
            some = dice.sample(values, dice.randint(1, len(values))) if op in ("in", "notin") else ()
            selector[label] = (op, tuple(some))
    return selector


@pytest.mark.parametrize("seed", range(30))
def test_candidates_with_labels_are_those_of_a_scan(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minray._base.node_index.REMEMBERED", 5)
    dice = random.Random(seed)
    index, truth = NodeIndex(), {}
    for step in range(150):
        node = name(dice.randrange(12))
        if dice.random() < 0.2:
            index.drop(node)
            truth.pop(node, None)
        else:
            totals = {key: dice.randrange(1, 4) for key in NAMES if dice.random() < 0.6}
            if node in truth and dice.random() < 0.4:
                truth[node] = (totals, truth[node][1])
                index.put(node, totals)
            else:
                labels = {key: dice.choice(some) for key, some in LABELS.items() if dice.random() < 0.6}
                truth[node] = (totals, labels)
                index.put(node, totals, labels)
        request = {key: dice.randrange(4) for key in NAMES if dice.random() < 0.3}
        selector = some_selector(dice)
        wanted = {
            node
            for node, (has, labels) in truth.items()
            if all(has.get(key, 0) >= n for key, n in request.items()) and matches(labels, selector)
        }
        found = list(index.candidates(request, step, selector))
        assert len(found) == len(set(found)) and set(found) == wanted
        assert index.feasible(request, selector) == bool(wanted)
        index.check_invariants()


@pytest.mark.parametrize(
    "condition", [("in", ("rare",)), ("in", ("rare", "rarer")), ("notin", ("common",)), ("exists", ())]
)
def test_a_rare_label_is_looked_up_and_not_searched_for(condition: tuple[str, tuple[str, ...]]) -> None:
    index = NodeIndex()
    for number in range(1000):
        kind = {"kind": "rare" if number == 777 else "common"} if condition[0] != "exists" or number == 777 else {}
        index.put(name(number), {"CPU": 10}, kind)
    looked = []
    holds = index.holds
    index.holds = lambda node, request: looked.append(node) or holds(node, request)  # type: ignore
    for start in range(20):
        assert list(index.candidates({"CPU": 1}, start, {"kind": condition})) == [name(777)]
    assert looked == [name(777)] * 20


def test_equal_nodes_take_turns() -> None:
    index = NodeIndex()
    for number in range(5):
        index.put(name(number), {"CPU": 10})
    first = [next(index.candidates({"CPU": 1}, start)) for start in range(5)]
    assert sorted(first) == [name(number) for number in range(5)]


def test_a_rare_resource_is_looked_up_and_not_searched_for() -> None:
    index = NodeIndex()
    for number in range(1000):
        index.put(name(number), {"CPU": 10, **({"GPU": 1} if number == 777 else {})})
    looked = []
    holds = index.holds
    index.holds = lambda node, request: looked.append(node) or holds(node, request)  # type: ignore
    assert list(index.candidates({"CPU": 1, "GPU": 1}, 5)) == [name(777)]
    assert looked == [name(777)]


@pytest.mark.parametrize(
    ("selector", "agrees"),
    [
        ({}, True),
        ({"zone": ("in", ("a", "b"))}, True),
        ({"zone": ("in", ("b",))}, False),
        ({"zone": ("notin", ("b",))}, True),
        ({"zone": ("notin", ("a",))}, False),
        ({"color": ("notin", ("red",))}, True),
        ({"color": ("in", ("red",))}, False),
        ({"zone": ("exists", ())}, True),
        ({"color": ("exists", ())}, False),
        ({"color": ("absent", ())}, True),
        ({"zone": ("absent", ())}, False),
        ({"zone": ("in", ("a",)), "color": ("exists", ())}, False),
    ],
)
def test_selectors(selector: dict, agrees: bool) -> None:
    assert matches({"zone": "a"}, selector) is agrees


def test_a_selector_in_words() -> None:
    selector = {"zone": ("in", ("a", "b")), "gpu": ("exists", ())}
    assert describe_selector(selector) == "zone in (a, b), gpu exists"
