"""Plays many nodes of a cluster toward a real head, to see what they cost it.

    python -m minray.testing.crowd SESSION_FOLDER NODES CHANGES_PER_S
        prints "joined" when the head knows them all; ends with its standard input

Each of them is the link of a real node (``GcsLink``), with a Hello and a connection of its own: it joins, reports
as often as the head has asked for, and hears the view. CHANGES_PER_S of them, in all, report a second time because a
CPU was taken or given back; the head tells that to all others. They have no CPU to give: their totals are a
resource of their own name, so that no task is ever sent to them.

Called by ``minray microbenchmark`` (row ``heartbeats``) as a process. Invariant: a node that the head has turned away
ends the process with an error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from minray._base.config import Config
from minray._base.process import own_identity
from minray.node.gcs_link import GcsLink
from minray.wire.messages import ClusterView, Hello, Message, NodeReport
from minray.wire.reactor import Reactor
from minray.worker.session_folder import SessionInfo

UNITS = 40_000
UNREACHABLE = "tcp:127.0.0.1:9"  # nobody dials a node without a reason


class Crowd:
    """``count`` nodes on ``reactor``; ``lost(reason)`` is called if the head turns one of them away."""

    def __init__(
        self, reactor: Reactor, gcs: str, count: int, lost: Callable[[str], None], *, silence_s: float = 60.0
    ) -> None:
        self.joined = 0
        self.views = 0  # how many times one of them has heard news
        self._reactor = reactor
        self._available = [UNITS] * count
        self._turn = 0
        self._links: list[GcsLink] = []
        for number in range(count):
            node_id = os.urandom(28)
            hello = Hello("node", node_id, node_id, b"", *own_identity(), UNREACHABLE)
            link = GcsLink(
                reactor,
                gcs,
                hello,
                patience_s=5.0,
                silence_s=silence_s,
                deliver=self._hear,
                joined=self._on_joined(number),
                lost=lost,
            )
            self._links.append(link)
            link.join({"node_id": node_id, "endpoint": UNREACHABLE, "resources": {f"crowd{number}": UNITS}})

    def _hear(self, message: Message) -> None:
        if isinstance(message, ClusterView):
            self.views += 1

    def _on_joined(self, number: int) -> Callable[[dict[str, Any]], None]:
        def joined(terms: dict[str, Any]) -> None:
            self.joined += 1
            self._beat(number, terms["heartbeat_s"])

        return joined

    def _beat(self, number: int, heartbeat_s: float) -> None:
        self._report(number)
        self._reactor.call_later(heartbeat_s, lambda: self._beat(number, heartbeat_s))

    def _report(self, number: int) -> None:
        name = f"crowd{number}"
        self._links[number].send(NodeReport({name: self._available[number]}, {name: UNITS}, 0, []))

    def change(self, per_second: float) -> None:
        """From now on so many of them, one after the other, have something new to say each second."""
        self._turn = (self._turn + 1) % len(self._links)
        self._available[self._turn] ^= 10_000
        self._report(self._turn)
        self._reactor.call_later(1.0 / per_second, lambda: self.change(per_second))

    def leave(self) -> None:
        """All of them leave the cluster."""
        for link in self._links:
            link.leave("the crowd goes home")


def main(arguments: list[str]) -> None:
    """See the file's head."""
    folder, count, changes = arguments[0], int(arguments[1]), float(arguments[2])
    info = SessionInfo.read(folder)
    if info is None or not info.gcs:
        raise SystemExit(f"there is no head of a cluster in {folder}")
    config = Config.from_env()
    reactor = Reactor.configured(config, token=info.token(), background=False, name="crowd")
    failures: list[str] = []

    def lost(reason: str) -> None:
        failures.append(reason)
        reactor.stop()

    crowd = Crowd(reactor, info.gcs, count, lost)
    told = False

    def look() -> None:
        nonlocal told
        if crowd.joined == count and not told:
            told = True
            print("joined", flush=True)
            if changes:
                crowd.change(changes)
        elif not told:
            reactor.call_later(0.05, look)

    reactor.add_reader(0, lambda mask: reactor.stop())
    look()
    reactor.run_forever()
    crowd.leave()
    reactor.close()
    if failures:
        raise SystemExit(f"the head has turned a node away: {failures[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
