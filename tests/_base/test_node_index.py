"""The index of nodes by resource: random joins, changes and requests against a plain scan; and labels."""

from __future__ import annotations

import random

import pytest

from minray._base.labels import describe_selector, matches
from minray._base.node_index import NodeIndex

NAMES = ("CPU", "GPU", "disk", "node:1")


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
