"""What the tables say against what a node has: each rule by itself. Random histories are in ``test_restarts``."""

from __future__ import annotations

from typing import Any

import pytest

from minray.gcs.actor_record import ALIVE, DEAD, PENDING, RESTARTING
from minray.gcs.actors import ActorTable
from minray.gcs.effects import Effects, order
from minray.gcs.reunion import AWAY, Inventory, reconcile
from minray.wire.messages import StartActor, StopActor, Watch
from tests.gcs.support import ADDRESS, NODE, OWNER, actor_id, ended, orders, spec, started

ONE = actor_id(1)


def restored(*steps: Any, **changes: Any) -> ActorTable:
    """A table in which ``steps`` have happened to one actor, as the next head takes it over."""
    first = ActorTable(lambda spec, per_node, avoid: NODE)
    rows: dict[str, dict[bytes, Any]] = {"actors": {}, "actor_specs": {}}

    def keep(effects: Effects) -> None:
        for effect in effects:
            if effect[0] == "save":
                rows[effect[1]][effect[2]] = effect[3]

    keep(first.create(spec(1, **changes), subscriber=1)[1])
    for step in steps:
        keep(step(first))
    again = ActorTable(lambda spec, per_node, avoid: NODE)
    again.restore(list(rows["actor_specs"].items()), list(rows["actors"].items()))
    again.check_invariants()
    return again


def start(table: ActorTable) -> Effects:
    return table.started(NODE, started(ONE))


def kill(table: ActorTable) -> Effects:
    return table.kill(ONE, no_restart=False)


def drop(table: ActorTable) -> Effects:
    return table.out_of_scope(ONE)


def join(table: ActorTable, **told: Any) -> Effects:
    effects = reconcile(table, NODE, Inventory.of({"processes": [OWNER], **told}))
    table.check_invariants()
    return effects


RESTARTS = {"options": {"max_restarts": 1}}


def test_an_order_that_may_never_have_arrived_is_given_again() -> None:
    table = restored()
    assert orders(join(table)) == [StartActor(ONE, 0, spec(1))] and table.state_of(ONE) == PENDING


def test_one_that_is_on_its_way_is_left_alone() -> None:
    table = restored()
    assert join(table, actors=[(ONE, 0, None)]) == [] and table.state_of(ONE) == PENDING


@pytest.mark.parametrize(("said", "state"), [((ADDRESS, None), ALIVE), ((None, b"error"), DEAD)])
def test_a_start_that_the_head_has_missed(said: Any, state: str) -> None:
    table = restored()
    join(table, actors=[(ONE, 0, said)])
    assert table.state_of(ONE) == state


def test_one_that_runs_as_it_should_is_left_alone() -> None:
    table = restored(start)
    assert join(table, actors=[(ONE, 0, (ADDRESS, None))]) == [] and table.state_of(ONE) == ALIVE


@pytest.mark.parametrize("told", [{}, {"ended": [(ONE, 0, {"text": "exit code 3"})]}])
@pytest.mark.parametrize(("changes", "state"), [({}, DEAD), (RESTARTS, RESTARTING)])
def test_one_that_has_died_meanwhile_restarts_or_is_dead(told: Any, changes: Any, state: str) -> None:
    table = restored(start, **changes)
    sent = orders(join(table, **told))
    assert table.state_of(ONE) == state
    assert [m.incarnation for m in sent if isinstance(m, StartActor)] == [1] * (state == RESTARTING)
    (update,) = [e[2] for e in table.subscribe(ONE, 7)]
    assert update.cause["text"] == ("exit code 3" if told else AWAY)


def test_one_that_failed_to_start_and_is_gone() -> None:
    table = restored(**RESTARTS)
    join(table, ended=[(ONE, 0, {"text": "it ended", "creation_error": b"error"})])
    (update,) = [e[2] for e in table.subscribe(ONE, 7)]
    assert update.state == DEAD and update.cause["creation_error"] == b"error"


def test_one_that_another_node_was_asked_for_instead() -> None:
    table = restored()
    (order,) = orders(join(table, ended=[(ONE, 0, {"text": "no room", "bounced": True})]))
    assert isinstance(order, StartActor) and order.incarnation == 0 and order.spec["bounces"] == 1


def test_a_killed_one_whose_end_is_waited_for() -> None:
    table = restored(start, kill, **RESTARTS)
    (stop,) = orders(join(table, actors=[(ONE, 0, (ADDRESS, None))]))
    assert isinstance(stop, StopActor) and stop.incarnation == 0, "the order may not have arrived"
    assert [m.incarnation for m in orders(table.ended(NODE, ended(ONE, 0)))] == [1]
    table = restored(start, kill, **RESTARTS)
    (order,) = orders(join(table))
    assert isinstance(order, StartActor) and order.incarnation == 1, "it has ended meanwhile"


def test_what_is_not_wanted_is_stopped() -> None:
    """An older incarnation, an actor of somebody else, one that is dead."""
    table = restored(start, lambda t: t.kill(ONE, no_restart=True))
    stranger = actor_id(2)
    sent = orders(join(table, actors=[(ONE, 0, (ADDRESS, None)), (stranger, 3, None)]))
    assert [(type(m), m.actor_id, m.incarnation) for m in sent] == [(StopActor, ONE, 0), (StopActor, stranger, 3)]
    table = restored(start, lambda t: t.ended(NODE, ended(ONE)), **RESTARTS)
    sent = orders(join(table, actors=[(ONE, 0, (ADDRESS, None))]))
    assert [(type(m), m.incarnation) for m in sent] == [(StopActor, 0), (StartActor, 1)]


def test_one_that_is_leaving_is_told_again() -> None:
    table = restored(start, drop)
    (stop,) = orders(join(table, actors=[(ONE, 0, (ADDRESS, None))]))
    assert isinstance(stop, StopActor) and stop.graceful


def test_an_owner_of_whom_the_node_says_nothing_is_asked_for() -> None:
    """It has ended; or it registered after its node had begun to dial, and was quicker with its actor."""
    table = restored(start)
    assert join(table, actors=[(ONE, 0, (ADDRESS, None))], processes=[]) == [order(NODE, Watch(OWNER, NODE))]
    assert table.state_of(ONE) == ALIVE


def test_a_node_that_joins_for_the_first_time_says_nothing_of_processes() -> None:
    told = Inventory.of({"node_id": NODE})
    assert told.processes is None and not told.actors
    table = restored(start)
    reconcile(table, b"x" * 28, told)
    assert table.state_of(ONE) == ALIVE
    assert Inventory.of({"watches": [(b"w", b"n")], "sees": [b"n"]}).watches == (Watch(b"w", b"n"),)
