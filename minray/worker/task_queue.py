"""What a leased worker has been sent and has not finished. Pure.

The executor's thread takes the next task from here; the reactor's thread (which answers even while user
code runs) puts tasks in and takes unstarted ones back: because another worker is idle (Steal), because
the user code waits inside the runtime (block), or because the node wants the worker (revoke). Whether
a task has started is decided here and nowhere else, under the lock of the process.

Invariants: specs of a lease older than the confirmed one bounce; of a younger one are kept until the node
confirms it; while blocked nothing is kept; what is given back is named and has not started; what has
started is answered (``flush``) before the owner hears that the lease is over.

Called by worker.executor. Effects: ``("send", owner address, tuple)``, ``("node", Message)``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
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
    """The tasks of the current lease. ``running`` is the spec that user code works on, or None. ``flush``
    sends results that have been kept back for a batch."""

    def __init__(self, effects: list[tuple[Any, ...]], flush: Callable[[], None]) -> None:
        self.effects = effects
        self._flush = flush
        self.lease_no = -1
        self.owner: Address | None = None
        self.queue: deque[Spec] = deque()
        self.running: Spec | None = None
        self.blocked = False
        self.ended = True  # the lease is over, here
        self._revoked = False
        self._early: dict[int, tuple[Address, deque[Spec]]] = {}  # by lease: not confirmed yet

    def on_confirm(self, msg: LeaseConfirm) -> None:
        """The node says whom this worker serves from now on."""
        self.lease_no = msg.lease_no
        self.owner = msg.owner
        self.ended = False
        self._revoked = False
        early, self._early = self._early, {}
        for lease_no, (owner, specs) in early.items():
            self.on_tasks(owner, lease_no, list(specs))

    def on_tasks(self, owner: Address, lease_no: int, specs: list[Spec]) -> None:
        """A batch from an owner."""
        if lease_no > self.lease_no:
            self._early.setdefault(lease_no, (owner, deque()))[1].extend(specs)
        elif lease_no < self.lease_no or self.ended or self._revoked:
            self._give_back(owner, lease_no, specs, ended=lease_no < self.lease_no or self.ended)
        elif self.blocked:
            self._give_back(owner, lease_no, specs, ended=False)
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
        if self._revoked and not self.ended:
            self._end()

    def on_steal(self, lease_no: int, count: int) -> None:
        """The owner has an idle worker: give back from the tail. Answered also if there is nothing."""
        owner, specs = self._early.get(lease_no, (self.owner, self.queue))
        if owner is None or (specs is self.queue and (self.ended or lease_no != self.lease_no)):
            return
        back = [specs.pop() for _ in range(min(count, len(specs)))]
        back.reverse()
        self._give_back(owner, lease_no, back, ended=False)

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
            self._give_back(self.owner, lease_no, back, ended=False)

    def end(self) -> None:
        """The worker itself ends the lease (max_calls); the owner returns it to the node. Before ``finish``,
        which would end a revoked lease without its owner's help."""
        if not self.ended:
            self._end(tell_node=False)

    def block(self) -> None:
        """The user code waits inside the runtime: others may have the CPU and the tasks."""
        if self.blocked or self.ended or self.owner is None:
            return
        self.blocked = True
        back = list(self.queue)
        self.queue.clear()
        self._give_back(self.owner, self.lease_no, back, ended=False)
        self.effects.append(("node", Blocked(self.lease_no)))

    def unblock(self) -> None:
        """It goes on, at once."""
        if not self.blocked or self.owner is None:
            return
        self.blocked = False
        self.effects.append(("node", Unblocked(self.lease_no)))
        if not self._revoked:
            self.effects.append(("send", self.owner, pack(Ready(self.lease_no))))

    def remove(self, seq: int, attempt: int, owner_id: bytes) -> Spec | None:
        """Cancel: the spec, if it is in the queue and has not started. (Numbers are unique per owner only.)

        What came before the node's confirmation is given back instead: its owner knows that it is cancelled.
        """
        if self.owner is not None and self.owner[1] == owner_id:
            for i, spec in enumerate(self.queue):
                if spec[0] == seq and spec[1] == attempt:
                    del self.queue[i]
                    return spec
        for lease_no, (owner, specs) in self._early.items():
            if owner[1] == owner_id:
                for i, spec in enumerate(specs):
                    if spec[0] == seq and spec[1] == attempt:
                        del specs[i]
                        self._give_back(owner, lease_no, [spec], ended=False)
                        return None
        return None

    def _end(self, *, tell_node: bool = True) -> None:
        self._flush()
        self.ended = True
        self.blocked = False
        back = list(self.queue)
        self.queue.clear()
        if self.owner is not None:
            self._give_back(self.owner, self.lease_no, back, ended=True)
        if tell_node:
            self.effects.append(("node", LeaseEnded(self.lease_no)))

    def _give_back(self, owner: Address, lease_no: int, specs: list[Spec], *, ended: bool) -> None:
        """``blocked`` in the message: nothing more is welcome (until Ready; after a revocation, ever)."""
        named = [(spec[0], spec[1]) for spec in specs]
        blocked = not ended and lease_no == self.lease_no and (self.blocked or self._revoked)
        self.effects.append(("send", owner, pack(GiveBack(lease_no, named, ended, blocked))))

    def check_invariants(self) -> None:
        """Raise AssertionError on a state that must not be."""
        assert not (self.blocked and self.queue), "a blocked worker keeps tasks"
        assert not (self.ended and self.queue), "tasks of a lease that is over"
        assert all(lease_no > self.lease_no for lease_no in self._early)
