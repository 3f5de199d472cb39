"""The handshake that precedes everything else on a connection. Pure: bytes in, bytes out.

::

    client                                             server
      magic, protocol, python, nonce_c          ──►
                                                ◄──    magic, protocol, python, nonce_s, proof_s
      proof_c, then frames at once              ──►

``proof = HMAC-SHA256(token, role label + client's header + server's header)``. The labels differ, so that a
proof cannot be reflected; both headers are covered, so that no version can be talked down; both nonces are,
so that nothing can be replayed. The server proves itself first: a client sends nothing to a stranger.

Only fixed binary fields are read before the proof, compared in constant time, and neither side may speak
ahead of its turn: what is kept never exceeds one step and one read (``EARLY_READ``). Versions are compared
before proofs; a server that refuses a version answers with its header and no proof (``refusal``), so that both
sides can name both. Of a wrong token the client learns first; it answers with no proof, so that the server
names it, too. Who speaks TLS to a side that does not, or the other way round, is told so on both sides.
After an error the machine is dead; the caller sends the ``refusal`` and closes the connection.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sys
from collections.abc import Callable
from struct import Struct

from minray.wire.errors import HandshakeError, Misfit, WrongToken

MAGIC = b"\x93minray\n"
PROTOCOL_VERSION = 1
NONCE_SIZE = 32
PROOF_SIZE = 32
EARLY_READ = 4096  # no more than that is read at once of a peer that has not proved itself
TLS_ONLY = 0xFFFF  # as the protocol of a refusal: this side takes nothing but TLS
TLS_FIRST = 0x16  # what begins a TLS connection

_HEADER = Struct(f"<8sHBB{NONCE_SIZE}s")
_NO_PROOF = bytes(PROOF_SIZE)
_CLIENT, _SERVER = b"minray handshake: client", b"minray handshake: server"
_TLS_FIX = "set MINRAY_TLS_CERT, MINRAY_TLS_KEY and MINRAY_TLS_CA on both sides, or on neither"
WE_LACK_TLS = f"the other side speaks TLS and this side does not: {_TLS_FIX}"
THEY_LACK_TLS = f"this side takes only TLS and the other side does not speak it: {_TLS_FIX}"


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
        self._check_start()
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

    def _check_start(self) -> None:
        """Refuse garbage at its first wrong byte."""
        start = self._buffer[: len(MAGIC)]
        if not MAGIC.startswith(start):
            if start[0] == TLS_FIRST:
                raise self._fail(WE_LACK_TLS, Misfit)
            raise self._fail(f"the peer does not speak minray's protocol: it began with {start!r}")

    def _check_versions(self, header: bytes) -> None:
        _, protocol, major, minor, _ = _HEADER.unpack(header)
        if protocol == TLS_ONLY and isinstance(self, ClientHandshake):
            raise self._fail(WE_LACK_TLS, Misfit)
        if protocol != self._protocol:
            raise self._fail(
                f"protocol versions differ: this side speaks {self._protocol}, the peer {protocol}; "
                "install the same minray on both",
                Misfit,
            )
        if (major, minor) != self._python:
            raise self._fail(
                f"Python versions differ: this side runs {self._python[0]}.{self._python[1]}, the peer "
                f"{major}.{minor}; use the same Python on both",
                Misfit,
            )

    def _proof(self, role: bytes, client: bytes, server: bytes) -> bytes:
        return hmac.new(self._token, role + client + server, hashlib.sha256).digest()

    def _check_proof(self, given: bytes, wanted: bytes) -> None:
        if not hmac.compare_digest(given, wanted):
            raise self._fail(
                "wrong token: the other side does not know this cluster's token. Give both sides the same one, in "
                "a file of mode 0600 that MINRAY_TOKEN_FILE names, or in MINRAY_TOKEN",
                WrongToken,
            )

    def _fail(self, text: str, kind: type[HandshakeError] = HandshakeError) -> HandshakeError:
        self._dead, self._buffer = text, b""
        return kind(text)


class ClientHandshake(_Handshake):
    """The side that dialled."""

    _need = _HEADER.size + PROOF_SIZE
    _wrong_token = False

    def start(self) -> bytes:
        """What the client sends first."""
        return self._mine

    def refusal(self) -> bytes:
        return _NO_PROOF if self._wrong_token else b""

    def _check_start(self) -> None:
        super()._check_start()
        if self._buffer[: len(self._mine)] == self._mine:  # TCP can connect a socket to itself, too
            raise self._fail("the peer only repeats what this side says: nobody of minray's listens there")

    def _step(self, step: bytes, rest: bytes) -> bytes:
        theirs, proof = step[: _HEADER.size], step[_HEADER.size :]
        self._check_versions(theirs)
        try:
            self._check_proof(proof, self._proof(_SERVER, self._mine, theirs))
        except WrongToken:
            self._wrong_token = True
            raise
        if rest:
            raise self._fail("the peer sent more than its proof before it was answered")
        self.done = True
        return self._proof(_CLIENT, self._mine, theirs)


class ServerHandshake(_Handshake):
    """The side that accepted."""

    _need = _HEADER.size
    _theirs = b""

    def start(self) -> bytes:
        """The server says nothing before it was spoken to."""
        return b""

    def _check_start(self) -> None:
        if not self._theirs:
            super()._check_start()

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
        refuses = self._need == _HEADER.size and (self._theirs or self._dead == WE_LACK_TLS)
        return self._mine + _NO_PROOF if refuses else b""


def refusal_without_tls() -> bytes:
    """What a side that takes only TLS answers to a client that does not speak it."""
    return _HEADER.pack(MAGIC, TLS_ONLY, *_this_python(), bytes(NONCE_SIZE)) + _NO_PROOF
