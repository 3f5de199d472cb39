"""A process's connections and its lock: what stands between the pure core and the sockets.

Everything that touches the core happens under one lock (``locked``): a user's thread that submits, the
reactor's thread that delivers messages. On the way out the effects are performed: sends never block.

Two things may happen on a thread that is already inside: the garbage collector runs a user's ``__del__`` or
one of our finalizers. Those only append to ``inbox``, which is emptied on the way out, in order; the
first append asks the reactor for a turn, so that an idle process lets go too.

The base of worker.service's classes; nothing else uses it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from minray._base.config import Config
from minray.exceptions import RaySystemError
from minray.wire.errors import WireError
from minray.wire.messages import (
    BORROWS,
    FETCH,
    RELEASES,
    RESULTS,
    VALUES,
    ActorUpdate,
    Address,
    Died,
    GiveBack,
    Hello,
    Introduce,
    LeaseDecline,
    LeaseGrant,
    LeaseInfeasible,
    LeaseSpill,
    LeftBehind,
    Message,
    NodeGone,
    ObjectLost,
    PinForever,
    Ready,
    Reply,
    Request,
    Watch,
    pack,
    unpack,
)
from minray.wire.reactor import Connection, Reactor, Waiter
from minray.wire.transports import nearest
from minray.worker.core import Core
from minray.worker.gcs_line import GcsLine
from minray.worker.tasks import STORED

log = logging.getLogger("minray")

FEW = 4096
LISTENS_AGAIN_S = 0.001  # how often is looked whether a node that was busy listens again
AWAY_S = 0.5  # how often is looked whether a head that was away is back
LOST = "the session is over: its node process is gone or shutdown() was called"


class Answer(Waiter):
    """One thread waits for one Reply."""

    __slots__ = ("ok", "value")

    def __init__(self) -> None:
        super().__init__()
        self.ok = False
        self.value: Any = (RaySystemError.__name__, LOST)

    def arrived(self) -> None:
        """Under the runtime's lock: the Reply is there. For who acts on it without waiting."""


class Link:
    """Connections, lock, effects and message dispatch of one core worker."""

    def __init__(self, reactor: Reactor, config: Config, hello: Hello) -> None:
        self.reactor = reactor
        self.config = config
        self.hello = hello
        self.worker_id = hello.worker_id
        self.node_id = b""  # these three are known once the node has answered Register
        self.job_id = b""
        self.namespace = ""
        self.lock = threading.RLock()
        self.owned = self.lock._is_owned  # type: ignore[attr-defined]
        self.closed = False
        self.exiting = False  # the interpreter is: daemon threads that wait here stay asleep
        self.core: Core = None  # type: ignore[assignment]  # made by ``start``
        self.node: Connection = None  # type: ignore[assignment]
        self.gcs_line: GcsLine = None  # type: ignore[assignment]
        self.store: Any = None
        self.clustered = False  # there may be other nodes
        self.env_vars: dict[str, str] = {}  # a worker's: what it was given, and what it creates inherits
        self.inbox: deque[Any] = deque()
        self.before_releases: Callable[[], None] = lambda: None  # a worker's: send the results that wait
        self._inbox_told = False
        self._many = 0  # how large the table of objects has been
        self._peers: dict[bytes, Connection] = {}
        self._nodes: dict[bytes, Connection] = {}  # other nodes that we ask for workers
        self.job_config: dict[str, Any] = {}  # what another node must know to start workers for us
        self._answers: dict[int, Answer] = {}
        self._request_no = 0
        self._handlers: dict[int, Callable[[Any, Any], None]] = {}
        self._actor_refs: dict[bytes, bytes] = {}  # hidden object id → actor_id, for actors that we own
        self._install()

    def _install(self) -> None:
        on = self.handle
        core_calls: list[tuple[type[Message], Callable[[Any, Any], None]]] = [
            (LeaseGrant, lambda _c, m: self.core.on_grant(m, monotonic())),
            (GiveBack, lambda _c, m: self.core.on_give_back(m, monotonic())),
            (Ready, lambda _c, m: self.core.on_ready(m, monotonic())),
            (ActorUpdate, lambda _c, m: self.core.on_actor_update(m)),
            (PinForever, lambda _c, m: self.core.refs.pin_forever(m.object_id)),
            (LeaseInfeasible, self._on_infeasible),
            (LeaseSpill, lambda _c, m: self.core.owner.on_spill(m)),
            (LeaseDecline, lambda c, m: self.core.owner.on_decline(self._node_of(c), m)),
            (Died, self._on_died),
            (LeftBehind, lambda _c, m: self.core.strays.left_behind(m.node_id, m.objects)),
            (ObjectLost, self._on_object_lost),
            (NodeGone, self._on_node_gone),
            (Reply, self._on_reply),
        ]
        for cls, handler in core_calls:
            on(cls, handler)

    def handle(self, cls: type[Message], handler: Callable[[Any, Any], None]) -> None:
        """Route one kind of control message to ``handler(connection, message)``, under the lock."""
        self._handlers[cls.TAG] = handler

    # -- in: the reactor's side ----------------------------------------------------------------------

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        """Reactor: all frames of one read."""
        with self.lock:
            core = self.core
            for raw in messages:
                tag = raw[0]
                if tag == RESULTS:
                    core.on_results(conn.tag, raw[1], monotonic())
                elif tag == RELEASES:
                    core.refs.on_releases(conn.tag[1], raw[1])
                elif tag == FETCH:
                    core.on_fetch(conn.tag, raw[1])
                elif tag == VALUES:
                    core.on_values(raw[1])
                elif tag == BORROWS:
                    core.refs.on_borrows(raw[1])
                else:
                    self.on_other(conn, raw)
            self.leave()

    def on_other(self, conn: Connection, raw: tuple[Any, ...]) -> None:
        """A message that is not one of the hot ones."""
        handler = self._handlers.get(raw[0])
        if handler is None:
            raise RuntimeError(f"{self.hello.role} has no use for message {raw[0]}")
        handler(conn, unpack(raw))

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """Reactor: a connection is gone."""
        with self.lock:
            if conn is self.node:
                self.on_node_lost(error)
            elif self.gcs_line is not None and conn is self.gcs_line.conn:
                self.gcs_line.on_close(error)
            elif conn in self._nodes.values():
                node_id = self._node_of(conn)
                del self._nodes[node_id]
                self.core.owner.on_node_lost(node_id)
            elif conn.tag is not None:
                worker_id = conn.tag[1]
                if self._peers.get(worker_id) is conn:
                    del self._peers[worker_id]
                if self.core is not None:
                    self.core.owner.on_peer_lost(worker_id)
                    self.core.calls.on_peer_lost(worker_id)
            self.leave()

    def on_node_lost(self, error: WireError | None) -> None:
        """The node process is gone: nothing can go on."""
        for answer in self._answers.values():
            self.reactor.notify(answer)
        self._answers.clear()

    def accept(self, conn: Connection) -> Link:
        """Reactor: another process has connected to us."""
        hello = conn.hello
        assert hello is not None
        conn.tag = (hello.node_id, hello.worker_id, hello.endpoint)
        with self.lock:
            self._peers.setdefault(hello.worker_id, conn)
        return self

    # -- out -----------------------------------------------------------------------------------------

    def leave(self) -> None:
        """On the way out of the lock: let go of what was dropped meanwhile, perform the effects."""
        core = self.core
        if core is None:
            return
        inbox, effects = self.inbox, core.effects
        while inbox or effects:
            if inbox:
                self._inbox_told = False
                self.drain()
            if effects:
                self._perform(effects)

    def drain(self) -> None:
        """Act on what finalizers and nested calls left: ids to drop, or calls to make."""
        inbox, drop = self.inbox, self.core.refs.drop
        many = len(self.core.objects)
        while inbox:
            item = inbox.popleft()
            if type(item) is bytes:
                drop(item)
            else:
                item()
        if many > self._many:
            self._many = many
        if self._many > FEW and len(self.core.objects) * 8 < self._many:
            self._many = 0
            for table in (self.core.objects, self.core.owner.tasks):
                _shrink(table)

    def post(self, item: Any) -> None:
        """From any thread and any finalizer: an id to drop, or a call to make under the lock."""
        self.inbox.append(item)
        if not self._inbox_told and not self.closed:
            self._inbox_told = True
            self.reactor.call_soon(self._turn)

    release = post  # the runtime contract's name for "one ObjectRef is gone"

    def _turn(self) -> None:
        with self.lock:
            self._inbox_told = False
            self.leave()

    def _perform(self, effects: list[tuple[Any, ...]]) -> None:
        batch = effects[:]
        effects.clear()
        releases: dict[bytes, tuple[Address, list[tuple[bytes, int]]]] | None = None
        freed: list[tuple[bytes, Any]] = []
        for effect in batch:
            kind = effect[0]
            if kind == "send":
                self.peer(effect[1]).send(effect[2])
            elif kind == "node":
                self.node.send(pack(effect[1]))
            elif kind == "at":
                self._other_node(effect[1], effect[2]).send(pack(effect[3]))
            elif kind == "release":
                if releases is None:
                    releases = {}
                    self.before_releases()
                owner = effect[1]
                releases.setdefault(owner[1], (owner, []))[1].append((effect[2], effect[3]))
            elif kind == "freed":
                self._freed(effect[1], effect[2], freed)
            elif kind == "report":
                self.store.report([(effect[1], effect[2])])
            elif kind == "timer":
                self.reactor.call_later(effect[1], partial(self._on_timer, effect[2], effect[3]))
            elif kind == "borrow":
                self.peer(effect[1]).send((BORROWS, [(effect[2], effect[3])]))
            elif kind == "watch":
                self.node.send(pack(Watch(effect[1][1], effect[1][0])))
            elif kind == "gcs":
                self.tell_gcs(effect[1], *effect[2])
        if releases is not None:
            if effects:  # results: they may name what is released now, without a grant to its owner
                self._perform(effects)
            for owner, items in releases.values():
                if owner[1] not in self.core.dead:
                    self.peer(owner).send((RELEASES, items))
        if freed:
            self.store.free(freed)

    def _freed(self, object_id: bytes, record: Any, freed: list[tuple[bytes, Any]]) -> None:
        """An object's record is gone: its memory goes, or the actor that it stood for."""
        actor_id = self._actor_refs.pop(object_id, None)
        if actor_id is not None:
            self.tell_gcs("actor_out_of_scope", actor_id)
        elif record.status == STORED and record.owner is None:
            freed.append((object_id, record.value[0]))

    def peer(self, address: Address) -> Connection:
        """The connection to that process; made if there is none."""
        conn = self._peers.get(address[1])
        if conn is None or conn.closed:
            endpoint = nearest(address[2], same_machine=address[0] == self.node_id)
            conn = self.reactor.dial(endpoint, self.hello, self)
            conn.tag = address
            self._peers[address[1]] = conn
        return conn

    def _other_node(self, node_id: bytes, endpoint: str) -> Connection:
        """The connection to a node that is not ours; made, with an introduction, if there is none."""
        conn = self._nodes.get(node_id)
        if conn is None or conn.closed:
            conn = self.reactor.dial(nearest(endpoint, same_machine=False), self.hello, self)
            self._nodes[node_id] = conn
            conn.send(pack(Introduce(self.job_id, self.job_config)))
        return conn

    def _node_of(self, conn: Connection) -> bytes:
        return next(node_id for node_id, one in self._nodes.items() if one is conn)

    def _on_timer(self, what: str, number: int) -> None:
        with self.lock:
            if what == "actor" and self.gcs_line.away:  # what became of it, only the head can say
                self.reactor.call_later(AWAY_S, partial(self._on_timer, what, number))
                return
            self.core.on_timer(what, number, monotonic())
            self.leave()

    def reach_node(self) -> None:
        """What was said to our node so far reaches it even if this process is killed now; what is said to others from
        now on cannot be known without it. Waits if the node is too busy to listen. Not under the lock."""
        while not (self.closed or (self.store.flushed and self.node.flushed)):
            self.reactor.wait(Waiter(), LISTENS_AGAIN_S)

    def over(self) -> BaseException:
        """What to raise in calls that come after the end. A daemon thread that still runs when the interpreter exits
        cannot do anything about an error: SystemExit ends it in silence."""
        if self.exiting and threading.current_thread() is not threading.main_thread():
            return SystemExit()
        return RaySystemError(LOST)

    # -- requests ------------------------------------------------------------------------------------

    def request(self, conn: Connection, method: str, args: tuple[Any, ...], timeout: float | None) -> Any:
        """Call and wait. Raises what the answer names, or RaySystemError when nobody answers in time."""
        self.must_not_wait(method)
        answer = Answer()
        with self.lock:
            if self.closed or conn.closed:
                raise self.over()
            number = self._expect(answer)
            conn.send(pack(Request(number, method, args)))
        if not self.wait_for(answer, number, partial(self.reactor.wait, answer, timeout)):
            raise RaySystemError(f"no answer to {method} within {timeout} s")
        return self.value_of(answer)

    def ask_gcs(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        """Call the GCS and wait: for so many seconds, or as long as a head that lives may take to answer and one that
        was killed to be started again. Raises as ``request`` does, and RaySystemError if the head hangs."""
        self.must_not_wait(method)
        answer, number = self.begin_gcs(method, args)
        limit = self.config.gcs_answer_s if timeout is None else timeout

        def wait() -> bool:
            while not self.reactor.wait(answer, limit):
                if timeout is not None or not self.gcs_line.away:
                    return False
            return True

        if not self.wait_for(answer, number, wait):
            head = "the head of the cluster" if self.clustered else "the head process"
            raise RaySystemError(
                f"no answer to {method} within {limit} s: {head} hangs, is overrun, or is cut off. It may be there "
                "again later (MINRAY_GCS_ANSWER_S says how long to wait)"
            )
        return self.value_of(answer)

    def begin_gcs(
        self, method: str, args: tuple[Any, ...], answer: Answer | None = None
    ) -> tuple[Answer, int]:
        """Ask the GCS; ``wait_for`` the answer."""
        answer = answer or Answer()
        with self.lock:
            if self.closed or (self.gcs_line.conn is self.node and self.node.closed):
                raise self.over()
            problem = self.gcs_line.problem()
            if problem is not None:
                raise RaySystemError(problem)
            number = self._expect(answer)
            self.gcs_line.ask(number, method, args)
        return answer, number

    def _expect(self, answer: Answer) -> int:
        """The number of the next request. Under the lock: what was left to do goes first."""
        self._request_no += 1
        self._answers[self._request_no] = answer
        number = self._request_no
        self.leave()
        return number

    def wait_for(self, answer: Answer, number: int, wait: Callable[[], bool]) -> bool:
        """Whether it came; however the wait ends, nobody waits for it any more."""
        try:
            return wait()
        finally:
            with self.lock:
                if self._answers.pop(number, None) is not None:
                    self.gcs_line.answered(number)

    def value_of(self, answer: Answer) -> Any:
        """What the Reply says. Raises the error that it names."""
        if answer.ok:
            return answer.value
        raise self.named_error(*answer.value)

    def named_error(self, kind: str, text: str) -> Exception:
        """The exception that a Reply names."""
        import builtins

        from minray import exceptions

        cls = getattr(exceptions, kind, None) or getattr(builtins, kind, None)
        if isinstance(cls, type) and issubclass(cls, Exception):
            return cls(text)
        return RaySystemError(f"{kind}: {text}")

    def tell_gcs(self, method: str, *args: Any) -> None:
        """One way: nobody waits for the answer."""
        self._request_no += 1
        self.gcs_line.ask(self._request_no, method, args)

    # -- what the line to the GCS needs --------------------------------------------------------------

    def dial_gcs(self, endpoint: str) -> Connection:
        """A connection to the head."""
        conn = self.reactor.dial(endpoint, self.hello, self)
        conn.limit_silence(self.config.node_timeout_s)
        return conn

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> None:
        """``fn`` under the lock, after so many seconds."""

        def call() -> None:
            with self.lock:
                fn()
                self.leave()

        self.reactor.call_later(delay_s, call)

    def subscriptions(self) -> list[bytes]:
        """The actors whose fate we want to hear of."""
        return [actor.actor_id for actor in self.core.calls.actors.values() if actor.state != "DEAD"]

    def give_up_on(self, numbers: list[int], text: str) -> None:
        """Whoever waits for these answers waits no more."""
        for number in numbers:
            answer = self._answers.pop(number, None)
            if answer is not None:
                self.gcs_line.answered(number)
                answer.value = (RaySystemError.__name__, text)
                self.reactor.notify(answer)

    def must_not_wait(self, what: str) -> None:
        """A finalizer that the collector runs inside the runtime may not wait there: RaySystemError."""
        if self.owned() or self.reactor.inside():
            raise RaySystemError(
                f"{what} was called inside the runtime (by a __del__ that the garbage collector ran there): "
                "it would wait for itself. Call it from ordinary code"
            )

    def _on_reply(self, conn: Connection, msg: Reply) -> None:
        if conn is self.gcs_line.conn:
            self.gcs_line.answered(msg.request_id)
            self.gcs_line.on_reply()
        answer = self._answers.pop(msg.request_id, None)
        if answer is not None:
            answer.ok, answer.value = msg.ok, msg.value
            answer.arrived()
            self.reactor.notify(answer)
        elif not msg.ok:
            log.warning("minray: an order to the GCS failed: %s", msg.value)

    def _on_infeasible(self, _conn: Connection, msg: LeaseInfeasible) -> None:
        if not msg.fatal:
            log.warning("minray: %s", msg.text)
        self.core.on_infeasible(msg)

    def _on_object_lost(self, _conn: Connection, msg: ObjectLost) -> None:
        if self.core.lineage is not None:
            self.core.lineage.on_lost(msg.object_id, msg.location, msg.reason)
    def _on_node_gone(self, _conn: Connection, msg: NodeGone) -> None:
        """Its connections end now, and with that all goes its way: the GCS says what became of its processes."""
        conns = [conn for conn in self._peers.values() if conn.tag is not None and conn.tag[0] == msg.node_id]
        conns += [conn for node_id, conn in self._nodes.items() if node_id == msg.node_id]
        for conn in conns:
            conn.close()

    def _on_died(self, _conn: Connection, msg: Died) -> None:
        self.core.on_died(msg, monotonic())


def _shrink(table: dict[Any, Any]) -> None:
    """A dict keeps the room that it once needed; a million tasks ago may be too long."""
    left = list(table.items())
    table.clear()
    table.update(left)
