"""What breaks things: one thread that ends or freezes processes of a cluster, by a seed, until it is told to stop.

The control processes of the driver's node are spared, because its session would be over with them. What else there
is may be hit at any moment: workers everywhere; the daemon or the zygote of another node, which then counts as dead and
is replaced; a daemon that stands still, for a moment (it is to be forgiven) or for so long that it counts as dead; the
head, if the driver is on another node: it is started again, at once or after a while.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from typing import Any

import psutil

from minray.cluster_utils import Cluster, ClusterNode


class Mischief:
    """A context manager: it begins with ``with`` and has ended behind it. ``done`` counts the deeds."""

    def __init__(
        self, cluster: Cluster, seed: int, *, spared: ClusterNode, node: dict[str, Any], timeout_s: float
    ) -> None:
        self.done: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._cluster = cluster
        self._spared = spared
        self._chance = random.Random(seed)
        self._node = node
        self._timeout_s = timeout_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mischief")

    def __enter__(self) -> Mischief:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        deeds = {self.kill_worker: 60, self.kill_node: 12, self.kill_zygote: 6}
        deeds |= {self.freeze: 15, self.freeze_for_long: 4}
        if not self._spared.is_head:
            deeds[self.kill_head] = 8
        try:
            while not self._stop.wait(self._chance.uniform(0.2, 1.5)):
                (deed,) = self._chance.choices(list(deeds), weights=list(deeds.values()))
                deed()
        except BaseException as error:
            self.error = error

    def _victim(self) -> ClusterNode:
        others = self._cluster.worker_nodes - {self._spared}
        return self._chance.choice(sorted(others, key=lambda node: node.node_id))

    def kill_worker(self) -> None:
        """Any worker of any node."""
        workers: list[int] = []
        for node in self._cluster.list_all_nodes():
            try:
                workers += [child.pid for child in psutil.Process(node.zygote_pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        if workers:
            _signal(self._chance.choice(sorted(workers)), signal.SIGKILL)
            self.done["workers killed"] += 1

    def kill_node(self) -> None:
        """As if its machine had lost its power."""
        self._end(self._victim(), "daemon_pid")
        self.done["nodes killed"] += 1

    def kill_zygote(self) -> None:
        """Its node cannot go on without it."""
        self._end(self._victim(), "zygote_pid")
        self.done["zygotes killed"] += 1

    def _end(self, node: ClusterNode, which: str) -> None:
        _signal(getattr(node, which), signal.SIGKILL)
        self._replace(node)

    def _replace(self, node: ClusterNode) -> None:
        self._cluster.remove_node(node, allow_graceful=False)
        self._cluster.add_node(**self._node)

    def kill_head(self) -> None:
        """Its machine's node goes with it; what runs elsewhere goes on without a head for up to two seconds."""
        self._cluster.kill_head()
        self._stop.wait(self._chance.choice((0.0, self._chance.uniform(0.0, 2.0))))
        self._cluster.restart_head()
        self.done["heads killed"] += 1

    def freeze(self) -> None:
        """Shorter than anybody may be taken for dead."""
        node = self._victim()
        _signal(node.daemon_pid, signal.SIGSTOP)
        time.sleep(self._chance.uniform(0.05, self._timeout_s / 4))
        _signal(node.daemon_pid, signal.SIGCONT)
        self.done["nodes frozen for a moment"] += 1

    def freeze_for_long(self) -> None:
        """It counts as dead, and ends when it goes on."""
        node = self._victim()
        _signal(node.daemon_pid, signal.SIGSTOP)
        self._stop.wait(self._timeout_s * 2)
        _signal(node.daemon_pid, signal.SIGCONT)
        self._replace(node)
        self.done["nodes frozen for long"] += 1


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has ended by itself
