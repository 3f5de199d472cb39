"""The way of workers' lines to drivers of other nodes: one connection per job, to where its driver listens.

    LogHub ─ LogLines ─▶ route ─▶ driver ─ LogAck ─▶ route ─▶ LogHub

Part of node.service, on the reactor's thread. Invariant: while a driver does not listen (any more), lines go to
the log files only, and nobody waits for its acknowledgement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minray._base.process import own_identity
from minray.wire.errors import WireError
from minray.wire.messages import Address, Hello, LogAck, LogLines, pack, unpack
from minray.wire.reactor import Connection
from minray.wire.transports import nearest

if TYPE_CHECKING:
    from minray.node.service import NodeService


class LogRoutes:
    """Those of one node."""

    def __init__(self, node: NodeService) -> None:
        self._node = node
        self._routes: dict[bytes, Connection] = {}  # by job

    def send(self, job_id: bytes, driver: Address, message: LogLines) -> bool:
        """Lines for a driver elsewhere. False: nobody is there to print them."""
        conn = self._routes.get(job_id)
        if conn is None:
            node = self._node
            hello = Hello("node", node.node_id, node.node_id, job_id, *own_identity(), node.endpoint)
            endpoint = nearest(driver[2], same_machine=False)
            conn = node.reactor.dial(endpoint, hello, _Route(self, job_id))
            self._routes[job_id] = conn
        if conn.closed:
            return False
        conn.send(pack(message))
        return True

    def close(self) -> None:
        """The node ends; what has been said still leaves."""
        for conn in self._routes.values():
            conn.close()

    def hear(self, job_id: bytes, raw: tuple[Any, ...]) -> None:
        """What a driver says there."""
        message = unpack(raw)
        if isinstance(message, LogAck):
            self._node.logs.ack(job_id, message.count)

    def lost(self, job_id: bytes) -> None:
        """It does not listen any more. (The closed connection stays as a mark of that.)"""
        self._node.logs.driver_gone(job_id)


class _Route:
    """Handler of one of these connections."""

    def __init__(self, routes: LogRoutes, job_id: bytes) -> None:
        self._routes = routes
        self._job_id = job_id

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        for raw in messages:
            self._routes.hear(self._job_id, raw)

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        self._routes.lost(self._job_id)
