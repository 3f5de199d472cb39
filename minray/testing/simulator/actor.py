"""A simulated worker that has become an actor: its constructor, its calls, its end. See worker.actor_executor.

One call at a time, or several side by side (``concurrency``): then the same argument may be in the hands of two
calls, which is hard on the counting of references.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from minray.testing.simulator.ledger import SimulationError
from minray.wire.messages import ActorEnded, ActorStarted, Address, Blocked, CreateActor, Unblocked
from minray.worker.tasks import RETRY

if TYPE_CHECKING:
    from minray.testing.simulator.worker import Call, Worker


class ActorRole:
    """What the worker is from CreateActor on."""

    def __init__(self, worker: Worker, order: CreateActor) -> None:
        from minray.testing.simulator.worker import Call

        self.worker = worker
        self.sim = worker.sim
        self.actor_id = order.actor_id
        self.incarnation = order.incarnation
        self.facts = self.sim.ledger.actors[order.spec["handle_id"]]
        self.options = order.spec["options"]
        self._check_alone()
        self.sim.ledger.roles[worker.worker_id] = (self.facts, self.incarnation)
        self.sim.ledger.seen["actor" if self.incarnation == 0 else "actor's restart"] += 1
        self.queue: deque[tuple[Address, tuple[Any, ...]]] = deque()
        self.calls: list[Call] = []
        self.stopping = False
        self._blocked = False
        worker.depth = order.spec["depth"]
        spec = (-1, 0, "__init__", order.spec["args"], None)
        meta = {"n": 1, "retry": False, "backpressure": 0, "actor": True}
        self._init: Call | None = Call(worker, order.spec["owner"], spec, meta)
        self.calls.append(self._init)
        self._init.script = self._run_init(self._init)
        worker.page = (-1, -1, order.incarnation)

    def _check_alone(self) -> None:
        """No incarnation too many, and no two side by side (but on a machine that counts as dead)."""
        limit = self.options["max_restarts"]
        if 0 <= limit < self.incarnation:
            raise SimulationError(f"incarnation {self.incarnation} of an actor with max_restarts={limit}")
        reasons = self.facts.restarts()
        if self.incarnation > reasons:
            raise SimulationError(f"incarnation {self.incarnation} of an actor that had {reasons} reasons to restart")
        for other in self.sim.workers() if self.sim.is_member(self.worker.worker_id) else ():
            role = other.actor if self.sim.is_member(other.worker_id) else None
            if role is not None and role is not self and role.actor_id == self.actor_id:
                raise SimulationError(f"incarnations {role.incarnation} and {self.incarnation} side by side")

    # -- birth ---------------------------------------------------------------------------------------

    def _run_init(self, frame: Call) -> Any:
        lost = yield from frame.arguments_arrive()
        yield
        for _ in range(self.sim.rng.randint(0, 2)):
            yield from frame.act()
        frame.close(keeps=0.5)
        self.calls.remove(frame)
        self._init = None
        fails = self.options["fails"] or lost is not None
        if not fails:
            self.worker.core.refs.adopt_scope(frame.scope)
        error = ("task", b"") if fails else None
        self.worker.perform()
        self.worker.tell_node(ActorStarted(self.actor_id, self.incarnation, self.worker.address, error))
        if fails:
            self.sim.exit(self.worker)

    # -- calls ---------------------------------------------------------------------------------------

    def on_calls(self, caller: Address, incarnation: int, specs: list[tuple[Any, ...]]) -> None:
        """CALLS of a caller."""
        if incarnation == self.incarnation and not self.stopping:
            self.queue.extend((caller, spec) for spec in specs)

    def remove(self, caller: Address, seq: int, attempt: int) -> bool:
        """Cancel: True if it has not started."""
        for i, (other, spec) in enumerate(self.queue):
            if (other[1], spec[0], spec[1]) == (caller[1], seq, attempt):
                del self.queue[i]
                return True
        return False

    def step(self) -> bool:
        """Some progress; False if there is nothing to do."""
        if self.stopping:
            return self._stopped()
        ready = [call for call in self.calls if not call.blocked() or (call.cancelled and not call.for_memory)]
        room = len(self.calls) < self.options["concurrency"] and self._init is None
        if room and self.queue and (not ready or self.sim.rng.random() < 0.5):
            self._start()
            return True
        if ready:
            self._unblock()
            self.sim.rng.choice(ready).step()
            return True
        alone = self.calls and self.options["concurrency"] == 1 and not self.calls[0].for_memory
        if alone and not self._blocked and self.sim.rng.random() < 0.5:
            self.worker.flush()
            self._blocked = True
            self.worker.perform()
            self.worker.tell_node(Blocked(-1))
            return True
        return False

    def _unblock(self) -> None:
        if self._blocked:
            self._blocked = False
            self.worker.tell_node(Unblocked(-1))

    def _start(self) -> None:
        from minray.testing.simulator.worker import Call

        caller, spec = self.queue.popleft()
        seq, attempt, _, _, extra = spec
        self.worker.page = (-1, seq, attempt)
        self.sim.judge.call_starts(self.worker, caller, spec)
        self.sim.ledger.call_started(self.facts, self.incarnation, caller[1], seq, attempt)
        meta = {**extra, "actor": True, "once": False, "max_calls": 0}
        self.calls.append(Call(self.worker, caller, spec, meta))

    def answer(self, call: Call, result: tuple[Any, ...]) -> None:
        """A call has ended."""
        if call not in self.calls:
            return
        self.calls.remove(call)
        if result[2] == RETRY:
            self.sim.ledger.unordered.add((call.owner[1], call.seq))
        self.sim.judge.call_ends(self.worker, result[5])
        self.worker.outbox_add(call.owner, result)
        if not self.queue:
            self.worker.flush()
        if self.sim.rng.random() < 0.01:  # exit_actor()
            self.stopping = self.facts.exits = True

    # -- the end -------------------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """The node asks for a graceful end."""
        self.stopping = True
        if "out of scope" in reason:
            self._nobody_calls()

    def _nobody_calls(self) -> None:
        """Out of scope: then the calls of all counted handles are answered."""
        handle_id = self.facts.handle_id
        if handle_id in self.sim.ledger.tainted:
            return
        for process in self.sim.processes.values():
            for task in process.core.calls.tasks.values():
                if task.actor.actor_id == self.actor_id and handle_id in task.nested:
                    raise SimulationError(f"an actor goes out of scope before call {task.seq} of {process}")

    def _stopped(self) -> bool:
        worker = self.worker
        worker.flush()
        worker.perform()
        worker.tell_node(ActorEnded(self.actor_id, self.incarnation, {"intended": True}))
        self.sim.exit(worker)
        return True
