"""Which message of a core worker goes where in the node.

A ``Peer`` is one connection: nobody until it has registered, then a driver or a worker. ``HANDLERS`` maps
each message that a node understands to what is done with it.

Called by the reactor (Peer is its Handler) and by node.service. Invariant: what needs an identity is refused
(ProtocolError, which closes the connection) before registration.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minray.wire import messages as m
from minray.wire.errors import ProtocolError, WireError
from minray.wire.messages import Message, pack
from minray.wire.reactor import Connection
from minray.wire.transports import nearest

if TYPE_CHECKING:
    from minray.node.service import NodeService


STRANGER = -2  # as a number: an owner of another node


class Peer:
    """One connection to a driver, a worker, an owner of another node, or a tool."""

    __slots__ = ("conn", "job_id", "node", "number", "pidfd", "worker_id")

    def __init__(self, node: NodeService, conn: Connection) -> None:
        self.node = node
        self.conn = conn
        self.worker_id = b""  # once registered
        self.job_id = b""
        self.number = -1  # of a worker; STRANGER
        self.pidfd = -1  # of a driver

    def admit(self, worker_id: bytes, job_id: bytes, number: int) -> None:
        """It has registered."""
        self.worker_id, self.job_id, self.number = worker_id, job_id, number

    def remove_socket(self) -> None:
        """A process that was killed leaves its listening socket's file."""
        place = nearest(self.conn.hello.endpoint, same_machine=True) if self.conn.hello is not None else ""
        if place.startswith("unix:"):
            try:
                os.unlink(place[len("unix:") :])
            except OSError:  # it did so itself
                pass

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        """Reactor: everything that one read brought."""
        node = self.node
        try:
            for raw in messages:
                node.dispatch(self, raw)
        finally:
            node.settle()

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """Reactor: the connection is over."""
        self.node.peer_gone(self, error)
        self.node.settle()


Handle = Callable[["NodeService", Peer, Any], None]
HANDLERS: dict[type[Message], Handle] = {}


def _handles(*kinds: type[Message], anybody: bool = False) -> Callable[[Handle], Handle]:
    def register(handle: Handle) -> Handle:
        def checked(node: NodeService, peer: Peer, message: Any) -> None:
            if not peer.worker_id:
                raise ProtocolError(f"{type(message).__name__} before Register")
            if node.ending is None:
                handle(node, peer, message)

        for kind in kinds:
            HANDLERS[kind] = handle if anybody else checked
        return handle

    return register


@_handles(m.Register, anybody=True)
def _register(node: NodeService, peer: Peer, message: m.Register) -> None:
    hello = peer.conn.hello
    if peer.worker_id or hello is None or hello.role != ("driver" if message.is_driver else "worker"):
        raise ProtocolError(f"a second Register, or one of a {hello.role if hello else 'stranger'}")
    if node.ending is not None:
        peer.conn.close()
    elif message.is_driver:
        node.jobs.register_driver(peer, message)
    else:
        node.register_worker(peer, message)


@_handles(m.Introduce, anybody=True)
def _introduce(node: NodeService, peer: Peer, message: m.Introduce) -> None:
    if node.ending is not None:
        peer.conn.close()
    else:
        node.strangers.welcome(peer, message)


@_handles(m.LeaseDemand)
def _demand(node: NodeService, peer: Peer, message: m.LeaseDemand) -> None:
    node.do(node.table.demand(peer.worker_id, message, node.now()))


@_handles(m.LeaseReturn)
def _return(node: NodeService, peer: Peer, message: m.LeaseReturn) -> None:
    node.do(node.table.returned(peer.worker_id, message.lease_no, message.retire, node.now()))


@_handles(m.LeaseEnded)
def _ended(node: NodeService, peer: Peer, message: m.LeaseEnded) -> None:
    node.do(node.table.ended(peer.worker_id, message.lease_no, node.now()))


@_handles(m.Blocked)
def _blocked(node: NodeService, peer: Peer, message: m.Blocked) -> None:
    node.do(node.table.blocked(peer.worker_id, message.lease_no, node.now()))


@_handles(m.Unblocked)
def _unblocked(node: NodeService, peer: Peer, message: m.Unblocked) -> None:
    node.do(node.table.unblocked(peer.worker_id, message.lease_no, node.now()))


@_handles(m.KillWorker)
def _kill(node: NodeService, peer: Peer, message: m.KillWorker) -> None:
    node.do(node.table.kill(peer.worker_id, message.lease_no, node.now()))


@_handles(m.Watch)
def _watch(node: NodeService, peer: Peer, message: m.Watch) -> None:
    node.watch(peer.worker_id, message)


@_handles(m.LogAck)
def _log_ack(node: NodeService, peer: Peer, message: m.LogAck) -> None:
    node.logs.ack(peer.job_id, message.count)


@_handles(m.WorkerName)
def _worker_name(node: NodeService, peer: Peer, message: m.WorkerName) -> None:
    node.logs.rename(peer.number, message.name)


@_handles(m.ActorStarted)
def _actor_started(node: NodeService, peer: Peer, message: m.ActorStarted) -> None:
    if message.error is not None:
        node.workers.expect_end(peer.number, "its __init__ raised an exception")
    node.table.actors.started(message)
    node.tell_gcs(message)


@_handles(m.ActorEnded)
def _actor_ended(node: NodeService, peer: Peer, message: m.ActorEnded) -> None:
    # Said by the actor before it exits on purpose; the GCS hears it when the process is gone.
    node.workers.expect_end(peer.number, str(message.cause.get("text", "it ended itself")))


@_handles(
    m.ExtentRequest, m.ExtentCancel, m.ExtentReturn, m.Trimmed, m.Sealed, m.Free, m.Pin, m.Unpin, m.Narrow
)  # fmt: skip
def _store(node: NodeService, peer: Peer, message: Message) -> None:
    node.store.on_message(peer.worker_id, message, node.now())


# -- requests --------------------------------------------------------------------------------------


@_handles(m.Request, anybody=True)
def _request(node: NodeService, peer: Peer, message: m.Request) -> None:
    answer = REQUESTS.get(message.method)
    if answer is None:
        value: Any = ("RaySystemError", f"this node has no method {message.method!r}")
        peer.conn.send(pack(m.Reply(message.request_id, False, value)))
    else:
        peer.conn.send(pack(m.Reply(message.request_id, True, answer(node, peer, *message.args))))


def _node_info(node: NodeService, peer: Peer) -> dict[str, Any]:
    where = {"node_id": node.node_id, "address": node.address, "endpoint": node.endpoint}
    return {**node.public_session, **where}


def _stats(node: NodeService, peer: Peer) -> dict[str, Any]:
    return node.stats()


def _flush_logs(node: NodeService, peer: Peer) -> int:
    """Lines printed so far leave before this answer: how many characters its driver has not printed yet."""
    node.logs.flush(peer.job_id)
    return node.logs.under_way(peer.job_id)


def _object_copies(node: NodeService, peer: Peer, objects: list[bytes]) -> list[tuple[list[bytes], bool]]:
    """For each of them: the nodes that have a copy, as far as this one knows, and whether it is on disk here."""
    return [
        ([] if node.transfers is None else node.transfers.copies(object_id), node.store.table.did_spill(object_id))
        for object_id in objects
    ]


REQUESTS: dict[str, Callable[..., Any]] = {
    "node_info": _node_info,
    "stats": _stats,
    "flush_logs": _flush_logs,
    "object_copies": _object_copies,
}
