"""The ways to the head: what production's ``GcsLink`` and ``GcsLine`` dial in the simulated world.

    Node ───── GcsLink ── Way ──┐
    Process ── GcsLine ── Way ──┴──▶ network ──▶ Gcs, in one life of it

A connection belongs to the life of the head in which it was dialled: what is sent over it later is lost, however soon
the next head is there. Where there is none, the end of the connection is on its way at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from minray.testing.simulator.clock import Reactor
from minray.testing.simulator.network import EOF, GCS_ID
from minray.wire.messages import unpack

if TYPE_CHECKING:
    from minray.testing.simulator.world import World


HEAD = "tcp:head:1"  # each life of the head has the same address
FOREVER_S = 1e6  # a head that is killed is started again, some time


class Way:
    """Our end of one connection to the head. ``here``: who has dialled."""

    def __init__(self, sim: World, here: bytes) -> None:
        self._sim = sim
        self._here = here
        self._life = sim.gcs.life
        self.closed = False
        if sim.gcs.alive:
            sim.gcs.callers[here] = None
        else:
            sim.network.send(GCS_ID, here, EOF)

    def send(self, raw: tuple[Any, ...]) -> None:
        """One message, packed."""
        gcs = self._sim.gcs
        if not self.closed and gcs.alive and gcs.life == self._life:
            self._sim.network.send(self._here, GCS_ID, unpack(raw))

    def send_many(self, raws: Iterable[tuple[Any, ...]]) -> None:
        """Some of them, in order."""
        for raw in raws:
            self.send(raw)

    def limit_silence(self, seconds: float) -> None:
        """No head is silent for good: it is there, or it is dead."""

    def close(self) -> None:
        """Nothing more is said."""
        self.closed = True


class DiallingReactor(Reactor):
    """The reactor of a node that goes to the head by itself."""

    def __init__(self, sim: World, who: bytes) -> None:
        super().__init__(sim.clock, who)
        self._sim = sim

    def dial(self, endpoint: str, hello: Any, handler: Any) -> Way:
        """The network brings what the head says to the node, and that to its link."""
        return Way(self._sim, self._who)
