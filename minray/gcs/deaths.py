"""Who, on one node, waits for the end of a process on another. Pure.

    node A ──Watch(worker, node B)──▶ desk ──Watch──▶ node B
           ◀──────── Died ───────────      ◀── Died ── (at once if it is dead; else when it ends)

Every node tells the GCS of every process that ends, so the desk only has to remember who asked. The question
goes on to the process's node because that alone knows whether it is dead already; if that node is gone, the
desk answers for it.

Called by ``service``. Invariants: an asker is told once per question; nothing is kept of the dead: entries go
with the process, with its node, or with the last node that asked, so there are at most as many as living
processes times nodes.
"""

from __future__ import annotations

from typing import Any

from minray.gcs.effects import Effects, order
from minray.wire.messages import Died, Watch


class WatchDesk:
    """The open questions of one cluster."""

    def __init__(self) -> None:
        self._askers: dict[bytes, set[bytes]] = {}  # process → nodes that want to know
        self._where: dict[bytes, bytes] = {}  # process → its node
        self._on: dict[bytes, set[bytes]] = {}  # node → processes that are asked for

    def watch(self, asker: bytes, question: Watch) -> Effects:
        """A node wants to know of a process on another node, which lives."""
        worker_id, node_id = question.worker_id, question.node_id
        askers = self._askers.get(worker_id)
        if askers is None:
            askers = self._askers[worker_id] = set()
            self._where[worker_id] = node_id
            self._on.setdefault(node_id, set()).add(worker_id)
        elif asker in askers:
            return []
        askers.add(asker)
        return [order(node_id, question)]

    def node_joined(self, node_id: bytes) -> Effects:
        """A node is there, again: what was asked about its processes meanwhile is asked now."""
        return [order(node_id, Watch(worker_id, node_id)) for worker_id in sorted(self._on.get(node_id, ()))]

    def died(self, message: Died) -> Effects:
        """A node says how a process of its has ended."""
        askers = self._forget(message.worker_id)
        return [order(asker, message) for asker in sorted(askers)]

    def node_lost(self, node_id: bytes, reason: str) -> Effects:
        """A machine is gone: so are its processes, and its questions."""
        effects: Effects = []
        for worker_id in sorted(self._on.get(node_id, ())):
            died = Died(worker_id, -1, -1, -1, node_died(node_id, reason))
            effects += [order(asker, died) for asker in sorted(self._forget(worker_id)) if asker != node_id]
        for worker_id, askers in list(self._askers.items()):
            askers.discard(node_id)
            if not askers:
                self._forget(worker_id)
        return effects

    def _forget(self, worker_id: bytes) -> set[bytes]:
        askers = self._askers.pop(worker_id, set())
        node_id = self._where.pop(worker_id, None)
        if node_id is not None:
            there = self._on[node_id]
            there.discard(worker_id)
            if not there:
                del self._on[node_id]
        return askers

    def __len__(self) -> int:
        return len(self._askers)

    def check_invariants(self) -> None:
        """Raise AssertionError where the three tables disagree."""
        assert self._askers.keys() == self._where.keys()
        assert all(self._askers.values()), "a question that nobody asks"
        assert sum(len(there) for there in self._on.values()) == len(self._where)
        for worker_id, node_id in self._where.items():
            assert worker_id in self._on[node_id]


def node_died(node_id: bytes, reason: str) -> dict[str, Any]:
    """The cause of death of whoever was on a node that is lost."""
    text = f"its node {node_id.hex()[:8]} was lost: {reason}"
    return {"text": text, "node_died": True, "expected": False}
