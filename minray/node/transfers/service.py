"""Objects between nodes, at work: links to other nodes, rooms for what comes, threads for the bytes.

::

    a reader's Pin ─▶ store: ExtentTable ──("pull")──▶ Pulls (pure) ──PullObject──▶ the node that has it
                         ▲  a guest of the node's own client  │  ▲                        │
                         └──────────── seal ◀── Room ◀── Receiver◀════ bytes ════ Sender ─┤
                                                                                          │
                store of that node ◀── acquire, release ── Lending (pure) ◀───────────────┘

A *link* is the control connection of one direction: who pulls has dialled it, as role "node". Down the link go
PullObject, PullDone and PullRefused (see ``pulls``), and an owner's Free of an object that is at home there; up
come PullGranted, PullRefused, what is small enough to come whole (a Reply with version and bytes), and the Free that
tells of an object's end. A Request ``DATA`` instead of these turns a connection into a data socket (``channel``).
A ticket is a nonce, the object's version, and the ids of other nodes that have it.

Made by ``node.service`` in a clustered session:

* ``on_peer(conn)``: the handler of an accepted connection of role "node";
* ``node_gone(node_id)``: the cluster's view says so;
* ``copies(object_id)``: which nodes have it, as far as this one knows;
* ``close()``: with the node.

Invariants: all of it but the threads of ``channel`` runs on the reactor's thread; effects are performed in order; a
link that is lost takes its requests along; with nothing under way there is no timer and no thread that works.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic

from minray._base import log
from minray.node.transfers.channel import Receiver, Sender, prepare
from minray.node.transfers.files import FileHold
from minray.node.transfers.lending import Lending
from minray.node.transfers.links import Incoming, Outgoing
from minray.node.transfers.loans import Loans, read_ticket
from minray.node.transfers.pulls import Effect, Pulls
from minray.node.transfers.sockets import SILENCE_S, DataSockets
from minray.store.authority import StoreAuthority
from minray.store.client import IDLE_S, Room, StoreClient
from minray.wire.errors import Misfit, WireError
from minray.wire.messages import (
    Free,
    Freed,
    Hello,
    Location,
    Message,
    PullDone,
    PullGranted,
    PullObject,
    PullRefused,
    Reply,
    pack,
)
from minray.wire.reactor import Connection, Handler, Reactor, Timer
from minray.wire.transports import Stream, limit_silence

END_S = 1.0  # what all threads together get to end
GONE = "that node is not in the cluster any more"
Dial = Callable[[str, Handler], Connection]


class Transfers:
    """See the module.

    Args:
        hello: how this node introduces itself: role "node", its id as worker_id and node_id.
        view_endpoint: where a node of the cluster can be dialled; None if it is dead or unknown.
        view_nodes: the other living nodes.
        dial: (endpoint, handler) → connection; None: ``reactor.dial`` with ``hello``.
        silence_s: a network that acknowledges nothing for so long is cut.
        settled: called after each step that began here: the store's deadlines may have changed.
        on_disk: the open file of an object that is there and not in memory.
    """

    def __init__(
        self,
        reactor: Reactor,
        store: StoreAuthority,
        node_id: bytes,
        hello: Hello,
        view_endpoint: Callable[[bytes], str | None],
        view_nodes: Callable[[], Iterable[bytes]],
        *,
        dial: Dial | None = None,
        silence_s: float = SILENCE_S,
        settled: Callable[[], None] = lambda: None,
        on_disk: Callable[[bytes], FileHold | None] = lambda object_id: None,
    ) -> None:
        self.reactor = reactor
        self.node_id = node_id
        self.settled = settled
        self.closed = False
        self.pulls = Pulls(node_id, living=view_nodes)
        self.lending = Lending(node_id)
        self._store = store
        self._silence_s = silence_s
        self._view_endpoint = view_endpoint
        self._dial: Dial = dial or (lambda endpoint, handler: reactor.dial(endpoint, hello, handler))
        self._client = StoreClient(
            store.segments,
            node_id=node_id,
            worker_id=node_id,
            send=lambda message: store.on_message(node_id, message, self.now()),
            wake=lambda: reactor.call_soon(self._drain),
        )
        store.attach(node_id, self._to_client, self._on_store)
        self._loans = Loans(self._client, node_id, self._send, self._on_pinned, on_disk)
        self._sockets = DataSockets(reactor, self._open, silence_s)
        self._sources: dict[bytes, Outgoing] = {}  # node → our link to it
        self._pullers: dict[int, Incoming] = {}  # number → a link of somebody else
        self._numbers = itertools.count(1)
        self._rooms: dict[int, Room] = {}  # number of a pull → where its object comes
        self._whole: dict[int, bytes] = {}  # request → an object that has come in one message
        self._receivers: dict[bytes, Receiver] = {}
        self._received_bytes = 0  # through data sockets, ever
        self._senders: dict[Sender, None] = {}
        self._todo: deque[Effect] = deque()
        self._running = False
        self._timer: Timer | None = None
        self._timer_at: float | None = None
        self._trim: Timer | None = None

    # --- for the node -----------------------------------------------------------------------------

    def on_peer(self, conn: Connection) -> Handler:
        """Another node has connected, to pull."""
        hello = conn.hello
        assert hello is not None
        conn.limit_silence(self._silence_s)
        number = next(self._numbers)
        link = self._pullers[number] = Incoming(self, conn, number, hello.worker_id)
        self.lending.link_made(number, hello.worker_id)
        return link

    def node_gone(self, node_id: bytes) -> None:
        """It is dead."""
        source = self._sources.pop(node_id, None)
        if source is not None and source.conn is not None:
            source.conn.close()
        for puller in [one for one in self._pullers.values() if one.node_id == node_id]:
            puller.conn.close()
        self._sockets.forget(node_id)
        self._do(self.pulls.link_lost(node_id, "that node is dead", self.now(), gone=True))

    def copies(self, object_id: bytes) -> list[bytes]:
        """The nodes that have all of it, as far as this one knows; its home knows best."""
        own = [self.node_id] if self._store.table.knows(object_id) else []
        return own + [one for one in self.lending.holders(object_id) if one != self.node_id]

    def close(self) -> None:
        """The node ends: sockets, threads and mappings go. The store is another's."""
        self.closed = True
        for timer in (self._timer, self._trim):
            if timer is not None:
                timer.cancel()
        self._sockets.close()
        workers: list[Sender | Receiver] = [*self._senders, *self._receivers.values()]
        for worker in workers:
            worker.stop()
        for conn in [link.conn for link in self._sources.values()] + [link.conn for link in self._pullers.values()]:
            if conn is not None:
                conn.close()
        until = self.now() + END_S
        for worker in workers:
            worker.join(max(0.0, until - self.now()))
        self._client.close()

    def now(self) -> float:
        """The machines' clock."""
        return monotonic()

    def stats(self) -> dict[str, int]:
        """Counts, for diagnostics and tests: what there is now. ``served``, ``received_bytes``: ever."""
        return {
            "pulls": len(self.pulls),
            "rooms": len(self._rooms),
            "receivers": len(self._receivers),
            "loans": len(self._loans),
            "senders": len(self._senders),
            "sockets": len(self._sockets),
            "sources": len(self._sources),
            "pullers": len(self._pullers),
            "served": self._loans.served,
            "received_bytes": self._received_bytes,
            "arriving_bytes": sum(receiver.at for receiver in self._receivers.values()),
        }

    def check_invariants(self) -> None:
        """AssertionError if the books disagree."""
        self.pulls.check_invariants()
        self.lending.check_invariants()
        self._loans.check_invariants()
        self._client.check_invariants()
        assert self.node_id not in self._sources

    # --- the store --------------------------------------------------------------------------------

    def _drain(self) -> None:
        """A thread has let go of something."""
        if not self.closed:
            self._client.drain()
            self.settled()

    def _to_client(self, message: Message) -> None:
        self._client.on_message(message)
        if isinstance(message, Freed) and self._trim is None and not self.closed:
            self._trim = self.reactor.call_later(IDLE_S, self._trim_idle)

    def _trim_idle(self) -> None:
        """Warm memory that nothing came into for a while goes back."""
        self._trim = None
        if not self.closed:
            due = self._client.trim_idle()
            if due is not None:
                self._trim = self.reactor.call_later(max(1.0, due - self.now()), self._trim_idle)
            self.settled()

    def _on_store(self, effect: Effect) -> None:
        """What the store wants of other nodes."""
        kind, object_id = effect[:2]
        if self.closed:
            return
        if kind == "pull":
            self._do(self.pulls.want(object_id, effect[2], self.now()))
        elif kind == "unpull":
            self._do(self.pulls.unwanted(object_id, self.now()))
        elif kind == "evicted":
            self._loans.versions.pop(object_id, None)
            self._do(self.pulls.evicted(object_id))
        elif kind == "freed":
            self._do(self.lending.freed(object_id))
        else:
            assert kind == "free_at", effect
            self._do([("send", effect[1], Free([effect[2]]))])

    # --- those who pull from us -------------------------------------------------------------------

    def from_puller(self, link: Incoming, message: Message) -> None:
        """Down a link."""
        if isinstance(message, PullObject):
            self._do(self.lending.asked(link.number, message))
        elif isinstance(message, PullDone):
            self._do(self.lending.done(link.number, message.request_id))
        elif isinstance(message, PullRefused):
            self._do(self.lending.gave_up(link.number, message.request_id, message.reason))
        else:
            self._store.on_message(link.node_id, message, self.now())

    def puller_lost(self, link: Incoming) -> None:
        """The end of a link, or its becoming a data socket."""
        if self._pullers.pop(link.number, None) is not None and not self.closed:
            self._do(self.lending.link_lost(link.number))

    def add_sender(self, sock: Stream) -> None:
        """A connection has become a data socket."""
        if self.closed:
            sock.close()
            return
        limit_silence(sock, self._silence_s)
        prepare(sock)
        sender = Sender(sock, self._loans.find, self._sender_ended)
        self._senders[sender] = None
        sender.start()

    def _sender_ended(self, sender: Sender) -> None:
        self.reactor.call_soon(lambda: self._senders.pop(sender, None))

    def _on_pinned(self, link: int, request: int, reason: str) -> None:
        self._do(self.lending.pinned(link, request, reason))

    # --- those we pull from -----------------------------------------------------------------------

    def from_source(self, link: Outgoing, message: Message) -> None:
        """Up a link."""
        node_id, now = link.node_id, self.now()
        if isinstance(message, PullGranted):
            nonce, version, others = read_ticket(message.ticket)
            self._do(self.pulls.granted(node_id, message.request_id, message.size, nonce, version, others, now))
        elif isinstance(message, PullRefused):
            self._do(self.pulls.refused(node_id, message.request_id, message.reason, now))
        elif isinstance(message, Reply):
            version, data = message.value
            self._whole[message.request_id] = data
            self._do(self.pulls.granted(node_id, message.request_id, len(data), b"", version, [], now))
            self._whole.pop(message.request_id, None)
        elif isinstance(message, Free):
            for object_id, *_ in message.objects:
                self._loans.versions.pop(object_id, None)
                self.pulls.freed(object_id)
                self._store.do(self._store.table.forget(object_id, now), now)

    def source_lost(self, link: Outgoing, error: WireError | None) -> None:
        """The end of a link."""
        if self._sources.get(link.node_id) is link and not self.closed:
            del self._sources[link.node_id]
            gone = isinstance(error, Misfit) or self._view_endpoint(link.node_id) is None
            reason = str(error) if error is not None else "the connection was closed"
            self._do(self.pulls.link_lost(link.node_id, reason, self.now(), gone=gone))

    def _open(self, node_id: bytes, handler: Handler) -> Connection | None:
        """A new connection to that node; None if there is no such node."""
        endpoint = None if self.closed else self._view_endpoint(node_id)
        if endpoint is None:
            return None
        try:
            conn = self._dial(endpoint, handler)
        except WireError as error:
            log.error("node %s cannot be dialled: %s", node_id.hex()[:8], error)
            return None
        conn.limit_silence(self._silence_s)
        return conn

    # --- effects ----------------------------------------------------------------------------------

    def _do(self, effects: list[Effect]) -> None:
        self._todo.extend(effects)
        if self._running:
            return
        self._running = True
        try:
            while self._todo:
                effect = self._todo.popleft()
                _PERFORM[effect[0]](self, *effect[1:])
        finally:
            self._running = False
        self._arm()
        self.settled()

    def _arm(self) -> None:
        due = None if self.closed else self.pulls.next_deadline()
        if due != self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_at = None, due
            if due is not None:
                self._timer = self.reactor.call_later(max(0.001, due - self.now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = self._timer_at = None
        now = self.now()
        for object_id in self.pulls.receiving():
            if object_id in self._receivers:
                self.pulls.progress(object_id, self._receivers[object_id].at, now)
        self._do(self.pulls.tick(now))

    def _send(self, to: bytes | int, message: Message) -> None:
        """To a source by its id, or to a puller by its link."""
        if isinstance(to, int):
            if to in self._pullers:
                self._pullers[to].conn.send(pack(message))
            return
        link = self._sources.get(to)
        if link is None:
            link = Outgoing(self, to)
            link.conn = self._open(to, link)
            if link.conn is not None:
                self._sources[to] = link
        if link.conn is not None:
            link.conn.send(pack(message))
        else:
            self._todo.extend(self.pulls.link_lost(to, GONE, self.now(), gone=True))

    def _reserve(self, object_id: bytes, number: int, size: int) -> None:
        def done(room: Room | None, error: Exception | None) -> None:
            if room is not None:
                self._rooms[number] = room
            self._do(self.pulls.reserved(object_id, number, "" if room is not None else str(error), self.now()))

        if not self.closed:
            self._client.reserve(size, done)

    def _release(self, number: int) -> None:
        self._client.cancel(self._rooms.pop(number))

    def _receive(
        self, object_id: bytes, number: int, request: int, node_id: bytes, nonce: bytes, offset: int
    ) -> None:
        room = self._rooms[number]
        whole = self._whole.pop(request, None)
        if whole is not None:
            reason = ""
            try:
                room.map.write(room.offset, whole)
            except OSError as error:
                reason = str(error)
            self._do(self.pulls.ended(object_id, len(whole), reason, self.now(), full=bool(reason)))
            return
        receiver = Receiver(room, offset, nonce, partial(self._receiver_ended, object_id, node_id))
        self._receivers[object_id] = receiver
        sock = self._sockets.take(node_id)
        if sock is not None:
            receiver.start(sock, used=True)
        else:
            self._sockets.make(node_id, partial(self._connected, object_id, node_id, receiver))

    def _connected(
        self, object_id: bytes, node_id: bytes, receiver: Receiver, sock: Stream | None, reason: str
    ) -> None:
        if sock is not None and (self.closed or receiver.stopped):
            sock.close()
            sock = None
        if sock is not None:
            receiver.start(sock, used=False)
        else:
            self._received(object_id, node_id, receiver, reason or "it was stopped", False)

    def _receiver_ended(
        self, object_id: bytes, node_id: bytes, receiver: Receiver, reason: str, full: bool
    ) -> None:
        """On the receiver's thread."""
        self.reactor.call_soon(partial(self._received, object_id, node_id, receiver, reason, full))

    def _received(self, object_id: bytes, node_id: bytes, receiver: Receiver, reason: str, full: bool) -> None:
        """Nobody writes to the room any more."""
        self._received_bytes += receiver.at - receiver.began
        sock, receiver.sock = receiver.sock, None
        if sock is not None and receiver.stopped:
            sock.close()
        elif sock is not None:
            self._sockets.give_back(node_id, sock)
        if self.closed:
            return
        if reason and receiver.used and not receiver.stopped and receiver.at == receiver.began:
            receiver.used = False  # an idle socket, given up by its sender: no fault of the source
            self._sockets.make(node_id, partial(self._connected, object_id, node_id, receiver))
            return
        del self._receivers[object_id]
        self._do(self.pulls.ended(object_id, receiver.at, reason, self.now(), full=full))

    def _stop(self, object_id: bytes) -> None:
        self._receivers[object_id].stop()

    def _seal(self, object_id: bytes, number: int, version: bytes) -> None:
        self._loans.versions[object_id] = version
        self._client.fill(self._rooms.pop(number), object_id, b"")

    def _failed(self, object_id: bytes, reason: str, kind: str) -> None:
        now = self.now()
        self._store.do(self._store.table.pull_failed(object_id, reason, kind, now), now)

    def _fade(self, object_id: bytes) -> None:
        now = self.now()
        self._store.do(self._store.table.fade(object_id, now), now)

    def _lend(self, object_id: bytes) -> None:
        self._store.table.lend(object_id)

    def _pin(self, link: int, request: int, object_id: bytes, location: Location) -> None:
        self._loans.pin(link, request, object_id, location)

    def _serve(self, link: int, request: int, others: list[bytes]) -> None:
        self._loans.serve(link, request, others)

    def _unpin(self, link: int, request: int) -> None:
        self._loans.unpin(link, request)


_PERFORM: dict[str, Callable[..., None]] = {
    "send": Transfers._send,
    "reserve": Transfers._reserve,
    "release": Transfers._release,
    "receive": Transfers._receive,
    "stop": Transfers._stop,
    "seal": Transfers._seal,
    "failed": Transfers._failed,
    "fade": Transfers._fade,
    "lend": Transfers._lend,
    "pin": Transfers._pin,
    "serve": Transfers._serve,
    "unpin": Transfers._unpin,
}
