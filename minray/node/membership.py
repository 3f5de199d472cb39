"""A node as one of several: it reports to the GCS and keeps its view of the others.

    NodeService.settle ─▶ look ──(something changed, 0.1 s ago at least)───▶ NodeReport ─▶ GCS
    a timer ─────────────(every heartbeat_s)──────────────────────────────▶
    ClusterView of the GCS ─▶ view, and whoever waits for room elsewhere is looked at again
                              └─(who is gone)─▶ NodeGone ─▶ the processes of this node

Made by node.service in a clustered session only: in one that ``init()`` starts there is none, and thus neither
a periodic wake-up nor a report. Everything runs on the reactor's thread. In large clusters the reports come more
seldom, as the GCS's news do (``gcs.links``): however many nodes there are, at most a thousand reports per second reach
it. Invariant: at most one report is due.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from minray.node.dispatch import STRANGER
from minray.wire.codec import encode_framed
from minray.wire.messages import ClusterView, NodeGone, NodeReport, Resources, StoreReport, pack
from minray.wire.reactor import Timer

if TYPE_CHECKING:
    from minray.node.demands import DemandQueue
    from minray.node.service import NodeService

REPORT_S = 0.1  # between two reports, at least
REPORT_S_PER_NODE = 0.001  # and this much more for each other node
WAITING = 20  # kinds of requests that a report names
COUNTED = 64  # waiting demands that are added up; each of the rest counts as one


class Membership:
    """One node's part in its cluster."""

    def __init__(self, node: NodeService) -> None:
        self._node = node
        self._heartbeat_s = 0.0  # 0: has not joined yet
        self._told: tuple[Resources, Resources, int] = ({}, {}, 0)
        self._told_at = 0.0
        self._told_of_store: dict[str, int] = {}
        self._due: Timer | None = None

    def joined(self, heartbeat_s: float, gone: list[bytes]) -> None:
        """The GCS knows this node, perhaps again, and wants to hear of it so often. ``gone``: nodes that it had
        better forget."""
        first = not self._heartbeat_s
        self._heartbeat_s = heartbeat_s
        if first:
            self._beat()
        else:
            self._report()  # a head that was started again knows nothing of what is free here
        if gone:
            self.on_view(ClusterView([], gone))

    def _beat(self) -> None:
        if self._node.ending is None:
            self._report()
            self._node.reactor.call_later(self._heartbeat_s, self._beat)

    def look(self) -> None:
        """After each step of the node: has something changed that others should know?"""
        if self._due is None and self._heartbeat_s and self._state() != self._told:
            pause = report_pause(len(self._node.view))
            delay = max(0.0, self._told_at + pause - self._node.now())
            self._due = self._node.reactor.call_later(delay, self._report)

    def _state(self) -> tuple[Resources, Resources, int]:
        table = self._node.table
        return table.book.available, table.book.totals, load_of(table.queue)

    def _report(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        node = self._node
        if node.ending is not None:
            return
        available, totals, load = self._state()
        self._told = (dict(available), dict(totals), load)
        self._told_at = node.now()
        node.tell_gcs(NodeReport(node.available(), self._told[1], load, self._waiting()))
        store = node.store.table.moved()
        if store != self._told_of_store:
            self._told_of_store = store
            node.tell_gcs(StoreReport(store))

    def _waiting(self) -> list[tuple[str, Resources, int]]:
        table = self._node.table
        counts: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {}
        for demand in (*table.infeasible.values(), *islice(table.queue, COUNTED)):
            if demand.bundles:  # the GCS knows who waits, and for what
                continue
            key = (demand.description, tuple(sorted(demand.resources.items())))
            if key in counts or len(counts) < WAITING:
                counts[key] = counts.get(key, 0) + max(1, demand.missing)
        return [(text, dict(request), count) for (text, request), count in counts.items()]

    def on_view(self, message: ClusterView) -> None:
        """News of the others."""
        node = self._node
        node.view.apply(message)
        if node.config.debug:
            node.view.check_invariants()
        for node_id in message.gone:
            self._gone(node_id)
        node.table.actors.view_changed(node.now())
        node.do(node.table.view_changed(node.now()))

    def _gone(self, node_id: bytes) -> None:
        """A machine that froze or was cut off closes no connection: who waits for it has to be told."""
        node = self._node
        if node.transfers is not None:
            node.transfers.node_gone(node_id)
        frame = encode_framed(pack(NodeGone(node_id)))
        for peer in node.peers.values():
            if peer.number != STRANGER:
                peer.conn.send_frame(frame)


def report_pause(others: int) -> float:
    """Seconds between two reports of a node that has so many others beside it."""
    return REPORT_S + REPORT_S_PER_NODE * others


def load_of(queue: DemandQueue) -> int:
    """Workers that are wanted and not granted, about."""
    load = counted = 0
    for demand in islice(queue, COUNTED):
        load += demand.missing
        counted += 1
    return load + len(queue) - counted
