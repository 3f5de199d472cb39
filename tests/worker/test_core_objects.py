"""Objects between processes: answers that nobody wants any more, fetches and values, deaths of owners and workers."""

from __future__ import annotations

from typing import Any

import pytest

from minray.wire.messages import (
    FETCH,
    VALUES,
    Address,
    Died,
    GiveBack,
    LeaseDemand,
)
from minray.worker.references import ERROR, INLINE, PENDING, STORED
from minray.worker.tasks import MULTI, RETRY

from .support import ACTOR, CAUSE, LOCATION, ME, RAISED, THEIRS, CoreWorld, address, stored

B, C = address("B"), address("C")


def died(who: Address, lease_no: int = -1, running: tuple[int, int] = (-1, -1)) -> Died:
    return Died(who[1], lease_no, *running, CAUSE)


# -- answers that are not current ------------------------------------------------------------------


def given_back(world: CoreWorld, **fields: Any) -> tuple[Any, list[bytes]]:
    """A task in its second attempt."""
    task, ids = world.submit(**fields)
    world.do(world.core.on_give_back, GiveBack(1, [(task.seq, 0)], False, False), world.now)
    assert task.attempt == 1
    world.did()
    return task, ids


@pytest.mark.parametrize("status", [INLINE, STORED])
def test_a_stale_answer_lets_go_of_the_references_that_it_brings(status: int) -> None:
    world = CoreWorld()
    task, (x,) = given_back(world)
    refs = [(THEIRS, B, True)]
    world.answer(task, status, (b"", [], refs) if status == INLINE else stored(*refs), attempt=0)
    assert world.holds(x)[0] == PENDING
    assert [e for e in world.did() if e[0] == "release"] == [("release", B, THEIRS, 1)]
    assert task.seq in world.core.owner.tasks
    world.borrow(THEIRS, B)
    world.answer(task, status, (b"", [], refs) if status == INLINE else stored(*refs), attempt=0)
    assert world.core.objects[THEIRS].grants == 2, "here it is known: all grants go back in the end"
    world.did()
    world.drop(THEIRS)
    assert world.did() == [("release", B, THEIRS, 2), ("freed", THEIRS)]


def test_a_stale_copy_is_freed_unless_the_end_of_its_object_will_do_it() -> None:
    world = CoreWorld()
    task, (x,) = given_back(world)
    world.answer(task, STORED, stored(), attempt=0)
    assert world.did() == [], "it is being made once more: the store frees all copies together"
    world.answer(task, STORED, stored())
    world.answer(task, STORED, stored(), attempt=0)
    assert ("freed", x) not in world.did()
    task, (y,) = given_back(world)
    world.answer(task, INLINE, b"v")
    world.answer(task, STORED, stored(), attempt=0)
    assert ("freed", y) in world.did(), "a small value does not free anything in the store"
    task, (z,) = given_back(world)
    world.answer(task, ERROR, RAISED)
    world.answer(task, STORED, stored(), attempt=0)
    assert ("freed", z) in world.did()
    assert (world.last_freed.status, world.last_freed.value[0], world.last_freed.owner) == (STORED, LOCATION, None)


def test_stale_answers_with_several_results() -> None:
    world = CoreWorld()
    task, (x, y) = given_back(world, n=2)
    world.answer(task, MULTI, [(INLINE, b"x"), (INLINE, b"y")])
    world.drop(y)
    world.did()
    world.answer(task, MULTI, [(INLINE, b"x"), (STORED, stored((THEIRS, B, True)))], attempt=0)
    assert [e for e in world.did() if e[0] in ("freed", "release")] == [
        ("release", B, THEIRS, 1),
        ("freed", THEIRS),
        ("freed", y),
    ]
    assert x in world.core.objects


def test_stale_errors_and_retries_are_nothing() -> None:
    world = CoreWorld()
    task, (x,) = given_back(world)
    for status in (ERROR, RETRY):
        world.answer(task, status, RAISED, attempt=0)
    assert (world.holds(x)[0], task.attempt, task.retries) == (PENDING, 1, 3)
    assert world.did() == []


def test_what_a_stale_attempt_kept_of_its_arguments_counts() -> None:
    """Its process is a borrower, whatever became of the answer."""
    world = CoreWorld()
    nested = world.put(STORED, stored())
    task, _ = given_back(world, nested=(nested,))
    world.answer(task, ERROR, RAISED, attempt=0, retained=[(nested, C)])
    assert world.core.objects[nested].borrowers == {C[1]: 1}


# -- fetch and values ------------------------------------------------------------------------------


def test_a_borrowed_object_is_fetched_once() -> None:
    world = CoreWorld()
    world.borrow(THEIRS, B)
    assert world.did() == [("watch", B)]
    first, second = world.ask(THEIRS), world.ask(THEIRS)
    assert world.did() == [("B", (FETCH, [THEIRS]))]
    world.do(world.core.on_values, [(THEIRS, INLINE, b"v")])
    assert world.holds(THEIRS) == (INLINE, b"v")
    assert first.heard == second.heard == [THEIRS]


def test_who_comes_after_the_fetch_does_not_fetch() -> None:
    world = CoreWorld()
    world.borrow(THEIRS, B)
    world.do(world.core.fetch, THEIRS, world.core.objects[THEIRS])
    world.did()
    asker = world.ask(THEIRS)
    assert world.did() == []
    world.do(world.core.on_values, [(THEIRS, INLINE, b"v")])
    assert asker.heard == [THEIRS]


def test_an_own_object_is_not_fetched() -> None:
    world = CoreWorld()
    _, (x,) = world.submit()
    world.did()
    world.ask(x)
    assert world.did() == []


def test_a_value_that_came_too_late_lets_go_of_what_it_brings() -> None:
    world = CoreWorld()
    other = b"other".ljust(28, b".")
    world.borrow(THEIRS, B)
    world.ask(THEIRS)
    world.do(world.core.on_values, [(THEIRS, INLINE, b"v")])
    world.did()
    for object_id in (THEIRS, other):  # twice; unknown here
        world.do(world.core.on_values, [(object_id, STORED, stored((b"in".ljust(28, b"."), C, True)))])
        assert [e[0] for e in world.did() if e[0] == "release"] == ["release"]
    assert world.holds(THEIRS) == (INLINE, b"v")


def test_a_borrower_gets_the_value_when_it_is_there() -> None:
    world = CoreWorld()
    task, (x,) = world.submit()
    ready = world.put(INLINE, b"now")
    world.did()
    world.do(world.core.on_fetch, B, [x, ready])
    assert world.did() == [("B", (VALUES, [(ready, INLINE, b"now")]))]
    world.do(world.core.on_fetch, C, [x])
    world.answer(task, INLINE, b"then")
    answer = (VALUES, [(x, INLINE, b"then")])
    assert [entry for entry in world.did() if entry[0] in ("B", "C")] == [("B", answer), ("C", answer)]
    assert world.core.objects[x].fetchers is None


def test_errors_travel_to_borrowers() -> None:
    world = CoreWorld()
    x = world.put(ERROR, RAISED)
    world.do(world.core.on_fetch, B, [x, THEIRS])
    assert world.did() == [
        ("B", (VALUES, [(x, ERROR, RAISED)])),
        ("B", (VALUES, [(THEIRS, ERROR, ("freed", THEIRS))])),
    ]


def test_a_stored_value_is_reported_and_grants_what_is_inside_it() -> None:
    world = CoreWorld()
    inner = world.put()
    x = world.put(STORED, stored((inner, ME, False)))
    world.core.refs.set_contains(world.core.objects[x], (inner,))
    world.do(world.core.on_fetch, B, [x])
    assert world.did() == [
        ("report", x, LOCATION),
        ("watch", B),
        ("B", (VALUES, [(x, STORED, stored((inner, ME, True)))])),
    ]
    assert world.core.objects[inner].borrowers == {B[1]: 1}


def test_a_borrowed_reference_is_passed_on_with_its_owner() -> None:
    world = CoreWorld()
    world.borrow(THEIRS, B)
    x = world.put(INLINE, (b"", [], [(THEIRS, B, True)]))
    world.core.refs.set_contains(world.core.objects[x], (THEIRS,))
    world.did()
    world.do(world.core.on_fetch, C, [x])
    assert world.did() == [
        ("borrow", B, THEIRS, C),
        ("C", (VALUES, [(x, INLINE, (b"", [], [(THEIRS, B, True)]))])),
    ]


# -- deaths ----------------------------------------------------------------------------------------


def test_who_waits_for_an_object_of_the_dead_gets_an_error() -> None:
    world = CoreWorld()
    late = b"late".ljust(28, b".")
    world.borrow(THEIRS, B)
    asker = world.ask(THEIRS)
    world.do(world.core.on_died, died(B), world.now)
    assert world.holds(THEIRS) == (ERROR, ("owner_died", THEIRS, B))
    assert asker.heard == [THEIRS]
    world.borrow(late, B)
    world.did()
    world.ask(late)
    assert world.holds(late) == (ERROR, ("owner_died", late, B))
    assert world.did() == [], "the dead are not asked"


def test_what_has_arrived_from_the_dead_is_kept() -> None:
    world = CoreWorld()
    world.borrow(THEIRS, B)
    world.ask(THEIRS)
    world.do(world.core.on_values, [(THEIRS, INLINE, b"v")])
    world.do(world.core.on_died, died(B), world.now)
    assert world.holds(THEIRS) == (INLINE, b"v")


def test_the_borrows_of_the_dead_end() -> None:
    world = CoreWorld()
    x = world.put(STORED, stored())
    world.core.refs.give(x, B)
    world.drop(x)
    world.did()
    world.do(world.core.on_died, died(B), world.now)
    assert world.did() == [("freed", x)]


def test_one_death_may_be_the_end_of_several_tasks() -> None:
    world = CoreWorld()
    world.borrow(THEIRS, B)
    _, (x,) = world.submit(top=[(0, THEIRS)])
    world.drop(THEIRS)
    world.do(world.core.on_died, died(B), world.now)
    assert world.holds(x) == (ERROR, ("dependency", "f1", ("owner_died", THEIRS, B)))
    assert set(world.core.objects) == {x}


def test_the_end_of_one_object_of_the_dead_may_be_the_end_of_others() -> None:
    world = CoreWorld()
    others = tuple(bytes([n]) * 28 for n in range(1, 20))
    for object_id in (THEIRS, *others):
        world.borrow(object_id, B)
    _, (x,) = world.submit(top=[(0, THEIRS)], nested=others)
    for object_id in (THEIRS, *others):
        world.drop(object_id)
    world.do(world.core.on_died, died(B), world.now)
    assert set(world.core.objects) == {x}


def test_the_death_of_a_leased_worker() -> None:
    world = CoreWorld()
    (a, (x,)), (b, (y,)) = world.submit(retries=0), world.submit(retries=0)
    world.do(world.core.on_died, died(address("w1"), 1, (a.seq, 0)), world.now)
    assert world.holds(x)[0] == PENDING, "its answer may still be unread"
    world.do(world.core.on_peer_lost, address("w1")[1])
    assert world.holds(x) == (ERROR, ("crashed", "f1", CAUSE))
    assert world.holds(y)[0] == PENDING
    assert list(world.core.owner.tasks) == [b.seq]
    assert world.take(LeaseDemand)[-1].wanted == 1


def test_a_watched_death_without_a_lease_charges_all_that_is_in_flight() -> None:
    world = CoreWorld()
    (_, (x,)), (_, (y,)) = world.submit(retries=0), world.submit(retries=0)
    world.do(world.core.on_peer_lost, address("w1")[1])
    world.do(world.core.on_died, died(address("w1")), world.now)
    assert [world.holds(i)[0] for i in (x, y)] == [ERROR, ERROR]


def test_the_connection_to_an_actor_is_lost() -> None:
    world = CoreWorld()
    world.actor_is("ALIVE")
    _, (x,) = world.call()
    world.do(world.core.on_peer_lost, address("a0")[1])
    assert world.core.calls.actors[ACTOR].broken
    world.pass_time(3)
    assert world.holds(x)[1][0] == "actor_unavailable"


def test_the_dead_actors_calls_fail() -> None:
    world = CoreWorld()
    nested = world.put()
    _, (x,) = world.call(top=[(0, nested)])
    world.actor_is("DEAD")
    assert world.holds(x) == (ERROR, ("actor_died", "Counter", ACTOR, {}))
    assert world.core.objects[nested].held == 0
