"""Ordinary tasks at their owner: what is asked of the node, who gets which task, give-back, stealing, idle leases.

Deaths and cancels are in ``test_owner_faults.py``.
"""

from __future__ import annotations

import pytest

from minray.wire.messages import TASKS, GiveBack, LeaseDemand, LeaseReturn, Steal
from minray.worker.owner import STEAL_AFTER_S
from minray.worker.tasks import SchedulingKey

from .support import CPU1, OwnerWorld, address, make_function, make_key

MS = 1_000_000

# -- demand ----------------------------------------------------------------------------------------


def test_a_demand_says_all_that_the_node_must_know() -> None:
    world = OwnerWorld()
    key = SchedulingKey(7, {"CPU": 5_000}, "SPREAD", {"A": "1"}, 2, "task g", pipelined=True)
    world.submit(function=make_function(9, world.add_key(key)))
    demand = LeaseDemand(7, 1, {"CPU": 5_000}, 2, "SPREAD", {"A": "1"}, "task g", 0, False, True)
    assert world.did() == [("node", demand)]


def test_a_growing_demand_is_doubled_so_that_few_messages_tell_it() -> None:
    world = OwnerWorld()
    world.submit(9)
    assert world.wanted() == [1, 2, 4, 8, 16]


def test_a_demand_beyond_what_any_node_has_is_not_refined() -> None:
    world = OwnerWorld()
    world.submit(3000)
    assert world.wanted() == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    world.submit(32)
    assert world.wanted() == []


def test_the_demand_ends_when_every_task_has_a_worker() -> None:
    world = OwnerWorld()
    world.submit(2)
    assert world.wanted() == [1, 2]
    world.grant()
    assert world.wanted() == []
    world.grant()
    assert world.wanted() == [0]
    world.grant()
    assert world.wanted() == []


def test_pipelined_tasks_count_in_the_demand() -> None:
    """Or a second CPU would stay idle while one worker has all the tasks in its queue."""
    world = OwnerWorld(pipeline=8)
    world.grant()
    world.submit(3)
    assert world.batches() == [(1, [1]), (1, [2]), (1, [3])]
    assert world.wanted() == [2, 4]
    world.grant()
    assert world.wanted() == []
    world.grant()
    assert world.wanted() == [0]


def test_the_demand_ends_with_the_tasks() -> None:
    world = OwnerWorld(pipeline=8)
    world.grant()
    a, b = world.submit(2)
    assert world.wanted() == [2]
    world.answer(b)
    assert world.wanted() == [0]
    world.answer(a)
    assert world.wanted() == []


def test_what_the_leases_serve_is_not_wanted_again() -> None:
    world = OwnerWorld()
    for _ in range(2):
        world.give_back(world.grant(), blocked=True)
    world.submit(2)
    assert world.wanted() == []
    world.submit()
    assert world.wanted() == [3]


def test_after_the_end_of_a_lease_the_node_is_asked_anew() -> None:
    world = OwnerWorld()
    a, _, _ = world.submit(3)
    lease = world.grant()
    assert world.wanted() == [1, 2, 4]
    world.give_back(lease, a, ended=True)
    assert world.wanted() == [3]


def test_the_leases_that_are_left_count_when_the_node_is_asked_anew() -> None:
    world = OwnerWorld()
    a, *_ = world.submit(5)
    first = world.grant()
    world.grant()
    assert world.wanted() == [1, 2, 4, 8]
    world.give_back(first, a, ended=True)
    assert world.key.told == 5
    assert world.wanted() == [5]


def test_a_demand_stays_as_long_as_a_task_waits() -> None:
    world = OwnerWorld()
    tasks = world.submit(3)
    leases = [world.grant() for _ in range(2)]
    world.did()
    for lease, task in zip(leases, tasks, strict=False):
        world.give_back(lease, blocked=True)
        world.answer(task)
    assert world.wanted() == [], "the workers that have nothing in flight are no help"
    assert world.key.told == 4


# -- dispatch --------------------------------------------------------------------------------------


def test_the_code_of_a_function_rides_once_per_worker() -> None:
    world = OwnerWorld()
    g = make_function(2, world.key)
    lease = world.grant()
    for function, carried in (
        (world.f, {1: (b"code of f1", world.f.meta)}),
        (world.f, None),
        (g, {2: (b"code of f2", g.meta)}),
        (g, None),
    ):
        (task,) = world.submit(function=function)
        spec = (task.seq, 0, function.function_id, b"", None)
        assert world.take_hot(TASKS) == [("w1", (TASKS, 1, [spec], carried))]
        world.answer(task)
    world.give_back(lease, ended=True)
    world.submit()
    world.grant(worker=lease.worker)
    assert world.take_hot(TASKS)[0][1][3] is None, "the same worker under another lease still has it"
    world.grant(worker=address("other"))
    world.submit()
    assert world.take_hot(TASKS)[0][1][3] is not None


def test_the_code_rides_again_on_a_new_connection() -> None:
    world = OwnerWorld()
    lease = world.grant()
    world.submit()
    world.did()
    world.lost(lease)
    world.submit()
    world.grant(worker=lease.worker)
    assert world.take_hot(TASKS)[0][1][3] is not None


def test_breadth_before_depth() -> None:
    world = OwnerWorld()
    leases = [world.grant() for _ in range(3)]
    first = world.submit(3)
    world.submit(7)
    world.did()
    world.answer(*first, exec_ns=1000)
    assert world.batches() == [(1, [4, 5, 6]), (2, [7, 8]), (3, [9, 10])]
    assert [len(lease.inflight) for lease in leases] == [3, 2, 2]


def test_the_least_loaded_worker_is_served_first() -> None:
    world = OwnerWorld(pipeline=8)
    world.grant()
    world.submit(3)
    world.grant()
    world.did()
    world.submit(2)
    assert world.batches() == [(2, [4]), (2, [5])]


def test_a_worker_gets_more_only_when_half_of_its_pipeline_is_empty() -> None:
    """Batches, not single specs."""
    world = OwnerWorld(pipeline=4)
    world.grant()
    tasks = world.submit(6)
    assert world.batches() == [(1, [1]), (1, [2]), (1, [3])]
    world.answer(tasks[0])
    assert world.batches() == [(1, [4, 5])]
    world.answer(tasks[1])
    assert world.batches() == []


def test_a_function_that_never_ran_is_not_pipelined() -> None:
    world = OwnerWorld()
    world.grant()
    a, *_ = world.submit(3)
    assert world.batches() == [(1, [1])]
    world.answer(a, exec_ns=1000)
    assert world.batches() == [(1, [2, 3])]


@pytest.mark.parametrize(
    ("exec_ns", "depth"),
    [(10_000, 32), (200_000 - 1, 10), (MS - 1, 2), (2 * MS - 1, 1), (10 * MS, 1)],
)
def test_a_pipeline_is_two_milliseconds_deep(exec_ns: int, depth: int) -> None:
    key = make_key()
    key.avg_ns = exec_ns
    assert key.pipeline(32) == depth
    key.pipelined = False
    assert key.pipeline(32) == 1


def test_tasks_with_max_calls_are_not_pipelined() -> None:
    world = OwnerWorld(pipeline=8, pipelined=False)
    world.grant()
    world.submit(3)
    assert world.batches() == [(1, [1])]


def test_quick_to_believe_that_tasks_are_long_slow_to_believe_that_they_are_short() -> None:
    world = OwnerWorld()
    world.grant()
    averages = []
    for exec_ns in (0, 1000, 2000, 250, -1):
        world.answer(*world.submit(), exec_ns=exec_ns)
        averages.append(world.key.avg_ns)
    assert averages == [0, 500, 1250, 1150, 1150]


def test_the_32nd_waiting_task_pumps() -> None:
    """A worker may have room again while a message with results is still being read."""
    world = OwnerWorld(pipeline=64)
    world.key.avg_ns = -1.0
    world.grant()
    a, _ = world.submit(2)
    world.did()
    world.owner.take(a.seq, 0, 1000, world.now)
    for _ in range(30):
        world.owner.enqueue(world.make())
    world.gather()
    assert world.batches() == []
    world.submit()
    assert world.batches() == [(1, list(range(2, 34)))]


def test_an_answer_counts_only_for_the_attempt_that_is_in_flight() -> None:
    world = OwnerWorld()
    take = world.owner.take
    (a,) = world.submit()
    assert take(a.seq, 0, -1, world.now) is None, "it was never sent"
    lease = world.grant()
    world.give_back(lease, a)
    assert a.attempt == 1
    assert take(a.seq, 0, -1, world.now) is None, "of an older attempt"
    assert take(99, 0, -1, world.now) is None, "unknown"
    world.answer(a)
    assert take(a.seq, 1, -1, world.now) is None, "answered before"
    assert world.owner.tasks == {}


def test_an_answered_task_may_be_run_once_more() -> None:
    world = OwnerWorld()
    world.grant()
    a, _ = world.submit(2)
    world.did()

    def take_and_retry() -> None:
        world.owner.take(a.seq, 0, -1, world.now)
        world.owner.retry(a)
        world.owner.pump(world.key)

    world.do(take_and_retry)
    assert world.batches() == [(1, [2])]
    assert world.queued() == [1], "the others come first"
    world.grant()
    assert world.batches() == [(2, [(1, 1)])]


# -- give-back -------------------------------------------------------------------------------------


def test_only_what_a_worker_names_moves() -> None:
    world = OwnerWorld(pipeline=4)
    lease = world.grant()
    a, b, c = world.submit(3)
    world.did()
    world.give_back(lease, b, c, blocked=True)
    assert list(lease.inflight) == [a.seq]
    assert world.queued() == [b.seq, c.seq]
    assert (a.attempt, b.attempt, c.attempt) == (0, 1, 1)
    assert (a.retries, b.retries, c.retries) == (3, 3, 3)
    assert (a.lease, b.lease) == (lease, None)
    world.grant()
    assert world.batches() == [(2, [(2, 1), (3, 1)])]


def test_what_is_given_back_goes_in_front() -> None:
    world = OwnerWorld(pipeline=4)
    lease = world.grant()
    _, b, c, d, e = world.submit(5)
    assert world.queued() == [d.seq, e.seq]
    world.give_back(lease, b, c, blocked=True)
    assert world.queued() == [b.seq, c.seq, d.seq, e.seq]


def test_a_named_attempt_that_is_not_the_current_one_does_not_move() -> None:
    world = OwnerWorld()
    lease = world.grant()
    (a,) = world.submit()
    for named in ((a.seq, 1), (a.seq + 1, 0)):
        world.do(world.owner.on_give_back, GiveBack(lease.lease_no, [named], False, False), world.now)
    assert list(lease.inflight) == [a.seq]
    assert a.attempt == 0


def test_a_give_back_of_an_unknown_lease_is_ignored() -> None:
    world = OwnerWorld()
    lease = world.grant()
    (a,) = world.submit()
    world.did()
    world.do(world.owner.on_give_back, GiveBack(99, [(a.seq, 0)], True, True), world.now)
    world.do(world.owner.on_ready, 99)
    assert list(lease.inflight) == [a.seq]
    assert world.did() == []


def test_a_blocked_worker_gets_nothing_until_it_is_ready() -> None:
    world = OwnerWorld()
    lease = world.grant()
    (a,) = world.submit()
    world.give_back(lease, blocked=True)
    world.answer(a)
    world.did()
    world.submit()
    assert world.batches() == []
    world.ready(lease)
    assert world.batches() == [(1, [2])]


def test_the_end_of_a_lease_moves_what_was_sent_too_late() -> None:
    """The worker had answered all that it started, so what is still in flight bounces without having started."""
    world = OwnerWorld(pipeline=4)
    lease = world.grant()
    a, b, c = world.submit(3)
    world.did()
    world.give_back(lease, b, ended=True)
    assert world.owner.leases == {}
    assert world.key.leases == {}
    assert sorted(world.queued()) == [a.seq, b.seq, c.seq]
    assert [task.attempt for task in (a, b, c)] == [1, 1, 1]
    assert [task.retries for task in (a, b, c)] == [3, 3, 3]
    assert world.take(LeaseReturn) == []
    world.give_back(lease, c)
    assert c.attempt == 1, "its bouncing comes too late to count"


def test_a_worker_that_ends_its_lease_by_max_calls_is_retired() -> None:
    world = OwnerWorld(retires=True)
    lease = world.grant()
    world.give_back(lease, ended=True)
    assert world.take(LeaseReturn) == [LeaseReturn(lease.lease_no, True)]


def test_a_worker_that_gave_all_back_may_be_returned_later() -> None:
    world = OwnerWorld()
    lease = world.grant()
    (a,) = world.submit()
    world.pass_time(0.5)
    world.give_back(lease, a, blocked=True)
    world.cancel(a)
    world.ready(lease)
    world.pass_time(0.8)
    assert world.take(LeaseReturn) == [], "it is idle since then only"
    world.pass_time(0.8)
    assert world.take(LeaseReturn) == [LeaseReturn(1, False)]


def test_a_give_back_starts_the_clock() -> None:
    world = OwnerWorld()
    lease = world.grant()
    (a,) = world.submit()
    world.pass_time(5)
    assert world.timers == []
    world.give_back(lease, a, blocked=True)
    world.cancel(a)
    world.ready(lease)
    world.pass_time(1)
    assert world.take(LeaseReturn) == [LeaseReturn(1, False)]


# -- stealing --------------------------------------------------------------------------------------


def busy_and_idle(*, tasks: int = 4, idle: int = 1) -> OwnerWorld:
    """One worker has all the tasks, the others stand idle."""
    world = OwnerWorld(pipeline=8)
    world.grant()
    world.submit(tasks)
    for _ in range(idle):
        world.grant()
    world.did()
    return world


@pytest.mark.parametrize(("tasks", "idle", "count"), [(2, 1, 1), (4, 1, 1), (5, 1, 2), (5, 2, 2), (5, 3, 3)])
def test_an_idle_worker_takes_its_share_of_what_waits(tasks: int, idle: int, count: int) -> None:
    world = busy_and_idle(tasks=tasks, idle=idle)
    assert [timer[:2] for timer in world.timers if timer[1] == "steal"] == [(world.now + STEAL_AFTER_S, "steal")]
    world.pass_time(STEAL_AFTER_S)
    assert world.did() == [("w1", Steal(1, count))]


def test_what_was_stolen_goes_to_the_idle_worker_and_more_may_be_stolen_then() -> None:
    world = busy_and_idle()
    tasks = list(world.owner.tasks.values())
    world.pass_time(STEAL_AFTER_S)
    world.did()
    world.give_back(world.owner.leases[1], tasks[3])
    assert world.batches() == [(2, [(4, 1)])]
    world.answer(tasks[3])
    world.pass_time(STEAL_AFTER_S)
    assert world.take(Steal) == [Steal(1, 1)]


def test_nobody_is_asked_twice_at_a_time() -> None:
    world = busy_and_idle()
    world.pass_time(STEAL_AFTER_S)
    assert len(world.take(Steal)) == 1
    world.grant()
    world.pass_time(STEAL_AFTER_S)
    assert world.take(Steal) == []
    world.give_back(world.owner.leases[1])
    world.pass_time(STEAL_AFTER_S)
    assert len(world.take(Steal)) == 1, "it had nothing to give: it may have now"


def test_nothing_is_stolen_where_the_imbalance_has_passed() -> None:
    world = busy_and_idle(tasks=2)
    world.answer(*world.owner.tasks.values())
    world.pass_time(STEAL_AFTER_S)
    assert world.take(Steal) == []
    assert not world.key.steal_timer


def test_nothing_is_stolen_from_a_worker_with_one_task() -> None:
    world = busy_and_idle(tasks=1)
    assert [timer for timer in world.timers if timer[1] == "steal"] == []


def test_nothing_is_stolen_from_a_worker_that_has_only_what_runs_by_now() -> None:
    world = busy_and_idle(tasks=2)
    world.answer(world.owner.tasks[1])
    world.pass_time(STEAL_AFTER_S)
    assert world.take(Steal) == []


def test_nothing_is_stolen_for_a_worker_that_waits_itself() -> None:
    world = busy_and_idle()
    world.give_back(world.owner.leases[2], blocked=True)
    world.pass_time(STEAL_AFTER_S)
    assert world.take(Steal) == []
    world.answer(world.owner.tasks[1])
    assert not world.key.steal_timer


def test_nothing_is_stolen_over_a_connection_that_is_gone() -> None:
    world = busy_and_idle()
    world.lost(world.owner.leases[1])
    world.pass_time(STEAL_AFTER_S)
    assert world.take(Steal) == []


def test_nothing_is_stolen_while_tasks_wait_here() -> None:
    world = busy_and_idle()
    world.give_back(world.owner.leases[2], blocked=True)
    world.submit(8)
    assert world.queued()
    world.pass_time(STEAL_AFTER_S)
    assert world.take(Steal) == []


# -- idle leases -----------------------------------------------------------------------------------


def test_an_idle_lease_is_kept_warm_for_a_while_and_then_returned() -> None:
    world = OwnerWorld()
    world.grant()
    world.pass_time(0.5)
    world.answer(*world.submit())
    world.did()
    world.pass_time(0.6)
    assert world.did() == []
    world.pass_time(0.9)
    assert world.did() == [("node", LeaseReturn(1, False))]
    assert world.owner.leases == {}
    assert world.timers == []


def test_one_timer_per_key_watches_its_leases() -> None:
    world = OwnerWorld()
    leases = [world.grant() for _ in range(3)]
    for lease in leases:
        world.answer(*world.submit())
        world.give_back(lease)
    assert [timer[1] for timer in world.timers] == ["idle"]


def test_a_lease_with_work_is_kept() -> None:
    world = OwnerWorld()
    world.grant()
    world.submit()
    world.did()
    world.pass_time(10)
    assert world.did() == []
    assert world.timers == [], "its answer starts the clock"
    world.answer(world.owner.tasks[1])
    assert [timer[1] for timer in world.timers] == ["idle"]
    world.pass_time(1)
    assert world.take(LeaseReturn) == [LeaseReturn(1, False)]


def test_only_those_that_were_idle_long_enough_are_returned() -> None:
    world = OwnerWorld()
    world.grant()
    world.pass_time(0.2)
    world.grant()
    world.pass_time(0.8)
    assert world.take(LeaseReturn) == [LeaseReturn(1, False)]
    world.pass_time(1)
    assert world.take(LeaseReturn) == [LeaseReturn(2, False)]


def test_a_worker_that_waits_is_not_returned() -> None:
    world = OwnerWorld()
    world.give_back(world.grant(), blocked=True)
    world.pass_time(10)
    assert world.take(LeaseReturn) == []


def test_each_key_has_its_own_leases() -> None:
    world = OwnerWorld()
    other = world.add_key(make_key(2))
    world.submit(function=make_function(2, other))
    world.grant()
    assert world.batches() == []
    assert world.wanted() == [1]
    world.grant(key=other)
    assert world.batches() == [(2, [1])]
    assert world.key.resources == CPU1


# -- the invariants themselves ---------------------------------------------------------------------


def test_the_invariants_see_what_is_wrong() -> None:
    def broken(message: str) -> None:
        with pytest.raises(AssertionError, match=message):
            world.owner.check_invariants()

    world = OwnerWorld(pipeline=4)
    lease = world.grant()
    a, b = world.submit(2)
    world.key.unfinished += 1
    broken("2 tasks, 3 counted")
    world.key.unfinished -= 1
    del world.owner.tasks[a.seq]
    broken("task 1 is finished but still lease")
    world.owner.tasks[a.seq] = a
    del lease.inflight[b.seq]
    world.key.unfinished -= 1
    broken(r"task 2 \(f1\) is nowhere")
    lease.inflight[b.seq] = b
    world.key.unfinished += 1
    lease.broken = True
    broken("lease 1 is open")
