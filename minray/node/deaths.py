"""Who wants to hear of whose death, and what is known of the dead. Pure.

A death is announced once to each watcher. Whoever asks for somebody who is dead already is answered at once,
from the certificate while it is remembered; somebody this node never knew counts as dead. Processes of other
nodes may be watched too: the GCS is asked, and passes on what their own node says.

Called by node.service and node.orders. Invariants: only the living, and processes elsewhere, have watchers;
nobody watches after their own death.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from minray.node.worker_pool import Effect
from minray.wire.messages import Died

REMEMBERED = 1000
UNKNOWN = "it is not alive, and this node does not know how it ended"


class DeathBook:
    """The living processes of a node, their watchers, and the certificates of the dead."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._alive: dict[bytes, set[bytes]] = {}  # process → watchers
        self._elsewhere: dict[bytes, set[bytes]] = {}  # process of another node → watchers
        self._home: dict[bytes, bytes] = {}  # of each of those: its node
        self._watches: dict[bytes, set[bytes]] = {}  # watcher → processes, here and elsewhere
        self._certificates: OrderedDict[bytes, Died] = OrderedDict()
        self._remembered = remembered

    def born(self, worker_id: bytes) -> None:
        """A process has registered."""
        self._alive.setdefault(worker_id, set())

    def watch(self, watcher: bytes, worker_id: bytes) -> list[Effect]:
        """``watcher`` wants to know when ``worker_id`` ends."""
        watchers = self._alive.get(worker_id)
        if watchers is not None:
            watchers.add(watcher)
            self._watches.setdefault(watcher, set()).add(worker_id)
            return []
        return [("send", watcher, self._certificate(worker_id))]

    def ask(self, worker_id: bytes) -> Died | None:
        """How a process of this node has ended; None while it lives."""
        return None if worker_id in self._alive else self._certificate(worker_id)

    def _certificate(self, worker_id: bytes) -> Died:
        died = self._certificates.get(worker_id)
        return died or Died(worker_id, -1, -1, -1, {"text": UNKNOWN, "unknown": True})

    def watch_elsewhere(self, watcher: bytes, worker_id: bytes, node_id: bytes) -> bool:
        """``watcher`` wants to know of a process of that other node. Whether the GCS is to be asked."""
        self._home[worker_id] = node_id
        watchers = self._elsewhere.setdefault(worker_id, set())
        first = not watchers
        watchers.add(watcher)
        self._watches.setdefault(watcher, set()).add(worker_id)
        return first

    def told(self, message: Died) -> list[Effect]:
        """The GCS says that a process of another node has ended."""
        watchers = self._elsewhere.pop(message.worker_id, set())
        self._home.pop(message.worker_id, None)
        for watcher in watchers:
            self._forget(watcher, message.worker_id)
        return [("send", watcher, message) for watcher in sorted(watchers)]

    def died(
        self, worker_id: bytes, cause: dict[str, Any], running: tuple[int, int] = (-1, -1), told: bytes = b""
    ) -> list[Effect]:
        """It is dead. ``told``: who has been told already (the owner of its lease)."""
        certificate = Died(worker_id, -1, running[0], running[1], cause)
        self._certificates[worker_id] = certificate
        if len(self._certificates) > self._remembered:
            self._certificates.popitem(last=False)
        watchers = self._alive.pop(worker_id, set())
        for watcher in watchers:
            self._forget(watcher, worker_id)
        for target in self._watches.pop(worker_id, set()):
            if target in self._alive:
                self._alive[target].discard(worker_id)
                continue
            self._elsewhere[target].discard(worker_id)
            if not self._elsewhere[target]:
                del self._elsewhere[target], self._home[target]
        return [("send", watcher, certificate) for watcher in sorted(watchers - {told, worker_id})]

    def _forget(self, watcher: bytes, worker_id: bytes) -> None:
        watched = self._watches.get(watcher)
        if watched is not None:
            watched.discard(worker_id)
            if not watched:
                del self._watches[watcher]

    def living(self) -> list[bytes]:
        """The processes of this node."""
        return list(self._alive)

    def asked_elsewhere(self) -> list[tuple[bytes, bytes]]:
        """(process, its node) of those elsewhere whose end somebody here waits for."""
        return list(self._home.items())

    def certificate(self, worker_id: bytes) -> Died | None:
        """What is known of a dead process."""
        return self._certificates.get(worker_id)

    def check_invariants(self) -> None:
        """Both directions agree."""
        assert not self._alive.keys() & self._elsewhere.keys()
        assert all(self._elsewhere.values())
        assert self._elsewhere.keys() == self._home.keys()
        for target, watchers in (*self._alive.items(), *self._elsewhere.items()):
            for watcher in watchers:
                assert target in self._watches.get(watcher, ()), (watcher, target)
        for watcher, targets in self._watches.items():
            assert targets, watcher
            for target in targets:
                found = self._alive.get(target) or self._elsewhere.get(target) or ()
                assert watcher in found, (watcher, target)
        assert len(self._certificates) <= self._remembered
