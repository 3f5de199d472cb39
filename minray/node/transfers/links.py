"""The two ends of a link between nodes: which message may come from where.

Made by ``service``, called by the reactor. Invariant: what a link does not carry closes it (ProtocolError).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minray.wire.errors import ProtocolError, WireError
from minray.wire.messages import (
    Free,
    PullDone,
    PullGranted,
    PullObject,
    PullRefused,
    Reply,
    Request,
    pack,
    unpack,
)
from minray.wire.reactor import Connection

if TYPE_CHECKING:
    from minray.node.transfers.service import Transfers

DATA = "object_data"  # the Request that makes a connection a data socket


class Incoming:
    """A node that pulls from us."""

    def __init__(self, transfers: Transfers, conn: Connection, number: int, node_id: bytes) -> None:
        self.conn = conn
        self.number = number
        self.node_id = node_id
        self._transfers = transfers

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        """Reactor: everything that one read brought."""
        try:
            for raw in messages:
                message = unpack(raw)
                if isinstance(message, (PullObject, PullDone, PullRefused, Free)):
                    self._transfers.from_puller(self, message)
                elif isinstance(message, Request) and message.method == DATA:
                    conn.send(pack(Reply(message.request_id, True, None)))
                    self._transfers.add_sender(conn.detach())
                else:
                    raise ProtocolError(f"not a message of a puller: {message!r}")
        finally:
            self._transfers.settled()

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """Reactor: the connection is over, or has become a data socket."""
        self._transfers.puller_lost(self)


class Outgoing:
    """A node that we pull from."""

    def __init__(self, transfers: Transfers, node_id: bytes) -> None:
        self.node_id = node_id
        self.conn: Connection | None = None
        self._transfers = transfers

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        """Reactor: everything that one read brought."""
        try:
            for raw in messages:
                message = unpack(raw)
                if not isinstance(message, (PullGranted, PullRefused, Reply, Free)):
                    raise ProtocolError(f"not a message of a source: {message!r}")
                self._transfers.from_source(self, message)
        finally:
            self._transfers.settled()

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """Reactor: the connection is over, or never came to be."""
        self._transfers.source_lost(self, error)
