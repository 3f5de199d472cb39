"""The news of the cluster: what is told to whom. And questions about processes on other nodes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from minray.gcs.deaths import WatchDesk
from minray.gcs.effects import Effects
from minray.gcs.view import ViewBoard
from minray.node.view import View
from minray.wire.messages import ClusterView, Died, Watch

A, B, C = b"a" * 28, b"b" * 28, b"c" * 28
WORKER, OTHER = b"w" * 28, b"v" * 28


def row(node_id: bytes) -> tuple[Any, ...]:
    return (node_id, "unix:/x", "1.2.3.4", {"CPU": 2}, {"CPU": 1}, {"zone": "a"}, 3)


def test_newcomers_hear_everything_and_the_others_the_news() -> None:
    board = ViewBoard()
    assert not board.pending
    board.joined(A)
    assert board.take([A], row) == (ClusterView([row(A)], []), ClusterView([row(A)], []), {A})
    board.joined(B)
    board.changed(A)
    board.check_invariants()
    news, whole, newcomers = board.take([A, B], row)
    assert newcomers == {B} and whole == ClusterView([row(A), row(B)], [])
    assert sorted(news.nodes, key=lambda r: r[0]) == [(A, None, None, None, {"CPU": 1}, None, 3), row(B)]
    assert not board.pending


def test_totals_are_told_when_they_change_and_the_gone_once() -> None:
    board = ViewBoard()
    board.changed(A, totals=True)
    board.changed(A)
    board.changed(B)
    board.gone(B)
    assert board.take([A], row)[0] == ClusterView([(A, None, None, {"CPU": 2}, {"CPU": 1}, None, 3)], [B])
    assert board.take([A], row) == (ClusterView([], []), ClusterView([], []), set())


@pytest.mark.parametrize("seed", range(20))
def test_a_view_fed_with_the_news_is_the_truth(seed: int) -> None:
    """Nodes join, change and go; whenever news were taken, every view knows what there is."""
    dice = random.Random(seed)
    board, truth, views = ViewBoard(), {}, {}
    for step in range(200):
        node = dice.choice(list(truth)) if truth else b""
        if len(truth) < 2 or (len(truth) < 8 and dice.random() < 0.2):
            node = dice.randbytes(28)  # a node never comes back
            truth[node] = ["unix:/" + node.hex(), "h", {"CPU": dice.randrange(1, 9)}, {"CPU": 1}, {}, 0]
            views[node] = View(node)
            board.joined(node)
        elif dice.random() < 0.2:
            del truth[node], views[node]
            board.gone(node)
        else:
            totals = dice.random() < 0.3
            truth[node][3] = {"CPU": dice.randrange(9)}
            if totals:
                truth[node][2] = {"CPU": dice.randrange(1, 9)}
            board.changed(node, totals)
        if dice.random() < 0.4:
            board.check_invariants()
            news, whole, newcomers = board.take(list(truth), lambda n: (n, *truth[n]))
            for owner, view in views.items():
                view.apply(whole if owner in newcomers else news)
                view.check_invariants()
                assert view.nodes.keys() == truth.keys() - {owner}, step
                for other, shown in view.nodes.items():
                    said = [shown.endpoint, shown.address, shown.totals, shown.available, shown.labels]
                    assert [*said, shown.load] == truth[other]


def orders(effects: Effects) -> list[tuple[bytes, Any]]:
    assert all(effect[0] == "order" for effect in effects)
    return [(effect[1], effect[2]) for effect in effects]


def test_a_question_goes_to_the_node_and_its_answer_to_all_who_asked() -> None:
    desk = WatchDesk()
    question = Watch(WORKER, B)
    assert orders(desk.watch(A, question)) == [(B, question)]
    assert desk.watch(A, question) == []
    assert orders(desk.watch(C, question)) == [(B, question)]
    desk.check_invariants()
    died = Died(WORKER, -1, -1, -1, {"text": "x"})
    assert orders(desk.died(died)) == [(A, died), (C, died)]
    assert desk.died(died) == [] and len(desk) == 0
    desk.check_invariants()


def test_a_lost_node_answers_for_its_processes_and_asks_no_more() -> None:
    desk = WatchDesk()
    desk.watch(A, Watch(WORKER, B))
    desk.watch(C, Watch(WORKER, B))
    desk.watch(B, Watch(OTHER, C))
    told = orders(desk.node_lost(B, "no heartbeat"))
    assert [node for node, _ in told] == [A, C]
    assert told[0][1].worker_id == WORKER and "no heartbeat" in told[0][1].cause["text"]
    assert told[0][1].cause["node_died"]
    assert len(desk) == 0  # nobody is left who asked for OTHER
    desk.check_invariants()


@pytest.mark.parametrize("seed", range(20))
def test_every_question_is_answered_once(seed: int) -> None:
    dice = random.Random(seed)
    nodes = [bytes([n]) * 28 for n in range(4)]
    living = {bytes([w]) * 27 + b"w": dice.choice(nodes) for w in range(6)}
    desk, open_ = WatchDesk(), set()

    def hear(effects: Effects) -> None:
        for node, message in orders(effects):
            if isinstance(message, Died):
                open_.remove((node, message.worker_id))

    for _ in range(100):
        worker = dice.choice(list(living)) if living else b""
        if worker and dice.random() < 0.7:
            asker = dice.choice(nodes)
            if asker != living[worker]:
                open_.add((asker, worker))
                hear(desk.watch(asker, Watch(worker, living[worker])))
        elif worker and dice.random() < 0.8:
            del living[worker]
            hear(desk.died(Died(worker, -1, -1, -1, {})))
        elif len(nodes) > 1:
            node = nodes.pop(dice.randrange(len(nodes)))
            open_ = {(asker, worker) for asker, worker in open_ if asker != node}
            living = {worker: home for worker, home in living.items() if home != node}
            hear(desk.node_lost(node, "gone"))
        desk.check_invariants()
        assert all(worker in living for _, worker in open_)
