"""What a leased worker has been sent and has not finished: leases, stealing, revocation, blocking, cancel."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from minray.wire.messages import (
    RESULTS,
    Address,
    Blocked,
    Cancel,
    GiveBack,
    LeaseConfirm,
    LeaseEnded,
    LeaseRevoke,
    Ready,
    StreamAck,
    Unblocked,
    pack,
)
from minray.worker import executor
from minray.worker.running import Running
from minray.worker.task_queue import TaskQueue

from .support import CPU1, JOB, World, address, spec_names

A, B = address("A"), address("B")


def make_specs(*numbers: int, attempt: int = 0) -> list[tuple[Any, ...]]:
    return [(number, attempt, 1, b"", None) for number in numbers]


def back(lease_no: int, *named: int, ended: bool = False, blocked: bool = False) -> GiveBack:
    return GiveBack(lease_no, [(number, 0) for number in named], ended, blocked)


class QueueWorld(World):
    """A worker that serves lease 5 of A. ``flush`` is noted among the effects."""

    def __init__(self, *numbers: int, confirmed: bool = True) -> None:
        super().__init__()
        self.queue = TaskQueue(self.effects, lambda: self.effects.append(("flush",)))
        if confirmed:
            self.confirm(5)
        if numbers:
            self.tasks(*numbers)

    def check(self) -> None:
        self.queue.check_invariants()

    def confirm(self, lease_no: int, owner: Address = A) -> None:
        self.do(self.queue.on_confirm, LeaseConfirm(lease_no, owner, JOB, CPU1, {}))

    def tasks(self, *numbers: int, lease_no: int = 5, owner: Address = A) -> None:
        self.do(self.queue.on_tasks, owner, lease_no, make_specs(*numbers))

    def start(self) -> int | None:
        spec = self.do(self.queue.start)
        if spec is None:
            return None
        assert self.queue.running is spec
        return int(spec[0])

    def finish(self) -> None:
        self.do(self.queue.finish)
        assert self.queue.running is None

    def waiting(self) -> list[Any]:
        return spec_names(list(self.queue.queue))


# -- leases ----------------------------------------------------------------------------------------


def test_tasks_start_in_order() -> None:
    world = QueueWorld(1, 2)
    world.tasks(3)
    started = []
    for _ in range(3):
        started.append(world.start())
        world.finish()
    assert started == [1, 2, 3]
    assert world.start() is None
    assert world.did() == []


def test_tasks_of_an_older_lease_bounce() -> None:
    world = QueueWorld()
    world.tasks(7, 8, lease_no=4, owner=B)
    assert world.did() == [("B", back(4, 7, 8, ended=True))]
    assert world.waiting() == []


def test_tasks_of_a_younger_lease_wait_for_the_nodes_word() -> None:
    world = QueueWorld(1)
    world.tasks(11, lease_no=6, owner=B)
    world.tasks(12, lease_no=6, owner=B)
    assert world.did() == []
    assert world.waiting() == [1]
    world.start()
    world.finish()
    world.do(world.queue.on_revoke, 5)
    world.did()
    assert world.start() is None
    world.confirm(6, B)
    assert world.waiting() == [11, 12]
    assert world.did() == []


def test_a_confirmation_sorts_what_came_early() -> None:
    world = QueueWorld(confirmed=False)
    world.tasks(1, lease_no=3, owner=A)
    world.tasks(2, lease_no=4, owner=B)
    world.tasks(3, lease_no=5, owner=A)
    world.confirm(4, B)
    assert world.waiting() == [2]
    assert world.did() == [("A", back(3, 1, ended=True))]
    world.do(world.queue.end)
    world.confirm(5, A)
    assert world.waiting() == [3]


def test_nothing_runs_before_the_first_lease() -> None:
    world = QueueWorld(confirmed=False)
    world.tasks(1, lease_no=0)
    assert world.start() is None
    world.do(world.queue.block)
    world.do(world.queue.unblock)
    world.do(world.queue.end)
    world.do(world.queue.on_revoke, -1)
    assert world.do(world.queue.remove, 1, 1, A[1]) is None
    assert world.did() == []


# -- stealing --------------------------------------------------------------------------------------


def test_what_is_stolen_comes_from_the_tail_in_order() -> None:
    world = QueueWorld(1, 2, 3, 4)
    world.start()
    world.do(world.queue.on_steal, 5, 2)
    assert world.did() == [("A", back(5, 3, 4))]
    assert world.waiting() == [2]


def test_what_has_started_is_not_given_back() -> None:
    world = QueueWorld(1, 2)
    world.start()
    world.do(world.queue.on_steal, 5, 9)
    assert world.did() == [("A", back(5, 2))]
    world.do(world.queue.on_steal, 5, 1)
    assert world.did() == [("A", back(5))], "answered also if there is nothing: the owner waits for it"


def test_stealing_of_what_came_early() -> None:
    world = QueueWorld(1)
    world.tasks(11, 12, 13, lease_no=6, owner=B)
    world.do(world.queue.on_steal, 6, 2)
    assert world.did() == [("B", back(6, 12, 13))]
    world.confirm(6, B)
    assert world.waiting() == [1, 11]


def test_a_steal_for_a_lease_that_is_over_is_not_answered() -> None:
    world = QueueWorld(1)
    for lease_no in (4, 6):
        world.do(world.queue.on_steal, lease_no, 1)
    assert world.did() == []
    assert world.waiting() == [1]
    world.do(world.queue.end)
    world.did()
    world.do(world.queue.on_steal, 5, 1)
    assert world.did() == []


# -- the end of a lease ----------------------------------------------------------------------------


def test_an_idle_worker_ends_its_lease_at_once() -> None:
    world = QueueWorld()
    world.do(world.queue.on_revoke, 5)
    assert world.did() == [("flush",), ("A", back(5, ended=True)), ("node", LeaseEnded(5))]
    assert world.queue.ended
    world.do(world.queue.on_revoke, 5)
    assert world.did() == []


def test_between_two_tasks_the_answers_go_before_the_end_of_the_lease() -> None:
    """Else the owner would take what is answered but unsent for not started, and run it twice."""
    world = QueueWorld(1, 2)
    world.start()
    world.finish()
    world.do(world.queue.on_revoke, 5)
    assert world.did() == [("flush",), ("A", back(5, 2, ended=True)), ("node", LeaseEnded(5))]


def test_a_revoked_worker_finishes_what_runs_and_gives_the_rest_back() -> None:
    world = QueueWorld(1, 2, 3)
    world.start()
    world.do(world.queue.on_revoke, 5)
    assert world.did() == [("A", back(5, 2, 3, blocked=True))]
    world.tasks(4)
    assert world.did() == [("A", back(5, 4, blocked=True))]
    assert world.start() is None
    world.finish()
    assert world.did() == [("flush",), ("A", back(5, ended=True)), ("node", LeaseEnded(5))]
    world.tasks(5)
    assert world.did() == [("A", back(5, 5, ended=True))]


def test_a_revoked_worker_with_an_empty_queue_says_nothing_until_it_has_finished() -> None:
    world = QueueWorld(1)
    world.start()
    world.do(world.queue.on_revoke, 5)
    assert world.did() == []
    world.do(world.queue.on_steal, 5, 1)
    assert world.did() == [("A", back(5, blocked=True))]
    world.finish()
    assert world.did()[-1] == ("node", LeaseEnded(5))


def test_a_revocation_of_another_lease_is_ignored() -> None:
    world = QueueWorld(1)
    for lease_no in (4, 6):
        world.do(world.queue.on_revoke, lease_no)
    assert world.did() == []
    assert world.start() == 1


def test_a_new_lease_makes_a_revocation_forgotten() -> None:
    world = QueueWorld()
    world.do(world.queue.on_revoke, 5)
    world.confirm(6, B)
    world.did()
    world.tasks(1, lease_no=6, owner=B)
    assert world.start() == 1
    world.finish()
    assert world.did() == []


def test_the_worker_itself_ends_its_lease_and_the_owner_tells_the_node() -> None:
    world = QueueWorld(1, 2)
    world.start()
    world.do(world.queue.end)
    assert world.did() == [("flush",), ("A", back(5, 2, ended=True))]
    world.do(world.queue.end)
    world.finish()
    world.tasks(3)
    assert world.did() == [("A", back(5, 3, ended=True))]


def test_a_revoked_worker_that_ends_by_itself_ends_once() -> None:
    world = QueueWorld(1)
    world.start()
    world.do(world.queue.on_revoke, 5)
    world.do(world.queue.end)
    world.finish()
    assert world.did() == [("flush",), ("A", back(5, ended=True))]


# -- waiting inside the runtime --------------------------------------------------------------------


def test_a_blocked_worker_keeps_nothing_and_lends_its_cpu() -> None:
    world = QueueWorld(1, 2, 3)
    world.start()
    world.do(world.queue.block)
    assert world.did() == [("A", back(5, 2, 3, blocked=True)), ("node", Blocked(5))]
    world.do(world.queue.block)
    assert world.did() == [], "once"
    assert world.start() is None


def test_blocked_is_sticky() -> None:
    world = QueueWorld(1)
    world.start()
    world.do(world.queue.block)
    world.did()
    world.tasks(2)
    assert world.did() == [("A", back(5, 2, blocked=True))]
    world.do(world.queue.unblock)
    assert world.did() == [("node", Unblocked(5)), ("A", Ready(5))]
    world.do(world.queue.unblock)
    assert world.did() == []
    world.tasks(2)
    assert world.waiting() == [2]


def test_early_tasks_of_the_next_lease_do_not_mind_a_block() -> None:
    world = QueueWorld(1)
    world.start()
    world.do(world.queue.block)
    world.did()
    world.tasks(2, lease_no=6, owner=B)
    assert world.did() == []
    world.do(world.queue.on_steal, 6, 1)
    assert world.did() == [("B", back(6, 2))], "it is not blocked for that lease"


def test_who_goes_on_after_a_revocation_wants_nothing_more() -> None:
    world = QueueWorld(1)
    world.start()
    world.do(world.queue.block)
    world.do(world.queue.on_revoke, 5)
    world.did()
    world.do(world.queue.unblock)
    assert world.did() == [("node", Unblocked(5))]
    world.finish()
    assert world.did()[-1] == ("node", LeaseEnded(5))


def test_the_end_of_a_lease_ends_the_block() -> None:
    world = QueueWorld(1)
    world.start()
    world.do(world.queue.block)
    world.do(world.queue.on_revoke, 5)
    world.finish()
    world.did()
    world.do(world.queue.unblock)
    world.do(world.queue.block)
    assert world.did() == []
    world.confirm(6, B)
    world.tasks(2, lease_no=6, owner=B)
    assert world.start() == 2


# -- cancel ----------------------------------------------------------------------------------------


def test_a_cancelled_task_that_has_not_started_leaves_the_queue() -> None:
    world = QueueWorld(1, 2, 3)
    world.start()
    assert world.do(world.queue.remove, 2, 0, A[1]) == make_specs(2)[0]
    assert world.waiting() == [3]
    for seq, attempt in ((1, 0), (3, 1), (9, 0)):  # runs; another attempt; unknown
        assert world.do(world.queue.remove, seq, attempt, A[1]) is None
    assert world.waiting() == [3]
    assert world.did() == []


def test_numbers_are_unique_per_owner_only() -> None:
    world = QueueWorld(1, 2)
    world.tasks(2, 3, lease_no=6, owner=B)
    assert world.do(world.queue.remove, 1, 0, B[1]) is None
    assert world.do(world.queue.remove, 3, 0, A[1]) is None
    assert world.do(world.queue.remove, 2, 1, B[1]) is None, "another attempt"
    assert world.did() == []
    assert world.do(world.queue.remove, 2, 0, B[1]) is None
    assert world.did() == [("B", back(6, 2))], "its owner knows that it is cancelled"
    assert world.waiting() == [1, 2]
    world.confirm(6, B)
    assert world.waiting() == [1, 2, 3]


def test_the_invariants_see_what_is_wrong() -> None:
    world = QueueWorld(1)
    for what, message in (("blocked", "a blocked worker keeps"), ("ended", "of a lease that is over")):
        setattr(world.queue, what, True)
        with pytest.raises(AssertionError, match=message):
            world.queue.check_invariants()
        setattr(world.queue, what, False)


# -- as the executor uses it -----------------------------------------------------------------------


class ExecutorWorld:
    """An Executor that serves lease 5 of A, without a runtime around it. Its function has id 1."""

    def __init__(self) -> None:
        self.handlers: dict[type, Any] = {}
        self.effects: list[tuple[Any, ...]] = []
        rt = SimpleNamespace(
            core=SimpleNamespace(effects=self.effects),
            captured=None,
            handle=self.handlers.__setitem__,
            set_resources=lambda *_: None,
            reactor=SimpleNamespace(call_later=lambda *_: None),
            lock=nullcontext(),
            leave=lambda: None,
            task_id_of=lambda _running: bytes(24),
            encode=lambda value, object_id: (1, value, ()),
        )
        self.executor = executor.Executor(rt, SimpleNamespace(start=lambda *_: None))
        self.executor._name = "f"  # announced
        self.confirm(5, A)

    def confirm(self, lease_no: int, owner: Address) -> None:
        self.hear(owner, LeaseConfirm(lease_no, owner, JOB, CPU1, {}))

    def execute(self, function: Any, *, max_calls: int) -> list[tuple[Any, ...]]:
        """A task of the current lease, from its arrival to its result. Returns the effects."""
        queue = self.executor.queue
        assert queue.owner is not None
        meta = {"name": "f", "n": 1, "once": False, "depth": 1, "max_calls": max_calls}
        self.executor._functions[(queue.owner[1], 1)] = (function, meta)
        self.effects.clear()
        queue.on_tasks(queue.owner, queue.lease_no, make_specs(1))
        self.executor.execute(queue.start(), queue.owner)
        return self.effects

    def hear(self, source: Address, msg: Any) -> None:
        self.handlers[type(msg)](SimpleNamespace(tag=source), msg)

    def run(self, owner: Address, seq: int) -> Running:
        running = self.executor.running = Running(owner, seq, 0, {"name": "f", "n": 1}, "", None)
        return running


def test_the_executor_sends_its_results_before_the_lease_ends() -> None:
    world = ExecutorWorld()
    queue = world.executor.queue
    queue.on_tasks(A, 5, make_specs(1, 2))
    queue.start()
    result = (1, 0, 1, b"v", 1000, None)
    world.executor.outbox.add(A, result)
    queue.finish()
    world.hear(A, LeaseRevoke(5))
    assert world.effects[0] == ("send", A, (RESULTS, [result]))
    assert world.effects[-1] == ("node", LeaseEnded(5))


def test_an_owner_cancels_only_its_own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "interrupt_main_thread", lambda: None)
    world = ExecutorWorld()
    running = world.run(A, 1)
    world.executor.queue.on_tasks(A, 5, make_specs(2))
    for seq in (1, 2):
        world.hear(B, Cancel(seq, 0, False))
        world.hear(B, StreamAck(seq, 0, 7))
    assert not running.cancelled
    assert running.consumed == 0
    assert spec_names(list(world.executor.queue.queue)) == [2]
    world.hear(A, StreamAck(1, 0, 7))
    assert running.consumed == 7
    world.hear(A, Cancel(1, 0, False))
    assert running.cancelled


def test_a_worker_that_reached_max_calls_is_retired_also_when_the_node_wants_it_back() -> None:
    """The owner returns it. If the worker ended the lease towards the node, it would get another task."""
    world = ExecutorWorld()

    def function() -> bytes:
        world.hear(A, LeaseRevoke(5))
        return b"v"

    result, end = world.execute(function, max_calls=1)
    assert result[2][0] == RESULTS
    assert end == ("send", A, pack(GiveBack(5, [], True, False)))
    assert world.executor.queue.ended


def test_calls_are_counted_per_owner_and_function() -> None:
    world = ExecutorWorld()
    for lease_no, owner, ended in ((5, A, False), (6, B, False), (7, A, True)):
        world.confirm(lease_no, owner)
        effects = world.execute(lambda: b"v", max_calls=2)
        assert world.executor.queue.ended == ended
        assert len(effects) == 1 + ended
