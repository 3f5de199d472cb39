"""Actors that restart, cannot be reached, or die, as their caller sees them."""

from __future__ import annotations

from typing import Any

from minray.wire.messages import ActorUpdate
from minray.worker.actor_calls import LAST_WORDS_S, UNREACHABLE_S
from minray.worker.tasks import Task

from .support import ACTOR, BAD, CAUSE, ActorWorld, address, alive, busy, died, unavailable

# -- restarts --------------------------------------------------------------------------------------


def test_calls_in_flight_fail_when_the_worker_ended_and_those_not_sent_wait() -> None:
    world, _ = busy()
    waits = world.call(unresolved=1)
    world.lost("a0")
    assert world.finished == [], "the GCS will say why"
    world.update("RESTARTING", 1, CAUSE)
    assert world.finished == unavailable(1, 2)
    world.update("ALIVE", 1)
    assert world.did() == []
    world.resolve(waits)
    assert world.sent() == [("a1", 1, [3])]
    assert waits.retries == 0


def test_calls_in_flight_are_called_again_in_order_and_before_the_later_ones() -> None:
    world, (a, b) = busy(retries=1)
    world.call(retries=1)
    world.lost("a0")
    world.update("RESTARTING", 1, CAUSE)
    assert [a.retries, b.retries] == [0, 0]
    world.update("ALIVE", 1)
    assert world.sent() == [("a1", 1, [(1, 1), (2, 1), 3])]
    world.lost("a1")
    world.update("RESTARTING", 2, CAUSE)
    assert world.finished == unavailable(1, 2), "their only retry is used up"
    world.update("ALIVE", 2)
    assert world.sent() == [("a2", 2, [(3, 1)])]


def test_minus_one_is_for_ever() -> None:
    world, (task,) = busy(retries=-1, calls=1)
    for incarnation in range(1, 5):
        world.lost(f"a{incarnation - 1}")
        world.update("RESTARTING", incarnation, CAUSE)
        world.update("ALIVE", incarnation)
    assert task.retries == -1
    assert task.attempt == 4
    assert world.finished == []


def test_a_restart_that_was_not_announced() -> None:
    world, _ = busy(retries=1)
    world.lost("a0")
    world.update("ALIVE", 1)
    assert world.sent() == [("a1", 1, [(1, 1), (2, 1)])]


def test_what_is_said_of_an_older_incarnation_is_ignored() -> None:
    world = ActorWorld()
    world.update("ALIVE", 2)
    world.call()
    world.did()
    world.update("RESTARTING", 1, CAUSE)
    world.update("DEAD", 1, CAUSE)
    world.update("ALIVE", 1)
    assert (world.actor.state, world.actor.incarnation, world.actor.address) == ("ALIVE", 2, address("a2"))
    assert world.finished == []
    assert world.did() == []


def test_an_update_that_says_nothing_new_changes_nothing() -> None:
    world, (a, b) = busy()
    world.update("ALIVE")
    assert world.did() == []
    assert world.finished == []
    assert world.timers == []
    world.call()
    world.answer(a)
    assert world.sent() == [("a0", 0, [3])], "it goes on as before"
    assert b.attempt == 0


def test_updates_of_unknown_actors_are_ignored() -> None:
    world = ActorWorld()
    world.do(world.calls.on_update, ActorUpdate(b"?", "ALIVE", 0, address("a0"), {}))
    assert list(world.calls.actors) == [ACTOR]


def test_the_cause_is_of_the_last_end() -> None:
    world = ActorWorld()
    world.update("PENDING", 0, {"text": "no room yet"})
    assert world.actor.cause == {"text": "no room yet"}
    world.update("RESTARTING", 1, CAUSE)
    world.update("ALIVE", 1)
    assert world.actor.cause == CAUSE, "until there is another"
    world.call()
    world.lost("a1")
    world.update("RESTARTING", 2, {})
    assert world.finished == unavailable(1, cause={})


# -- what the old incarnation had answered ---------------------------------------------------------


def draining(*, retries: int = 1) -> tuple[ActorWorld, list[Task]]:
    """The actor is said to restart, but its connection has not been read to the end."""
    world, tasks = busy(retries=retries)
    world.update("RESTARTING", 1, CAUSE)
    return world, tasks


def test_the_last_answers_of_an_incarnation_count() -> None:
    world, (a, b) = draining(retries=0)
    assert world.finished == []
    world.answer(a)
    world.lost("a0")
    assert world.finished == unavailable(2)
    assert (a.retries, b.retries) == (0, 0)


def test_nothing_is_sent_to_the_new_incarnation_before_the_old_one_is_read_to_the_end() -> None:
    world, (a, _) = draining()
    world.update("ALIVE", 1)
    world.call()
    assert world.did() == []
    world.answer(a)
    assert world.did() == []
    world.lost("a0")
    assert world.sent() == [("a1", 1, [(2, 1), 3])]


def test_the_last_answer_ends_the_waiting() -> None:
    world, (a, b) = draining()
    world.call()
    world.update("ALIVE", 1)
    world.answer(a)
    world.answer(b)
    assert world.sent() == [("a1", 1, [3])]
    world.lost("a0")
    assert world.finished == []
    assert not world.actor.broken


def test_an_old_connection_that_does_not_end_is_not_waited_for() -> None:
    world, _ = draining()
    world.update("ALIVE", 1)
    world.pass_time(LAST_WORDS_S * 0.9)
    assert world.did() == []
    world.pass_time(LAST_WORDS_S * 0.2)
    assert world.sent() == [("a1", 1, [(1, 1), (2, 1)])]


def test_an_actor_may_restart_twice_meanwhile() -> None:
    world, _ = draining()
    world.update("ALIVE", 1)
    world.update("RESTARTING", 2, CAUSE)
    world.update("ALIVE", 2)
    world.lost("a0")
    assert world.sent() == [("a2", 2, [(1, 1), (2, 1)])]
    world.pass_time(10)
    assert world.did() == []


def test_a_call_in_flight_at_an_actor_that_is_away_has_nobody_to_cancel_it() -> None:
    world, (a, _) = draining()
    world.cancel(a)
    assert world.did() == []
    world.lost("a0")
    assert world.finished == [(1, ("cancelled", "add"))]


def test_without_calls_in_flight_there_is_nothing_to_wait_for() -> None:
    world = alive()
    world.update("RESTARTING", 1, CAUSE)
    world.update("ALIVE", 1)
    world.call()
    assert world.sent() == [("a1", 1, [1])]
    assert world.timers == []


# -- a connection that is lost ---------------------------------------------------------------------


def test_nothing_is_sent_over_a_lost_connection() -> None:
    world, (a, b) = busy()
    world.lost("a0")
    world.call()
    assert world.did() == []
    assert world.timers == [(world.now + UNREACHABLE_S, "actor", 1)]
    world.lost("a0")
    assert len(world.timers) == 1, "doubted once"
    world.answer(a)
    assert world.did() == [], "what was read before the end counts, but nothing is sent"
    assert b.seq in world.actor.inflight


def test_the_loss_of_another_connection_is_no_concern_of_ours() -> None:
    world, _ = busy()
    world.lost("a7")
    assert world.timers == []
    world.call()
    world.do(world.calls.flush)
    assert world.sent() == [("a0", 0, [3])]


def test_an_actor_that_has_not_started_has_no_connection_to_lose() -> None:
    world = ActorWorld()
    world.call()
    world.lost("a0")
    world.update("ALIVE")
    assert world.sent() == [("a0", 0, [1])]


def test_an_actor_that_lives_but_was_lost_is_connected_to_again() -> None:
    world, _ = busy(calls=1)
    repeated = world.call(retries=2)
    world.do(world.calls.flush)
    world.did()
    world.lost("a0")
    world.call()
    world.pass_time(UNREACHABLE_S * 0.9)
    assert world.did() == []
    world.pass_time(UNREACHABLE_S * 0.2)
    assert world.finished == unavailable(1, cause={"text": "the connection to its worker was lost"})
    assert world.sent() == [("a0", 0, [(2, 1), 3])]
    assert repeated.retries == 1


def test_a_doubt_that_was_cleared_meanwhile_has_no_effect() -> None:
    world, _ = busy(retries=1)
    world.lost("a0")
    world.update("RESTARTING", 1, CAUSE)
    world.update("ALIVE", 1)
    world.did()
    world.lost("a1")
    world.pass_time(UNREACHABLE_S * 0.5)
    world.update("RESTARTING", 2, CAUSE)
    world.update("ALIVE", 2)
    world.call()
    world.did()
    world.pass_time(UNREACHABLE_S)
    assert world.did() == []
    assert world.finished == unavailable(1, 2)
    assert world.timers == []


def test_a_doubt_is_of_one_incarnation() -> None:
    world, _ = busy(retries=1)
    world.lost("a0")
    world.update("ALIVE", 1)
    world.did()
    world.pass_time(UNREACHABLE_S * 0.5)
    world.lost("a1")
    world.pass_time(UNREACHABLE_S * 0.9)
    assert world.finished == []
    world.pass_time(UNREACHABLE_S * 0.2)
    assert [seq for seq, _ in world.finished] == [1, 2]


# -- the end of the actor --------------------------------------------------------------------------


def test_all_calls_of_a_dead_actor_fail() -> None:
    world, _ = busy(retries=-1)
    world.call(unresolved=1)
    world.lost("a0")
    world.update("DEAD", 0, CAUSE)
    assert world.finished == died(1, 2, 3)
    assert world.calls.tasks == {}
    assert world.actor.pending() == 0


def test_a_call_of_a_dead_actor_fails_at_once() -> None:
    world = alive()
    world.update("DEAD", 0, CAUSE)
    world.call()
    assert world.finished == died(1)
    assert world.left == [False]
    assert world.calls.tasks == {}
    world.update("ALIVE", 1)
    assert world.actor.state == "DEAD", "for good"


def test_an_actor_that_never_lived() -> None:
    world = ActorWorld()
    world.call()
    world.call(unresolved=1)
    world.update("DEAD", 0, {"creation_error": ("task", b"")})
    assert world.finished == died(1, 2, cause={"creation_error": ("task", b"")})


def test_the_last_answers_of_a_dead_actor_count() -> None:
    world, (a, _) = busy(retries=5)
    world.call(unresolved=1)
    world.update("DEAD", 0, CAUSE)
    assert world.finished == died(3), "what was not sent cannot be answered"
    world.answer(a)
    world.lost("a0")
    assert world.finished == died(3, 2)


def test_an_actor_that_dies_while_its_restart_is_awaited() -> None:
    world, _ = draining(retries=1)
    world.update("DEAD", 1, {"text": "no restarts left"})
    world.lost("a0")
    assert world.finished == died(1, 2, cause={"text": "no restarts left"})


def test_whoever_waits_for_a_call_of_the_dead_may_be_another_one() -> None:
    world = ActorWorld()
    first = world.call()
    second = world.call(unresolved=1)
    finish = world.calls._finish

    def finish_and_resolve(task: Task, error: Any) -> None:
        finish(task, error)
        if task is first:
            second.unresolved, second.error = 0, BAD
            world.calls.on_resolved(second)

    world.calls._finish = finish_and_resolve  # type: ignore[method-assign]
    world.update("DEAD", 0, CAUSE)
    assert world.finished == died(1, 2)
