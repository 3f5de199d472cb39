"""The way from a node to the head of its cluster: one connection, found again when it breaks.

    DIALLING ──add_node is answered──▶ JOINED
       ▲ │                               │
       │ └── no answer: again, for a while ◀── the connection ends
       └── patience over · wrong token or version · Fenced ──▶ LOST: the node ends

Made by ``daemon.py`` for a node whose head is another process. The node speaks through ``send`` and hears through
``deliver``, as it does with a GCS in its own process. What it says while there is no connection waits, but for
its reports, which are stale by then. A head that still runs has declared the node dead when the connection
broke, and says so (Fenced); one that has come back with its tables takes the node in again. Another cluster's head
at the same address does not: it knows nothing of what runs here.

What a killed head may have lost is said again when the node joins again: its requests without an answer, with their
numbers; and, in ``add_node``, all that its other messages were about as it is now (see ``inventory``), so that those
which wait since before that moment are void.

Invariants: ``add_node`` is the first message on each connection; after LOST nothing is sent, and ``lost`` is
called once; a request is answered once.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from minray._base import log
from minray.wire.errors import Misfit, WireError
from minray.wire.messages import Fenced, Hello, Message, NodeReport, Reply, Request, StoreReport, pack, unpack
from minray.wire.reactor import Connection, Reactor

REDIAL_S = 0.2
JOIN_S = 4.0  # how long the first connection may take: whoever has typed a wrong address wants to know
JOIN_REQUEST = 0  # the node's own requests count from 1


class GcsLink:
    """See the file's head.

    Args:
        endpoint: of the head.
        hello: says who the node is; role "node".
        patience_s: how long a broken connection is tried again.
        silence_s: a head that acknowledges nothing for so long is gone.
        deliver: what the GCS says.
        joined: the answer to ``add_node``.
        lost: there is no way back, and why.
        inventory: what this node has at this moment, for a head that has been started again.
        now: the clock by which patience is measured.
    """

    def __init__(
        self,
        reactor: Reactor,
        endpoint: str,
        hello: Hello,
        *,
        patience_s: float,
        silence_s: float,
        deliver: Callable[[Message], None],
        joined: Callable[[dict[str, Any]], None],
        lost: Callable[[str], None],
        inventory: Callable[[], dict[str, Any]] = dict,
        now: Callable[[], float] = lambda: monotonic(),
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._hello = hello
        self._patience_s = patience_s
        self._silence_s = silence_s
        self._deliver = deliver
        self._on_joined = joined
        self._on_lost = lost
        self._inventory = inventory
        self._now = now
        self._info: dict[str, Any] = {}
        self._conn: Connection | None = None
        self._waiting: list[tuple[Any, ...]] = []  # but for requests
        self._unanswered: dict[int, tuple[Any, ...]] = {}  # requests, in their order
        self._deadline = 0.0
        self._over = False
        self._ever = False  # it has been JOINED
        self.joined = False
        self.dismissed = False  # the cluster has ended in good order

    def join(self, info: dict[str, Any]) -> None:
        """Go there and say ``add_node(info)``."""
        self._info = info
        patience = min(JOIN_S, max(self._patience_s, REDIAL_S))
        self._deadline = self._now() + patience
        self._reactor.call_later(patience + REDIAL_S, self._join_late)
        self._dial()

    def _join_late(self) -> None:
        if not self._ever and not self._over:
            self._give_up(f"nobody has answered at {self._endpoint}")

    def send(self, message: Message) -> None:
        """To the GCS, now or when it is there again."""
        if self._over:
            return
        raw = pack(message)
        if isinstance(message, Request):
            self._unanswered[message.request_id] = raw
        if self.joined and self._conn is not None:
            self._conn.send(raw)
        elif not isinstance(message, (NodeReport, StoreReport, Request)):
            self._waiting.append(raw)

    def leave(self, reason: str) -> None:
        """The node ends: say so, and be gone."""
        if not self._over:
            self._over = True
            if self._conn is not None:
                if self.joined:
                    self._conn.send(pack(Request(JOIN_REQUEST, "leave", (reason,))))
                self._conn.close()

    def _dial(self) -> None:
        if self._over:
            return
        self._conn = self._reactor.dial(self._endpoint, self._hello, self)
        self._conn.limit_silence(self._silence_s)
        info = self._info
        if self._ever:
            info = {**info, **self._inventory()}
            self._waiting.clear()
        self._conn.send(pack(Request(JOIN_REQUEST, "add_node", (info,))))

    # -- the reactor's side --------------------------------------------------------------------------

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        """Reactor: orders, answers and news."""
        for raw in messages:
            if self._over:
                return
            message = unpack(raw)
            if isinstance(message, Fenced):
                self.dismissed = message.dismissed
                self._give_up(f"the head counts it as dead: {message.reason}")
            elif isinstance(message, Reply) and message.request_id == JOIN_REQUEST:
                self._answered(conn, message)
            else:
                if isinstance(message, Reply):
                    self._unanswered.pop(message.request_id, None)
                self._deliver(message)

    def _answered(self, conn: Connection, reply: Reply) -> None:
        if not reply.ok:
            self._give_up(f"the head refuses it: {reply.value[1]}")
            return
        self.joined = self._ever = True
        self._info = {**self._info, "again": True}  # for a head that is another one by then
        waiting, self._waiting = self._waiting, []
        conn.send_many([*self._unanswered.values(), *waiting])
        self._on_joined(reply.value)

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """Reactor: the connection has ended, or never came to be."""
        if self._over or conn is not self._conn:
            return
        self._conn = None
        if self.joined:
            self.joined = False
            self._deadline = self._now() + self._patience_s
            log.warning("the connection to the head at %s is lost: %s", self._endpoint, error)
        if isinstance(error, Misfit) or self._now() + REDIAL_S > self._deadline:
            self._give_up(f"there is no connection to the head at {self._endpoint}: {error}")
        else:
            self._reactor.call_later(REDIAL_S, self._dial)

    def _give_up(self, reason: str) -> None:
        self._over = True
        self.joined = False
        self._waiting.clear()
        self._unanswered.clear()
        if self._conn is not None:
            self._conn.close()
        self._on_lost(reason)
