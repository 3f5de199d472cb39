"""Ordinary tasks at their owner: workers that die, connections that break, what can never run, and cancels."""

from __future__ import annotations

from typing import Any

import pytest

from minray.wire.messages import Cancel, KillWorker
from minray.worker.owner import LAST_WORDS_S, UNREACHABLE_S
from minray.worker.tasks import Task

from .support import CAUSE, OwnerWorld, make_function, make_key


def in_flight(count: int, **fields: Any) -> tuple[OwnerWorld, list[Task]]:
    """A world with so many tasks in flight at one worker."""
    world = OwnerWorld(pipeline=16)
    world.grant()
    tasks = world.submit(count, **fields)
    world.did()
    return world, tasks


def retries(tasks: list[Task]) -> list[int]:
    return [task.retries for task in tasks]


# -- who is charged --------------------------------------------------------------------------------


def test_only_what_may_have_started_is_charged() -> None:
    """Answers come in the order of starts: so b, which ran last, and a, whose answer is lost."""
    world, tasks = in_flight(4)
    lease = world.owner.leases[1]
    world.died(lease, running=tasks[1])
    world.lost(lease)
    assert retries(tasks) == [2, 2, 3, 3]
    assert [task.attempt for task in tasks] == [1, 1, 1, 1]
    assert world.queued() == [1, 2, 3, 4]
    assert world.owner.leases == {}
    assert world.finished == []


def test_what_was_answered_before_the_end_of_the_connection_counts() -> None:
    world, tasks = in_flight(3)
    lease = world.owner.leases[1]
    world.died(lease, running=tasks[1])
    assert world.owner.leases == {1: lease}, "its last words may still be unread"
    world.answer(tasks[0])
    world.lost(lease)
    assert retries(tasks) == [3, 2, 3]
    assert world.queued() == [2, 3]


def test_if_the_last_that_started_is_answered_the_rest_never_started() -> None:
    world, tasks = in_flight(3)
    lease = world.owner.leases[1]
    world.answer(tasks[0])
    world.died(lease, running=tasks[0])
    world.lost(lease)
    assert retries(tasks) == [3, 3, 3]
    assert world.queued() == [2, 3]


def test_an_older_attempt_of_the_same_task_ran_then() -> None:
    """It ran there, was answered with an exception to retry, and is in flight again, unstarted."""
    world, tasks = in_flight(1)
    lease = world.owner.leases[1]

    def take_and_retry() -> None:
        world.owner.take(1, 0, -1, world.now)
        world.owner.retry(tasks[0])

    world.do(take_and_retry)
    world.do(world.owner.on_worker_died, 1, (1, 0), CAUSE, world.now)
    world.lost(lease)
    assert retries(tasks) == [3]


def test_all_may_have_run_if_nobody_knows_which() -> None:
    world, tasks = in_flight(3)
    world.died(world.owner.leases[1], running=None)
    world.lost(world.owner.leases[1])
    assert retries(tasks) == [2, 2, 2]
    assert world.queued() == [1, 2, 3]


def test_a_task_without_retries_left_fails_with_the_cause() -> None:
    world, tasks = in_flight(3, retries=0)
    world.died(world.owner.leases[1], running=tasks[0])
    world.lost(world.owner.leases[1])
    assert world.finished == [(1, ("crashed", "f1", CAUSE))]
    assert world.queued() == [2, 3], "these had not started: another worker runs them"
    assert sorted(world.owner.tasks) == [2, 3]


def test_retries_are_counted_down_to_none() -> None:
    world, (task,) = in_flight(1, retries=1)
    for lease_no in (1, 2):
        lease = world.owner.leases.get(lease_no) or world.grant()
        world.died(lease, running=task)
        world.lost(lease)
    assert [seq for seq, _ in world.finished] == [1]


def test_when_memory_runs_out_beside_others_no_retry_is_used_ten_times() -> None:
    world, (task,) = in_flight(1, retries=1)
    crowded = {"text": "memory ran out", "memory_ran_out": True, "beside": 2}
    for lease_no in range(1, 12):
        assert retries([task]) == [1]
        lease = world.owner.leases.get(lease_no) or world.grant()
        world.do(world.owner.on_worker_died, lease.lease_no, (task.seq, task.attempt), crowded, world.now)
        world.lost(lease)
    assert retries([task]) == [0] and not world.finished
    lease = world.grant()
    world.do(world.owner.on_worker_died, lease.lease_no, (task.seq, task.attempt), crowded, world.now)
    world.lost(lease)
    assert world.finished == [(1, ("crashed", "f1", crowded))]


def test_when_memory_runs_out_alone_a_retry_is_used_and_at_most_once_stays_at_most_once() -> None:
    world, (task,) = in_flight(1, retries=1)
    alone = {"text": "memory ran out", "memory_ran_out": True, "beside": 0}
    world.do(world.owner.on_worker_died, 1, (task.seq, task.attempt), alone, world.now)
    world.lost(world.owner.leases[1])
    assert retries([task]) == [0]
    world, (task,) = in_flight(1, retries=0)
    world.do(world.owner.on_worker_died, 1, (task.seq, task.attempt), {**alone, "beside": 3}, world.now)
    world.lost(world.owner.leases[1])
    assert len(world.finished) == 1


def test_minus_one_is_for_ever() -> None:
    world, (task,) = in_flight(1, retries=-1)
    for lease_no in range(1, 6):
        lease = world.owner.leases.get(lease_no) or world.grant()
        world.died(lease, running=task)
        world.lost(lease)
    assert task.retries == -1
    assert task.attempt == 5
    assert world.finished == []


# -- when a worker is buried -----------------------------------------------------------------------


def test_a_worker_with_nothing_in_flight_is_buried_at_once() -> None:
    world, (task,) = in_flight(1)
    lease = world.owner.leases[1]
    world.answer(task)
    world.died(lease)
    assert world.owner.leases == {}
    world.did()
    world.died(lease)
    world.lost(lease)
    assert world.did() == [], "once"


def test_the_last_answer_of_a_dead_worker_buries_it() -> None:
    world, tasks = in_flight(2)
    world.died(world.owner.leases[1], running=tasks[1])
    world.answer(tasks[0])
    assert 1 in world.owner.leases
    world.answer(tasks[1])
    assert world.owner.leases == {}
    assert retries(tasks) == [3, 3]


def test_the_last_give_back_of_a_dead_worker_buries_it() -> None:
    world, tasks = in_flight(2)
    world.died(world.owner.leases[1], running=tasks[0])
    world.give_back(world.owner.leases[1], tasks[1])
    assert 1 in world.owner.leases
    world.answer(tasks[0])
    assert world.owner.leases == {}
    assert world.queued() == [2]
    assert retries(tasks) == [3, 3]


def test_a_dying_worker_may_give_all_back() -> None:
    world, tasks = in_flight(2)
    world.died(world.owner.leases[1], running=None)
    world.give_back(world.owner.leases[1], *tasks)
    assert world.owner.leases == {}
    assert world.queued() == [1, 2]
    assert retries(tasks) == [3, 3]


def test_a_dead_worker_gets_nothing_more() -> None:
    world, tasks = in_flight(1)
    lease = world.owner.leases[1]
    world.died(lease, running=tasks[0])
    world.submit()
    world.ready(lease)
    assert world.batches() == []
    assert world.wanted() == [2], "another one must come: the dead one does not count for long"


def test_after_a_death_the_node_is_asked_anew() -> None:
    world = OwnerWorld()
    tasks = world.submit(3)
    lease = world.grant()
    assert world.wanted() == [1, 2, 4]
    world.died(lease, running=tasks[0])
    world.lost(lease)
    assert world.wanted() == [3]


def test_a_dead_worker_whose_connection_does_not_end_is_not_waited_for() -> None:
    world, tasks = in_flight(2)
    world.pass_time(5)
    assert world.timers == []
    world.died(world.owner.leases[1], running=tasks[0])
    world.pass_time(0.9)
    assert 1 in world.owner.leases, "it is looked at once in a while"
    world.pass_time(0.2)
    assert world.owner.leases == {}
    assert retries(tasks) == [2, 3]


def test_the_last_words_of_a_worker_may_take_a_while() -> None:
    world, tasks = in_flight(2)
    world.pass_time(1 - LAST_WORDS_S * 0.5)
    world.died(world.owner.leases[1], running=tasks[0])
    world.pass_time(LAST_WORDS_S * 0.9)
    assert 1 in world.owner.leases
    world.pass_time(1)
    assert world.owner.leases == {}


def test_a_broken_connection_alone_moves_nothing() -> None:
    world, tasks = in_flight(2)
    lease = world.owner.leases[1]
    world.lost(lease)
    assert world.did() == [("watch", lease.worker)]
    world.submit()
    world.ready(lease)
    assert list(lease.inflight) == [1, 2]
    assert world.batches() == []
    world.did()
    world.lost(lease)
    assert world.did() == [], "watched once"
    world.died(lease, running=tasks[0])
    assert world.owner.leases == {}, "there is nothing more to be read"
    assert retries(tasks) == [2, 3]
    assert world.queued() == [1, 2, 3]


def test_a_worker_that_we_cannot_reach_and_that_does_not_die_is_killed() -> None:
    world, tasks = in_flight(2)
    lease = world.owner.leases[1]
    world.pass_time(5)
    world.lost(lease)
    world.did()
    world.pass_time(UNREACHABLE_S + 0.9)
    assert world.take(KillWorker) == []
    world.pass_time(0.2)
    assert world.take(KillWorker) == [KillWorker(1)]
    world.pass_time(UNREACHABLE_S - 0.3)
    world.died(lease, running=tasks[0])
    assert world.take(KillWorker) == []
    assert retries(tasks) == [2, 3]
    world.did()
    world.pass_time(10)
    assert world.did() == []


def test_a_lease_that_even_the_node_does_not_know_is_given_up() -> None:
    world, (task, other) = in_flight(2, retries=0)
    other.retries = 2
    world.lost(world.owner.leases[1])
    world.pass_time(2 * UNREACHABLE_S + 1)
    assert world.take(KillWorker) == [KillWorker(1)]
    assert world.finished == [(1, ("crashed", "f1", {"text": "the connection to its worker was lost"}))]
    assert task.seq not in world.owner.tasks
    assert (other.retries, world.queued()) == (1, [2])
    assert world.owner.leases == {}


def test_an_idle_worker_whose_connection_breaks_is_not_returned_but_watched() -> None:
    world, (task,) = in_flight(1)
    world.answer(task)
    world.did()
    lease = world.owner.leases[1]
    world.lost(lease)
    assert world.did() == [("watch", lease.worker)]
    world.pass_time(1)
    assert world.did() == []
    world.died(lease)
    assert world.owner.leases == {}


def test_a_watched_death_ends_the_leases_there_and_all_may_have_run() -> None:
    world, tasks = in_flight(2)
    other = world.grant()
    lease = world.owner.leases[1]
    world.lost(lease)
    world.did()
    world.do(world.owner.on_death, lease.worker[1], CAUSE, world.now)
    assert retries(tasks) == [2, 2]
    assert world.owner.leases == {2: other}
    assert world.batches() == [(2, [(1, 1), (2, 1)])]


def test_what_the_node_said_of_a_death_is_not_forgotten_for_what_the_watch_says() -> None:
    world, tasks = in_flight(2)
    lease = world.owner.leases[1]
    world.died(lease, running=tasks[0])
    world.do(world.owner.on_death, lease.worker[1], {"text": "something"}, world.now)
    world.lost(lease)
    assert retries(tasks) == [2, 3]


def test_the_code_of_functions_dies_with_the_worker() -> None:
    world, (task,) = in_flight(1)
    lease = world.owner.leases[1]
    assert lease.worker[1] in world.owner._sent_functions
    world.answer(task)
    world.died(lease)
    assert world.owner._sent_functions == {}


def test_deaths_of_unknown_leases_are_ignored() -> None:
    world, tasks = in_flight(1)
    world.do(world.owner.on_worker_died, 9, None, CAUSE, world.now)
    world.do(world.owner.on_peer_lost, b"?")
    world.do(world.owner.on_death, b"?", CAUSE, world.now)
    assert retries(tasks) == [3]
    assert world.did() == []


# -- what can never run ----------------------------------------------------------------------------


def test_what_no_node_can_hold_fails_but_what_runs_goes_on() -> None:
    world = OwnerWorld()
    world.submit(3)
    world.grant()
    world.did()
    world.do(world.owner.on_infeasible, 1, "CPU: 30 of 2")
    assert world.finished == [(n, ("unschedulable", "f1", "CPU: 30 of 2")) for n in (2, 3)]
    assert list(world.owner.tasks) == [1]
    world.did()
    world.submit()
    assert world.wanted() == [2], "who tries again asks again"


def test_only_that_key_fails() -> None:
    world = OwnerWorld()
    world.submit(2)
    other = make_function(2, world.add_key(make_key(2)))
    world.submit(function=other)
    world.do(world.owner.on_infeasible, 2, "no")
    assert [seq for seq, _ in world.finished] == [3]
    assert world.queued() == [1, 2]
    world.did()
    world.submit(function=other)
    assert world.wanted() == [1]


# -- cancel ----------------------------------------------------------------------------------------


def cancelled(*tasks: Task) -> list[tuple[int, Any]]:
    return [(task.seq, ("cancelled", "f1")) for task in tasks]


def test_a_task_that_waits_for_arguments_is_cancelled_at_once() -> None:
    world = OwnerWorld()
    task = world.make(unresolved=1)
    world.submit()
    world.did()
    world.cancel(task)
    assert world.finished == cancelled(task)
    assert world.did() == []
    assert world.queued() == [2]
    assert world.key.unfinished == 1


@pytest.mark.parametrize("force", [False, True])
def test_a_queued_task_is_cancelled_at_once_and_the_demand_falls(force: bool) -> None:
    world = OwnerWorld()
    a, b = world.submit(2)
    world.did()
    world.cancel(a, force=force)
    assert world.finished == cancelled(a)
    assert world.queued() == [b.seq]
    assert world.wanted() == []
    world.cancel(b, force=force)
    assert world.wanted() == [0]
    world.cancel(b, force=force)
    assert world.finished == cancelled(a, b)


@pytest.mark.parametrize("recursive", [False, True])
def test_a_task_in_flight_is_cancelled_by_its_worker(recursive: bool) -> None:
    world, (a, b) = in_flight(2)
    world.cancel(b, recursive=recursive)
    assert world.did() == [("w1", Cancel(2, 0, recursive))]
    assert world.finished == []
    world.cancel(b)
    assert world.did() == [], "told once"
    world.answer(a, b)
    world.did()
    world.cancel(b)
    assert world.finished == []
    assert world.did() == []


def test_a_running_task_is_cancelled_by_force_by_its_node() -> None:
    world, tasks = in_flight(3)
    lease = world.owner.leases[1]
    world.cancel(tasks[0], force=True)
    assert world.did() == [("node", KillWorker(1))]
    world.died(lease, running=tasks[0])
    world.lost(lease)
    assert world.finished == cancelled(tasks[0])
    assert retries(tasks)[1:] == [3, 3]
    assert world.queued() == [2, 3]
    assert world.key.unfinished == 2


def test_a_task_without_retries_that_is_killed_for_a_cancel_is_cancelled_not_crashed() -> None:
    world, (task,) = in_flight(1, retries=0)
    world.cancel(task, force=True)
    world.died(world.owner.leases[1], running=task)
    world.lost(world.owner.leases[1])
    assert world.finished == cancelled(task)


def test_force_after_a_gentle_cancel() -> None:
    world, (task,) = in_flight(1)
    world.cancel(task)
    assert world.did() == [("w1", Cancel(1, 0, False))]
    world.cancel(task, force=True)
    assert world.did() == [("node", KillWorker(1))]


def test_force_does_not_kill_another_task_that_runs_there() -> None:
    """b is doomed: it is killed for when it is the first in flight, so that it may be what runs."""
    world, (a, b, c) = in_flight(3)
    world.cancel(b, force=True)
    assert world.did() == [("w1", Cancel(2, 0, False))]
    world.answer(a)
    assert world.did() == [("node", KillWorker(1))]
    world.give_back(world.owner.leases[1], c, blocked=True)
    assert world.take(KillWorker) == [], "once"
    world.answer(b)
    assert world.take(KillWorker) == []
    assert world.queued() == [c.seq]


def test_several_may_be_doomed() -> None:
    world, (a, b, c, d) = in_flight(4)
    world.cancel(c, force=True)
    world.cancel(d, force=True)
    world.did()
    world.answer(a)
    assert world.did() == []
    world.answer(b)
    assert world.did() == [("node", KillWorker(1))]


def test_a_give_back_may_leave_the_doomed_first_in_flight() -> None:
    world, (a, b, c) = in_flight(3)
    world.cancel(c, force=True)
    world.did()
    world.give_back(world.owner.leases[1], b, blocked=True)
    assert world.take(KillWorker) == []
    world.give_back(world.owner.leases[1], a)
    assert world.take(KillWorker) == [KillWorker(1)]


def test_a_doomed_task_that_was_given_back_dooms_nobody() -> None:
    world, (a, b, c) = in_flight(3)
    world.cancel(b, force=True)
    world.did()
    world.give_back(world.owner.leases[1], b)
    assert world.finished == cancelled(b)
    world.answer(a)
    assert world.take(KillWorker) == []
    assert c.lease is not None


def test_a_cancelled_task_that_is_given_back_is_not_sent_again() -> None:
    world, (a, b) = in_flight(2)
    world.cancel(b)
    world.did()
    world.give_back(world.owner.leases[1], a, b, blocked=True)
    assert world.finished == cancelled(b)
    assert world.queued() == [1]
    assert list(world.owner.tasks) == [1]


def test_a_cancelled_task_whose_worker_died_is_not_sent_again() -> None:
    world, tasks = in_flight(3, retries=0)
    world.cancel(tasks[0])
    world.cancel(tasks[2])
    world.died(world.owner.leases[1], running=tasks[0])
    world.lost(world.owner.leases[1])
    assert sorted(world.finished) == cancelled(tasks[0], tasks[2])
    assert world.queued() == [2]


def test_an_end_may_be_the_end_of_others() -> None:
    """``finish`` is the core's: it may cancel or fail what waited for the result."""
    world = OwnerWorld()
    tasks = world.submit(3)
    world.did()
    finish = world.owner._finish

    def finish_and_cancel(task: Task, error: Any) -> None:
        finish(task, error)
        for other in tasks:
            world.owner.cancel(other, force=False, recursive=False)

    world.owner._finish = finish_and_cancel  # type: ignore[method-assign]
    world.do(world.owner.on_infeasible, 1, "no")
    assert sorted(seq for seq, _ in world.finished) == [1, 2, 3]
