"""Calls of actors at their caller: order, batches, restarts, retries, lost connections, cancel."""

from __future__ import annotations

from typing import Any

import pytest

from minray.wire.messages import CALLS, Cancel
from minray.worker.actor_calls import BATCH
from minray.worker.tasks import Task

from .support import ACTOR, BAD, CAUSE, ActorWorld, alive, busy, died

# -- order and batches -----------------------------------------------------------------------------


def test_one_record_per_actor() -> None:
    world = ActorWorld()
    assert world.calls.client(ACTOR, "Counter", max_pending=5, eager=True) is world.actor
    assert world.actor.max_pending == -1


def test_calls_wait_for_the_actor_and_then_leave_in_order() -> None:
    world = ActorWorld()
    for _ in range(3):
        world.call()
    assert world.did() == []
    assert world.actor.pending() == 3
    world.update("ALIVE")
    assert world.sent() == [("a0", 0, [1, 2, 3])]
    assert world.actor.pending() == 3
    assert world.left == [False, False, False]


def test_what_a_call_looks_like() -> None:
    world = alive()
    task = Task(7, "add", b"payload", {"group": "io"}, 1, 0)
    world.do(world.calls.submit, world.actor, task)
    assert task.actor is world.actor
    assert world.did() == [("a0", (CALLS, 0, [(7, 0, "add", b"payload", {"group": "io"})], None))]


def test_the_first_call_of_an_idle_actor_leaves_at_once_and_the_next_ones_in_batches() -> None:
    world = alive()
    for _ in range(1 + BATCH):
        world.call()
    assert world.sent() == [("a0", 0, [1]), ("a0", 0, list(range(2, 2 + BATCH)))]
    assert world.left == [False] + [True] * (BATCH - 1) + [False]


def test_a_flush_sends_what_was_left_for_a_batch() -> None:
    world = alive()
    for _ in range(3):
        world.call()
    assert list(world.calls.dirty) == [world.actor]
    world.did()
    world.do(world.calls.flush)
    assert world.sent() == [("a0", 0, [2, 3])]
    assert not world.calls.dirty
    world.do(world.calls.flush)
    assert world.did() == []


def test_a_flush_for_an_actor_that_is_gone_sends_nothing() -> None:
    world = alive()
    for _ in range(2):
        world.call()
    world.lost("a0")
    world.did()
    world.do(world.calls.flush)
    assert world.did() == []


def test_an_answer_sends_what_waits() -> None:
    world = alive()
    first = world.call()
    world.call()
    world.call()
    world.did()
    world.answer(first)
    assert world.sent() == [("a0", 0, [2, 3])]


def test_a_call_without_its_arguments_holds_back_the_later_ones() -> None:
    world = alive()
    world.call()
    waits = world.call(unresolved=1)
    world.call()
    world.did()
    world.do(world.calls.flush)
    assert world.did() == []
    world.resolve(waits)
    assert world.sent() == [("a0", 0, [2, 3])]


def test_a_call_that_is_not_the_first_waits_for_its_turn() -> None:
    world = alive()
    first = world.call(unresolved=1)
    second = world.call(unresolved=1)
    world.resolve(second)
    assert world.did() == []
    world.resolve(first)
    assert world.sent() == [("a0", 0, [1, 2])]


def test_calls_of_threaded_and_asyncio_actors_may_overtake() -> None:
    world = alive(eager=True)
    waits = world.call(unresolved=1)
    later = world.call()
    world.call()
    assert world.sent() == [("a0", 0, [2]), ("a0", 0, [3])], "each at once: one may wait for another"
    assert world.left == [False, False, False]
    world.answer(later)
    assert world.did() == []
    world.resolve(waits)
    assert world.sent() == [("a0", 0, [1])]


def test_calls_overtake_also_when_the_actor_is_started() -> None:
    world = ActorWorld(eager=True)
    world.call()
    first, second = world.call(unresolved=1), world.call(unresolved=1)
    world.call()
    world.resolve(second)
    assert world.did() == []
    world.update("ALIVE")
    assert world.sent() == [("a0", 0, [1, 3, 4])]
    assert list(world.actor.queue) == [first]


def test_pending_counts_what_has_no_answer() -> None:
    world = alive()
    first = world.call()
    world.call(unresolved=1)
    assert world.actor.pending() == 2
    world.answer(first)
    assert world.actor.pending() == 1


def test_an_answer_counts_only_for_a_call_that_is_in_flight_with_that_attempt() -> None:
    world = alive()
    task = world.call()
    world.call(unresolved=1)
    for seq, attempt in ((1, 1), (2, 0), (9, 0)):
        assert world.do(world.calls.take, seq, attempt) is None
    world.answer(task)
    assert world.do(world.calls.take, 1, 0) is None


# -- arguments that failed -------------------------------------------------------------------------


def test_a_call_whose_argument_failed_is_not_sent_and_lets_the_later_ones_go() -> None:
    world = alive()
    world.call()
    bad = world.call(unresolved=1)
    world.call()
    world.did()
    world.resolve(bad, BAD)
    assert world.sent() == [("a0", 0, [3])]
    assert world.finished == [(2, BAD)]


def test_a_call_in_the_middle_of_the_queue_fails_at_once() -> None:
    world = alive()
    first = world.call(unresolved=1)
    bad = world.call(unresolved=1)
    world.resolve(bad, BAD)
    assert world.finished == [(2, BAD)]
    world.resolve(first)
    assert world.sent() == [("a0", 0, [1])]


def test_a_call_fails_also_while_the_actor_is_not_there() -> None:
    world = ActorWorld()
    bad = world.call(unresolved=1)
    world.call()
    world.resolve(bad, BAD)
    assert world.finished == [(1, BAD)]
    world.update("ALIVE")
    assert world.sent() == [("a0", 0, [2])]


def test_a_failed_argument_of_an_eager_actor() -> None:
    world = alive(eager=True)
    bad = world.call(unresolved=1)
    world.resolve(bad, BAD)
    assert world.finished == [(1, BAD)]
    assert world.did() == []


def test_whoever_waits_for_a_failed_call_may_be_a_later_call_of_the_same_actor() -> None:
    """The failure of the first resolves the second, with an error, while the queue is being sent."""
    world = alive()
    first = world.call(unresolved=1)
    second = world.call(unresolved=1)
    world.call()
    finish = world.calls._finish

    def finish_and_resolve(task: Task, error: Any) -> None:
        finish(task, error)
        if task is first:
            second.unresolved, second.error = 0, BAD
            world.calls.on_resolved(second)

    world.calls._finish = finish_and_resolve  # type: ignore[method-assign]
    world.resolve(first, BAD)
    assert world.finished == [(1, BAD), (2, BAD)]
    assert world.sent() == [("a0", 0, [3])]


def test_a_late_argument_of_a_call_that_is_over_is_ignored() -> None:
    world = alive()
    task = world.call(unresolved=1)
    world.cancel(task)
    world.resolve(task)
    assert world.did() == []
    assert world.finished == [(1, ("cancelled", "add"))]


# -- exceptions to retry ---------------------------------------------------------------------------


def test_a_call_that_raised_is_called_again_before_the_later_ones() -> None:
    world, (a, _) = busy()
    world.call(unresolved=1)
    world.answer(a)
    world.do(world.calls.retry, a)
    assert world.sent() == [("a0", 0, [(1, 1)])]
    assert a.retries == 0, "the core counts these"


def test_a_call_that_raised_is_not_called_again_at_the_dead() -> None:
    world, (a, b) = busy()
    world.update("DEAD", 0, CAUSE)
    world.answer(a)
    world.do(world.calls.retry, a)
    assert world.finished == died(1)
    world.answer(b)
    assert world.calls.tasks == {}


# -- cancel ----------------------------------------------------------------------------------------


def test_a_call_that_was_not_sent_is_cancelled_at_once_and_lets_the_later_ones_go() -> None:
    world = alive()
    waits = world.call(unresolved=1)
    world.call()
    assert world.did() == []
    world.cancel(waits)
    assert world.finished == [(1, ("cancelled", "add"))]
    assert world.sent() == [("a0", 0, [2])]


@pytest.mark.parametrize("recursive", [False, True])
def test_a_call_in_flight_is_cancelled_by_its_worker(recursive: bool) -> None:
    world, (_, b) = busy()
    world.cancel(b, recursive=recursive)
    assert world.did() == [("a0", Cancel(2, 0, recursive))]
    assert world.finished == []
    world.cancel(b)
    assert world.did() == [], "told once"
    world.answer(b)
    world.cancel(b)
    assert world.did() == []


def test_a_cancelled_call_is_not_called_again() -> None:
    world, (a, b) = busy(retries=3)
    world.cancel(a)
    world.lost("a0")
    world.update("RESTARTING", 1, CAUSE)
    assert world.finished == [(1, ("cancelled", "add"))]
    world.did()
    world.update("ALIVE", 1)
    assert world.sent() == [("a1", 1, [(2, 1)])]
    assert b.retries == 2


def test_a_call_that_is_over_cannot_be_cancelled() -> None:
    world, (a, _) = busy()
    world.answer(a)
    world.cancel(a)
    assert world.finished == []
    assert world.did() == []


# -- the invariants themselves ---------------------------------------------------------------------


def test_the_invariants_see_what_is_wrong() -> None:
    def broken(message: str) -> None:
        with pytest.raises(AssertionError, match=message):
            world.calls.check_invariants()

    world, (a, _) = busy()
    world.actor.queue.append(a)
    broken("call 1 is in two places")
    world.actor.queue.clear()
    world.actor.state = "DEAD"
    broken("calls wait for the dead")
    world.actor.state = "ALIVE"
    del world.actor.inflight[1]
    broken("calls without a place")
    world.actor.inflight.clear()
    world.actor.draining = b"x"
    broken("is drained already")
