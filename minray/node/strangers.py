"""Owners of other nodes that want workers of this one.

An owner (a driver, or a worker that submits) whose own node has named us connects, introduces its job, and asks
for workers like anybody else; the answers go over its connection. When that ends, or when the GCS says that the
owner is dead, what it holds here is taken back.

Part of node.service, on the reactor's thread. Invariant: a stranger is a peer, but neither a driver nor a worker
of this node; it registers nothing in the store and in the logs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minray.node.demands import WorkerClass
from minray.node.dispatch import STRANGER, Peer
from minray.wire.errors import ProtocolError
from minray.wire.messages import Introduce, Watch

if TYPE_CHECKING:
    from minray.node.service import NodeService


class Strangers:
    """Those of one node."""

    def __init__(self, node: NodeService) -> None:
        self._node = node

    def welcome(self, peer: Peer, message: Introduce) -> None:
        """An owner says whose workers these will be. ProtocolError if it is none, or is at home here."""
        node, hello = self._node, peer.conn.hello
        if peer.worker_id or hello is None or hello.role not in ("driver", "worker"):
            raise ProtocolError(f"an Introduce of a {hello.role if hello else 'stranger'}")
        if hello.node_id == node.node_id or not hello.node_id:
            raise ProtocolError("an Introduce from a process of this very node")
        known = node.peers.get(hello.worker_id)
        if known is not None:  # its old connection broke, and we have not heard of it yet
            known.conn.close()
            self.gone(known)
        node.jobs.introduce(message.job_id, message.job_config)
        peer.admit(hello.worker_id, message.job_id, STRANGER)
        node.peers[hello.worker_id] = peer
        home = WorkerClass(message.job_id).with_env(dict(message.job_config.get("env_vars") or {}))
        address = (hello.node_id, hello.worker_id, hello.endpoint)
        node.table.stranger_joined(hello.worker_id, address, home)
        node.watch(node.node_id, Watch(hello.worker_id, hello.node_id))

    def gone(self, peer: Peer) -> None:
        """Its connection has ended."""
        node = self._node
        del node.peers[peer.worker_id]
        node.do(node.table.owner_gone(peer.worker_id, node.now()))
        node.jobs.tidy(peer.job_id)

    def died(self, worker_id: bytes) -> None:
        """The GCS says so."""
        peer = self._node.peers.get(worker_id)
        if peer is not None and peer.number == STRANGER:
            peer.conn.close()
            self.gone(peer)
