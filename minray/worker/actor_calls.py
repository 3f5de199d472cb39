"""Calls of actors at their caller: order, connection, restarts, retries. Pure.

Calls of one caller are sent in the order in which they were made; one whose arguments are not there
yet holds back the later ones of this caller only (threaded and asyncio actors promise no order). What
happens when the actor's worker ends is told by the GCS (ActorUpdate): calls that were in flight are retried
if ``max_task_retries`` allows, else they fail; calls that were not sent wait for the new incarnation and use
no retry. What the old incarnation had answered counts: its calls in flight are given up when its connection
has been read to the end (``draining`` until then), and nothing is sent to the new one before.

Called by worker.core. Effects: ``("send", address, tuple)``, ``("timer", seconds, "actor", number)``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from minray.wire.messages import CALLS, ActorUpdate, Address, Cancel, pack
from minray.worker.tasks import Task

BATCH = 16  # a loop of calls to a busy actor leaves in batches of this size
LAST_WORDS_S = 0.5  # how long the connection to an incarnation that is over may take to end
UNREACHABLE_S = 2.0  # how long the GCS may take to say what became of an actor that we cannot reach


class ActorClient:
    """What one caller knows of one actor."""

    __slots__ = (
        "actor_id",
        "address",
        "broken",
        "cause",
        "class_name",
        "creation",
        "draining",
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
        self.broken = False  # no connection to ``address``: the GCS will say why
        self.creation: bytes | None = None  # its hidden object, held while ``__init__`` has not run
        self.draining: bytes | None = None  # the worker whose last answers may still be unread

    def open(self) -> bool:
        """Whether calls can be sent now."""
        ready = self.state == "ALIVE" and not self.broken and self.draining is None
        return ready and self.address is not None

    def pending(self) -> int:
        """Calls without an answer."""
        return len(self.queue) + len(self.inflight)


class ActorCalls:
    """The actor calls of one process. ``finish(task, error)`` is core's."""

    def __init__(self, effects: list[tuple[Any, ...]], finish: Callable[[Task, Any], None]) -> None:
        self.effects = effects
        self.actors: dict[bytes, ActorClient] = {}
        self.tasks: dict[int, Task] = {}
        self.dirty: dict[ActorClient, None] = {}  # have calls to send that were left for a batch
        self._finish = finish
        self._doubts: dict[int, tuple[ActorClient, bytes]] = {}  # timer → actor, and the worker we lost
        self._last_doubt = 0

    def client(self, actor_id: bytes, class_name: str, *, max_pending: int, eager: bool) -> ActorClient:
        """The record of an actor, made once per process."""
        actor = self.actors.get(actor_id)
        if actor is None:
            actor = ActorClient(actor_id, class_name, max_pending=max_pending, eager=eager)
            self.actors[actor_id] = actor
        return actor

    def submit(self, actor: ActorClient, task: Task) -> bool:
        """A call, in order. True: something was left for the next flush."""
        if actor.state == "DEAD":
            self._finish(task, ("actor_died", actor.class_name, actor.actor_id, actor.cause))
            return False
        self.tasks[task.seq] = task
        task.actor = actor
        actor.queue.append(task)
        if not actor.open():
            return False
        if actor.eager:
            if not task.unresolved:
                actor.queue.pop()
                self._send(actor, [task])
            return False
        if not actor.inflight or len(actor.queue) >= BATCH:
            self.pump(actor)
            return False
        self.dirty[actor] = None
        return True

    def flush(self) -> None:
        """Send what was left for a batch."""
        while self.dirty:
            self.pump(self.dirty.popitem()[0])

    def pump(self, actor: ActorClient) -> None:
        """Send the calls at the head of the queue that have all their arguments."""
        if not actor.open():
            return
        ready: list[Task] = []
        queue = actor.queue
        while queue and queue[0].unresolved == 0:
            ready.append(queue.popleft())
        if actor.eager and queue:  # calls may overtake one whose arguments are not there
            ready.extend(task for task in queue if not task.unresolved)
            actor.queue = deque(task for task in queue if task.unresolved)
        self._send(actor, ready)

    def _send(self, actor: ActorClient, tasks: list[Task]) -> None:
        assert actor.address is not None
        specs = []
        failed = []
        for task in tasks:
            if task.error is not None:
                del self.tasks[task.seq]
                failed.append(task)
            else:
                actor.inflight[task.seq] = task
                specs.append((task.seq, task.attempt, task.function, task.payload, task.extra))
        if specs:
            self.effects.append(("send", actor.address, (CALLS, actor.incarnation, specs, None)))
        for task in failed:  # last: whoever waits for it may be a later call of this actor
            self._finish(task, task.error)

    def on_resolved(self, task: Task) -> None:
        """A call's arguments are complete (or failed: ``task.error``)."""
        if task.seq not in self.tasks:
            return
        actor: ActorClient = task.actor
        if task.error is not None and (actor.queue[0] is not task or not actor.open()):
            actor.queue.remove(task)
            self._end(task, task.error)
        elif actor.eager and actor.open():
            actor.queue.remove(task)
            self._send(actor, [task])
        else:
            self.pump(actor)

    def take(self, seq: int, attempt: int) -> Task | None:
        """The final answer for that attempt is here. None: not current."""
        task = self.tasks.get(seq)
        if task is None or task.attempt != attempt or seq not in task.actor.inflight:
            return None
        del self.tasks[seq]
        actor: ActorClient = task.actor
        del actor.inflight[seq]
        if actor.draining is not None:
            if not actor.inflight:
                self._drained(actor)
        elif actor.queue and not actor.eager:
            self.pump(actor)
        return task

    def retry(self, task: Task) -> None:
        """Call once more, in front: an exception that ``retry_exceptions`` names."""
        actor: ActorClient = task.actor
        task.attempt += 1
        self.tasks[task.seq] = task
        if actor.state == "DEAD":
            self._end(task, ("actor_died", actor.class_name, actor.actor_id, actor.cause))
        else:
            actor.queue.appendleft(task)
            self.pump(actor)

    # -- the actor's fate --------------------------------------------------------------------------

    def on_update(self, update: ActorUpdate) -> None:
        """The GCS tells how the actor is."""
        actor = self.actors.get(update.actor_id)
        if actor is None or actor.state == "DEAD" or update.incarnation < actor.incarnation:
            return
        over = update.incarnation > actor.incarnation or update.state in ("RESTARTING", "DEAD")
        if over and actor.inflight and not actor.broken and actor.draining is None:
            assert actor.address is not None  # else nothing could have been sent
            actor.draining = actor.address[1]
            self._doubt(actor, actor.draining, LAST_WORDS_S)
        actor.state = update.state
        actor.incarnation = update.incarnation
        actor.address = update.address
        if update.cause or over:
            actor.cause = update.cause
        if over and actor.draining is None:
            actor.broken = False
            self._interrupted(actor)
        if actor.state == "DEAD":
            waiting, actor.queue = actor.queue, deque()
            for task in waiting:
                del self.tasks[task.seq]
            for task in waiting:  # whoever waits for it may be a later call of this actor
                self._finish(task, ("actor_died", actor.class_name, actor.actor_id, actor.cause))
        else:
            self.pump(actor)

    def on_peer_lost(self, worker_id: bytes) -> None:
        """The connection to an actor's worker is gone; what became of it, the GCS will say."""
        for actor in self.actors.values():
            if actor.draining == worker_id:
                self._drained(actor)
            elif actor.address is not None and actor.address[1] == worker_id and not actor.broken:
                actor.broken = True
                self._doubt(actor, worker_id, UNREACHABLE_S)

    def _doubt(self, actor: ActorClient, worker_id: bytes, seconds: float) -> None:
        self._last_doubt += 1
        self._doubts[self._last_doubt] = (actor, worker_id)
        self.effects.append(("timer", seconds, "actor", self._last_doubt))

    def on_timer(self, number: int) -> None:
        """We lost sight of an actor some time ago, and still do not know more: do not wait for ever."""
        actor, worker_id = self._doubts.pop(number)
        if actor.draining == worker_id:
            self._drained(actor)
        elif actor.broken and actor.address is not None and actor.address[1] == worker_id:
            # It lives, but did not hear us, or we did not hear it: go on with a new connection.
            self._drained(actor, {"text": "the connection to its worker was lost"})

    def _drained(self, actor: ActorClient, cause: dict[str, Any] | None = None) -> None:
        """Nothing more is to be heard from the worker that had the calls in flight."""
        actor.draining = None
        actor.broken = False
        self._interrupted(actor, cause)
        self.pump(actor)

    def _interrupted(self, actor: ActorClient, cause: dict[str, Any] | None = None) -> None:
        """The calls in flight will not be answered: call again, or fail."""
        calls, actor.inflight = actor.inflight, {}
        again = []
        failed: list[tuple[Task, Any]] = []
        where = (actor.class_name, actor.actor_id, cause or actor.cause)
        for task in calls.values():
            if task.cancelled:
                failed.append((task, ("cancelled", task.name)))
            elif actor.state == "DEAD":
                failed.append((task, ("actor_died", *where)))
            elif task.retries == 0:
                failed.append((task, ("actor_unavailable", *where)))
            else:
                task.retries -= task.retries > 0
                task.attempt += 1
                again.append(task)
        actor.queue.extendleft(reversed(again))
        for task, _ in failed:
            del self.tasks[task.seq]
        for task, error in failed:
            self._finish(task, error)

    def cancel(self, task: Task, *, recursive: bool) -> None:
        """Stop a call: at once if it was not sent, else by its worker."""
        if task.cancelled or task.seq not in self.tasks:
            return  # it may have ended just now, because another one was cancelled
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
            waiting = bool(actor.queue) or (bool(actor.inflight) and actor.draining is None)
            assert actor.state != "DEAD" or not waiting, f"{actor.class_name}: calls wait for the dead"
            assert actor.draining is None or actor.inflight, f"{actor.class_name}: is drained already"
        assert seen == set(self.tasks), f"calls without a place, or places without: {seen ^ set(self.tasks)}"
