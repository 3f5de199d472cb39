"""What a scheduling decision costs when the cluster is a hundred times as large, and what the GCS has to bear.

``MINRAY_TEST_SCALE=1000x1000000`` (nodes x tasks; ``tox -e thousand``) for the full size; figures are printed
(``-s``) and those of a full run stand in docs/performance.md.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest

from minray.wire.codec import encode_framed
from minray.wire.messages import ClusterView, pack
from minray.worker.tasks import Function

from .scale import CPU, CPUS, DECISIONS, Owner, World

NODES, TASKS = (int(part) for part in os.environ.get("MINRAY_TEST_SCALE", "100x10000").split("x"))
SMALL = 10
NODES_PER_DRIVER = 5
WAVE = 500
BAR = 1.5


class Program:
    """What one driver does: waves of tasks of several kinds, the next when the last one is done."""

    def __init__(self, owner: Owner, tasks: int, rng: random.Random) -> None:
        self.owner, self.left, self.rng = owner, tasks, rng
        nodes = list(owner.world.nodes.values())
        rack = rng.choice(nodes).labels["rack"]
        one, half = {"CPU": CPU}, {"CPU": CPU // 2}
        self.kinds: list[tuple[float, Function]] = [
            (0.4, owner.key(one)),
            (0.15, owner.key(half)),
            (0.15, owner.key(one, "SPREAD")),
            (0.1, owner.key(one, ("near", rng.choice(nodes).node_id))),
            (0.05, owner.key(one, ("labels", {"rack": ("in", (rack,))}, {}))),
            (0.05, owner.key(one, ("labels", {"disk": ("notin", ("ssd",))}, {"rack": ("in", (rack,))}))),
            (0.05, owner.key(one, ("labels", {"disk": ("in", ("ssd", "nvme"))}, {}))),
            (0.05, owner.key(one, ("affinity", rng.choice(nodes).node_id, True))),
        ]
        owner.on_idle = self.next_wave
        owner.world.after(rng.random(), self.next_wave)

    def next_wave(self) -> None:
        count = min(WAVE, self.left)
        self.left -= count
        for share, function in self.kinds:
            here = min(count, max(1, int(WAVE * share)))
            count -= here
            self.owner.submit(function, [self.rng.uniform(0.02, 0.2) for _ in range(here)])


def load(nodes: int, tasks: int, seed: int = 1) -> dict[str, Any]:
    """Run it; what it took."""
    began = time.process_time()
    world = World(nodes, seed)
    world.run(limit_s=2.0)  # the nodes join and hear of each other
    drivers = max(1, nodes // NODES_PER_DRIVER)
    for number in range(drivers):
        Program(world.driver(number * nodes // drivers), tasks // drivers, world.rng)
    for node in world.nodes.values():  # to whom the views are told from now on
        if node.sees:
            rows = [world.gcs.table.row(node_id) for node_id in world.gcs.table.living()]
            node.table.away.view.apply(ClusterView(rows, []))
    gcs, start = world.gcs, world.now
    gcs.reports = gcs.views = gcs.rows = 0
    world.ops.count = 0.0
    world.run(until=lambda: world.done == tasks // drivers * drivers)
    reports, views = gcs.reports - nodes, gcs.views - nodes  # without the first of each, which come at once
    world.run()
    ended = max(owner.last for owner in world.owners.values()) - start
    done = sum(owner.done for owner in world.owners.values())
    assert done == tasks // drivers * drivers, "every task has run, once"
    world.check_rest()
    found = {
        "nodes": nodes,
        "tasks": done,
        "decisions": world.decisions(),
        "ops": world.ops.count / world.decisions(),
        "tasks per decision": done / world.decisions(),
        "messages per task": sum(world.seen.values()) / done,
        **{f"{name} per task": world.seen[name] / done for name in ("LeaseDemand", *DECISIONS)},
        "seconds": ended,
        "reports per second": reports / ended,
        "views per second": views / ended,
        "CPU seconds": time.process_time() - began,
        "use of the CPUs": sum(owner.worked for owner in world.owners.values()) / (ended * CPUS * nodes),
    }
    frame = encode_framed(pack(ClusterView([(n, None, None, None, {"CPU": 1}, None, 0) for n in world.nodes], [])))
    found["bytes of a full view"] = len(frame)
    return found


def place_actors(nodes: int) -> float:
    """Operations of the GCS per actor that it places, of several kinds."""
    world = World(nodes)
    table, counts = world.gcs.table, dict[bytes, int]()
    racks = sorted({node.labels["rack"] for node in world.nodes.values()})
    world.ops.count = 0.0
    placed = nodes * CPUS // 2
    for number in range(placed):
        rack = {"rack": ("in", (racks[number % len(racks)],))}
        some = [None, "SPREAD", ("labels", rack, {}), ("labels", {"disk": ("notin", ("ssd",))}, rack)]
        if number % 20 == 0:
            some = [("labels", {"disk": ("in", ("ssd", "nvme"))}, {})]
        spec = {"placement_resources": {"CPU": CPU}, "owner": (b"", b"o", ""), "strategy": world.rng.choice(some)}
        node_id = table.place(spec, counts)
        assert node_id is not None
        counts[node_id] = counts.get(node_id, 0) + 1
    return world.ops.count / placed


@pytest.mark.sim
@pytest.mark.timeout(3600)
def test_a_decision_costs_no_more_in_a_large_cluster() -> None:
    small = load(SMALL, TASKS * SMALL // NODES)
    large = load(NODES, TASKS)
    for name in large:
        print(f"{name:24} {small[name]:14,.2f} {large[name]:14,.2f}")
    assert large["ops"] <= BAR * small["ops"], "operations per decision"
    assert large["reports per second"] <= 1000, "whatever the size: see node.membership"
    assert large["views per second"] <= 1000, "see gcs.links"


def test_an_actor_costs_no_more_in_a_large_cluster() -> None:
    small, large = place_actors(SMALL), place_actors(NODES)
    print(f"operations per actor placed: {small:.1f} {large:.1f}")
    assert large <= BAR * small


@pytest.mark.parametrize("home", [0, 2])
def test_a_flood_starves_neither_another_driver_nor_another_kind(home: int) -> None:
    """Tasks that arrive while a thousand others are queued in front of them take their turn with these."""
    world = World(5)
    world.run(limit_s=2.0)
    flooder, other = world.driver(0), world.driver(home)
    world.run(limit_s=4.0)
    for owner in (flooder, other):
        rows = [world.gcs.table.row(node_id) for node_id in world.gcs.table.living()]
        owner.node.table.away.view.apply(ClusterView(rows, []))
    flood = flooder.key({"CPU": CPU})
    flooder.submit(flood, [0.05] * 20_000)  # 50 seconds on all CPUs
    kind = flooder.key({"CPU": 2 * CPU})
    mine = other.key({"CPU": CPU})
    far = other.key({"CPU": CPU}, ("affinity", list(world.nodes)[4], False))
    world.run(limit_s=8.0)
    assert len(flood.key.leases) == 5 * CPUS, "all is taken"
    flooder.submit(kind, [0.05] * 10)
    other.submit(mine, [0.05] * 40)
    other.submit(far, [0.05] * 10)
    world.run(until=lambda: other.done == 50 and not kind.key.unfinished)
    assert world.now < 11.0, "it took its turn"
    assert flooder.done < 5_000, "the flood is still there"
    world.run()
    assert flooder.done == 20_010 and other.done == 50
    world.check_rest()
