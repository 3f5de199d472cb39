"""Data sockets to other nodes: made when there is none, kept for a while when a transfer is over.

One is made out of a connection, and so proves itself as every connection does: a Request ``DATA``, its Reply, and
from then on the socket is ours (see ``channel``).

Used by ``service``, on the reactor's thread. Invariant: a socket is idle here, or with one receiver, or closed.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from minray.node.transfers.channel import prepare
from minray.node.transfers.links import DATA
from minray.wire.errors import ProtocolError, WireError
from minray.wire.messages import Reply, Request, pack, unpack
from minray.wire.reactor import Connection, Handler, Reactor, Timer
from minray.wire.transports import Stream, limit_silence

KEEP_S = 5.0  # well below what a sender waits for
SILENCE_S = 10.0  # a network that acknowledges nothing for so long is cut
Made = Callable[[Stream | None, str], None]


class DataSockets:
    """``open_connection(node_id, handler)``: dials that node; None if there is no such node."""

    def __init__(
        self, reactor: Reactor, open_connection: Callable[[bytes, Handler], Connection | None], silence_s: float
    ) -> None:
        self.silence_s = silence_s
        self._reactor = reactor
        self._open = open_connection
        self._idle: dict[bytes, list[tuple[float, Stream]]] = {}
        self._timer: Timer | None = None
        self.closed = False

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    def take(self, node_id: bytes) -> Stream | None:
        """An idle one, the last used."""
        idle = self._idle.get(node_id)
        if not idle:
            return None
        sock = idle.pop()[1]
        if not idle:
            del self._idle[node_id]
        return sock

    def make(self, node_id: bytes, made: Made) -> None:
        """A new one: ``made(socket, "")`` or ``made(None, reason)``, later."""
        opening = _Opening(self, made)
        conn = self._open(node_id, opening)
        if conn is None:
            self._reactor.call_soon(lambda: made(None, "that node is not in the cluster any more"))
        else:
            conn.send(pack(Request(1, DATA, ())))

    def give_back(self, node_id: bytes, sock: Stream) -> None:
        """A transfer is over, to the last byte."""
        if self.closed:
            sock.close()
            return
        self._idle.setdefault(node_id, []).append((monotonic() + KEEP_S, sock))
        if self._timer is None:
            self._timer = self._reactor.call_later(KEEP_S, self._on_timer)

    def _on_timer(self) -> None:
        now, self._timer = monotonic(), None
        for node_id, idle in list(self._idle.items()):
            while idle and idle[0][0] <= now:
                idle.pop(0)[1].close()
            if not idle:
                del self._idle[node_id]
        if self._idle:
            until = min(idle[0][0] for idle in self._idle.values())
            self._timer = self._reactor.call_later(until - now, self._on_timer)

    def forget(self, node_id: bytes) -> None:
        """That node is dead."""
        for _, sock in self._idle.pop(node_id, ()):
            sock.close()

    def close(self) -> None:
        """With the node."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        for node_id in list(self._idle):
            self.forget(node_id)


class _Opening:
    """The handler of a connection that is to become a data socket."""

    def __init__(self, sockets: DataSockets, made: Made) -> None:
        self._sockets = sockets
        self._made: Made | None = made

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        """Reactor: the Reply."""
        reply = unpack(messages[0])
        if not isinstance(reply, Reply) or not reply.ok or self._made is None:
            raise ProtocolError(f"that node makes no data socket: {reply!r}")
        sock = conn.detach()
        limit_silence(sock, self._sockets.silence_s)
        prepare(sock)
        made, self._made = self._made, None
        made(sock, "")

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """Reactor: the connection is over, or has become a data socket."""
        if self._made is not None:
            self._made(None, str(error) if error is not None else "the connection was closed")
