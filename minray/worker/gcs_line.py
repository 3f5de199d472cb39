"""A process's line to the GCS: requests that are answered once, though the head may be killed and started again.

    UP ──the connection ends──▶ DOWN ──dialled again, every REDIAL_S──▶ UP: what is open is asked again, in order,
                                 └──patience over──▶ DOWN and said so: who waits hears it (and dialling goes on)

On the head's own machine the GCS is in the process of our node: its connection is the line, and ends with it. From
another machine, or another node, there is a connection of its own. What was asked there and has no answer is asked
again, with its number, of the head that answers next. Most requests may be done twice (they name what they make);
those in ``NOT_TWICE`` travel inside ``once``, with our id, so that a head that had done one before it was killed
recalls its answer. Whoever is subscribed to actors subscribes again: the state that comes back is the news that was
missed.

Part of ``link``, under its lock. Invariants: a request is open from ``ask`` or ``tell`` to its Reply; the connection
carries all open ones, in the order of their numbers, before anything newer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Protocol

from minray._base import log
from minray.wire.errors import WireError
from minray.wire.messages import Request, pack
from minray.wire.reactor import Connection

REDIAL_S = 0.1
SLACK_S = 2.0  # longer than our node, which ends when it gives the head up
PROBE = pack(Request(0, "kv_exists", (b"", b"")))  # its Reply says that the head is there
NOT_TWICE = frozenset({"kill_actor", "kv_put", "kv_del"})


class Wire(Protocol):
    """What is needed of ``Link``."""

    worker_id: bytes

    @property
    def closed(self) -> bool: ...

    def dial_gcs(self, endpoint: str) -> Connection: ...

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> None: ...

    def subscriptions(self) -> Iterable[bytes]: ...

    def give_up_on(self, numbers: list[int], text: str) -> None: ...


class GcsLine:
    """See the file's head.

    Args:
        own: the connection to our node; the line itself, if ``endpoint`` is None.
        patience_s: how long a head that is gone is waited for.
        now: the clock by which that is measured.
    """

    def __init__(
        self,
        wire: Wire,
        own: Connection,
        endpoint: str | None,
        patience_s: float,
        now: Callable[[], float] = lambda: monotonic(),
    ) -> None:
        self._wire = wire
        self._now = now
        self._endpoint = endpoint
        self._patience_s = patience_s
        self._open: dict[int, tuple[Any, ...]] = {}
        self._down_since: float | None = None
        self._said = False
        self.conn = own if endpoint is None else wire.dial_gcs(endpoint)

    @property
    def away(self) -> bool:
        """Whether there is no head just now."""
        return self._down_since is not None

    def problem(self) -> str | None:
        """Why nothing can be asked, if the head has been away for longer than our patience."""
        if self._down_since is None or not self._said:
            return None
        return (
            f"the head of the cluster at {self._endpoint} has not answered for {self._now() - self._down_since:.0f} s: "
            "start it again by `minray start --head --resume`, or end this program"
        )

    def ask(self, number: int, method: str, args: tuple[Any, ...]) -> None:
        """A request that will have one Reply under its number."""
        if self._endpoint is None:
            self.conn.send(pack(Request(number, method, args)))
            return
        floor = next(iter(self._open), number)
        if method in NOT_TWICE:
            args = (self._wire.worker_id, floor, method, args)
            method = "once"
        raw = self._open[number] = pack(Request(number, method, args))
        if not self.conn.closed:
            self.conn.send(raw)

    def answered(self, number: int) -> None:
        """Its Reply is here, or nobody wants it any more."""
        self._open.pop(number, None)

    def on_close(self, error: WireError | None) -> None:
        """The connection has ended, or could not be made."""
        if self._wire.closed or self._endpoint is None:
            return
        now = self._now()
        if self._down_since is None:
            self._down_since = now
        if not self._said and now - self._down_since > self._patience_s + SLACK_S:
            self._said = True
            log.warning("minray: %s (%s)", self.problem(), error)
            self._wire.give_up_on(list(self._open), str(self.problem()))
        self._wire.call_later(REDIAL_S, self._dial)

    def _dial(self) -> None:
        if self._wire.closed or not self.conn.closed:
            return
        assert self._endpoint is not None
        self.conn = self._wire.dial_gcs(self._endpoint)
        self.conn.send_many([*self._open.values(), *map(_subscribe, self._wire.subscriptions()), PROBE])

    def on_reply(self) -> None:
        """Something has been answered: the head is there."""
        self._down_since = None
        self._said = False


def _subscribe(actor_id: bytes) -> tuple[Any, ...]:
    return pack(Request(0, "subscribe_actor", (actor_id,)))
