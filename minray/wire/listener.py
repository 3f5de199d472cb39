"""Listening sockets: accept, and give every newcomer a connection that must prove itself.

::

    accept ─► a stranger ─► has proved that it knows the token ─► has said Hello
                   │                      │
                   └──────────┬───────────┘
             deadline, garbage, wrong token: refused, and told in the log

Runs on the leader's thread. Strangers cost us little and not for long: at most ``MAX_STRANGERS`` at once (then
the oldest one goes: of a flood, that is a flooder), each until the handshake's deadline, and at most
``ACCEPT_BATCH`` new ones in a round, so that the others are served meanwhile. Descriptors may run out; then the
oldest stranger goes, too, and the listener pauses, instead of finding the same peer readable in every round.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from minray._base.log import LogBudget
from minray.wire import secret, transports
from minray.wire.auth import ServerHandshake
from minray.wire.core import Core, log_exception, log_warning
from minray.wire.errors import ConnectionLost, HandshakeError, WireError
from minray.wire.poller import IN

if TYPE_CHECKING:
    from minray.wire.connection import Connection, Handler
    from minray.wire.tls import Tls

MAX_STRANGERS = 256
ACCEPT_BATCH = 16  # three rounds of these are far fewer than MAX_STRANGERS: time for a handshake in a flood
ACCEPT_PAUSE_S = 0.5
TEXT_MAX = 500  # characters of what a stranger may have a hand in
# What accept() tells of the newcomer alone; anything else is ours, and would come again at once.
_NEWCOMERS = (
    errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ETIMEDOUT,
)  # fmt: skip


class Listeners:
    """All of one reactor. ``make`` gives a connection that is in the reactor's books."""

    def __init__(
        self,
        core: Core,
        token: bytes,
        handshake_s: float,
        tls_for: Callable[[str], Tls | None],
        make: Callable[[], Connection],
    ) -> None:
        self._core = core
        self._token = token
        self._handshake_s = handshake_s
        self._tls_for = tls_for  # an endpoint
        self._make = make
        self._all: list[Listener] = []
        self._ending: list[Listener] = []  # to be closed when the round is over

    def listen(self, request: str, on_accept: Callable[[Connection], Handler]) -> str:
        """Returns the real endpoint. Raises EndpointError, OSError, TlsFileError."""
        secret.check_exposure(request, self._token)
        for part in transports.alternatives(request):
            self._tls_for(part)  # wrong files are told before anything is open
        socks = transports.make_listeners(request)
        return " ".join(self._add(sock, on_accept) for sock in socks)

    def adopt(self, sock: socket.socket, on_accept: Callable[[Connection], Handler]) -> str:
        """The same with a socket that listens already."""
        secret.check_exposure(transports.endpoint_of(sock), self._token)
        sock.setblocking(False)
        return self._add(sock, on_accept)

    def _add(self, sock: transports.ListeningSocket, on_accept: Callable[[Connection], Handler]) -> str:
        def newcomer(accepted: socket.socket, who: str) -> None:
            conn = self._make()
            listener.enter(conn)
            handshake = ServerHandshake(self._token)
            conn.open_accepted(accepted, handshake, on_accept, self._handshake_s, tls, listener, who)

        tls = self._tls_for(transports.endpoint_of(sock))
        listener = Listener(self._core, sock, newcomer)
        self._all.append(listener)
        return listener.endpoint

    def unlisten(self, endpoint: str) -> None:
        """Accept no more there."""
        parts = transports.alternatives(endpoint)
        for listener in [one for one in self._all if one.endpoint in parts]:
            self._all.remove(listener)
            listener.stop()
            self._ending.append(listener)
            self._core.post(self._end_stopped)

    def _end_stopped(self) -> None:
        while self._ending:
            self._ending.pop().end()

    def end(self) -> None:
        """With the reactor."""
        self._ending += self._all
        self._all.clear()
        self._end_stopped()

    def abandon(self) -> None:
        """In a forked child."""
        for listener in self._all + self._ending:
            listener.abandon()
        self._all.clear()
        self._ending.clear()


class Listener:
    """One endpoint. ``newcomer(socket, address)`` makes a connection of each accepted socket."""

    def __init__(
        self,
        core: Core,
        sock: transports.ListeningSocket,
        newcomer: Callable[[socket.socket, str], None],
    ) -> None:
        self.endpoint = transports.endpoint_of(sock)
        self.strangers: dict[Connection, None] = {}  # oldest first
        self._core = core
        self._sock = sock
        self._fd = sock.fileno()
        self._newcomer = newcomer
        self._open = True
        self._scarce = False  # it has been told
        self._budget = LogBudget()
        core.register(self._fd, IN, self._on_ready)

    def _on_ready(self, mask: int) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _NEWCOMERS:
                    continue
                self._pause(error)
                return
            self._scarce = False
            transports.prepare(sock)
            try:
                self._newcomer(sock, transports.address_text(address))
            except Exception:
                log_exception(f"a newcomer at {self.endpoint} was dropped")
                sock.close()

    def _pause(self, error: OSError) -> None:
        if not self._scarce:
            self._scarce = True
            log_warning(f"cannot accept connections at {self.endpoint} for now: {error}")
        for _ in range((len(self.strangers) + 1) // 2):
            self._turn_away("this process has no descriptors left")
        self._core.unregister(self._fd)
        self._core.call_later(ACCEPT_PAUSE_S, self._resume)

    def _resume(self) -> None:
        if self._open:
            try:
                self._core.register(self._fd, IN, self._on_ready)
            except OSError:
                self._core.call_later(ACCEPT_PAUSE_S, self._resume)

    # --- connections on their way in

    def enter(self, conn: Connection) -> None:
        """A stranger is here."""
        if len(self.strangers) >= MAX_STRANGERS:
            self._turn_away(f"{MAX_STRANGERS} younger ones have not proved themselves either")
        self.strangers[conn] = None

    def _turn_away(self, why: str) -> None:
        next(iter(self.strangers)).turn_away(HandshakeError(f"turned away before it had proved itself: {why}"))

    def leave(self, conn: Connection) -> None:
        """It is no stranger any more."""
        self.strangers.pop(conn, None)

    def refused(self, peer: str, error: WireError) -> None:
        """A connection ended before it was open. Whoever only hangs up is not worth a line."""
        if isinstance(error, ConnectionLost):
            return
        untold = self._budget.take(monotonic())
        if untold is not None:
            more = f" ({untold} more since the last such line)" if untold else ""
            log_warning(f"refused {peer} at {self.endpoint}: {str(error)[:TEXT_MAX]}{more}")

    # --- the end

    def stop(self) -> None:
        """Accept no more. ``end`` follows, after the round."""
        if self._open:
            self._open = False
            self._core.unregister(self._fd)

    def end(self) -> None:
        """Close the descriptor."""
        self._open = False
        self._sock.close()

    def abandon(self) -> None:
        """In a forked child: let go of the descriptor without touching what the parent shares."""
        self._open = False
        with contextlib.suppress(OSError):
            os.close(self._sock.detach())
