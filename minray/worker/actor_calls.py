"""Calls of actors at their caller: order, connection, restarts, retries. Pure.

Calls of one caller are sent in the order in which they were made; one whose arguments are not there
yet holds back the later ones of this caller only. What happens when the actor's worker ends is told by
the GCS (ActorUpdate): calls that were in flight are retried if ``max_task_retries`` allows, else they
fail; calls that were not sent wait for the new incarnation and use no retry.

Called by worker.core. Effects: ``("send", address, tuple)``, ``("unhold", actor_ref id)``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from minray.wire.messages import CALLS, ActorUpdate, Address, Cancel, pack
from minray.worker.tasks import Task

BATCH = 16  # a loop of calls to a busy actor leaves in batches of this size


class ActorClient:
    """What one caller knows of one actor."""

    __slots__ = (
        "actor_id",
        "address",
        "broken",
        "cause",
        "class_name",
        "dead",
        "eager",
        "incarnation",
        "inflight",
        "max_pending",
        "queue",
        "state",
    )

    def __init__(self, actor_id: bytes, class_name: str, *, max_pending: int, eager: bool) -> None:
        self.actor_id = actor_id
        self.class_name = class_name
        self.max_pending = max_pending
        self.eager = eager  # threaded and asyncio actors: a waiting call may run beside the busy ones
        self.state = "PENDING"
        self.incarnation = 0
        self.address: Address | None = None
        self.cause: dict[str, Any] = {}
        self.queue: deque[Task] = deque()
        self.inflight: dict[int, Task] = {}
        self.broken = False

    def pending(self) -> int:
        """Calls without an answer."""
        return len(self.queue) + len(self.inflight)


class ActorCalls:
    """The actor calls of one process. ``finish(task, error)`` is core's."""

    def __init__(self, effects: list[tuple[Any, ...]], finish: Callable[[Task, Any], None]) -> None:
        self.effects = effects
        self.actors: dict[bytes, ActorClient] = {}
        self.tasks: dict[int, Task] = {}
        self.dirty: set[ActorClient] = set()  # have calls to send that were left for a batch
        self._finish = finish

    def submit(self, actor: ActorClient, task: Task) -> bool:
        """A call, in order. True: something was left for the next flush."""
        if actor.state == "DEAD":
            self._finish(task, ("actor_died", actor.class_name, actor.actor_id, actor.cause))
            return False
        self.tasks[task.seq] = task
        task.actor = actor
        actor.queue.append(task)
        if actor.state != "ALIVE" or actor.broken:
            return False
        if not actor.inflight or len(actor.queue) >= BATCH or actor.eager:
            self.pump(actor)
            return False
        self.dirty.add(actor)
        return True

    def flush(self) -> None:
        """Send what was left for a batch."""
        while self.dirty:
            self.pump(self.dirty.pop())

    def pump(self, actor: ActorClient) -> None:
        """Send the calls at the head of the queue that have all their arguments."""
        if actor.state != "ALIVE" or actor.broken or actor.address is None:
            return
        specs = []
        queue = actor.queue
        ready: deque[Task] = deque()
        if actor.eager:  # calls may overtake one whose arguments are not there
            if any(task.unresolved for task in queue):
                ready.extend(task for task in queue if not task.unresolved)
                actor.queue = deque(task for task in queue if task.unresolved)
            else:
                ready, actor.queue = queue, ready
        else:
            while queue and queue[0].unresolved == 0:
                ready.append(queue.popleft())
        for task in ready:
            if task.error is not None:
                self._end(task, task.error)
                continue
            actor.inflight[task.seq] = task
            specs.append((task.seq, task.attempt, task.function, task.payload, task.extra))
        if specs:
            self.effects.append(("send", actor.address, (CALLS, actor.incarnation, specs, None)))

    def on_resolved(self, task: Task) -> None:
        """A call's arguments are complete (or failed: ``task.error``)."""
        if task.seq in self.tasks:
            self.pump(task.actor)
            if task.error is not None and task.seq in self.tasks and task.seq not in task.actor.inflight:
                task.actor.queue.remove(task)
                self._end(task, task.error)

    def take(self, seq: int, attempt: int) -> Task | None:
        """The final answer for that attempt is here. None: not current."""
        task = self.tasks.get(seq)
        if task is None or task.attempt != attempt or seq not in task.actor.inflight:
            return None
        del self.tasks[seq]
        actor: ActorClient = task.actor
        del actor.inflight[seq]
        if actor.queue:
            self.pump(actor)
        return task

    def retry(self, task: Task) -> None:
        """Call once more, in front: an exception that ``retry_exceptions`` names."""
        task.attempt += 1
        self.tasks[task.seq] = task
        task.actor.queue.appendleft(task)
        self.pump(task.actor)

    def on_update(self, update: ActorUpdate) -> None:
        """The GCS tells how the actor is."""
        actor = self.actors.get(update.actor_id)
        if actor is None or actor.state == "DEAD" or update.incarnation < actor.incarnation:
            return
        changed = update.incarnation > actor.incarnation or update.state in ("RESTARTING", "DEAD")
        actor.state = update.state
        actor.incarnation = update.incarnation
        actor.address = update.address
        actor.cause = update.cause
        if changed:
            actor.broken = False
            self._interrupted(actor)
        if actor.state == "DEAD":
            for task in list(actor.queue):
                self._end(task, ("actor_died", actor.class_name, actor.actor_id, actor.cause))
            actor.queue.clear()
        else:
            self.pump(actor)

    def _interrupted(self, actor: ActorClient) -> None:
        """The incarnation that had these calls is over."""
        again = []
        for task in list(actor.inflight.values()):
            del actor.inflight[task.seq]
            if task.cancelled:
                self._end(task, ("cancelled", task.name))
            elif actor.state == "DEAD":
                self._end(task, ("actor_died", actor.class_name, actor.actor_id, actor.cause))
            elif task.retries == 0:
                self._end(task, ("actor_unavailable", actor.class_name, actor.actor_id, actor.cause))
            else:
                task.retries -= task.retries > 0
                task.attempt += 1
                again.append(task)
        actor.queue.extendleft(reversed(again))

    def on_peer_lost(self, worker_id: bytes) -> None:
        """The connection to an actor's worker is gone; what became of it, the GCS will say."""
        for actor in self.actors.values():
            if actor.address is not None and actor.address[1] == worker_id:
                actor.broken = True

    def cancel(self, task: Task, *, recursive: bool) -> None:
        """Stop a call: at once if it was not sent, else by its worker."""
        if task.cancelled:
            return
        task.cancelled = True
        actor: ActorClient = task.actor
        if task.seq in actor.inflight:
            if actor.address is not None:
                self.effects.append(("send", actor.address, pack(Cancel(task.seq, task.attempt, recursive))))
        else:
            actor.queue.remove(task)
            self._end(task, ("cancelled", task.name))
            self.pump(actor)

    def _end(self, task: Task, error: Any) -> None:
        self.tasks.pop(task.seq, None)
        self._finish(task, error)

    def check_invariants(self) -> None:
        """Raise AssertionError if a call is in two places or in none."""
        seen = set()
        for actor in self.actors.values():
            for task in actor.queue:
                assert task.seq not in seen, f"call {task.seq} is in two places"
                seen.add(task.seq)
            for seq, task in actor.inflight.items():
                assert seq not in seen and task.seq == seq, f"call {seq} is in two places"
                seen.add(seq)
            assert actor.state != "DEAD" or not actor.pending(), f"{actor.class_name}: calls wait for the dead"
        assert seen == set(self.tasks), f"calls without a place, or places without: {seen ^ set(self.tasks)}"
