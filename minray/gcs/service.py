"""The GCS at work: requests of core workers and reports of nodes in, the machines' effects out.

``daemon.py`` makes one, gives it every Request whose method is in ``METHODS``, the closing of connections,
and what its node sends. Everything runs on the reactor's thread. What one reactor turn produces is gathered:
the saves are committed once, then replies, updates and orders leave in the order in which they arose. So
nothing is said that a restart of the head would deny (a head in memory dies with what it said, and commits
later). If the tables cannot be written, no change is made until they can be: see ``_hold_back``.

    Router ──Requests──▶ GcsService ─┬─ tables (pure): nodes, actors, jobs, kv, deaths
    nodes ──Node reports──▶          └─ NodeLinks: doors to the nodes, deadlines, news

Requests of core workers (answers, errors by kind):

* ``create_actor(spec)`` → Actor.info() + ``created``; the creator is subscribed. ActorAlreadyExistsError
* ``get_actor(name, namespace)`` → Actor.info(). ValueError
* ``subscribe_actor(actor_id)`` → True, after an ActorUpdate with the state now
* ``unsubscribe_actor(actor_id)`` → True
* ``kill_actor(actor_id, no_restart)``. ActorHandleNotFoundError
* ``actor_out_of_scope(actor_id)``; ``list_named_actors(all_namespaces, namespace)`` → [{name, namespace}]
* ``kv_put(key, value, overwrite, namespace)`` → existed before; ``kv_get(key, namespace)`` → bytes or None;
  ``kv_del(key, by_prefix, namespace)`` → count; ``kv_exists(key, namespace)``; ``kv_keys(prefix, namespace)``
* ``nodes()``, ``jobs()``, ``cluster_resources()``, ``available_resources()``: as users see them, in floats
* ``cluster_status()``: every node with what is free and what waits there, for tools; ``gcs_stats()``: counts
* ``once(caller, floor, method, args)``: one of these that must not be done twice, see ``answers``

Requests of nodes: ``add_node(info)`` → {heartbeat_s, gone} (``again`` in it: it was in before, and has lost its
connection; ``sees``: the other nodes that it knows, and ``gone`` are those of them that are not there any more),
``add_job(info)`` → {job_id, namespace}, ``finish_job(job_id)``, ``job_end(job_id)`` → True as soon as the job's driver
is gone, ``leave(reason)``.

Invariants: every request gets one reply (but ``leave``: who leaves hears nothing more); a node is never called
from inside a call of its own; what a node says that counts as dead is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from time import monotonic
from typing import Any, Protocol

from minray._base import log
from minray._base.config import Config
from minray.gcs import actors, answers, jobs, kv, nodes, placement_groups
from minray.gcs.actors import ActorError, ActorTable
from minray.gcs.answers import AnswerTable
from minray.gcs.deaths import WatchDesk, node_died
from minray.gcs.effects import Effects
from minray.gcs.group_requests import GROUP_METHODS, GroupRequests
from minray.gcs.jobs import JobTable
from minray.gcs.kv import KvTable
from minray.gcs.links import Deliver, NodeLink, NodeLinks, NodePeer, Scheduler, refuse
from minray.gcs.nodes import NodeTable, sum_resources
from minray.gcs.reunion import Inventory, reconcile
from minray.gcs.tables import Tables, TablesError
from minray.wire.messages import (
    ActorEnded,
    ActorStarted,
    BundlesPrepared,
    Died,
    Introduce,
    Message,
    NodeReport,
    Reply,
    Request,
    StartActor,
    StoreReport,
    Watch,
    pack,
)

FEW = 4  # messages of one turn
REMEMBERED = 10_000  # processes that have ended
UNWRITABLE_S = 1.0  # between two attempts to write what could not be written
MEMORY_COMMIT_S = 1.0  # how long a head in memory gathers what nobody waits for

METHODS = GROUP_METHODS | frozenset(
    {
        "create_actor", "get_actor", "subscribe_actor", "unsubscribe_actor", "kill_actor",
        "actor_out_of_scope", "list_named_actors", "kv_put", "kv_get", "kv_del", "kv_exists", "kv_keys",
        "nodes", "jobs", "cluster_resources", "available_resources", "cluster_status", "gcs_stats", "once",
    }
)  # fmt: skip
READS = frozenset(
    {
        "get_actor", "subscribe_actor", "unsubscribe_actor", "list_named_actors", "kv_get", "kv_exists", "kv_keys",
        "nodes", "jobs", "cluster_resources", "available_resources", "cluster_status", "gcs_stats",
        "get_placement_group", "placement_group_bundles", "list_placement_groups", "wait_placement_group",
        "unwait_placement_group",
    }
)  # fmt: skip
NODE_METHODS = frozenset({"add_node", "add_job", "finish_job", "job_end", "leave"})


class Peer(Protocol):
    """What the service needs of a connection (hashable by identity)."""

    def send(self, message: tuple[Any, ...]) -> None: ...
    def cork(self) -> bool: ...
    def uncork(self) -> None: ...


class GcsService(GroupRequests):
    """The tables of one cluster, served.

    Args:
        reactor: runs the end of each turn.
        tables: where rows go; what they hold is taken over.
        wall: seconds since the epoch, for what users see.
        make_namespace: names the namespace of a job that gave none.
        available: the free resources of the node of this process at this moment, in wire units.
        config: how long nodes may be silent.
        now: the monotonic clock.
        balance: the same as ``available`` as the node itself keeps it: not to be changed, CPUs may be negative.
    """

    def __init__(
        self,
        reactor: Scheduler,
        tables: Tables,
        *,
        wall: Callable[[], float],
        make_namespace: Callable[[], str],
        available: Callable[[], Iterable[Mapping[str, int]]] = tuple,
        config: Config | None = None,
        now: Callable[[], float] = monotonic,
        balance: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        self._reactor = reactor
        self._tables = tables
        self._wall = wall
        self._now = now
        self._available = available
        self._config = config or Config()
        self._kv = KvTable()
        self._jobs = JobTable(make_namespace, in_use=lambda job_id: self._actors.any_of_job(job_id))
        self._nodes = NodeTable()
        self._actors = ActorTable(self._place_actor)
        self._deaths = WatchDesk()
        self._ended: dict[bytes, None] = {}  # the latest processes that have: see _check_owner
        self._answers = AnswerTable()
        timeout_s = self._config.node_timeout_s
        self._now = now
        self._links = NodeLinks(reactor, self._nodes, now=now, timeout_s=timeout_s, lost=self.node_lost)
        self._init_groups(balance)
        self._job_ends: dict[bytes, list[tuple[bytes, int]]] = {}  # job → nodes (and requests) that wait for it
        self._numbers: dict[Peer, int] = {}  # connections that asked something
        self._peers: dict[int, Deliver] = {}
        self._next_number = 1
        self._refusals = log.LogBudget()
        self._outbox: list[tuple[Deliver, Message, bool | None]] = []
        self._held: list[tuple[Deliver, Message, bool | None]] = []  # until the tables can be written again
        self._undo: list[Callable[[], None]] = []  # what this turn has created for core workers
        self._unwritable: str | None = None  # why the last commit has failed
        self._flush_due = self._commit_due = self._ending = False
        self._kv.restore(tables.load(kv.TABLE))
        self._jobs.restore(tables.load(jobs.TABLE))
        self._nodes.restore(tables.load(nodes.TABLE))
        self._actors.restore(tables.load(actors.SPEC_TABLE), tables.load(actors.TABLE))
        self._groups.restore(tables.load(placement_groups.TABLE), now())
        self._answers.restore(tables.load(answers.TABLE))

    def recover(self) -> None:
        """Go on where an earlier life of the head ended. Call it before any node joins: those that were there have
        as long to come back as any that is silent, and the one that was in that head's process is gone."""
        for node_id in self._nodes.expected():
            if self._nodes.was_head(node_id):
                self.node_lost(node_id, "the process of the head, in which it lived, has ended")
            else:
                self._links.expect(node_id)
        for job_id in list(self._groups.of_job):
            if not self._jobs.is_running(job_id):
                self._groups_job_finished(job_id)

    # --- in: connections --------------------------------------------------------------------------

    def on_request(self, peer: Peer, request: Request) -> None:
        """One of METHODS, asked by a core worker."""
        number = self._number_of(peer)
        if not self._must_wait(number, request):
            reply = self._answer(request, number, METHODS)
            self._post(self._peers[number], reply, request.method not in READS)

    def on_close(self, peer: Peer) -> None:
        """The connection is gone, and with it its subscriptions. (Deaths are told by nodes.)"""
        number = self._numbers.pop(peer, None)
        if number is not None:
            del self._peers[number]
            self._actors.subscriber_gone(number)
            self._groups.forget_waiters(lambda waiter: waiter[0] == number)

    def _number_of(self, peer: Peer) -> int:
        number = self._numbers.get(peer)
        if number is None:
            number = self._numbers[peer] = self._next_number
            self._next_number += 1
            self._peers[number] = lambda message: peer.send(pack(message))
        return number

    # --- in: nodes --------------------------------------------------------------------------------

    def attach_node(self, node_id: bytes, deliver: Deliver) -> None:
        """The node of this process: orders and replies for it go through ``deliver``."""
        self._links.attach(node_id, deliver)

    def admit_node(self, node_id: bytes, peer: NodePeer, request: Request) -> bool:
        """A node of another machine has connected and says ``add_node``. False: it counts as dead, and is told
        so."""
        info = request.args[0] if request.args else None
        reason = self._nodes.why_fenced(node_id, again=isinstance(info, dict) and bool(info.get("again")))
        if node_id in self._links:  # what was said meanwhile is lost, so nobody can know what it runs
            reason = "its connection to the head was lost"
            self.node_lost(node_id, reason)
        if reason is not None:
            refuse(peer, reason)
            return False
        self._links.attach(node_id, lambda message: peer.send(pack(message)), peer)
        self.on_node(node_id, request)
        return True

    def node_closed(self, node_id: bytes, peer: NodePeer, reason: str) -> None:
        """A connection that was admitted has ended."""
        link = self._links.get(node_id)
        if link is not None and link.peer is peer:
            self.node_lost(node_id, reason)

    def on_node(self, node_id: bytes, message: Message) -> None:
        """What a node reports."""
        link = self._links.get(node_id)
        if link is None:  # it was declared dead while it said this
            return
        if link.peer is not None:
            self._links.heard(node_id)
        if isinstance(message, ActorStarted):
            self._do(self._actors.started(node_id, message))
        elif isinstance(message, ActorEnded):
            self._do(self._actors.ended(node_id, message))
        elif isinstance(message, Died):
            self._process_died(node_id, message)
        elif isinstance(message, NodeReport):
            self._on_report(node_id, message)
        elif isinstance(message, Watch):
            self._on_watch(node_id, message)
        elif isinstance(message, StoreReport):
            self._nodes.report_store(node_id, message.store)
        elif isinstance(message, BundlesPrepared):
            self._on_bundles_prepared(node_id, message)
        elif isinstance(message, Request):
            self._on_node_request(node_id, link, message)
        else:
            raise TypeError(f"a node sends no {type(message).__name__} to the GCS")

    def _on_node_request(self, node_id: bytes, link: NodeLink, request: Request) -> None:
        if request.method == "leave":
            self.node_lost(node_id, *request.args, expected=True)
        elif request.method == "job_end" and self._jobs.is_running(*request.args):
            self._job_ends.setdefault(request.args[0], []).append((node_id, request.request_id))
        elif not self._must_wait(node_id, request):
            self._post(link.deliver, self._answer(request, 0, NODE_METHODS | METHODS))

    def _on_report(self, node_id: bytes, message: NodeReport) -> None:
        changed, totals = self._nodes.report(node_id, message)
        if changed:
            self._links.changed(node_id, totals)
            self._groups_view_changed()

    def _on_watch(self, asker: bytes, question: Watch) -> None:
        node_id = question.node_id
        if self._nodes.is_alive(node_id) or self._nodes.is_expected(node_id):
            self._do(self._deaths.watch(asker, question))
        else:
            cause = node_died(node_id, self._nodes.death_of(node_id))
            self._do([("order", asker, Died(question.worker_id, -1, -1, -1, cause))])

    def node_lost(self, node_id: bytes, reason: str, *, expected: bool = False) -> None:
        """A machine is gone: its drivers' jobs are over, its actors restart elsewhere."""
        if self._ending:
            return
        was_expected = self._nodes.is_expected(node_id)
        known, effects = self._nodes.lost(node_id, reason)
        self._links.detach(node_id, expected=was_expected)
        self._do(effects)
        if known:
            if not expected:
                log.warning("node %s is lost: %s", node_id.hex()[:8], reason)
            self._groups_node_lost(node_id)
            for job_id in self._jobs.of_node(node_id):
                self._finish_job(job_id)
            self._do(self._actors.node_lost(node_id, reason))
            self._do(self._deaths.node_lost(node_id, reason))
            if was_expected:  # who is bound to it has waited for it
                self._do(self._actors.node_joined())

    def end(self, reason: str) -> None:
        """The head ends: so do the other nodes."""
        self._ending = True
        self._links.fence_all(f"the head of the cluster has ended: {reason}")

    def _process_died(self, node_id: bytes, message: Died) -> None:
        self._do(self._deaths.died(message) + self._answers.caller_died(message.worker_id))
        if message.cause.get("unknown") and message.worker_id not in self._actors.owners_on(node_id):
            return  # an answer about somebody whom that node never knew
        self._ended[message.worker_id] = None
        if len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]
        job_id = self._jobs.of_driver(message.worker_id)
        if job_id is not None:
            self._finish_job(job_id)
        text = str(message.cause.get("text", "its process ended"))
        self._do(self._actors.owner_died(message.worker_id, text))

    # --- requests ---------------------------------------------------------------------------------

    def _answer(self, request: Request, number: int, allowed: frozenset[str]) -> Reply:
        """Run one request; whatever is wrong with it becomes its reply."""
        try:
            if request.method not in allowed:
                raise ActorError("RaySystemError", f"the GCS has no method {request.method!r} for you")
            if self._unwritable is not None and number and request.method not in READS:
                raise ActorError("RaySystemError", self._unwritable)
            if request.method == "once":
                return self._once(request, number, allowed)
            handler = getattr(self, "_on_" + request.method)
            return Reply(request.request_id, True, handler(number, *request.args))
        except ActorError as error:
            return Reply(request.request_id, False, (error.kind, str(error)))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            log.exception("the request %s failed", request.method)
            text = f"the request {request.method} to the GCS is malformed: {type(error).__name__}: {error}"
            return Reply(request.request_id, False, ("RaySystemError", text))

    def _once(self, request: Request, number: int, allowed: frozenset[str]) -> Reply:
        """A request that must not be done twice, perhaps asked again because a head was killed: see ``answers``."""
        caller, floor, method, args = request.args
        reply = self._answers.recall(caller, request.request_id)
        if reply is None:
            reply = self._answer(Request(request.request_id, method, args), number, allowed - {"once"})
            self._do(self._answers.note(caller, floor, reply))
        return reply

    def _on_create_actor(self, number: int, spec: dict[str, Any]) -> dict[str, Any]:
        is_new = self._actors.state_of(spec.get("actor_id", b"")) is None
        try:
            if is_new and spec.get("lifetime") is None:
                self._check_owner(spec)
            answer, effects = self._actors.create(spec, number)
        except ActorError as error:
            untold = self._refusals.take(self._now())
            if untold is not None:
                more = f" ({untold} more such refusals since the last line)" if untold else ""
                log.warning("refused an actor of job %s: %s%s", spec.get("job_id", b"").hex(), error, more)
            raise
        self._do(effects)
        if is_new and answer["created"]:
            self._may_undo(lambda: self._do(self._actors.kill(spec["actor_id"], True)))
        return answer

    def _check_owner(self, spec: dict[str, Any]) -> None:
        """A request may take longer than the news of its sender's end: then nothing would end what it makes."""
        job_id, owner = spec.get("job_id", b""), spec.get("owner")
        if owner is None:
            return  # see ActorTable.create
        if self._nodes.has_died(owner[0]):
            why = f"its owner's node {owner[0].hex()[:8]} counts as dead: {self._nodes.death_of(owner[0])}"
        elif self._jobs.was_driver(job_id, owner[1]):
            why = f"its job {job_id.hex()} has ended"
        elif owner[1] in self._ended:
            why = "the process that asked for it has ended"
        else:
            return
        what = f"actor {spec['actor_id'].hex()} ({spec.get('class_name')})"
        text = f"{what} is not made: {why}. What is to outlive its owner is made with lifetime='detached'"
        raise ActorError("RaySystemError", text)

    def _on_get_actor(self, number: int, name: str, namespace: str) -> dict[str, Any]:
        return self._actors.get_named(name, namespace)

    def _on_subscribe_actor(self, number: int, actor_id: bytes) -> bool:
        self._do(self._actors.subscribe(actor_id, number))
        return True

    def _on_unsubscribe_actor(self, number: int, actor_id: bytes) -> bool:
        self._actors.unsubscribe(actor_id, number)
        return True

    def _on_kill_actor(self, number: int, actor_id: bytes, no_restart: bool) -> bool:
        self._do(self._actors.kill(actor_id, no_restart))
        return True

    def _on_actor_out_of_scope(self, number: int, actor_id: bytes) -> bool:
        self._do(self._actors.out_of_scope(actor_id))
        return True

    def _on_list_named_actors(self, number: int, everywhere: bool, namespace: str) -> list[dict[str, str]]:
        return self._actors.list_named(None if everywhere else namespace)

    def _on_kv_put(self, number: int, key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> bool:
        existed, effects = self._kv.put(namespace, key, value, overwrite)
        self._do(effects)
        return existed

    def _on_kv_get(self, number: int, key: bytes, namespace: bytes) -> bytes | None:
        return self._kv.get(namespace, key)

    def _on_kv_del(self, number: int, key: bytes, by_prefix: bool, namespace: bytes) -> int:
        count, effects = self._kv.delete(namespace, key, by_prefix)
        self._do(effects)
        return count

    def _on_kv_exists(self, number: int, key: bytes, namespace: bytes) -> bool:
        return self._kv.exists(namespace, key)

    def _on_kv_keys(self, number: int, prefix: bytes, namespace: bytes) -> list[bytes]:
        return self._kv.keys(namespace, prefix)

    def _on_nodes(self, number: int) -> list[dict[str, Any]]:
        return self._nodes.public()

    def _on_jobs(self, number: int) -> list[dict[str, Any]]:
        return self._jobs.public()

    def _on_cluster_resources(self, number: int) -> dict[str, float]:
        return self._nodes.totals()

    def _on_available_resources(self, number: int) -> dict[str, float]:
        parts = [*self._available(), *self._nodes.available(besides=self._links.local())]
        return {name: amount for name, amount in sum_resources(parts).items() if amount > 0}

    def _on_cluster_status(self, number: int) -> list[dict[str, Any]]:
        return self._nodes.status()

    def _on_gcs_stats(self, number: int) -> dict[str, Any]:
        counts = {"clients": len(self._peers), "nodes": len(self._links), "watches": len(self._deaths)}
        return {"actors": self._actors.counts(), "placement_groups": self._groups.counts(), **counts}

    def _on_add_node(self, number: int, info: dict[str, Any]) -> dict[str, Any]:
        node_id, told = info["node_id"], Inventory.of(info)
        self._do(self._nodes.add(info, self._wall()))
        self._links.joined(node_id)
        self._groups_node_joined(info)
        self._reunite(node_id, told)
        self._do(self._actors.node_joined())
        gone = self._nodes.strangers(list(told.sees))
        terms = {"heartbeat_s": min(self._config.heartbeat_s, self._config.node_timeout_s / 4)}
        return {**terms, "gone": gone} if gone else terms

    def _reunite(self, node_id: bytes, told: Inventory) -> None:
        """It may have been there in an earlier life of this head: who has died there since, who is asked for."""
        for job_id in self._jobs.of_node(node_id):
            if told.processes is not None and self._jobs.driver_of(job_id) not in told.processes:
                self._finish_job(job_id)
        self._do(reconcile(self._actors, node_id, told))
        self._do(self._deaths.node_joined(node_id))
        for question in told.watches:
            self._on_watch(node_id, question)

    def _on_add_job(self, number: int, info: dict[str, Any]) -> dict[str, Any]:
        answer, effects = self._jobs.add(info, self._wall())
        self._do(effects)
        return answer

    def _on_finish_job(self, number: int, job_id: bytes) -> bool:
        return self._finish_job(job_id)

    def _on_job_end(self, number: int, job_id: bytes) -> bool:
        return True  # else it had been made to wait

    def _finish_job(self, job_id: bytes) -> bool:
        ended, effects = self._jobs.finish(job_id, self._wall())
        self._do(effects)
        if ended:
            self._do(self._actors.job_finished(job_id))
            self._links.job_finished(job_id)
            self._groups_job_finished(job_id)
            for node_id, request_id in self._job_ends.pop(job_id, ()):
                self._do([("order", node_id, Reply(request_id, True, True))])
        return ended

    # --- out --------------------------------------------------------------------------------------

    def _do(self, effects: Effects) -> None:
        for kind, *rest in effects:
            if kind == "save":
                table, key, row = rest
                self._tables.save(table, key, row)
                self._wake()
            elif kind == "order":
                node_id, message = rest
                link = self._links.get(node_id)
                if link is not None:  # else it is lost, and node_lost restarts what it had
                    self._introduce(node_id, link, message)
                    self._post(link.deliver, message)
            elif kind == "later":
                delay_s, actor_id, incarnation = rest
                self._reactor.call_later(delay_s, partial(self._on_pause_over, actor_id, incarnation))
            else:
                subscriber, message = rest
                self._post(self._peers[subscriber], message)

    def _on_pause_over(self, actor_id: bytes, incarnation: int) -> None:
        self._do(self._actors.pause_over(actor_id, incarnation))

    def _introduce(self, node_id: bytes, link: NodeLink, message: Message) -> None:
        """Before a node starts an actor of a job for the first time, it hears what the job's workers need; each time
        if the job is over, since nodes forget those of which they have nothing."""
        if isinstance(message, StartActor):
            job_id = message.spec["job_id"]
            config = None if job_id in link.jobs else self._jobs.introduction(job_id, node_id)
            if config is not None:
                if not config["ended"]:
                    link.jobs.add(job_id)
                self._post(link.deliver, Introduce(job_id, config))

    def _post(self, deliver: Deliver, message: Message, write: bool | None = None) -> None:
        """``write``: of a reply to a core worker, whether it says that something was changed."""
        self._outbox.append((deliver, message, write))
        self._wake()

    def _wake(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._reactor.call_soon(self.flush)

    def flush(self) -> None:
        """The end of a turn: commit, then let everything leave."""
        self._flush_due = False
        self._groups_turn_ends()
        if self._tables.durable:
            try:
                self._tables.commit()
            except TablesError as error:
                self._hold_back(str(error))
            else:
                self._undo.clear()
                self._outbox = self._held + self._outbox
                self._held, self._unwritable = [], None
        elif self._tables.dirty and not self._commit_due:
            self._commit_due = True
            self._reactor.call_later(MEMORY_COMMIT_S, self._commit_memory)
        outbox, self._outbox = self._outbox, []
        corked = self._cork(outbox) if len(outbox) > FEW else []
        try:
            for deliver, message, _ in outbox:
                deliver(message)
        finally:
            for peer in corked:
                peer.uncork()

    def _cork(self, outbox: list[tuple[Deliver, Message, bool | None]]) -> list[Peer]:
        """Many messages: let those for one process leave in one piece, each write costs more than the message."""
        to = {deliver for deliver, _, _ in outbox}
        return [peer for peer, number in self._numbers.items() if self._peers[number] in to and peer.cork()]

    def _hold_back(self, error: str) -> None:
        """Nothing could be written (the disk is full, say). What follows from this turn waits until it can be; who
        asked for a change is told that it was not made, and what was created is taken back; who only wants to know
        something is told. Until then nothing more is changed for core workers: see ``_answer``.
        """
        if self._unwritable is None:
            log.error("%s. Nothing is changed until that is over", error)
        self._unwritable = error
        undo, self._undo = self._undo, []
        for step in undo:
            step()
        outbox, self._outbox = self._outbox, []
        for deliver, message, write in outbox:
            if write is None:
                self._held.append((deliver, message, write))
            elif write and isinstance(message, Reply) and message.ok:
                refused = Reply(message.request_id, False, ("RaySystemError", error))
                self._outbox.append((deliver, refused, write))
            else:
                self._outbox.append((deliver, message, write))
        self._reactor.call_later(UNWRITABLE_S, self._wake)

    def _may_undo(self, step: Callable[[], None]) -> None:
        """How to take back what was just created, if it cannot be written."""
        if self._tables.durable:
            self._undo.append(step)

    def _commit_memory(self) -> None:
        self._commit_due = False
        self._tables.commit()

    def close(self) -> None:
        """Write what is left. Call it last."""
        self._tables.close()

    def check_invariants(self) -> None:
        """Raise AssertionError where a table contradicts itself or the connections."""
        tables = (self._kv, self._jobs, self._nodes, self._actors, self._groups, self._answers)
        for table in (*tables, self._deaths, self._links):
            table.check_invariants()
        assert set(self._numbers.values()) == set(self._peers), "a connection without its number"

