"""What a leased worker has been sent and has not finished. Pure.

The executor's thread takes the next task from here; the reactor's thread (which answers even while user
code runs) puts tasks in and takes unstarted ones back: because another worker is idle (Steal), because
the user code waits inside the runtime (block), or because the node wants the worker (revoke). Whether
a task has started is decided here and nowhere else, under the lock of the process.

Invariants: specs of a lease older than the confirmed one bounce; of a younger one are kept until the node
confirms it; while blocked nothing is kept; what is given back is named and has not started.

Called by worker.executor. Effects: ``("send", owner address, tuple)``, ``("node", Message)``.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from minray.wire.messages import (
    Address,
    Blocked,
    GiveBack,
    LeaseConfirm,
    LeaseEnded,
    Ready,
    Unblocked,
    pack,
)

Spec = tuple[Any, ...]


class TaskQueue:
    """The tasks of the current lease. ``running`` is the spec that user code works on, or None."""

    def __init__(self, effects: list[tuple[Any, ...]]) -> None:
        self.effects = effects
        self.lease_no = -1
        self.owner: Address | None = None
        self.queue: deque[Spec] = deque()
        self.running: Spec | None = None
        self.blocked = False
        self.ended = True  # the lease is over, here
        self._revoked = False
        self._early: list[tuple[Address, int, list[Spec]]] = []

    def on_confirm(self, msg: LeaseConfirm) -> None:
        """The node says whom this worker serves from now on."""
        self.lease_no = msg.lease_no
        self.owner = msg.owner
        self.ended = False
        self._revoked = False
        early, self._early = self._early, []
        for owner, lease_no, specs in early:
            self.on_tasks(owner, lease_no, specs)

    def on_tasks(self, owner: Address, lease_no: int, specs: list[Spec]) -> None:
        """A batch from an owner."""
        if lease_no > self.lease_no:
            self._early.append((owner, lease_no, specs))
        elif lease_no < self.lease_no or self.ended or self._revoked:
            over = lease_no < self.lease_no or self.ended
            self._give_back(owner, lease_no, specs, ended=over, blocked=False)
        elif self.blocked:
            self._give_back(owner, lease_no, specs, ended=False, blocked=True)
        else:
            self.queue.extend(specs)

    def start(self) -> Spec | None:
        """The next task, which has started from here on."""
        if self.blocked or not self.queue:
            return None
        self.running = self.queue.popleft()
        return self.running

    def finish(self) -> None:
        """The running task's result is on its way."""
        self.running = None
        if self._revoked:
            self._end()

    def on_steal(self, lease_no: int, count: int) -> None:
        """The owner has an idle worker: give back from the tail."""
        if lease_no != self.lease_no or self.owner is None or self.ended:
            return
        back = [self.queue.pop() for _ in range(min(count, len(self.queue)))]
        back.reverse()
        self._give_back(self.owner, lease_no, back, ended=False, blocked=self.blocked)

    def on_revoke(self, lease_no: int) -> None:
        """The node wants the worker for somebody else."""
        if lease_no != self.lease_no or self.ended:
            return
        self._revoked = True
        if self.running is None:
            self._end()
        elif self.queue and self.owner is not None:
            back = list(self.queue)
            self.queue.clear()
            self._give_back(self.owner, lease_no, back, ended=False, blocked=self.blocked)

    def end(self) -> None:
        """The worker itself ends the lease (max_calls); the owner returns it to the node."""
        if not self.ended:
            self._end(tell_node=False)

    def block(self) -> None:
        """The user code waits inside the runtime: others may have the CPU and the tasks."""
        if self.blocked or self.ended or self.owner is None:
            return
        self.blocked = True
        back = list(self.queue)
        self.queue.clear()
        self._give_back(self.owner, self.lease_no, back, ended=False, blocked=True)
        self.effects.append(("node", Blocked(self.lease_no)))

    def unblock(self) -> None:
        """It goes on, at once."""
        if not self.blocked or self.owner is None:
            return
        self.blocked = False
        self.effects.append(("node", Unblocked(self.lease_no)))
        if not self._revoked:
            self.effects.append(("send", self.owner, pack(Ready(self.lease_no))))

    def remove(self, seq: int, attempt: int) -> Spec | None:
        """Cancel: the spec, if it has not started."""
        for i, spec in enumerate(self.queue):
            if spec[0] == seq and spec[1] == attempt:
                del self.queue[i]
                return spec
        return None

    def on_owner_died(self, worker_id: bytes) -> bool:
        """Forget the tasks of a dead owner. True: one of them is running."""
        self._early = [e for e in self._early if e[0][1] != worker_id]
        if self.owner is None or self.owner[1] != worker_id:
            return False
        self.queue.clear()
        return self.running is not None

    def _end(self, *, tell_node: bool = True) -> None:
        self.ended = True
        self.blocked = False
        back = list(self.queue)
        self.queue.clear()
        if self.owner is not None:
            self._give_back(self.owner, self.lease_no, back, ended=True, blocked=False)
        if tell_node:
            self.effects.append(("node", LeaseEnded(self.lease_no)))

    def _give_back(
        self, owner: Address, lease_no: int, specs: list[Spec], *, ended: bool, blocked: bool
    ) -> None:
        named = [(spec[0], spec[1]) for spec in specs]
        self.effects.append(("send", owner, pack(GiveBack(lease_no, named, ended, blocked))))

    def check_invariants(self) -> None:
        """Raise AssertionError on a state that must not be."""
        assert not (self.blocked and self.queue), "a blocked worker keeps tasks"
        assert not (self.ended and self.queue), "tasks of a lease that is over"
        assert all(lease_no > self.lease_no for _, lease_no, _ in self._early)
