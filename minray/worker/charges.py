"""Which deaths of its workers a task is charged for. Pure.

A retry is used by each death of the worker that ran the task, but for one kind: memory ran out on the node, and others
worked there, too. Then nobody knows who filled it; the node lets the others go on first (see node.memory), and the task
is tried again for nothing, up to ``SPARED`` times.

Used by ``owner``. Invariant: only tasks that are not finished are remembered, and only those that were spared.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

SPARED = 10


class Charges:
    """How often each task was spared."""

    def __init__(self) -> None:
        self._spared: dict[int, int] = {}  # by seq

    def counts(self, seq: int, cause: Mapping[str, Any], unfinished: Container[int]) -> bool:
        """Whether this death uses a retry of that task. ``unfinished``: the tasks worth remembering."""
        if not cause.get("beside"):
            return True
        self._spared = {other: times for other, times in self._spared.items() if other in unfinished}
        self._spared[seq] = self._spared.get(seq, 0) + 1
        return self._spared[seq] > SPARED
