"""The end of a node, in steps that never block the reactor.

    begin: leased workers are killed, idle ones and actors asked to exit ──▶ grace ──▶ the rest is killed
    all reaped (or patience is over): last lines to the drivers, segments, zygote, folder ──▶ sockets empty
    ──▶ done

Made by node.service. Invariant: ``done`` is called exactly once, and not before everything that can be
removed is removed.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from minray.node.worker_pool import ACTOR, IDLE
from minray.store.remains import remove_session
from minray.wire.messages import ExitWorker, pack

if TYPE_CHECKING:
    from minray.node.service import NodeService

GRACE_S = 0.25  # at most, for idle workers and actors
KILL_S = 1.5  # for the zygote to reap what was killed
FLUSH_S = 0.5  # for drivers to take their last lines
STEP_S = 0.005


class Ending:
    """One node's end."""

    def __init__(self, node: NodeService, folder: str, done: Callable[[], None]) -> None:
        self._node = node
        self._folder = folder
        self._done = done
        self._finished = False

    def begin(self, reason: str) -> None:
        """Tell everybody."""
        node = self._node
        for worker in list(node.table.pool.workers.values()):
            node.workers.expect_end(worker.number, reason)
            peer = node.peers.get(worker.worker_id)
            if peer is not None and worker.state in (IDLE, ACTOR):
                peer.conn.send(pack(ExitWorker(True, reason)))
            else:
                node.workers.kill(worker.number)
        if len(node.workers):
            node.reactor.call_later(min(GRACE_S, node.config.shutdown_grace_s), self._kill)
        else:
            self._finish()

    def worker_gone(self) -> None:
        """One less."""
        if not len(self._node.workers):
            self._finish()

    def _kill(self) -> None:
        if self._finished:
            return
        for number in list(self._node.table.pool.workers):
            self._node.workers.kill(number)
        self._node.reactor.call_later(KILL_S, self._finish)

    def _finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        node = self._node
        node.logs.close_all()
        node.log_routes.close()
        for peer in list(node.peers.values()):
            peer.conn.close()
        if node.transfers is not None:
            node.transfers.close()
        if node.disk is not None:
            node.disk.close()
        node.store.shutdown()
        node.workers.close()
        remove_session(self._folder)
        self._wait_for_sockets(monotonic() + FLUSH_S)

    def _wait_for_sockets(self, deadline: float) -> None:
        if monotonic() < deadline and any(peer.conn.buffered for peer in self._node.peers.values()):
            self._node.reactor.call_later(STEP_S, lambda: self._wait_for_sockets(deadline))
        else:
            self._done()
