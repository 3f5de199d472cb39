"""A listening socket: accepts, and gives every newcomer a connection that must prove itself.

Runs on the leader's thread. Descriptors may run out; then the listener pauses instead of finding the same
peer readable in every round.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable

from minray.wire import transports
from minray.wire.core import Core, log_warning
from minray.wire.poller import IN

ACCEPT_BATCH = 64
ACCEPT_PAUSE_S = 0.5
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """One endpoint. ``on_socket`` gets each accepted socket, non-blocking."""

    def __init__(
        self, core: Core, sock: transports.ListeningSocket, on_socket: Callable[[socket.socket], None]
    ) -> None:
        self.endpoint = transports.endpoint_of(sock)
        self._core = core
        self._sock = sock
        self._fd = sock.fileno()
        self._on_socket = on_socket
        self._open = True
        core.register(self._fd, IN, self._on_ready)

    def _on_ready(self, mask: int) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock = self._sock.accept()[0]
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _SCARCE:
                    log_warning(f"cannot accept connections at {self.endpoint} for now: {error}")
                    self._core.unregister(self._fd)
                    self._core.call_later(ACCEPT_PAUSE_S, self._resume)
                    return
                continue  # that peer has hung up already
            transports.prepare(sock)
            self._on_socket(sock)

    def _resume(self) -> None:
        if self._open:
            self._core.register(self._fd, IN, self._on_ready)

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
