"""The handshake that precedes everything else on a connection. Pure: bytes in, bytes out.

::

    client                                             server
      magic, protocol, python, nonce_c          ──►
                                                ◄──    magic, protocol, python, nonce_s, proof_s
      proof_c, then frames at once              ──►

``proof = HMAC-SHA256(token, role label + client's header + server's header)``. The labels differ, so that a
proof cannot be reflected; both headers are covered, so that no version can be talked down; both nonces are,
so that nothing can be replayed. The server proves itself first: a client sends nothing to a stranger.

Only fixed binary fields are read before the proof, never more than they need, compared in constant time.
Versions are compared before proofs; a server that refuses a version answers with its header and no proof
(``refusal``), so that both sides can name both. Of a wrong token the client learns first, and hangs up.
After an error the machine is dead; the caller closes the connection.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sys
from collections.abc import Callable
from struct import Struct

from minray.wire.errors import HandshakeError

MAGIC = b"\x93minray\n"
PROTOCOL_VERSION = 1
NONCE_SIZE = 32
PROOF_SIZE = 32
DEADLINE_S = 10.0  # kept by the reactor

_HEADER = Struct(f"<8sHBB{NONCE_SIZE}s")
_NO_PROOF = bytes(PROOF_SIZE)
_CLIENT, _SERVER = b"minray handshake: client", b"minray handshake: server"


def _this_python() -> tuple[int, int]:
    return sys.version_info[:2]


class _Handshake:
    """What both roles share: versions, proofs, the bounded buffer."""

    _need: int  # bytes that this step waits for

    def __init__(
        self,
        token: bytes,
        *,
        protocol: int = PROTOCOL_VERSION,
        python: tuple[int, int] | None = None,
        nonce: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._token = token
        self._protocol = protocol
        self._python = python if python is not None else _this_python()
        self._mine = _HEADER.pack(MAGIC, protocol, *self._python, nonce(NONCE_SIZE))
        self._buffer = b""
        self._dead: str | None = None
        self.done = False
        self.leftover = b""  # what the peer sent behind its last handshake byte

    def feed(self, data: bytes) -> bytes:
        """Take what the peer sent; returns what to send. Sets ``done``. Raises HandshakeError."""
        if self._dead is not None:
            raise HandshakeError(self._dead)
        if self.done:
            raise AssertionError("the handshake is over: what follows are frames")
        self._buffer += data
        self._check_magic()
        if len(self._buffer) < self._need:
            return b""
        step, rest = self._buffer[: self._need], self._buffer[self._need :]
        self._buffer = b""
        return self._step(step, rest)

    def refusal(self) -> bytes:
        """What to send after an error, before closing."""
        return b""

    def _step(self, step: bytes, rest: bytes) -> bytes:
        raise NotImplementedError

    def _check_magic(self) -> None:
        raise NotImplementedError

    def _match_magic(self) -> None:
        start = self._buffer[: len(MAGIC)]
        if not MAGIC.startswith(start):
            raise self._fail(f"the peer does not speak minray's protocol: it began with {start!r}")

    def _check_versions(self, header: bytes) -> None:
        _, protocol, major, minor, _ = _HEADER.unpack(header)
        if protocol != self._protocol:
            raise self._fail(
                f"protocol versions differ: this side speaks {self._protocol}, the peer {protocol}; "
                "install the same minray on both"
            )
        if (major, minor) != self._python:
            raise self._fail(
                f"Python versions differ: this side runs {self._python[0]}.{self._python[1]}, the peer "
                f"{major}.{minor}; use the same Python on both"
            )

    def _proof(self, role: bytes, client: bytes, server: bytes) -> bytes:
        return hmac.new(self._token, role + client + server, hashlib.sha256).digest()

    def _check_proof(self, given: bytes, wanted: bytes) -> None:
        if not hmac.compare_digest(given, wanted):
            raise self._fail("wrong token: the two sides do not belong to the same cluster")

    def _fail(self, text: str) -> HandshakeError:
        self._dead = text
        return HandshakeError(text)


class ClientHandshake(_Handshake):
    """The side that dialled."""

    _need = _HEADER.size + PROOF_SIZE

    def start(self) -> bytes:
        """What the client sends first."""
        return self._mine

    def _check_magic(self) -> None:
        self._match_magic()

    def _step(self, step: bytes, rest: bytes) -> bytes:
        theirs, proof = step[: _HEADER.size], step[_HEADER.size :]
        self._check_versions(theirs)
        self._check_proof(proof, self._proof(_SERVER, self._mine, theirs))
        self.done = True
        self.leftover = rest
        return self._proof(_CLIENT, self._mine, theirs)


class ServerHandshake(_Handshake):
    """The side that accepted."""

    _need = _HEADER.size
    _theirs = b""

    def start(self) -> bytes:
        """The server says nothing before it was spoken to."""
        return b""

    def _check_magic(self) -> None:
        if not self._theirs:
            self._match_magic()

    def _step(self, step: bytes, rest: bytes) -> bytes:
        if self._theirs:
            self._check_proof(step, self._proof(_CLIENT, self._theirs, self._mine))
            self.done = True
            self.leftover = rest
            return b""
        if rest:
            raise self._fail("the peer sent more than its header before it was answered")
        self._theirs = step
        self._check_versions(step)
        self._need = PROOF_SIZE
        return self._mine + self._proof(_SERVER, step, self._mine)

    def refusal(self) -> bytes:
        return self._mine + _NO_PROOF if self._theirs and self._need == _HEADER.size else b""
