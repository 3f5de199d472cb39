"""Ordinary tasks at their owner: queues, leases, dispatch, results, retries, cancel. Pure.

An owner asks its node for leases per scheduling key (an absolute number: LeaseDemand), sends batches
straight to the leased workers, and takes results from them. The scheduler is not on this path. Its node may
name another one to ask (LeaseSpill); what concerns a lease is said to the node that granted it.

Invariants: a task is in exactly one place (waiting for arguments, in its key's queue, or in flight in
one lease); an answer counts only for the attempt that is current; only tasks that a worker names as
given back move; a task is charged a retry only if its attempt may have started; what a dead worker had
answered counts: its lease is buried when its connection has been read to the end.

Called by worker.core. Effects: ``("send", address, tuple)``, ``("node", Message)``,
``("at", node_id, endpoint, Message)`` to another node, ``("timer", seconds, what, key number)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from minray.wire.messages import (
    TASKS,
    Cancel,
    GiveBack,
    KillWorker,
    LeaseDecline,
    LeaseDemand,
    LeaseGrant,
    LeaseReturn,
    LeaseSpill,
    Message,
    Steal,
    pack,
)
from minray.worker.charges import Charges
from minray.worker.tasks import STORED, Elsewhere, Function, Lease, SchedulingKey, Task

STEAL_AFTER_S = 0.003
PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.6  # after other nodes had no room
LAST_WORDS_S = 0.5  # how long a dead worker's connection may take to end
UNREACHABLE_S = 2.0  # how long a worker without a connection may take to be dead
SPREAD, NEAR = "SPREAD", "near"  # strategies, see _base.options and go_near()
UNFLOODED = 1024  # demands beyond this are not refined: no node has more workers to give


class TaskManager:
    """The ordinary tasks of one process. ``finish(task, error)`` is core's: it stores the outcome."""

    def __init__(
        self,
        effects: list[tuple[Any, ...]],
        finish: Callable[[Task, Any], None],
        *,
        home: bytes,
        max_pipeline: int,
        lease_idle_s: float,
    ) -> None:
        self.effects = effects
        self.home = home  # our node
        self.keys: dict[int, SchedulingKey] = {}
        self.leases: dict[int, Lease] = {}
        self.tasks: dict[int, Task] = {}  # by seq: all unfinished ordinary tasks
        self._finish = finish
        self._max_pipeline = max_pipeline
        self._lease_idle_s = lease_idle_s
        self._sent_functions: dict[bytes, set[int]] = {}  # worker_id → what it has
        self._endpoints: dict[bytes, str] = {}  # of other nodes that we have been sent to
        self._near: dict[tuple[int, bytes], Function] = {}  # by function and node: the same, asked for there first
        self._charges = Charges()
        self._near_keys: dict[tuple[int, bytes], SchedulingKey] = {}
        self.clustered = False  # there may be other nodes

    # -- submission --------------------------------------------------------------------------------

    def add(self, task: Task) -> None:
        """A task whose arguments may still be missing (``unresolved`` > 0)."""
        self.tasks[task.seq] = task

    def go_near(self, task: Task) -> None:
        """If most bytes of its stored arguments are on one other node, it had better run there."""
        size = {self.home: 0}
        for _, status, value, _, _ in task.extra["top"] if task.extra else ():
            if status == STORED:
                size[value[0][0]] = size.get(value[0][0], 0) + value[1]
        if type(task.payload) is tuple and task.payload[0] == "stored":  # the rest of the arguments, written here
            size[self.home] += task.payload[1][1]
        node_id = max(size, key=size.__getitem__)  # of equals the first: our own
        if node_id != self.home:
            task.function = self._near_to(task.function, node_id)

    def _near_to(self, function: Function, node_id: bytes) -> Function:
        """The same with a scheduling key of its own: our node asks that node first, and then any."""
        place = (function.function_id, node_id)
        found = self._near.get(place)
        if found is None:
            old = function.key
            key = self._near_keys.get((old.number, node_id))
            if key is None:
                number = len(self.keys) + 1
                key = old.under(number, (NEAR, node_id))
                self.keys[number] = self._near_keys[(old.number, node_id)] = key
            found = self._near[place] = function.under(key)
        return found

    def enqueue(self, task: Task) -> None:
        """All its arguments are there: it may run."""
        key: SchedulingKey = task.function.key
        key.queue.append(task)
        key.unfinished += 1
        waiting = len(key.queue)
        if waiting == 1 or waiting % 32 == 0:
            # A queue that was not empty had no idle worker; the next result, or the 32nd, pumps it.
            self.pump(key)
        elif key.told < key.unfinished and key.told < UNFLOODED:
            self._demand(key)

    # -- dispatch ----------------------------------------------------------------------------------

    def pump(self, key: SchedulingKey) -> None:
        """Send what can be sent, and keep the node's idea of our demand true."""
        queue = key.queue
        if queue and key.leases:
            limit = key.pipeline(self._max_pipeline)
            usable = [x for x in key.leases.values() if not x.closed and len(x.inflight) * 2 <= limit]
            usable.sort(key=_load)
            left = len(usable)
            for lease in usable:
                room = min(limit - len(lease.inflight), -(-len(queue) // left), len(queue))
                left -= 1
                if room > 0:
                    self._dispatch(lease, [queue.popleft() for _ in range(room)])
                if not queue:
                    break
        self._demand(key)
        if not queue and len(key.leases) > 1 and key.unfinished and not key.steal_timer:
            self._consider_stealing(key)

    def _dispatch(self, lease: Lease, batch: list[Task]) -> None:
        sent = self._sent_functions.get(lease.worker[1])
        if sent is None:
            sent = self._sent_functions[lease.worker[1]] = set()
        functions: dict[int, Any] | None = None
        inflight = lease.inflight
        specs = []
        for task in batch:
            function: Function = task.function
            if function.function_id not in sent:
                sent.add(function.function_id)
                if functions is None:
                    functions = {}
                functions[function.function_id] = (function.blob, function.meta)
            task.lease = lease
            inflight[task.seq] = task
            specs.append((task.seq, task.attempt, function.function_id, task.payload, task.extra))
        self.effects.append(("send", lease.worker, (TASKS, lease.lease_no, specs, functions)))

    def _demand(self, key: SchedulingKey) -> None:
        wanted = key.unfinished if key.queue or key.unfinished > len(key.leases) else 0  # pipelined ones count
        more = wanted > len(key.leases)
        if key.elsewhere:
            wanted = self._wanted_at_home(key, wanted)
        told = key.told
        if told < 0:
            key.told = wanted
        elif more and wanted > told and told < UNFLOODED:
            # doubled, so that a loop of a thousand submissions tells the node ten times, not a thousand
            key.told = max(wanted, min(2 * told, UNFLOODED)) if told else wanted
        elif wanted == 0 and told:
            key.told = 0
        else:
            return
        self.effects.append(("node", self._demand_of(key, key.told, key.spilled, hold=False)))

    def _demand_of(self, key: SchedulingKey, wanted: int, refused: int, *, hold: bool) -> LeaseDemand:
        return LeaseDemand(
            key.number, wanted, key.resources, key.depth, key.strategy, key.env_vars, key.description,
            refused, hold, key.again,
        )  # fmt: skip

    # -- other nodes -------------------------------------------------------------------------------

    def _wanted_at_home(self, key: SchedulingKey, wanted: int) -> int:
        """Without what other nodes were asked for, have granted, or had no room for just now. Nothing wanted: they are
        told."""
        leased = Counter(lease.worker[0] for lease in key.leases.values())
        taken = key.resting
        if wanted == 0:
            self._ask_no_more(key)
        for node_id, elsewhere in key.asking.items():
            taken += max(elsewhere.asked, leased.pop(node_id, 0))
        taken += sum(count for node_id, count in leased.items() if node_id in key.elsewhere)
        return max(0, wanted - taken)

    def _ask_no_more(self, key: SchedulingKey) -> None:
        asking, key.asking = key.asking, {}
        for node_id, elsewhere in asking.items():
            elsewhere.asked = 0
            self._ask(key, node_id, elsewhere)

    def _ask(self, key: SchedulingKey, node_id: bytes, elsewhere: Elsewhere) -> None:
        demand = self._demand_of(key, elsewhere.asked, elsewhere.declined, hold=elsewhere.hold)
        self.effects.append(("at", node_id, self._endpoints[node_id], demand))

    def on_spill(self, msg: LeaseSpill) -> None:
        """Our node does not count these any more: another one may have them."""
        key = self.keys[msg.key]
        key.spilled += msg.count
        key.told = max(0, key.told - msg.count)
        self._endpoints[msg.node_id] = msg.endpoint
        if not key.queue and key.unfinished <= len(key.leases):
            return
        elsewhere = key.elsewhere.get(msg.node_id)
        if elsewhere is None:
            elsewhere = key.elsewhere[msg.node_id] = Elsewhere()
        leased = sum(1 for lease in key.leases.values() if lease.worker[0] == msg.node_id)
        elsewhere.asked = max(elsewhere.asked, leased) + msg.count
        key.asking[msg.node_id] = elsewhere
        elsewhere.hold = msg.hold
        self._ask(key, msg.node_id, elsewhere)

    def on_decline(self, node_id: bytes, msg: LeaseDecline) -> None:
        """It has no room for these: our own node has to think again. At once the first time; but what it knows of the
        others is a little old, and where all are busy each no would lead to the next: so then after a pause, which
        doubles until somebody grants."""
        key = self.keys[msg.key]
        elsewhere = key.elsewhere[node_id]
        elsewhere.declined += msg.count
        elsewhere.asked = max(0, elsewhere.asked - msg.count)
        if not elsewhere.asked:
            key.asking.pop(node_id, None)
        if key.ask_timer:
            key.resting += msg.count
            return
        key.ask_timer = True
        key.pause = min(2 * key.pause, LONGEST_PAUSE_S) or PAUSE_S
        self.effects.append(("timer", key.pause, "ask", key.number))
        self._demand(key)

    def on_ask_timer(self, number: int) -> None:
        """Some time ago another node had no room."""
        key = self.keys[number]
        key.ask_timer, key.resting = False, 0
        self._demand(key)

    def on_node_lost(self, node_id: bytes) -> None:
        """Another node does not hear us any more. What becomes of its workers is told elsewhere."""
        self._endpoints.pop(node_id, None)
        for place in [place for place in self._near if place[1] == node_id]:
            del self._near[place]
        for key in self.keys.values():
            if key.elsewhere.pop(node_id, None) is not None:
                key.asking.pop(node_id, None)
                self._demand(key)

    def _tell(self, lease: Lease, msg: Message) -> None:
        """To the node that granted it."""
        node_id = lease.worker[0]
        if node_id == self.home:
            self.effects.append(("node", msg))
        elif node_id in self._endpoints:  # else it is lost, and the lease with it
            self.effects.append(("at", node_id, self._endpoints[node_id], msg))

    def _consider_stealing(self, key: SchedulingKey) -> None:
        idle = busy = False
        for lease in key.leases.values():
            if not lease.inflight and not lease.closed:
                idle = True
            elif len(lease.inflight) > 1:
                busy = True
        if idle and busy:
            key.steal_timer = True
            self.effects.append(("timer", STEAL_AFTER_S, "steal", key.number))

    def on_steal_timer(self, number: int) -> None:
        """Some time ago a worker stood idle beside a busy one. Is it still so?"""
        key = self.keys[number]
        key.steal_timer = False
        if key.queue:
            return
        idle = sum(1 for x in key.leases.values() if not x.inflight and not x.closed)
        if not idle:
            return
        for lease in key.leases.values():
            waiting = len(lease.inflight) - 1
            if waiting > 0 and not lease.stealing and not lease.broken:
                lease.stealing = True
                count = max(1, waiting * idle // (idle + 1))
                self.effects.append(("send", lease.worker, pack(Steal(lease.lease_no, count))))

    # -- leases ------------------------------------------------------------------------------------

    def on_grant(self, grant: LeaseGrant, now: float) -> None:
        """A worker is ours."""
        key = self.keys[grant.key]
        lease = Lease(grant.lease_no, grant.worker, key, now)
        self.leases[grant.lease_no] = lease
        key.leases[grant.lease_no] = lease
        if grant.worker[0] != self.home:
            key.pause = 0.0
        self.pump(key)
        self._arm_idle(key)

    def _arm_idle(self, key: SchedulingKey) -> None:
        if self.clustered and key.strategy == SPREAD:
            # Tasks that are to be spread do not wait for each other's workers: none is kept warm.
            for lease in [] if key.queue else list(key.leases.values()):
                if not lease.inflight and not lease.closed:
                    self._give_away(lease)
            if not any(x.broken or x.death is not None for x in key.leases.values()):
                return
        if not key.idle_timer and key.leases:
            key.idle_timer = True
            self.effects.append(("timer", self._lease_idle_s, "idle", key.number))

    def _give_away(self, lease: Lease) -> None:
        self._drop_lease(lease)
        self._tell(lease, LeaseReturn(lease.lease_no, False))

    def on_timer(self, what: str, number: int, now: float) -> None:
        """A timer that one of our effects asked for."""
        if what == "idle":
            self.on_idle_timer(number, now)
        elif what == "steal":
            self.on_steal_timer(number)
        else:
            assert what == "ask", what
            self.on_ask_timer(number)

    def on_idle_timer(self, number: int, now: float) -> None:
        """Return the leases that have been idle for a while; see to those of whom nothing is heard."""
        key = self.keys[number]
        key.idle_timer = False
        for lease in list(key.leases.values()):
            if lease.death is not None or lease.broken:
                self._on_silence(lease, now)
            elif lease.inflight or lease.closed:
                continue
            elif now - lease.idle_since >= self._lease_idle_s * 0.9:
                self._give_away(lease)
        if any(not x.inflight or x.broken or x.death is not None for x in key.leases.values()):
            self._arm_idle(key)

    def _on_silence(self, lease: Lease, now: float) -> None:
        """A worker is dead but its connection did not end, or the other way round: do not wait for ever."""
        since = lease.doubted_since
        if since is None:
            lease.doubted_since = now
        elif lease.death is not None:
            if now - since >= LAST_WORDS_S:
                self._bury(lease)
        elif now - since >= UNREACHABLE_S:
            if lease.warned:  # the node does not know this lease any more
                lease.death = (None, {"text": "the connection to its worker was lost"})
                self._bury(lease)
            else:
                lease.warned, lease.doubted_since = True, now
                self._tell(lease, KillWorker(lease.lease_no))

    def _drop_lease(self, lease: Lease) -> None:
        self.leases.pop(lease.lease_no, None)
        lease.key.leases.pop(lease.lease_no, None)

    def on_give_back(self, msg: GiveBack, now: float) -> None:
        """A worker names tasks that have not run there and will not."""
        lease = self.leases.get(msg.lease_no)
        if lease is None:
            return
        lease.stealing = False
        key = lease.key
        back = []
        for seq, attempt in msg.seqs:
            task = lease.inflight.get(seq)
            if task is not None and task.attempt == attempt:
                del lease.inflight[seq]
                back.append(task)
        if msg.blocked:
            lease.closed = True
        if msg.ended:
            self._drop_lease(lease)
            key.told = -1  # a lease has ended, and not by us: ask anew
            if key.retires:
                self._tell(lease, LeaseReturn(lease.lease_no, True))
            # Whatever the worker had started is answered by now, so the rest was sent too late: it will
            # bounce without having started.
            back += lease.inflight.values()
            lease.inflight.clear()
        elif lease.inflight:
            if lease.doomed is not None:
                self._kill_doomed(lease)
        elif lease.death is not None:
            self._bury(lease)
        else:
            lease.idle_since = now
            self._arm_idle(key)
        self._requeue(key, back)
        self.pump(key)

    def on_ready(self, lease_no: int) -> None:
        """A blocked worker goes on."""
        lease = self.leases.get(lease_no)
        if lease is not None and not lease.broken and lease.death is None:
            lease.closed = False
            self.pump(lease.key)

    def _requeue(self, key: SchedulingKey, tasks: list[Task]) -> None:
        for task in reversed(tasks):
            task.lease = None
            task.attempt += 1
            if task.cancelled:
                self.forget(task)
                self._finish(task, ("cancelled", task.name))
            else:
                key.queue.appendleft(task)

    # -- results -----------------------------------------------------------------------------------

    def take(self, seq: int, attempt: int, exec_ns: int, now: float) -> Task | None:
        """The final answer for that attempt is here: the task, no longer in flight. None: not current."""
        task = self.tasks.get(seq)
        if task is None or task.attempt != attempt or task.lease is None:
            return None
        lease = task.lease
        del lease.inflight[seq]
        del self.tasks[seq]
        key = lease.key
        key.unfinished -= 1
        task.lease = None
        if exec_ns >= 0:
            avg = key.avg_ns
            # quick to believe that tasks are long (depth costs others their turn), slow to believe short
            key.avg_ns = exec_ns if avg < 0 else avg + (exec_ns - avg) * (0.5 if exec_ns > avg else 0.1)
        if not lease.inflight:
            lease.idle_since = now
            if not key.idle_timer:
                self._arm_idle(key)
            if lease.death is not None:
                self._bury(lease)
        elif lease.doomed is not None:
            self._kill_doomed(lease)
        return task

    def retry(self, task: Task) -> None:
        """Run a task that ``take`` returned once more (an exception of retry_exceptions)."""
        task.attempt += 1
        self.tasks[task.seq] = task
        self.enqueue(task)

    def forget(self, task: Task) -> None:
        """It will not be answered from a lease any more."""
        self.tasks.pop(task.seq, None)
        key = task.function.key
        if task.unresolved == 0:
            key.unfinished -= 1
        if task.lease is not None:
            task.lease.inflight.pop(task.seq, None)
            task.lease = None

    # -- death and cancel --------------------------------------------------------------------------

    def on_worker_died(
        self, lease_no: int, running: tuple[int, int] | None, cause: dict[str, Any], now: float
    ) -> None:
        """The worker of that lease is gone. ``running``: the last (seq, attempt) that it started; None: any
        may have started. Answers that it had sent may still be unread: they come before the connection's end.
        """
        lease = self.leases.get(lease_no)
        if lease is None or lease.death is not None:
            return
        lease.closed = True
        lease.death = (running, cause)
        if lease.broken or not lease.inflight:
            self._bury(lease)
        else:
            lease.doubted_since = now
            self._arm_idle(lease.key)

    def on_peer_lost(self, worker_id: bytes) -> None:
        """The connection to a worker is gone; whether it is dead, the node will say."""
        self._sent_functions.pop(worker_id, None)
        for lease in [x for x in self.leases.values() if x.worker[1] == worker_id and not x.broken]:
            lease.broken = lease.closed = True
            if lease.death is not None:
                self._bury(lease)
            else:
                self.effects.append(("watch", lease.worker))
                self._arm_idle(lease.key)

    def on_death(self, worker_id: bytes, cause: dict[str, Any], now: float) -> None:
        """A watched process is dead. A lease that we still hold on it is over at the node already, so its
        worker had finished, or given back, all of it: what we did not hear of may have run."""
        for lease in [x for x in self.leases.values() if x.worker[1] == worker_id]:
            self.on_worker_died(lease.lease_no, None, cause, now)

    def _bury(self, lease: Lease) -> None:
        """The last word of a dead worker is heard: retry or fail what it leaves."""
        assert lease.death is not None
        running, cause = lease.death
        self._drop_lease(lease)
        self._sent_functions.pop(lease.worker[1], None)
        key = lease.key
        key.told = -1  # a lease has ended, and not by us: ask anew
        batch = list(lease.inflight.values())
        lease.inflight.clear()
        # Answers come in the order of starts: if the last one started is answered, the rest never started.
        started = next((i for i, t in enumerate(batch) if (t.seq, t.attempt) == running), -1)
        if running is None:
            started = len(batch) - 1
        charged: list[Task] = []
        failed: list[Task] = []
        for task in batch[: started + 1]:
            if task.retries == 0 and not task.cancelled:
                failed.append(task)
            else:
                task.retries -= task.retries > 0 and self._charges.counts(task.seq, cause, self.tasks)
                charged.append(task)
        self._requeue(key, charged + batch[started + 1 :])
        for task in failed:
            self.forget(task)
            self._finish(task, ("crashed", task.name, cause))
        self.pump(key)

    def on_infeasible(self, number: int, text: str) -> None:
        """No node can ever hold this key's tasks: fail them. Whichever node says so wants nothing more for us; let
        the others hear it, too, so that what is submitted later is asked for anew."""
        key = self.keys[number]
        self._ask_no_more(key)
        if key.elsewhere and key.told:
            self.effects.append(("node", self._demand_of(key, 0, key.spilled, hold=False)))
        key.told = 0
        while key.queue:
            task = key.queue.popleft()
            self.forget(task)
            self._finish(task, ("unschedulable", task.name, text))

    def cancel(self, task: Task, *, force: bool, recursive: bool) -> None:
        """Stop it: queued ones at once, running ones by their worker, by force by their node."""
        if task.seq not in self.tasks or (task.cancelled and not force):
            return  # it has ended, perhaps just now, because another one was cancelled
        task.cancelled = True
        lease = task.lease
        if lease is None:
            key: SchedulingKey = task.function.key
            if task.unresolved == 0:
                key.queue.remove(task)
            self.forget(task)
            self._finish(task, ("cancelled", task.name))
            self._demand(key)
        elif force and next(iter(lease.inflight.values())) is task:
            self._tell(lease, KillWorker(lease.lease_no))
        else:
            if force:  # another one runs there now: that is not to be killed
                lease.doomed = {task.seq, *(lease.doomed or ())}
            self.effects.append(("send", lease.worker, pack(Cancel(task.seq, task.attempt, recursive))))

    def _kill_doomed(self, lease: Lease) -> None:
        """If the first in flight, which runs or ran last, is to be cancelled by force: do it now."""
        assert lease.doomed is not None
        if next(iter(lease.inflight), None) in lease.doomed:
            lease.doomed = None
            self._tell(lease, KillWorker(lease.lease_no))

    # -- invariants --------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError if a task is in two places or in none."""
        seen: dict[int, str] = {}
        for key in self.keys.values():
            count = 0
            for task in key.queue:
                assert task.seq not in seen, f"task {task.seq} is in two places"
                assert task.lease is None and task.unresolved == 0
                seen[task.seq] = "queue"
                count += 1
            for lease in key.leases.values():
                assert self.leases.get(lease.lease_no) is lease
                assert lease.closed or not (lease.broken or lease.death), f"lease {lease.lease_no} is open"
                assert lease.inflight or lease.death is None, f"lease {lease.lease_no} is not buried"
                for seq, task in lease.inflight.items():
                    assert seq not in seen, f"task {seq} is in two places"
                    assert task.lease is lease and task.seq == seq
                    seen[seq] = "lease"
                    count += 1
                stands_idle = not lease.inflight and not lease.closed
                assert not (key.queue and stands_idle), f"lease {lease.lease_no} is idle beside a queue"
            for node_id, elsewhere in key.elsewhere.items():
                assert (elsewhere.asked > 0) == (node_id in key.asking), f"{node_id.hex()}: {elsewhere.asked} are asked"
            assert count == key.unfinished, f"{key.description}: {count} tasks, {key.unfinished} counted"
        for seq, task in self.tasks.items():
            assert seq in seen or task.unresolved > 0, f"task {seq} ({task.name}) is nowhere"
        for seq in seen:
            assert seq in self.tasks, f"task {seq} is finished but still {seen[seq]}"


def _load(lease: Lease) -> int:
    return len(lease.inflight)
