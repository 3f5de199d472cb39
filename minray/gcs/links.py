"""The doors to the nodes, and when the news of the cluster go through them.

Made and driven by ``service``, on the reactor's thread. A node of this process has a door that is a function; one
of another machine has a connection, and a deadline. News leave at once when there was none for a while, else in
batches; they are encoded once for all connections. In large clusters the batches come more seldom: what they cost
grows with the square of the nodes.

Invariant: a session of one node arms no timer and sends nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from minray._base import log
from minray.gcs.nodes import NodeTable
from minray.gcs.view import ViewBoard
from minray.wire.codec import encode_framed
from minray.wire.messages import Fenced, Message, pack

Deliver = Callable[[Message], None]
VIEW_S = 0.1  # between two batches of news, at least
VIEW_S_PER_NODE = 0.001  # and this much more for each node
NEVER = float("-inf")
LATE_S = 1.0  # a deadline that is looked at so late: this process itself was stopped


class NodePeer(Protocol):
    """What is needed of a connection to a node."""

    def send(self, message: tuple[Any, ...]) -> None: ...

    def send_frame(self, frame: bytes) -> None: ...

    def close(self) -> None: ...


class Scheduler(Protocol):
    """What is needed of the reactor."""

    def call_soon(self, fn: Callable[[], None]) -> None: ...

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> Any: ...


class NodeLink:
    """One node's door."""

    __slots__ = ("deliver", "jobs", "peer")

    def __init__(self, deliver: Deliver, peer: NodePeer | None) -> None:
        self.deliver = deliver
        self.peer = peer  # None: the node is in this process
        self.jobs: set[bytes] = set()  # those of other nodes' drivers that it has been introduced to


class NodeLinks:
    """All doors of one GCS.

    Args:
        now: the monotonic clock.
        timeout_s: how long a node may be silent.
        lost: called with a node and a reason when it was silent for too long.
    """

    def __init__(
        self,
        reactor: Scheduler,
        nodes: NodeTable,
        *,
        now: Callable[[], float],
        timeout_s: float,
        lost: Callable[[bytes, str], None],
    ) -> None:
        self._reactor = reactor
        self._nodes = nodes
        self._now = now
        self._timeout_s = timeout_s
        self._lost = lost
        self._links: dict[bytes, NodeLink] = {}
        self._board = ViewBoard()
        self._told_at = NEVER
        self._news_due = False
        self._check_at: float | None = None

    def __len__(self) -> int:
        return len(self._links)

    def __contains__(self, node_id: bytes) -> bool:
        return node_id in self._links

    def get(self, node_id: bytes) -> NodeLink | None:
        """The door of a node that is not lost."""
        return self._links.get(node_id)

    def local(self) -> bytes:
        """The node of this process; b"" if there is none."""
        return next((node_id for node_id, link in self._links.items() if link.peer is None), b"")

    def attach(self, node_id: bytes, deliver: Deliver, peer: NodePeer | None = None) -> None:
        """From now on the node is reached this way."""
        self._links[node_id] = NodeLink(deliver, peer)

    def expect(self, node_id: bytes) -> None:
        """It was there before this head was started, and has as long as any other that is silent."""
        self.heard(node_id)

    def detach(self, node_id: bytes, *, expected: bool = False) -> None:
        """The node is lost. ``expected``: it has never had a door here, but others may still count on it."""
        if self._links.pop(node_id, None) is not None or expected:
            self._board.gone(node_id)
            self._news()

    def job_finished(self, job_id: bytes) -> None:
        """From now on nodes may forget it."""
        for link in self._links.values():
            link.jobs.discard(job_id)

    def fence(self, node_id: bytes, reason: str, dismissed: bool = False) -> None:
        """Tell a node that it counts as dead, and let go of it."""
        link = self._links.get(node_id)
        if link is not None and link.peer is not None:
            refuse(link.peer, reason, dismissed)

    def fence_all(self, reason: str) -> None:
        """The head ends, and with it the cluster."""
        for node_id in list(self._links):
            self.fence(node_id, reason, dismissed=True)

    # --- deadlines --------------------------------------------------------------------------------

    def heard(self, node_id: bytes) -> None:
        """A node of another machine has said something."""
        self._nodes.heard(node_id, self._now())
        self._watch()

    def _watch(self) -> None:
        due = self._nodes.next_deadline(self._timeout_s)
        if due is not None and self._check_at is None:
            self._check_at = due
            self._reactor.call_later(max(0.0, due - self._now()), self._check)

    def _check(self) -> None:
        now, due = self._now(), self._check_at
        self._check_at = None
        if due is not None and now > due + LATE_S:
            log.warning("the head was stopped for about %.1f s: its nodes get their time again", now - due)
            self._nodes.pardon(now)
        for node_id in self._nodes.overdue(now, self._timeout_s):
            reason = f"it has not reported for {self._timeout_s:g} s"
            self.fence(node_id, reason)
            self._lost(node_id, reason)
        self._watch()

    # --- news -------------------------------------------------------------------------------------

    def joined(self, node_id: bytes) -> None:
        """It is among the living now."""
        self._board.joined(node_id)
        self._news()

    def changed(self, node_id: bytes, totals: bool) -> None:
        """It has reported something new."""
        self._board.changed(node_id, totals)
        self._news()

    def _news(self) -> None:
        alone = len(self._links) <= 1 and self._told_at == NEVER
        if not self._news_due and not alone:
            self._news_due = True
            due = self._told_at + VIEW_S + VIEW_S_PER_NODE * len(self._links)
            self._reactor.call_later(max(0.0, due - self._now()), self._tell)

    def _tell(self) -> None:
        self._news_due = False
        if not self._board.pending:
            return
        self._told_at = self._now()
        news, whole, newcomers = self._board.take(self._nodes.living(), self._nodes.row)
        frames: dict[int, bytes] = {}
        for node_id, link in self._links.items():
            view = whole if node_id in newcomers else news
            if link.peer is None:
                link.deliver(view)
                continue
            frame = frames.get(id(view))
            if frame is None:
                frame = frames[id(view)] = encode_framed(pack(view))
            link.peer.send_frame(frame)

    def check_invariants(self) -> None:
        """Raise AssertionError where doors and rows disagree."""
        self._board.check_invariants()


def refuse(peer: NodePeer, reason: str, dismissed: bool = False) -> None:
    """Tell a node that it counts as dead."""
    peer.send(pack(Fenced(reason, dismissed)))
    peer.close()
