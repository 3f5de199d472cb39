"""Endpoints → non-blocking stream sockets. The one place that maps addresses and their errors.

An endpoint is a string: ``unix:/path``, ``tcp:host:port`` (IPv6 as ``tcp:[::1]:port``), ``mem:name``. A
request to listen may leave the choice to the kernel (``tcp:127.0.0.1:0``), or name a range of which any free port
will do (``tcp:127.0.0.1:20000-20999``); the real endpoint comes back with the listener.

A process that listens at two places has both in one string, the nearest first, a blank between:
``unix:/path tcp:host:port``. That whole string is what is sent and stored; who dials takes ``nearest`` of it
(``dial`` itself: the first), and a request to listen may have two parts as well.

``mem`` is for tests and for one-process setups: socket pairs handed over inside this process by a
``MemoryNetwork``, so that everything above works on them unchanged and nothing touches the file system.

All sockets are non-blocking, close-on-exec, and without Nagle's delay. A dial that cannot finish at once
reports ``Dialled(connecting=True)``; one whose listener's queue is full (unix) says ``busy`` and is tried
again by the reactor. Everything else that fails is a ConnectionLost that names the endpoint.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import threading
from collections import deque
from typing import Any, NamedTuple, Protocol

from minray.wire.errors import ConnectionLost, WireError

BACKLOG = 1024
UNIX_PATH_MAX = 100  # the kernel's bound is 107 (103 on macOS); keep clear of both
_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK)
_BOUNDARY = re.compile(r" (?=(?:unix|tcp|mem):)")
_LOOPBACK_V4 = re.compile(r"127(\.\d{1,3}){3}")


class Stream(Protocol):
    """What a connection uses of a socket; ``tls`` has another one."""

    @property
    def family(self) -> int: ...

    def fileno(self) -> int: ...

    def recv_into(self, target: Any, /) -> int: ...

    def send(self, data: Any, flags: int = 0, /) -> int: ...

    def getsockopt(self, level: int, name: int, /) -> int: ...

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...

    def close(self) -> None: ...

    def detach(self) -> int: ...


class EndpointError(WireError, ValueError):
    """An endpoint that cannot be understood, or not used for listening."""


class Dialled(NamedTuple):
    """What a dial has come to so far."""

    sock: socket.socket | None  # None while ``busy``
    connecting: bool  # finished when the socket gets writable and has no error
    busy: bool  # the listener's queue is full: dial again a little later


def split_endpoint(endpoint: str) -> tuple[str, str]:
    """The kind and the rest. Raises EndpointError."""
    kind, colon, rest = endpoint.partition(":")
    if kind not in ("unix", "tcp", "mem") or not colon or not rest:
        raise EndpointError(f"endpoint {endpoint!r} is none of unix:/path, tcp:host:port, mem:name")
    return kind, rest


def alternatives(endpoint: str) -> list[str]:
    """The places at which one process listens, nearest first. (A path may have blanks, too.)"""
    return _BOUNDARY.split(endpoint)


def nearest(endpoint: str, same_machine: bool) -> str:
    """The part of an endpoint to dial: the first one on the machine of its listener, elsewhere the first
    that a network carries, if there is one."""
    parts = alternatives(endpoint)
    if not same_machine:
        for part in parts:
            if part.startswith("tcp:"):
                return part
    return parts[0]


def split_tcp(rest: str) -> tuple[str, int]:
    """Host and port of the part behind ``tcp:``. Raises EndpointError."""
    host, colon, port = rest.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise EndpointError(f"endpoint 'tcp:{rest}' has no port in 0..65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(endpoint: str) -> bool:
    """Whether nobody outside this machine can reach a listener there."""
    for part in alternatives(endpoint):
        kind, rest = split_endpoint(part)
        if kind == "tcp":
            host = split_tcp(rest)[0]
            if host not in ("localhost", "::1") and _LOOPBACK_V4.fullmatch(host) is None:
                return False
    return True


class MemoryNetwork:
    """Listeners of this process by name. ``mem:`` endpoints use ``default``."""

    default: MemoryNetwork

    def __init__(self) -> None:
        self._listeners: dict[str, MemoryListener] = {}
        self._lock = threading.Lock()

    def listen(self, name: str) -> MemoryListener:
        """Raises EndpointError for a name in use."""
        with self._lock:
            if name in self._listeners:
                raise EndpointError(f"somebody listens on 'mem:{name}' already")
            listener = self._listeners[name] = MemoryListener(self, name)
            return listener

    def dial(self, name: str) -> socket.socket:
        """The dialler's end of a new pair. Raises ConnectionRefusedError."""
        with self._lock:
            listener = self._listeners.get(name)
            if listener is None:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens")
            ours, theirs = socket.socketpair()
            listener.offer(theirs)
            return ours

    def forget(self, name: str) -> None:
        """A listener was closed."""
        with self._lock:
            self._listeners.pop(name, None)


class MemoryListener:
    """Has what the reactor uses of a listening socket: fileno, accept, close."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self._name = name
        self._waiting: deque[socket.socket] = deque()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)

    def offer(self, sock: socket.socket) -> None:
        """A dialler's other end."""
        self._waiting.append(sock)
        self._ringer.send(b"x")

    def accept(self) -> tuple[socket.socket, str]:
        """Raises BlockingIOError when nobody waits."""
        self._bell.recv(1)
        return self._waiting.popleft(), ""

    def fileno(self) -> int:
        return self._bell.fileno()

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def detach(self) -> int:
        """Give up the descriptors without closing the network's books (after a fork)."""
        self._ringer.close()
        return self._bell.detach()

    def close(self) -> None:
        self._network.forget(self._name)
        self._bell.close()
        self._ringer.close()
        while self._waiting:
            self._waiting.popleft().close()


MemoryNetwork.default = MemoryNetwork()
ListeningSocket = socket.socket | MemoryListener


def make_listener(request: str) -> tuple[ListeningSocket, str]:
    """Listen at ``request``; returns the listener and the real endpoint. Raises EndpointError or OSError."""
    kind, rest = split_endpoint(request)
    if kind == "mem":
        return MemoryNetwork.default.listen(rest), request
    if kind == "unix":
        if not hasattr(socket, "AF_UNIX"):
            raise EndpointError(f"no unix sockets here for {request!r}: listen on tcp:127.0.0.1:0")
        if len(os.fsencode(rest)) > UNIX_PATH_MAX:
            raise EndpointError(f"socket path of over {UNIX_PATH_MAX} bytes: {rest!r}; use a shorter folder")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _listen_at(sock, rest)
    else:
        sock = _listen_in_range(rest)
    return sock, endpoint_of(sock)


def _listen_in_range(rest: str) -> socket.socket:
    """At the one port that is named, or at any of a range."""
    first, dash, last = rest.rpartition("-")
    if not dash or not last.isdecimal() or ":" not in first:
        return _listen_at_port(*split_tcp(rest))
    host, low = split_tcp(first)
    split_tcp(f"{host}:{last}")
    ports = range(low, int(last) + 1)
    turn = os.getpid() % max(1, len(ports))  # so that neighbours do not all begin with the same one
    for port in (*ports[turn:], *ports[:turn]):
        try:
            return _listen_at_port(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"all ports of {rest} are in use: name a wider range")


def _listen_at_port(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":  # elsewhere this option lets two listeners share one port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _listen_at(sock, (host, port))


def _listen_at(sock: socket.socket, address: str | tuple[str, int]) -> socket.socket:
    try:
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def make_listeners(request: str) -> list[ListeningSocket]:
    """The same for a request of several parts: all of them or none."""
    socks: list[ListeningSocket] = []
    try:
        socks.extend(make_listener(part)[0] for part in alternatives(request))
    except BaseException:
        for sock in socks:
            sock.close()
        raise
    return socks


def endpoint_of(sock: ListeningSocket) -> str:
    """The endpoint at which a listening socket can be dialled."""
    if isinstance(sock, MemoryListener):
        return f"mem:{sock._name}"
    name = sock.getsockname()
    if sock.family == getattr(socket, "AF_UNIX", None):
        return f"unix:{os.fsdecode(name)}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"tcp:{host}:{name[1]}"


def dial(endpoint: str) -> Dialled:
    """Begin to connect, to the first of several alternatives. Raises EndpointError, or ConnectionLost if nobody
    is there for sure."""
    kind, rest = split_endpoint(nearest(endpoint, same_machine=True))
    sock: socket.socket | None = None
    try:
        if kind == "mem":
            sock = MemoryNetwork.default.dial(rest)
            prepare(sock)
            return Dialled(sock, connecting=False, busy=False)
        if kind == "unix":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            code = _connect(sock, rest)
            if code in (errno.EAGAIN, errno.EWOULDBLOCK):
                sock.close()
                return Dialled(None, connecting=False, busy=True)
        else:
            host, port = split_tcp(rest)
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            code = _connect(sock, (host, port))
    except (OSError, AttributeError) as error:
        if sock is not None:
            sock.close()
        raise unreachable(endpoint, str(error)) from error
    if code and code not in _IN_PROGRESS:
        sock.close()
        raise unreachable(endpoint, os.strerror(code))
    return Dialled(sock, connecting=bool(code), busy=False)


def unreachable(endpoint: str, reason: str) -> ConnectionLost:
    """The error for an endpoint at which nobody answers."""
    return ConnectionLost(f"cannot connect to {endpoint}: {reason}")


def _connect(sock: socket.socket, address: str | tuple[str, int]) -> int:
    prepare(sock)
    return sock.connect_ex(address)


def from_network(sock: Stream) -> bool:
    """Whether what arrives may come from another machine."""
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def address_text(address: Any) -> str:
    """Whom accept() names, for messages; "" for who has no address."""
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else ""


def limit_silence(sock: Stream, seconds: float) -> None:
    """Let the kernel end a TCP connection whose peer has acknowledged nothing for so long: a machine that was
    cut off or lost its power says no goodbye. No effect on other sockets, or where the system has no such
    option."""
    if not from_network(sock):
        return
    probe = max(1, round(seconds / 4))
    options = {"TCP_USER_TIMEOUT": round(seconds * 1000), "TCP_KEEPIDLE": probe, "TCP_KEEPALIVE": probe}
    options |= {"TCP_KEEPINTVL": probe, "TCP_KEEPCNT": 4}
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def prepare(sock: socket.socket) -> None:
    """The settings of every stream socket that we use."""
    sock.setblocking(False)
    if from_network(sock):
        with contextlib.suppress(OSError):  # a socket that is not TCP, or already reset
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
