"""The node at work: connections of drivers and workers in, the machines' effects out.

    Router (daemon) ─▶ Peer ─▶ NodeService ─┬─ LeaseTable (pure): leases, actors, worker pool
                                            ├─ StoreAuthority:   the object store's extents and pins
                                            ├─ Disk:             what of it is in files
                                            ├─ DeathBook (pure): who watches whom
                                            ├─ WorkerProcesses:  launcher, certificates, status pages
                                            └─ LogHub:           output, to files and drivers
    GCS ◀── gcs_send(Request, ActorStarted, ActorEnded, Died, …) ── on_gcs(Reply, orders: see ``orders``) ──▶
                                             │
    other nodes ◀─ (in a clustered session) ─┼─ Membership: reports, the view of the others
                                             └─ Transfers:  objects of other nodes

Made by ``daemon.py``; everything runs on the reactor's thread and nothing waits. Requests it answers:
``node_info``, ``available_resources``, ``stats``, ``flush_logs``.

Invariants: one timer is armed for the earliest deadline of the machines, none when they have none; the last
lines of a dead worker leave before the news of its death; a driver's end is noticed by its connection and by
its pid, whichever ends first.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from minray._base import log
from minray._base.config import (
    BLAS_THREAD_VARIABLES,
    MALLOC_VARIABLES,
    Config,
    blas_thread_vars,
    child_environ,
)
from minray._base.process import start_time
from minray._base.resources import STORE_MEMORY, UNIT, detect_totals, from_units, to_units
from minray.node.deaths import DeathBook
from minray.node.dispatch import HANDLERS, STRANGER, Peer
from minray.node.ending import Ending
from minray.node.jobs import Jobs
from minray.node.launcher import ForkLauncher, Launcher, SpawnLauncher
from minray.node.leases import LeaseTable
from minray.node.log_routes import LogRoutes
from minray.node.logs import LogHub
from minray.node.membership import Membership
from minray.node.memory import MemoryWatch
from minray.node.orders import ORDERS
from minray.node.spilled import make_disk, open_spilled
from minray.node.strangers import Strangers
from minray.node.view import View
from minray.node.worker_pool import STATES, Effect, WorkerPool
from minray.node.workers import WorkerProcesses
from minray.store import segments
from minray.store.authority import StoreAuthority
from minray.store.extents import ExtentTable
from minray.wire.errors import ProtocolError, WireError
from minray.wire.messages import (
    Died,
    ExitWorker,
    Hello,
    LogLines,
    Message,
    Register,
    Registered,
    Reply,
    Request,
    Watch,
    pack,
    unpack,
)
from minray.wire.reactor import Connection, Handler, Reactor, Timer
from minray.wire.transports import nearest

if TYPE_CHECKING:
    from minray.node.transfers.service import Transfers

SUSPECT_S = 1.0  # how long a worker without a connection may take to be reaped
EARLIEST_S = 0.001


class NodeService:
    """See the file's head.

    Args:
        session: name, dir, temp_dir, log_dir, prefix, endpoint, token, sys_path, python_flags; where there may be
            other nodes also clustered (True), gcs_endpoint, is_head.
        node: what the user said it offers: num_cpus, num_gpus, memory, object_store_memory (bytes),
            resources, labels, node_name, node_ip_address; missing or None: detected.
        zygote_sock, zygote_life: one end of the zygote's socket pair, its pid and start time; None: spawn.
        gcs_send: takes what is for the GCS; it answers later, through ``on_gcs``.
        end_session: called with a reason when the node cannot go on.
        gcs_join: takes what the GCS is to know of this node, and calls ``joined``; None: by a request.
    """

    def __init__(
        self,
        reactor: Reactor,
        config: Config,
        *,
        session: dict[str, Any],
        node: dict[str, Any],
        node_id: bytes,
        zygote_sock: socket.socket | None,
        zygote_life: tuple[int, float] | None,
        gcs_send: Callable[[Message], None],
        end_session: Callable[[str], None],
        gcs_join: Callable[[dict[str, Any]], None] | None = None,
        entry: str = "minray.worker.main",
    ) -> None:
        self.reactor = reactor
        self.config = config
        self.node_id = node_id
        self.endpoint: str = session["endpoint"]
        self.gcs_endpoint: str = session.get("gcs_endpoint") or self.endpoint
        self.is_head: bool = session.get("is_head", True)
        clustered: bool = session.get("clustered", False)
        self.peers: dict[bytes, Peer] = {}  # registered ones, by worker_id
        self.jobs = Jobs(self, session["sys_path"])
        self.strangers = Strangers(self)
        self.log_routes = LogRoutes(self)
        self._session = session
        self._offer = node
        self._zygote = (zygote_sock, zygote_life or (0, 0.0))
        self._entry = entry
        self._gcs_send = gcs_send
        self._gcs_join = gcs_join
        self._end_session = end_session
        self._requests: dict[int, Callable[[Reply], None]] = {}  # of ours, to the GCS
        self._numbers = itertools.count(1)
        self._timer: Timer | None = None
        self._timer_at: float | None = None
        self.ending: Ending | None = None
        self.address: str = node.get("node_ip_address") or "127.0.0.1"
        self.totals = self._make_totals()
        self.labels = {"ray.io/node-id": node_id.hex(), **(node.get("labels") or {})}
        self.view = View(node_id)
        self.membership = Membership(self) if clustered else None
        self.table = self._make_table()
        self.deaths = DeathBook()
        self._segments = segments.choose(config.segments, session["dir"])
        self.store = self._make_store()
        self.disk = make_disk(self, session) if config.spill else None
        self.transfers = self._make_transfers() if clustered else None
        self.logs = LogHub(
            reactor,
            pipe_dir=session["dir"],
            log_dir=session["log_dir"],
            deliver=self._deliver_lines,
            credit=config.log_credit,
        )
        self.public_session = self._make_public_session()
        self.workers: WorkerProcesses
        self.memory = MemoryWatch(reactor, config, self.table, lambda: self.workers, self.now, self.do)

    def _make_totals(self) -> dict[str, int]:
        offer = self._offer
        found = detect_totals(
            self.config,
            num_cpus=offer.get("num_cpus"),
            num_gpus=offer.get("num_gpus"),
            memory=offer.get("memory"),
            object_store_memory=offer.get("object_store_memory"),
            resources=offer.get("resources"),
        )
        totals = to_units(found)
        totals[f"node:{self.address}"] = UNIT
        if self.is_head:
            totals["node:__internal_head__"] = UNIT
        return totals

    def _make_table(self) -> LeaseTable:
        config = self.config
        pool = WorkerPool(
            cpus=max(1, self.totals.get("CPU", 0) // UNIT),
            new_worker_id=lambda: os.urandom(28),
            soft=config.max_workers_soft,
            hard=config.max_workers_hard,
            idle_s=config.worker_idle_s,
            start_s=config.worker_start_s,
        )
        return LeaseTable(
            self.node_id,
            self.totals,
            pool,
            view=self.view,
            labels=self.labels,
            first_no=0 if self.membership is None else int.from_bytes(os.urandom(4), "little") >> 1 << 32,
            infeasible_grace_s=config.infeasible_grace_s,
        )

    def _make_store(self) -> StoreAuthority:
        extents = ExtentTable(
            max(1, self.totals.get(STORE_MEMORY, 0) // UNIT),
            node_id=self.node_id,
            prefix=self._session["prefix"],
            extent_size=self.config.extent_size,
            grace_s=self.config.store_full_grace_s,
        )
        return StoreAuthority(extents, self._segments, self.send)

    def _make_transfers(self) -> Transfers:
        from minray.node.transfers.service import Transfers  # for nothing in a session of one node

        def endpoint_of(node_id: bytes) -> str | None:
            row = self.view.nodes.get(node_id)
            return None if row is None else nearest(row.endpoint, same_machine=False)

        pid = os.getpid()
        hello = Hello("node", self.node_id, self.node_id, b"", pid, start_time(pid) or 0.0, self.endpoint)
        return Transfers(
            self.reactor,
            self.store,
            self.node_id,
            hello,
            endpoint_of,
            lambda: self.view.nodes,
            silence_s=self.config.node_timeout_s,
            settled=self.settle,
            on_disk=partial(open_spilled, self),
        )

    def _make_public_session(self) -> dict[str, Any]:
        session = self._session
        return {
            "name": session["name"],
            "dir": session["dir"],
            "temp_dir": session["temp_dir"],
            "log_dir": session["log_dir"],
            "totals": from_units(self.totals),
            "labels": self.labels,
            "namespace": "",
            "clustered": self.membership is not None,
            "segment_dir": self._segments.spec,
            "node_name": self._offer.get("node_name") or self.address,
        }

    # -- start -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Be ready for drivers, and join the cluster."""
        _raise_descriptor_limit()
        self.workers = WorkerProcesses(
            self._session["dir"],
            self.logs,
            job_info=self.jobs.config,
            launch=self._make_launcher,
            hear_out=self._hear_out,
            ended=self._worker_ended,
            lost=self._launcher_lost,
        )
        if self._gcs_join is not None:
            self._gcs_join(self.introduction())
        else:
            self.ask_gcs("add_node", self.introduction(), then=lambda reply: self.joined(reply.value))

    def introduction(self) -> dict[str, Any]:
        """What the GCS is to know of this node."""
        return {
            "node_id": self.node_id,
            "endpoint": self.endpoint,
            "address": self.address,
            "hostname": socket.gethostname(),
            "node_name": self._offer.get("node_name"),
            "resources": self.totals,
            "labels": self.labels,
            "is_head": self.is_head,
            "pid": os.getpid(),
        }

    def joined(self, terms: dict[str, Any]) -> None:
        """The GCS has taken this node in."""
        if self.membership is not None:
            self.membership.joined(terms["heartbeat_s"], terms.get("gone") or [])

    def _make_launcher(self, events: WorkerProcesses) -> Launcher:
        session = self._session
        environ = child_environ()
        blas = {name: environ[name] for name in BLAS_THREAD_VARIABLES if name in environ}
        boot = {
            "entry": self._entry,
            "session_dir": session["dir"],
            "env": {**blas_thread_vars(1, blas), **_without_malloc(environ)},
            "bootstrap": {
                "session": self.public_session,
                "config": self.config.to_dict(),
                "token": session["token"],
                "node_endpoint": self.endpoint,
                "node_id": self.node_id,
                "blas_said": blas,
            },
        }
        sock, life = self._zygote
        if sock is not None:
            return ForkLauncher(self.reactor, sock, events, life=life, boot=boot)
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = [package, *(folder for folder in session["sys_path"] if folder != package)]
        return SpawnLauncher(
            self.reactor,
            events,
            boot=boot,
            python_path=path,
            flags=session["python_flags"],
            entry=self._entry,
        )

    # -- connections -------------------------------------------------------------------------------

    def on_accept(self, conn: Connection) -> Handler:
        """Reactor: an authenticated connection; its Hello is in ``conn.hello``."""
        if self.transfers is not None and conn.hello is not None and conn.hello.role == "node":
            return self.transfers.on_peer(conn)
        return Peer(self, conn)

    def dispatch(self, peer: Peer, raw: tuple[Any, ...]) -> None:
        """One message of a peer. ProtocolError closes its connection."""
        message = unpack(raw)
        handler = HANDLERS.get(type(message))
        if handler is None:
            raise ProtocolError(f"not a message for a node: {type(message).__name__}")
        handler(self, peer, message)

    def send(self, worker_id: bytes, message: Message) -> None:
        """To a process of this node, or an owner of another; dropped if it is gone."""
        if worker_id == self.node_id and isinstance(message, Died):  # we have asked ourselves
            self.strangers.died(message.worker_id)
        peer = self.peers.get(worker_id)
        if peer is not None:
            peer.conn.send(pack(message))

    def peer_gone(self, peer: Peer, error: WireError | None) -> None:
        """A connection has ended."""
        if self.peers.get(peer.worker_id) is not peer or self.ending is not None:
            return
        if peer.number >= 0:
            del self.peers[peer.worker_id]
            peer.remove_socket()  # it is dead, or will be: its end may be told when nobody knows its address any more
            self.table.connection_lost(peer.number, self.now())
            text = f"the worker's connection to its node was lost ({error}), but it did not end by itself"
            self.reactor.call_later(SUSPECT_S, lambda: self.workers.kill(peer.number, text))
        elif peer.number == STRANGER:
            self.strangers.gone(peer)
        else:
            self.jobs.driver_gone(peer, "its connection has ended")

    # -- workers -----------------------------------------------------------------------------------

    def register_worker(self, peer: Peer, message: Register) -> None:
        """A worker has started."""
        hello = peer.conn.hello
        worker = self.table.pool.workers.get(message.worker_number)
        if hello is None or worker is None or worker.worker_id != hello.worker_id:
            raise ProtocolError(f"this node has not started a worker number {message.worker_number}")
        job_id = worker.worker_class.job_id
        peer.admit(worker.worker_id, job_id, worker.number)
        self.peers[worker.worker_id] = peer
        self.workers.registered(worker.number, hello.pid)
        self.deaths.born(worker.worker_id)
        peer.conn.send(pack(self.registered(job_id, {"env_vars": dict(worker.worker_class.env_vars)})))
        address = (self.node_id, worker.worker_id, hello.endpoint)
        self.do(self.table.registered(worker.number, address, self.now()))

    def registered(self, job_id: bytes, more: dict[str, Any]) -> Registered:
        """The answer to a process of that job: where it is, and what it has to know."""
        job = self.jobs.config(job_id)
        session = {**self.public_session, "namespace": job["namespace"]}
        return Registered(self.node_id, self.address, self.gcs_endpoint, job_id, session, {**job, **more})

    def _hear_out(self, number: int) -> None:
        """A worker is dead, and its parent may be quicker to say so than its own last words: they come first. Or what
        it had stored for others, and told them of, would never be known here."""
        worker = self.table.pool.workers.get(number)
        peer = self.peers.get(worker.worker_id) if worker is not None else None
        if peer is not None:
            peer.conn.read_rest()

    def _worker_ended(self, number: int, cause: dict[str, Any], running: tuple[int, int, int]) -> None:
        cause["node"] = f"{self.public_session['node_name']} ({self.node_id.hex()[:8]})"
        if self.ending is not None:
            self.table.pool.exited(number)
            self.ending.worker_gone()
            return
        worker = self.table.pool.workers.get(number)
        lease = self.table.leases.get(worker.lease_no) if worker is not None else None
        owner = lease.demand.owner if lease is not None and lease.demand.actor is None else b""
        now = self.now()
        worker, effects = self.table.exited(number, cause, running, now)
        self.do(effects)
        if worker is not None:
            peer = self.peers.pop(worker.worker_id, None)
            if peer is not None:
                peer.conn.close()
                peer.remove_socket()
            self.store.process_died(worker.worker_id, now)
            self.do(self.deaths.died(worker.worker_id, cause, running[1:], told=owner))
            self._gcs_send(Died(worker.worker_id, -1, -1, -1, cause))
            self.jobs.tidy(worker.worker_class.job_id)
        self.settle()

    def _launcher_lost(self, reason: str) -> None:
        for job_id in self.jobs.drivers:
            self._warn(job_id, f"the session ends: {reason}")
        self._end_session(reason)

    # -- the GCS -----------------------------------------------------------------------------------

    def ask_gcs(self, method: str, *args: Any, then: Callable[[Reply], None] | None = None) -> None:
        """A request of this node."""
        number = next(self._numbers)
        self._requests[number] = then or _log_failure
        self._gcs_send(Request(number, method, args))

    def tell_gcs(self, message: Message) -> None:
        """A report of this node."""
        self._gcs_send(message)

    def on_gcs(self, message: Message) -> None:
        """Orders and answers of the GCS."""
        if isinstance(message, Reply):
            self._requests.pop(message.request_id)(message)
        elif self.ending is None:
            obey = ORDERS.get(type(message))
            if obey is None:
                raise TypeError(f"the GCS sends no {type(message).__name__} to a node")
            obey(self, message)
        self.settle()

    def watch(self, watcher: bytes, question: Watch) -> None:
        """``watcher`` (a process of this node, or the node itself) wants to hear of a process's end."""
        if question.node_id in (b"", self.node_id):
            self.do(self.deaths.watch(watcher, question.worker_id))
        elif self.deaths.watch_elsewhere(watcher, question.worker_id, question.node_id):
            self._gcs_send(question)

    def available(self) -> dict[str, int]:
        """What is free now, in wire units. Of the store's memory: what is neither promised nor lent to writers."""
        free = {name: max(0, amount) for name, amount in self.table.book.available.items()}
        if STORE_MEMORY in free:
            unused = self.totals[STORE_MEMORY] - self.store.reserved * UNIT
            free[STORE_MEMORY] = max(0, min(free[STORE_MEMORY], unused))
        return free

    # -- effects and time --------------------------------------------------------------------------

    def now(self) -> float:
        """The machines' clock."""
        return monotonic()

    def do(self, effects: list[Effect]) -> None:
        """Perform what the machines want, in order."""
        for effect in effects:
            kind = effect[0]
            if kind == "send":
                self.send(effect[1], effect[2])
            elif kind == "start":
                self.workers.start(effect[1], effect[2], effect[3])
            elif kind == "exit":
                self._exit(effect[1], graceful=effect[2], reason=effect[3])
            elif kind == "gcs":
                self._gcs_send(effect[1])
            elif kind == "group":
                self._ask_for_group(effect[1])
            else:
                assert kind == "warn", effect
                self._warn(effect[1], effect[2])

    def _ask_for_group(self, group_id: bytes) -> None:
        """Somebody here waits for a placement group that is not there: is it to come, or gone?"""

        def answered(reply: Reply) -> None:
            reason = None if reply.ok else str(reply.value[1])
            self.do(self.table.bundles.known(group_id, reason, self.now()))

        self.ask_gcs("wait_placement_group", group_id, then=answered)

    def _exit(self, number: int, *, graceful: bool, reason: str) -> None:
        worker = self.table.pool.workers.get(number)
        peer = self.peers.get(worker.worker_id) if worker is not None else None
        self.workers.expect_end(number, reason)
        if graceful and peer is not None:
            peer.conn.send(pack(ExitWorker(True, reason)))
        else:
            self.workers.kill(number)

    def _warn(self, job_id: bytes, text: str) -> None:
        log.warning("%s", text)
        self._deliver_lines(job_id, LogLines(os.getpid(), "minray", True, text.splitlines()))

    def _deliver_lines(self, job_id: bytes, message: LogLines) -> bool:
        job = self.jobs.config(job_id)
        if not job["log_to_driver"]:
            return False
        peer = self.peers.get(self.jobs.drivers.get(job_id, b""))
        if peer is not None:
            peer.conn.send(pack(message))
            return True
        driver = job["driver"]
        elsewhere = driver is not None and driver[0] != self.node_id
        return elsewhere and self.log_routes.send(job_id, driver, message)

    def settle(self) -> None:
        """After each step: let the one timer stand for the earliest deadline."""
        if self.config.debug and self.ending is None:
            self.table.check_invariants()
            self.deaths.check_invariants()
        if self.membership is not None:
            self.membership.look()
        table, store = self.table, self.store
        if table.leases:
            self.memory.on_work()
        deadlines = (table.next_deadline(), store.next_deadline(), table.actors.next_deadline())
        moments = [m for m in deadlines if m is not None]
        due = min(moments, default=None) if self.ending is None else None
        if due == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = due
        if due is not None:
            self._timer = self.reactor.call_later(max(EARLIEST_S, due - self.now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = self._timer_at = None
        if self.ending is None:
            now = self.now()
            self.do(self.table.tick(now))
            self.do(self.table.actors.tick(now))
            self.store.tick(now)
            self.settle()

    # -- the end -----------------------------------------------------------------------------------

    def shutdown(self, reason: str, done: Callable[[], None]) -> None:
        """End all processes, remove segments and folder, then call ``done``. Returns at once."""
        if self.ending is None:
            self.ending = Ending(self, self._session["dir"], done)
            self.jobs.let_go()
            self.memory.stop()
            self.settle()
            self.ending.begin(reason)

    # -- for tools ---------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counts, for humans and tests."""
        pool = self.table.pool
        return {
            "workers": {state: pool.count(state) for state in STATES},
            "leases": len(self.table.leases),
            "ended_for_memory": self.memory.ended,
            "demands": len(self.table.demands),
            "waiting": len(self.table.queue),
            "peers": len(self.peers),
            "store": self.store.stats().as_info(),
            "disk": {} if self.disk is None else self.disk.stats(),
            "transfers": {} if self.transfers is None else self.transfers.stats(),
        }


def _without_malloc(environ: dict[str, str]) -> dict[str, str | None]:
    """What was set for our own processes is not for what user code starts."""
    return {name: None for name, value in MALLOC_VARIABLES.items() if environ.get(name) == value}


def _log_failure(reply: Reply) -> None:
    if not reply.ok:
        log.error("the GCS refused a request of this node: %s", reply.value)


def _raise_descriptor_limit() -> None:
    """Three descriptors per worker: the usual soft limit of 1024 would end at 300 actors."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS names a hard limit that it does not grant
            pass
