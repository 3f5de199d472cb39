"""Questions to a daemon from a process that is no driver: ``Cluster``, and the commands of the command line.

A ``Tool`` is one connection with the role "tool". It has no thread: whoever asks waits, and reads the socket
meanwhile. Invariant: ``ask`` returns or raises within its timeout.
"""

from __future__ import annotations

import os
from typing import Any

from minray._base.config import Config
from minray._base.process import own_identity
from minray.exceptions import RaySystemError
from minray.wire.errors import ConnectionLost, WireError
from minray.wire.messages import Hello, Reply, Request, pack, unpack
from minray.wire.reactor import Connection, Reactor, Waiter

ASK_S = 5.0


class Tool:
    """One connection to a head or a node. A context manager.

    Raises:
        minray.wire.errors.EndpointError: what was given is no endpoint. Everything else that goes wrong is told
            by ``ask``.
        minray.wire.tls.TlsFileError: the configuration's files for TLS cannot be used.
    """

    def __init__(self, config: Config, endpoint: str, token: bytes) -> None:
        self._endpoint = endpoint
        self._reactor = Reactor.configured(config, token=token, background=False, name="tool")
        self._answers: dict[int, Reply] = {}
        self._number = 0
        self._waiter = Waiter()
        self._error: WireError | None = None  # why there is no connection any more
        pid, started = own_identity()
        hello = Hello("tool", os.urandom(28), b"", b"", pid, started, "")
        try:
            self._conn = self._reactor.dial(endpoint, hello, self)
        except BaseException:
            self._reactor.close()
            raise

    def ask(self, method: str, *args: Any, timeout: float = ASK_S) -> Any:
        """The answer to a request (see ``gcs.service`` and ``node.dispatch``).

        Raises:
            ConnectionError: nobody is there, or not with this token, or it hung up; the text says which, and the
                cause is the WireError.
            TimeoutError: no answer within ``timeout`` seconds.
            RaySystemError: the answer is an error.
        """
        self._number += 1
        self._waiter = Waiter()
        if self._error is None:
            self._conn.send(pack(Request(self._number, method, args)))
            self._reactor.wait(self._waiter, timeout)
        reply = self._answers.pop(self._number, None)
        if reply is None and self._error is not None:
            raise ConnectionError(str(self._error)) from self._error
        if reply is None:
            raise TimeoutError(f"no answer to {method} from {self._endpoint} within {timeout:g} s")
        if not reply.ok:
            raise RaySystemError(f"{method}: {reply.value[1]}")
        return reply.value

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        """Reactor."""
        for raw in messages:
            message = unpack(raw)
            if isinstance(message, Reply) and message.request_id == self._number:
                self._answers[message.request_id] = message
                self._reactor.notify(self._waiter)

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """Reactor."""
        self._error = error or ConnectionLost("the connection is closed")
        self._reactor.notify(self._waiter)

    def close(self) -> None:
        """Hang up."""
        self._reactor.close()

    def __enter__(self) -> Tool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
