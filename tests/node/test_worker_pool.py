"""The worker pool: reuse, retirement, the table of states."""

from __future__ import annotations

import pytest

from minray.node.demands import WorkerClass
from minray.node.worker_pool import IDLE, LEASED, LEAVING, STARTING, TRANSITIONS, WorkerPool

from .support import CLASS, JOB, worker_ids


def make(**settings: int | float) -> WorkerPool:
    return WorkerPool(cpus=2, new_worker_id=worker_ids(), **settings)  # type: ignore[arg-type]


def test_ids_are_known_before_the_worker_is() -> None:
    pool = make()
    effects = pool.start(CLASS, 2, 0.0)
    assert effects == [("start", n, pool.workers[n].worker_id, CLASS) for n in (1, 2)]
    assert pool.starting(CLASS) == 2


def test_prestart_counts_who_is_there_already() -> None:
    pool = make()
    pool.start(CLASS, 1, 0.0)
    assert len(pool.prestart(CLASS, 2, 0.0)) == 1
    assert pool.prestart(CLASS, 2, 0.0) == []


def test_the_most_recently_used_is_given_out_first() -> None:
    pool = make()
    pool.start(CLASS, 3, 0.0)
    for number in (1, 2, 3):
        pool.registered(number, float(number))
    worker = pool.take(CLASS, "lease", 1, 4.0)
    assert worker is not None and worker.number == 3
    pool.release(3, 5.0)
    again = pool.take(CLASS, "lease", 2, 6.0)
    assert again is not None and again.number == 3
    assert pool.take(WorkerClass(JOB, (("A", "1"),)), "lease", 3, 6.0) is None
    pool.check_invariants()


def test_only_idle_ones_above_the_number_of_cpus_retire_the_longest_idle_first() -> None:
    pool = make(idle_s=10.0)
    pool.start(CLASS, 4, 0.0)
    for number in (1, 2, 3, 4):
        pool.registered(number, float(number))
    assert pool.next_deadline() == 11.0
    assert pool.tick(10.9) == []
    assert pool.tick(11.0) == [("exit", 1, True, "idle")]
    assert pool.next_deadline() == 12.0
    assert pool.tick(99.0) == [("exit", 2, True, "idle")]
    assert pool.next_deadline() is None, "an idle node does not wake up"
    assert [pool.workers[n].state for n in (1, 2, 3, 4)] == [LEAVING, LEAVING, IDLE, IDLE]


def test_idle_ones_can_be_dismissed_at_once() -> None:
    pool = make(idle_s=10.0)
    pool.start(CLASS, 3, 0.0)
    for number in (1, 2):
        pool.registered(number, 1.0)
    pool.take(CLASS, "lease", 7, 2.0)
    (gone,) = pool.dismiss_idle(3.0, "memory runs out")
    assert gone[0] == "exit" and gone[2:] == (True, "memory runs out")
    assert pool.dismiss_idle(3.0, "memory runs out") == []
    pool.check_invariants()


def test_a_leaving_worker_is_never_given_out() -> None:
    pool = make()
    pool.start(CLASS, 1, 0.0)
    assert pool.leave(1, 0.0, graceful=True, reason="x") == [("exit", 1, True, "x")]
    worker = pool.registered(1, 1.0)
    assert worker is not None and worker.state == LEAVING
    assert pool.take(CLASS, "lease", 1, 2.0) is None
    pool.release(1, 3.0)
    assert worker.state == LEAVING
    pool.exited(1)
    assert pool.workers == {} and pool.exited(1) is None
    pool.check_invariants()


def test_illegal_moves_raise_before_anything_changes() -> None:
    pool = make()
    pool.start(CLASS, 1, 0.0)
    pool.registered(1, 0.0)
    with pytest.raises(ValueError, match="worker 1 is IDLE: 'registered' is impossible now"):
        pool.registered(1, 0.0)
    pool.check_invariants()
    assert pool.workers[1].state == IDLE


def test_failed_starts_count_in_a_row_and_are_forgotten_by_success() -> None:
    pool = make()
    pool.start(CLASS, 3, 0.0)
    pool.exited(1)
    pool.exited(2)
    assert pool.failed_starts == {CLASS: 2}
    pool.registered(3, 0.0)
    assert pool.failed_starts == {}


def test_the_table_has_no_dead_ends() -> None:
    reachable, frontier = {STARTING}, [STARTING]
    while frontier:
        state = frontier.pop()
        for (old, _), new in TRANSITIONS.items():
            if old == state and new not in reachable:
                reachable.add(new)
                frontier.append(new)
    assert reachable == {new for new in TRANSITIONS.values()} | {STARTING}
    assert all((state, "leave") in TRANSITIONS for state in reachable)
    assert LEASED in reachable
