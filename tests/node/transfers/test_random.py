"""Pulls and Lending of several nodes under random schedules: every wait ends, every copy is right, nothing is left."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.node.transfers.cluster import MIB, World

SEEDS = int(os.environ.get("MINRAY_TEST_SEEDS", "60"))
BLOCK = 20
SIZES = (MIB // 2, MIB, 8 * MIB, 20 * MIB, 100 * MIB)

pytestmark = pytest.mark.sim


def run(seed: int, *, faults: bool, steps: int = 400) -> World:
    world = World(seed, names_others=seed % 5 != 0)
    rng = world.rng
    for _ in range(steps):
        chance = rng.random()
        objects = [what for what in world.objects.values() if not what.freed]
        if chance < 0.04:
            world.make(rng.choice(world.alive), rng.choice(SIZES))
        elif chance < 0.25 and objects:
            rng.choice(world.alive).want(rng.choice(objects))
        elif chance < 0.27:
            node = rng.choice(world.alive)
            if node.waiting:
                node.unwant(rng.choice(sorted(node.waiting)))
        elif chance < 0.29:
            node = rng.choice(world.alive)
            if node.guests:
                node.evict(rng.choice(sorted(node.guests)))
        elif chance < 0.31 and objects:
            world.free(rng.choice(objects))
        elif faults and chance < 0.325:
            links = [link for link in world.links if link.open]
            if links:
                world.cut(rng.choice(links))
        elif faults and chance < 0.33 and len(world.alive) > 3:
            world.kill(rng.choice(world.alive))
        elif not world.step():
            world.pass_time()
    world.settle()
    return world


def check_end(world: World, *, faults: bool) -> None:
    for node in world.alive:
        assert not node.waiting, f"{node} waits for ever for {node.waiting}"
        assert not len(node.pulls) and not node.rooms and not node.channels
        assert not node.pins and not node.served and not node.pinning
        for object_id, kind, reason in node.outcomes:
            what = world.objects[object_id]
            if kind == "lost":
                assert not what.home.alive or (faults and world.seen["cut"]), f"lost though its home lives: {reason}"
            elif kind == "freed":
                assert what.freed, reason
        for object_id in node.guests:
            what = world.objects[object_id]
            lost_touch = object_id in node.pulls._lost_touch.get(what.home.node_id, {})
            assert not what.freed or lost_touch or not what.home.alive, "a copy of what was freed long ago"
    check_copies_of_the_dead(world)
    # at last everything is freed, and only what nobody can tell of remains
    for what in world.objects.values():
        if not what.freed:
            world.free(what)
    world.settle()
    for node in world.alive:
        for object_id in node.guests:
            home = world.objects[object_id].home
            assert not home.alive or object_id in node.pulls._lost_touch[home.node_id]
        assert not node.lending._lent, "the home keeps books of what it has freed"
        if not faults:
            assert not node.guests and not node.lending._loans
        assert set(node.pulls._guests) == set(node.guests)


def check_copies_of_the_dead(world: World) -> None:
    """What one node has, every node can have, though the home is dead."""
    for what in world.objects.values():
        if what.home.alive or not any(what.object_id in node.guests for node in world.alive):
            continue
        takers = [node for node in world.alive if what.object_id not in node.guests]
        for node in takers:
            node.outcomes.clear()
            node.want(what)
        world.settle()
        for node in takers:
            ((_, kind, reason),) = node.outcomes
            assert kind in ("here", "full"), f"{node}: {kind}, {reason}"
            world.seen["saved"] += kind == "here"


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
@pytest.mark.parametrize("faults", [False, True], ids=["peace", "faults"])
def test_schedules(first: int, faults: bool) -> None:
    for seed in range(first, min(first + BLOCK, SEEDS)):
        try:
            check_end(run(seed, faults=faults), faults=faults)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, faults={faults}: {error}") from error


def test_they_visit_what_they_promise() -> None:
    seen: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for seed in range(40):
        world = run(seed, faults=True)
        check_copies_of_the_dead(world)
        seen.update(world.seen)
        kinds.update(kind for node in world.nodes.values() for _, kind, _ in node.outcomes)
    assert all(seen[name] for name in ("faded", "resumed", "cut", "died", "saved")), seen
    assert all(kinds[name] for name in ("here", "lost", "freed", "full")), kinds
