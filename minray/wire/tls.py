"""TLS on TCP connections: both sides show a certificate of the cluster's own authority. Optional.

::

    Connection, Writer ── plain bytes ──► TlsSocket ── TLS records ──► socket
                                          (ssl.SSLObject between two memory buffers)

``Tls`` reads the certificate, its key and the authority once per process; its ``TlsSocket`` stands where the
connection's socket would, so that a connection without TLS does nothing differently. Unix sockets stay plain:
what they carry never leaves the machine. Behind TLS comes the same handshake as without (``auth``).

Membership is a certificate signed by the authority; names in it are not compared, since the machines of a lab
have no lasting ones. So the authority must be one that signs for this cluster only. TLS 1.3, no tickets.

A ``TlsSocket`` is read by the leader and written by any thread, and OpenSSL takes no two at once: ``_lock``,
which nobody waits for. Who finds it taken is told what a full (or empty) kernel buffer would tell him, and comes
again. Invariants: ``send`` reports bytes as taken only when their records have left, and is called again with
the same ones first (``Writer`` does); nothing is left lying decrypted without ``again`` being called.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from collections.abc import Callable
from typing import NoReturn

from minray.wire.auth import MAGIC, THEY_LACK_TLS, refusal_without_tls
from minray.wire.errors import HandshakeError, Misfit, TlsLost, WireError
from minray.wire.poller import IN, OUT

CHUNK = 64 * 1024
EARLY_CHUNK = 16 * 1024  # of strangers
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
_CERTIFICATES = ("the other side's certificate is refused", "the other side refuses this side's certificate")
_SAME_AUTHORITY = "MINRAY_TLS_CA has to name, on both sides, the authority that has signed MINRAY_TLS_CERT of the other"


class TlsFileError(WireError, ValueError):
    """A certificate, key or authority that cannot be used."""


class Tls:
    """The certificate (with its chain), its key and the authority: three files in PEM. Raises TlsFileError."""

    def __init__(self, cert: str, key: str, ca: str) -> None:
        self._dialling = _context(ssl.PROTOCOL_TLS_CLIENT, cert, key, ca)
        self._accepting = _context(ssl.PROTOCOL_TLS_SERVER, cert, key, ca)

    def wrap(self, sock: socket.socket, accepted: bool, again: Callable[[], None]) -> TlsSocket:
        """``sock`` with TLS around it. ``again`` is called when there is more to read than the kernel knows."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = self._accepting if accepted else self._dialling
        return TlsSocket(sock, context.wrap_bio(incoming, outgoing, accepted), incoming, outgoing, again)


def _context(protocol: int, cert: str, key: str, ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    for name, path in (("certificate", cert), ("key", key), ("authority", ca)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise TlsFileError(f"the TLS {name} {path!r} cannot be read: {error.strerror}") from None
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise TlsFileError(f"the TLS certificate {cert!r} with key {key!r} cannot be used: {_reason(error)}") from None
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise TlsFileError(f"the TLS authority {ca!r} cannot be used: {_reason(error)}") from None
    return context


def _no_password() -> NoReturn:
    raise ValueError("the key is encrypted; give one without a password, in a file of mode 0600")


def _reason(error: Exception) -> str:
    """What OpenSSL means, without its file names and line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{_CERTIFICATES[0]}: {error.verify_message}. {_SAME_AUTHORITY}"
    reason = str(getattr(error, "reason", None) or error).replace("_", " ").lower()
    if "alert" in reason and ("certificate" in reason or "unknown ca" in reason):
        return f"{_CERTIFICATES[1]}: {reason}. {_SAME_AUTHORITY}"
    return reason


class TlsSocket:
    """Has what a connection uses of a socket. ``shake_hands`` comes first."""

    def __init__(
        self,
        sock: socket.socket,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        again: Callable[[], None],
    ) -> None:
        self.family = sock.family
        self.fileno = sock.fileno
        self.getsockopt = sock.getsockopt
        self.setsockopt = sock.setsockopt
        self.close = sock.close
        self.detach = sock.detach
        self.reads_alone = False  # nobody is to be told that there is more: whoever reads comes again by himself
        self._sock = sock
        self._tls = tls
        self._incoming = incoming  # records from the kernel, for OpenSSL
        self._outgoing = outgoing  # records of OpenSSL
        self._unsent: bytes | memoryview = b""  # of them, what the kernel does not take
        self._again = again
        self._lock = threading.Lock()
        self._owed = 0  # bytes that are encrypted, but were not reported as taken
        self._looked = False  # at the first byte of the peer

    # --- opening, on the leader's thread

    def shake_hands(self) -> int:
        """Go on with TLS's own handshake. Returns what to wait for: IN, OUT, or 0 when it is over. Raises
        HandshakeError (Misfit: over certificates, or without TLS), or OSError for a lost connection."""
        while True:
            try:
                self._tls.do_handshake()
                over = True
            except ssl.SSLWantReadError:
                over = False
            except ssl.SSLError as error:
                self._leave()  # the alert that tells the other side
                reason = _reason(error)
                kind = Misfit if reason.startswith(_CERTIFICATES) else HandshakeError
                raise kind(f"TLS failed: {reason}") from None
            if not self._leave():
                return OUT
            if over:
                return 0
            try:
                data = self._sock.recv(EARLY_CHUNK)
            except (BlockingIOError, InterruptedError):
                return IN
            if not data:
                raise TlsLost("no TLS came")
            self._look(data)
            self._incoming.write(data)

    def _look(self, data: bytes) -> None:
        """A peer without TLS is told so in its own words."""
        if not self._looked:
            self._looked = True
            if data[0] == MAGIC[0]:
                if self._tls.server_side:
                    self._sock.send(refusal_without_tls(), _NO_SIGNAL)
                raise Misfit(THEY_LACK_TLS)

    # --- for the leader

    def recv_into(self, target: bytearray | memoryview) -> int:
        """Like a socket's; raises BlockingIOError, TlsLost."""
        if not self._lock.acquire(False):
            self._again()
            raise BlockingIOError(errno.EAGAIN, "another thread writes")
        try:
            return self._read_records(memoryview(target))
        finally:
            self._lock.release()

    def _read_records(self, target: memoryview) -> int:
        count, more = 0, True  # more: the kernel may have it
        hungry = self._is_hungry()
        while count < len(target):
            if hungry:
                size = self._fetch() if more else None
                if size is None:
                    break
                more = size == CHUNK
            try:
                got = self._tls.read(len(target) - count, target[count:])
            except ssl.SSLWantReadError:  # half a record
                hungry = True
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return count
            except ssl.SSLError as error:
                self._leave()
                raise TlsLost(f"TLS failed: {_reason(error)}") from None
            if not got:
                return count
            count += int(got)
            hungry = self._is_hungry()
        else:
            if not self.reads_alone:
                self._again()
        if not count and not self._incoming.eof:
            raise BlockingIOError(errno.EAGAIN, "no whole record yet")
        return count

    def _is_hungry(self) -> bool:
        """Whether there is nothing to decrypt. (To ask OpenSSL costs an exception where this does not.)"""
        return not (self._tls.pending() or self._incoming.pending or self._incoming.eof)

    def _fetch(self) -> int | None:
        """Records from the kernel: how many bytes, 0 for their end, None if it has none now."""
        try:
            data = self._sock.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return None
        if data:
            self._incoming.write(data)
        elif self._incoming.eof:
            return None
        else:
            self._incoming.write_eof()
        return len(data)

    # --- for any thread

    def send(self, data: bytes | memoryview, flags: int = 0) -> int:
        """Like a socket's; raises BlockingIOError. What was not reported as taken must come again."""
        if not self._lock.acquire(False):
            raise BlockingIOError(errno.EAGAIN, "another thread reads or writes")
        try:
            return self._write_records(memoryview(data))
        finally:
            self._lock.release()

    def _write_records(self, data: memoryview) -> int:
        if not self._leave():
            raise BlockingIOError(errno.EAGAIN, "the kernel's buffer is full")
        taken, self._owed = self._owed, 0
        while taken < len(data):
            try:
                count = self._tls.write(data[taken : taken + CHUNK])
            except ssl.SSLError as error:
                raise TlsLost(f"TLS failed: {_reason(error)}") from None
            if not self._leave():
                self._owed = count
                if not taken:
                    raise BlockingIOError(errno.EAGAIN, "the kernel's buffer is full")
                return taken
            taken += count
        return taken

    def _leave(self) -> bool:
        """Give the kernel what OpenSSL has written. Whether all of it left."""
        while True:
            if not self._unsent:
                self._unsent = self._outgoing.read()
                if not self._unsent:
                    return True
            try:
                sent = self._sock.send(self._unsent, _NO_SIGNAL)
            except (BlockingIOError, InterruptedError):
                return False
            self._unsent = memoryview(self._unsent)[sent:]
