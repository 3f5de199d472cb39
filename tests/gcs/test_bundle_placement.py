"""Where bundles go: each strategy by example, and all of them against a search of everything."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from minray._base.labels import matches
from minray.gcs.bundle_placement import NodeRoom, Placement, Question, choose

Units = Mapping[str, int]


def rooms(*nodes: Units, labels: Sequence[Mapping[str, str]] = ()) -> list[NodeRoom]:
    """Nodes a, b, c, … with this much free."""
    return [NodeRoom(bytes([ord("a") + i]), free, labels[i] if labels else {}) for i, free in enumerate(nodes)]


def ask(bundles: Sequence[Units], strategy: str, nodes: list[NodeRoom], **more: Any) -> str | None:
    """The node of each bundle, as letters."""
    placed = choose(Question(dict(enumerate(bundles)), strategy, **more), nodes)
    if placed is None:
        return None
    check(Question(dict(enumerate(bundles)), strategy, **more), nodes, placed)
    return "".join(placed[i].decode() for i in range(len(bundles)))


def check(question: Question, nodes: list[NodeRoom], placed: Placement) -> None:
    """The invariants of a placement."""
    assert placed.keys() == question.bundles.keys()
    by_id = {room.node_id: room for room in nodes}
    for node_id in set(placed.values()):
        for name in {name for bundle in question.bundles.values() for name in bundle}:
            need = sum(question.bundles[i].get(name, 0) for i, n in placed.items() if n == node_id)
            assert need <= by_id[node_id].free.get(name, 0)
    for index, node_id in placed.items():
        assert matches(by_id[node_id].labels, question.selectors.get(index, {}))
    used = [*placed.values(), *question.settled]
    if question.strategy == "STRICT_SPREAD":
        assert len(set(used)) == len(used)
    if question.strategy == "STRICT_PACK":
        assert len(set(used)) == 1


C1, C2, C3 = {"CPU": 1}, {"CPU": 2}, {"CPU": 3}
THREE = [{"CPU": 2}, {"CPU": 2}, {"CPU": 4}]


@pytest.mark.parametrize(
    ("strategy", "bundles", "expected"),
    [
        ("PACK", [C1, C1], "aa"),  # the tightest that takes all
        ("PACK", [C1, C1, C1], "ccc"),
        ("PACK", [C2, C2, C2], "cca"),
        ("PACK", [C2, C2, C2, C2], "ccab"),
        ("PACK", [C2, C2, C2, C2, C2], None),
        ("PACK", [C3, C1, C1], "caa"),
        ("SPREAD", [C1, C1], "ca"),
        ("SPREAD", [C1, C1, C1], "cab"),
        ("SPREAD", [C1, C1, C1, C1], "cabc"),
        ("SPREAD", [C2, C2, C2, C2], "cabc"),
        ("SPREAD", [C3, C1, C1], "cab"),
        ("SPREAD", [C3, C3], None),
        ("STRICT_PACK", [C1, C1, C2], "ccc"),
        ("STRICT_PACK", [C2, C2, C2], None),
        ("STRICT_SPREAD", [C1, C1, C1], "abc"),
        ("STRICT_SPREAD", [C1, C1, C3], "abc"),
        ("STRICT_SPREAD", [C1, C1, C1, C1], None),
        ("STRICT_SPREAD", [C3, C3], None),
    ],
)
def test_three_nodes(strategy: str, bundles: list[Units], expected: str | None) -> None:
    assert ask(bundles, strategy, rooms(*THREE)) == expected


def test_no_node_at_all() -> None:
    for strategy in ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"):
        assert ask([C1], strategy, []) is None


def test_devices_that_nobody_asks_for_are_spared() -> None:
    nodes = rooms({"CPU": 2, "GPU": 1}, {"CPU": 8})
    assert ask([C1], "PACK", nodes) == "b"
    assert ask([C1], "SPREAD", nodes) == "b"
    assert ask([{"CPU": 1, "GPU": 1}], "PACK", nodes) == "a"
    assert ask([C1, {"GPU": 1}], "SPREAD", nodes) == "ba"


def test_strict_spread_moves_others_along() -> None:
    """The first bundle must leave the only node that the second one fits."""
    nodes = rooms({"CPU": 1, "x": 1}, {"CPU": 1, "x": 1, "y": 1}, {"CPU": 1, "y": 1, "z": 1})
    assert ask([{"x": 1}, {"y": 1}, {"z": 1}], "STRICT_SPREAD", nodes) == "abc"
    assert ask([{"y": 1}, {"z": 1}, {"x": 1}], "STRICT_SPREAD", nodes) == "bca"


def test_what_the_quick_rules_miss_is_searched() -> None:
    nodes = rooms({"CPU": 6}, {"CPU": 7})  # largest first would put 4 and 3 together, and strand a 3
    assert ask([{"CPU": 4}, C3, C3, C3], "PACK", nodes) is not None
    assert ask([{"CPU": 4}, C3, C3, C3], "SPREAD", nodes) is not None


def test_nodes_that_have_bundles_already() -> None:
    nodes = rooms(*THREE)
    assert ask([C1], "PACK", nodes, settled={b"b": 1}) == "b"
    assert ask([C1], "SPREAD", nodes, settled={b"c": 1, b"a": 1}) == "b"
    assert ask([C1, C1], "STRICT_SPREAD", nodes, settled={b"c": 1}) == "ab"
    assert ask([C1, C1], "STRICT_SPREAD", nodes, settled={b"c": 1, b"a": 1}) is None
    assert ask([C3], "STRICT_PACK", nodes, settled={b"a": 1}) is None


def test_the_node_to_try_first() -> None:
    assert ask([C1], "STRICT_PACK", rooms(*THREE), preferred=b"b") == "b"
    assert ask([C3], "STRICT_PACK", rooms(*THREE), preferred=b"b") == "c"


def test_selectors() -> None:
    nodes = rooms(*THREE, labels=[{"zone": "x"}, {"zone": "y"}, {"zone": "y"}])
    in_x: Any = {"zone": ("in", ("x",))}
    for strategy in ("PACK", "SPREAD", "STRICT_SPREAD"):
        assert (ask([C1, C1], strategy, nodes, selectors={1: in_x}) or "?")[1] == "a"
    assert ask([C1, C1], "STRICT_PACK", nodes, selectors={1: in_x}) == "aa"
    assert ask([C3], "PACK", nodes, selectors={0: in_x}) is None


def brute_force(question: Question, nodes: list[NodeRoom]) -> bool:
    """Whether any placement keeps the invariants."""
    for nodes_of in itertools.product([room.node_id for room in nodes], repeat=len(question.bundles)):
        try:
            check(question, nodes, dict(zip(question.bundles, nodes_of, strict=True)))
        except AssertionError:
            continue
        return True
    return False


@pytest.mark.parametrize("seed", range(20))
def test_a_placement_is_found_exactly_if_there_is_one(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(30):
        kinds = ["CPU", "GPU", "thing"][: rng.randint(1, 3)]
        labels = [{"zone": rng.choice("xy")} for _ in range(4)]
        nodes = rooms(*({kind: rng.randint(0, 4) for kind in kinds} for _ in range(rng.randint(1, 4))), labels=labels)
        bundles = {i: {rng.choice(kinds): rng.randint(1, 3)} for i in range(rng.randint(1, 4))}
        selectors: Any = {0: {"zone": ("in", (rng.choice("xy"),))}} if rng.random() < 0.3 else {}
        for strategy in ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"):
            question = Question(bundles, strategy, selectors)
            placed = choose(question, nodes)
            if placed is not None:
                check(question, nodes, placed)
            assert (placed is not None) == brute_force(question, nodes), (question, nodes)


def test_large_groups_are_quick() -> None:
    """A thousand nodes, five hundred bundles: bounded by the search's steps and not by luck."""
    nodes = [NodeRoom(i.to_bytes(2, "big"), {"CPU": 4}, {}) for i in range(1000)]
    for strategy in ("SPREAD", "STRICT_SPREAD", "PACK"):
        bundles = {i: {"CPU": 2} for i in range(200)}
        placed = choose(Question(bundles, strategy), nodes)
        assert placed is not None
        assert len(set(placed.values())) == (100 if strategy == "PACK" else 200)
    assert choose(Question({i: {"CPU": 4} for i in range(1001)}, "STRICT_SPREAD"), nodes) is None
