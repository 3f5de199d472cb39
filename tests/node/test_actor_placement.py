"""Actors that would have to wait here go where there is room; those that cannot do better stay."""

from __future__ import annotations

from typing import Any

import pytest

from minray.node.actor_placement import PATIENCE_S
from minray.wire.messages import ActorEnded, ActorStarted, ClusterView, StartActor

from .support import CPU1, JOB, World, actor_order

OTHER = b"o" * 28


def neighbour(cpus: float, node_id: bytes = OTHER, zone: str = "b", **totals: int) -> ClusterView:
    has = {"CPU": 10_000, **totals}
    free = {**has, "CPU": int(cpus * 10_000)}
    return ClusterView([(node_id, "tcp:o:1", "1.2.3.4", has, free, {"zone": zone}, 0)], [])


class Node(World):
    """One CPU, and a neighbour."""

    def __init__(self) -> None:
        super().__init__(cpus=1)
        self.view = self.table.away.view

    def news(self, message: ClusterView) -> None:
        self.view.apply(message)
        self.table.actors.view_changed(self.now)
        self.do(self.table.view_changed(self.now))

    def order(self, number: int = 1, incarnation: int = 0, **spec: Any) -> StartActor:
        order = actor_order(number, incarnation, **spec)
        self.do(self.table.start_actor(order, self.now))
        return order

    def tick(self, seconds: float) -> list[ActorEnded]:
        """So much later: who was bounced."""
        end = self.now + seconds
        while (due := self.table.actors.next_deadline()) is not None and due <= end:
            self.now = due
            self.do(self.table.actors.tick(due))
            self.table.actors.check_invariants()
        self.now = end
        said = [message for message in self.to_gcs if isinstance(message, ActorEnded)]
        self.to_gcs.clear()
        assert all(message.cause.get("bounced") or message.cause["text"] == "killed" for message in said)
        return said


@pytest.fixture
def node() -> Node:
    """Its CPU is taken."""
    made = Node()
    made.order(1, lifetime_resources=CPU1)
    made.register_all()
    made.news(neighbour(1))
    return made


def test_it_goes_where_there_is_room_once_it_has_waited(node: Node) -> None:
    node.order(2)
    assert node.tick(PATIENCE_S / 2) == []
    (ended,) = node.tick(PATIENCE_S)
    assert (ended.actor_id, ended.incarnation) == (actor_order(2).actor_id, 0)
    assert node.tick(100.0) == []
    assert not node.table.queue


def test_it_may_come_back(node: Node) -> None:
    node.order(2)
    assert len(node.tick(PATIENCE_S)) == 1
    node.order(2, bounces=1)
    assert node.tick(PATIENCE_S) == []  # patience has doubled
    assert len(node.tick(PATIENCE_S)) == 1


def test_a_stop_that_crosses_with_the_bounce_makes_a_later_start_void(node: Node) -> None:
    order = node.order(2)
    node.tick(PATIENCE_S)
    node.do(node.table.stop_actor(order.actor_id, 0, node.now, graceful=False, reason="killed"))
    node.order(2)
    (answer,) = node.tick(100.0)
    assert not node.table.queue and answer.cause == {"text": "killed", "intended": True}
    node.order(2, incarnation=1)
    assert len(node.table.queue) == 1


def test_an_order_that_is_given_again_is_answered_from_memory() -> None:
    """By a head that was killed before it had read what this node said."""
    node = Node()
    first, second = node.order(1), node.order(2)
    node.register_all()
    table, address = node.table.actors, (b"n" * 28, b"w" * 28, "unix:/x")
    table.started(ActorStarted(first.actor_id, 0, address, None))
    table.started(ActorStarted(second.actor_id, 0, None, b"error"))
    assert table.living() == [(first.actor_id, 0, (address, None)), (second.actor_id, 0, (None, b"error"))]
    workers = list(node.table.pool.workers)
    node.to_gcs.clear()
    node.order(1)
    assert node.to_gcs == [ActorStarted(first.actor_id, 0, address, None)]
    assert list(node.table.pool.workers) == workers, "it was started twice"
    for number in workers:
        node.do(node.table.exited(number, {"text": "exit code 3"}, (-1, -1, -1), node.now)[1])
    assert not table.living()
    how = {"text": "exit code 3", "intended": False}
    assert table.lately_ended() == [(first.actor_id, 0, how), (second.actor_id, 0, {**how, "creation_error": b"error"})]
    node.to_gcs.clear()
    node.order(1)
    assert node.to_gcs == [ActorEnded(first.actor_id, 0, how)] and not table.living()
    node.order(1, incarnation=1)
    assert [key[:2] for key in table.living()] == [(first.actor_id, 1)]
    table.check_invariants()


def test_it_stays_while_nobody_has_room(node: Node) -> None:
    node.news(neighbour(0))
    node.order(2)
    assert node.tick(5.0) == []
    node.news(neighbour(1))
    assert len(node.tick(PATIENCE_S)) == 1


def test_whoever_only_waits_for_a_worker_stays() -> None:
    node = Node()
    node.news(neighbour(1))
    node.order(1)
    assert node.ordered and node.tick(5.0) == []
    node.register_all()
    assert node.tick(5.0) == [] and not node.table.queue


def test_what_this_node_can_never_hold_goes_when_a_node_has_joined_that_can() -> None:
    node = Node()
    node.order(1, placement_resources={"GPU": 10_000})
    assert node.warnings and node.tick(1.0) == []
    node.news(neighbour(1))
    assert node.tick(1.0) == []
    node.news(neighbour(1, b"p" * 28, GPU=10_000))
    assert len(node.tick(PATIENCE_S)) == 1
    assert not node.table.infeasible


def test_labels_bind_the_bounce(node: Node) -> None:
    node.order(2, strategy=("labels", {"zone": ("in", ("c",))}, {}))
    assert node.tick(5.0) == []
    node.news(neighbour(1, b"p" * 28, zone="c"))
    assert len(node.tick(PATIENCE_S)) == 1


def test_affinity_binds_it_too(node: Node) -> None:
    node.order(2, strategy=("affinity", node.table.node_id, False))
    node.order(3, strategy=("affinity", node.table.node_id, True))
    node.order(4, strategy=("affinity", node.table.node_id, True), placement_resources={"GPU": 1})
    assert node.tick(5.0) == []
    node.news(neighbour(1, b"p" * 28, GPU=10_000))
    assert [ended.actor_id for ended in node.tick(PATIENCE_S)] == [actor_order(4).actor_id]


def test_the_end_of_the_job_ends_the_wait_for_good(node: Node) -> None:
    node.order(2)
    node.do(node.table.job_ends.gone(JOB, node.now))
    node.to_gcs.clear()
    assert node.tick(5.0) == []


def test_alone_there_is_no_deadline() -> None:
    node = Node()
    for number in (1, 2):
        node.order(number, lifetime_resources=CPU1)
    assert node.table.actors.next_deadline() is None
