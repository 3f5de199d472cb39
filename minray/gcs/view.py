"""What the nodes are told of each other: who has changed since the last word, and who has heard nothing yet. Pure.

``service`` notes joins, reports and losses here and now and then takes the news: one ClusterView of what has
changed, encoded once for all who have heard before, and one of everybody for newcomers. What stays the same about
a node (endpoint, address, labels; mostly its totals, too) is told once and None afterwards.

Invariants: a newcomer hears of every living node before it hears what changed; a node that is gone is named in
``gone`` once and in ``nodes`` never again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minray.wire.messages import ClusterView

USE, TOTALS, ALL = 0, 1, 2  # how much of a node is news


class ViewBoard:
    """The news of one cluster."""

    def __init__(self) -> None:
        self._news: dict[bytes, int] = {}
        self._gone: list[bytes] = []
        self._newcomers: set[bytes] = set()

    def joined(self, node_id: bytes) -> None:
        """It has joined: all hear of it, and it of all."""
        self._news[node_id] = ALL
        self._newcomers.add(node_id)

    def changed(self, node_id: bytes, totals: bool = False) -> None:
        """Its use, or its totals too, are not what they were."""
        self._news[node_id] = max(self._news.get(node_id, USE), TOTALS if totals else USE)

    def gone(self, node_id: bytes) -> None:
        """It is lost."""
        self._news.pop(node_id, None)
        self._newcomers.discard(node_id)
        self._gone.append(node_id)

    @property
    def pending(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._news or self._gone)

    def take(
        self, living: list[bytes], row: Callable[[bytes], tuple[Any, ...]]
    ) -> tuple[ClusterView, ClusterView, set[bytes]]:
        """The news for those who have heard before; all there is, for the newcomers; the newcomers."""
        nodes = []
        for node_id, much in self._news.items():
            _, endpoint, address, totals, available, labels, load = row(node_id)
            if much < ALL:
                endpoint = address = labels = None
            if much < TOTALS:
                totals = None
            nodes.append((node_id, endpoint, address, totals, available, labels, load))
        news = ClusterView(nodes, self._gone)
        newcomers = self._newcomers
        whole = ClusterView([row(node_id) for node_id in living] if newcomers else [], [])
        self._news, self._gone, self._newcomers = {}, [], set()
        return news, whole, newcomers

    def check_invariants(self) -> None:
        """Raise AssertionError where the news contradict each other."""
        assert all(self._news.get(node_id) == ALL for node_id in self._newcomers)
        assert not self._news.keys() & set(self._gone), "a node is there and gone"
