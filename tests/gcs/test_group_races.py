"""Placement groups on several real nodes' tables, with everything in random order, replayed by its seed.

The GCS's machine and the lease tables of four nodes talk through queues that are delivered in any order (in order
per link). Meanwhile drivers want workers, tasks run in groups, groups are made and removed, nodes die and join, and
reports of what is free arrive late. After each step all invariants hold; at rest every group that could be there is
there, with exactly its bundles open; and when all are removed, every node has everything back.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from minray._base.groups import GroupTarget, group_of, shape_of
from minray.gcs import group_record
from minray.gcs.bundle_placement import choose
from minray.gcs.effects import Effects
from minray.gcs.placement_groups import CREATED, REMOVED, PlacementGroupTable
from minray.wire.messages import (
    BundlesPrepared,
    LeaseInfeasible,
    LeaseRevoke,
    Message,
)
from tests.node.support import CPU1, DRIVER, JOB, World

CPU = 10_000
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
SHAPES: list[list[dict[str, int]]] = [
    [{"CPU": CPU}],
    [{"CPU": CPU}] * 2,
    [{"CPU": 2 * CPU}, {"CPU": CPU}],
    [{"CPU": CPU, "GPU": CPU // 2}, {"GPU": CPU}],
    [{"CPU": 3 * CPU}] * 2,
    [{"CPU": CPU}] * 4,
    [{"CPU": 4 * CPU}],
]


class Node:
    """One node: its table, what is on its way to it and from it."""

    def __init__(self, node_id: bytes, cpus: int, gpus: int) -> None:
        totals = {"CPU": cpus * CPU}
        if gpus:
            totals["GPU"] = gpus * CPU
        self.node_id = node_id
        self.totals = dict(totals)
        self.world = World(cpus=cpus, totals=totals, soft=16, hard=32)
        self.world.table.node_id = node_id
        self.orders: deque[Any] = deque()
        self.reports: deque[Message] = deque()
        self.keys: dict[int, bytes | None] = {}  # open demands of the driver → their group

    def work(self) -> None:
        """Workers start, exit and give revoked leases back."""
        world = self.world
        for number in list(dict.fromkeys(n for n, _, _ in world.exits)):
            if number in world.pool.workers:
                world.exit(number)
        world.exits.clear()
        while world.ordered:
            number = world.ordered.pop(0)
            if number in world.pool.workers:
                world.register(number)
        for message in world.take(LeaseRevoke):
            if message.lease_no in world.table.leases:
                world.ended(message.lease_no)
        for told in world.take(LeaseInfeasible):
            if told.fatal:
                self.keys.pop(told.key, None)
        world.sent.clear()
        self.reports.extend(m for m in world.to_gcs if isinstance(m, BundlesPrepared))
        world.to_gcs.clear()

    def want(self, key: int, wanted: int, group: GroupTarget | None) -> None:
        resources = CPU1 if group is None else group.rename({"CPU": CPU})
        self.world.demand(wanted, key=key, resources=resources)
        if wanted:
            self.keys[key] = None if group is None else group.group_id
        else:
            self.keys.pop(key, None)


class Cluster:
    """Everything, driven by one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.nodes: dict[bytes, Node] = {}
        self.said: dict[bytes, dict[str, int]] = {}  # what nodes reported as free
        self.table = PlacementGroupTable(
            lambda node_id: self.said.get(node_id, {}), lambda actor: False, keep_removed=500
        )
        self.lives = 0
        self.groups: list[bytes] = []
        self.told: list[tuple[Any, bool]] = []
        for cpus, gpus in ((2, 0), (2, 1), (4, 2), (4, 0)):
            self.join(cpus, gpus)

    def join(self, cpus: int, gpus: int) -> None:
        self.lives += 1
        node = Node(self.lives.to_bytes(28, "big"), cpus, gpus)
        self.nodes[node.node_id] = node
        self.said[node.node_id] = dict(node.totals)
        self.do(self.table.node_joined(node.node_id, node.totals, {}, (), self.now))

    def die(self, node_id: bytes) -> None:
        del self.nodes[node_id], self.said[node_id]
        self.do(self.table.node_lost(node_id, self.now))

    def do(self, effects: Effects) -> None:
        for kind, *rest in effects:
            if kind == "order":
                if rest[0] in self.nodes:
                    self.nodes[rest[0]].orders.append(rest[1])
            elif kind == "answer":
                waiter, ok, value = rest
                self.told.append((waiter, ok))
                if isinstance(waiter, tuple) and waiter[1] in self.nodes:
                    self.nodes[waiter[1]].orders.append((waiter[2], None if ok else value))
        self.table.check_invariants()

    # -- steps ---------------------------------------------------------------------------------------

    def create(self) -> None:
        group_id = (len(self.groups) + 1).to_bytes(14, "big") + JOB
        self.groups.append(group_id)
        self.make(group_id, self.rng.choice(STRATEGIES), self.rng.choice(SHAPES))

    def make(self, group_id: bytes, strategy: str, bundles: list[dict[str, int]]) -> None:
        spec = {"group_id": group_id, "job_id": JOB, "strategy": strategy, "bundles": bundles}
        self.do(self.table.create(spec, self.now)[1])

    def remove(self, group_id: bytes) -> None:
        self.do(self.table.remove(group_id, self.now))

    def order(self, node: Node) -> None:
        """The GCS's next word reaches a node."""
        message = node.orders.popleft()
        bundles = node.world.table.bundles
        if isinstance(message, tuple):
            node.world.do(bundles.known(message[0], message[1], node.world.now))
        else:
            node.world.do(bundles.order(message, node.world.now))
        self.after(node)

    def report(self, node: Node) -> None:
        """A node's next word reaches the GCS."""
        message = node.reports.popleft()
        assert isinstance(message, BundlesPrepared)
        self.do(self.table.prepared(node.node_id, message, self.now))

    def after(self, node: Node) -> None:
        node.work()
        for group_id in node.world.asked:
            waiter = ("node", node.node_id, group_id)
            known = self.table.wait(group_id, waiter)
            if known is not None:
                node.orders.append((group_id, None if known[0] else known[1]))
        node.world.asked.clear()

    def hear(self, node: Node) -> None:
        """A node says what is free now."""
        available = node.world.table.book.available
        self.said[node.node_id] = {name: max(0, available.get(name, 0)) for name in node.totals}
        self.do(self.table.view_changed(self.now))

    def use(self, node: Node) -> None:
        """The driver wants more, or less, of something at some node."""
        if node.keys and self.rng.random() < 0.5:
            key = self.rng.choice(sorted(node.keys))
            self.finish(node, key)
            return
        key = self.rng.randrange(10_000)
        living = [i for i in self.groups if self.table.counts() and self.state(i) != REMOVED]
        target = None
        if living and self.rng.random() < 0.6:
            group_id = self.rng.choice(living)
            bundles = tuple(map(shape_of, self.table.bundles_of(group_id)))
            target = GroupTarget(group_id, self.rng.choice((-1, 0)), None, bundles)
        node.want(key, self.rng.randint(1, 3), target)
        self.after(node)

    def finish(self, node: Node, key: int) -> None:
        """Tasks of one kind are done: their leases come back."""
        node.want(key, 0, None)
        table = node.world.table
        for lease in [x for x in table.leases.values() if x.demand.key == key and x.demand.owner == DRIVER]:
            node.world.do(table.returned(DRIVER, lease.no, False, node.world.now))
        self.after(node)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for node in self.nodes.values():
            node.world.pass_time(seconds)
            self.after(node)
        due = self.table.next_deadline()
        if due is not None and due <= self.now:
            self.do(self.table.tick(self.now))

    def state(self, group_id: bytes) -> str:
        shown = self.table.public(group_id)
        return str(shown[group_id.hex()]["state"]) if shown else REMOVED

    def step(self) -> None:
        rng = self.rng
        node = self.nodes[rng.choice(sorted(self.nodes))]
        kind = rng.random()
        if kind < 0.12:
            self.create()
        elif kind < 0.20 and self.groups:
            self.remove(rng.choice(self.groups))
        elif kind < 0.45 and node.orders:
            self.order(node)
        elif kind < 0.65 and node.reports:
            self.report(node)
        elif kind < 0.75:
            self.hear(node)
        elif kind < 0.92:
            self.use(node)
        elif kind < 0.935 and len(self.nodes) > 2:
            self.die(node.node_id)
        elif kind < 0.95 and len(self.nodes) < 5:
            self.join(*rng.choice([(2, 0), (4, 0), (4, 2)]))
        else:
            self.pass_time(rng.choice((0.01, 0.2, 1.5)))

    # -- rest ----------------------------------------------------------------------------------------

    def settle(self, rounds: int = 400) -> None:
        """Everything is delivered and told, again and again, until no group moves any more; time passes."""
        quiet = 0
        before: Any = None
        for _ in range(rounds):
            for node in list(self.nodes.values()):
                while node.orders or node.reports:
                    if node.orders:
                        self.order(node)
                    if node.reports:
                        self.report(node)
                self.hear(node)
            self.pass_time(1.0)
            now = [(g["state"], g["bundles_to_node_id"]) for g in self.table.public().values()]
            quiet = quiet + 1 if now == before else 0
            before = now
            if quiet > 70:  # longer than any patience and any guard
                return
        raise AssertionError("it never comes to rest")

    def free_all(self) -> None:
        """All tasks end."""
        for node in self.nodes.values():
            for key in sorted(node.keys):
                self.finish(node, key)

    def check_rest(self) -> None:
        """Without tasks: each group is there, or what others hold leaves no place for it."""
        open_bundles: dict[bytes, int] = {}
        for node in self.nodes.values():
            assert not node.world.table.leases
            for group_id, attempt in node.world.table.bundles.held():
                places = self.table._groups[group_id].places.values()
                assert (node.node_id, attempt) in places, "a node keeps what nobody has"
            for group_id, group in node.world.table.bundles._groups.items():
                open_bundles[group_id] = open_bundles.get(group_id, 0) + sum(
                    len(a.bundles) for a in group.attempts.values() if a.is_open
                )
        for group_id in self.groups:
            state = self.state(group_id)
            if state == CREATED:
                assert open_bundles.pop(group_id) == len(self.table.bundles_of(group_id))
            elif state != REMOVED:
                group = self.table._groups[group_id]
                assert open_bundles.pop(group_id, 0) == len(group.places)
                if any(n % CPU for bundle in group.bundles for n in bundle.values()):
                    continue  # halves of GPUs: what fits by the sum may not fit any device, and is tried for ever
                assert group.trial is None or not group.trial.claims
                if group.trial is None:
                    assert choose(group.question(), self.table._ledger.prospects()) is None, group
        assert not open_bundles


def run(seed: int, steps: int) -> Cluster:
    cluster = Cluster(seed)
    for _ in range(steps):
        cluster.step()
    cluster.free_all()
    cluster.settle()
    cluster.check_rest()
    return cluster


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_nothing_is_lost_or_locked(seed: int) -> None:
    cluster = run(seed, 300)
    for group_id in cluster.groups:
        cluster.remove(group_id)
    cluster.settle()
    for node in cluster.nodes.values():
        table = node.world.table
        assert table.book.available == table.book.totals == node.totals, "not everything came back"
        assert not table.bundles.held()
        assert not table.bundles.waiting
        assert not [d for d in table.demands.values() if group_of(d.resources)], "a task waits for a group for ever"


@pytest.mark.parametrize("seed", range(10))
def test_groups_that_race_for_all_nodes_all_get_their_turn(seed: int) -> None:
    """Each needs every node: whoever is created leaves soon, and the next one comes. Nobody waits for ever."""
    cluster = Cluster(seed)
    rng = cluster.rng
    names = [number.to_bytes(14, "big") + JOB for number in range(1, 31)]
    cluster.groups = names
    turns: list[bytes] = []
    todo = list(names)
    for _ in range(20_000):
        if len(turns) == len(names):
            break
        if todo and rng.random() < 0.05:
            cluster.make(todo.pop(0), "STRICT_SPREAD", [{"CPU": 2 * CPU}] * rng.randint(3, 4))
        node = cluster.nodes[rng.choice(sorted(cluster.nodes))]
        kind = rng.random()
        if kind < 0.4 and node.orders:
            cluster.order(node)
        elif kind < 0.7 and node.reports:
            cluster.report(node)
        elif kind < 0.8:
            cluster.hear(node)
        elif kind < 0.9:
            cluster.pass_time(rng.choice((0.01, 0.1, 0.5)))
        for group_id in names:
            if group_id not in turns and cluster.state(group_id) == CREATED and rng.random() < 0.1:
                turns.append(group_id)
                cluster.remove(group_id)
    assert sorted(turns) == names


def _small_ones_forever(cluster: Cluster, tasks: bool, turns: int = 4_000) -> float | None:
    """Small groups, more than there is room for, come and go; a large one wants two whole nodes. When it got them."""
    rng = cluster.rng
    large = bytes(14) + JOB
    living: dict[bytes, float] = {}
    waiting: list[bytes] = []
    count = 0
    for _ in range(turns):
        for node in cluster.nodes.values():  # messages are quick here
            while node.orders or node.reports:
                if node.orders:
                    cluster.order(node)
                if node.reports:
                    cluster.report(node)
        while len(waiting) < 12:
            count += 1
            group_id = count.to_bytes(14, "big") + JOB
            waiting.append(group_id)
            cluster.make(group_id, "PACK", [{"CPU": CPU}])
        if count > 20 and not cluster.table.public(large):
            cluster.make(large, "STRICT_SPREAD", [{"CPU": 4 * CPU}] * 2)
        if cluster.table.public(large) and cluster.state(large) == CREATED:
            return cluster.now
        node = cluster.nodes[rng.choice(sorted(cluster.nodes))]
        if tasks and rng.random() < 0.2:
            if node.keys:
                cluster.finish(node, rng.choice(sorted(node.keys)))
            else:
                node.want(rng.randrange(10_000), 2, None)
                cluster.after(node)
        cluster.hear(node)
        cluster.pass_time(0.05)
        for group_id in [g for g in waiting if cluster.state(g) == CREATED]:
            waiting.remove(group_id)
            living[group_id] = cluster.now + rng.uniform(0.1, 3.0)
        for group_id in [g for g, until in living.items() if until <= cluster.now]:
            del living[group_id]
            cluster.remove(group_id)
    return None


@pytest.mark.parametrize("tasks", [False, True], ids=["groups", "groups-and-tasks"])
@pytest.mark.parametrize("seed", range(5))
def test_a_large_group_is_not_starved_by_small_ones(seed: int, tasks: bool) -> None:
    assert _small_ones_forever(Cluster(seed), tasks) is not None


def test_without_its_guard_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_record, "OVERTAKEN", 10**9)
    assert _small_ones_forever(Cluster(0), False, 1_000) is None
