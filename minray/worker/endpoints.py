"""Where the processes of a session listen. Called by ``launch`` (the daemon's sockets) and by drivers and workers.

A session of one node: a unix socket in its folder, or TCP on the loopback where there are none, or where the path
is too long. One that belongs to a cluster listens at both a unix socket and a TCP port of the address at which
other machines reach it; its endpoint names both (see ``wire.transports``). Drivers and workers do as their node
does: one decision for all.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from typing import Any

from minray._base.config import Config
from minray.exceptions import RaySystemError
from minray.wire import transports
from minray.worker.session_folder import SOCKET

LOOPBACK = "tcp:127.0.0.1:0"
_WAYS_OUT = {
    errno.EADDRINUSE: ". Name another port, or none: then the kernel chooses one that is free",
    errno.EADDRNOTAVAIL: ". The host must be an address of this machine (`ip address` shows them)",
    errno.EACCES: ". You may not listen there: name a port above 1023, or none",
}


def listen(
    config: Config, folder: str, cluster: Mapping[str, Any] | None = None
) -> tuple[list[socket.socket], str]:
    """A daemon's listening sockets and its endpoint. ``cluster``: the host and port at which other machines are
    to reach it; port 0: any. Raises RaySystemError."""
    unix = _unix(config, os.path.join(folder, SOCKET))
    if cluster is not None:
        host = cluster["host"]
        place = f"tcp:[{host}]:{cluster['port']}" if ":" in host else f"tcp:{host}:{cluster['port']}"
        sockets = [_make(place)]
        if unix:
            try:
                sockets.insert(0, _make(unix))
            except BaseException:
                sockets[0].close()
                raise
        return sockets, " ".join(transports.endpoint_of(sock) for sock in sockets)
    problems = []
    for request in [unix] * bool(unix) + [LOOPBACK] * (config.transport != "unix"):
        try:
            sock = _make(request)
        except RaySystemError as error:
            problems.append(str(error))
            continue
        return [sock], transports.endpoint_of(sock)
    raise RaySystemError(f"cannot listen on this machine: {'; '.join(problems) or 'no unix sockets here'}")


def _unix(config: Config, path: str) -> str:
    """The request for a unix socket; "" where there is to be none."""
    # Workers listen beside it under longer names: one decision for all.
    fits = len(os.fsencode(path)) + 16 <= transports.UNIX_PATH_MAX
    if config.transport == "unix" and not fits:
        raise RaySystemError(
            f"MINRAY_TRANSPORT=unix, but {path!r} is too long for a socket "
            f"({transports.UNIX_PATH_MAX} bytes): set MINRAY_TEMP_DIR to a shorter folder, or "
            "MINRAY_TRANSPORT=tcp"
        )
    return f"unix:{path}" if config.transport != "tcp" and fits and hasattr(socket, "AF_UNIX") else ""


def _make(request: str) -> socket.socket:
    try:
        sock, _ = transports.make_listener(request)
    except (OSError, transports.EndpointError) as error:
        way_out = _WAYS_OUT.get(error.errno or 0, "") if isinstance(error, OSError) else ""
        raise RaySystemError(f"cannot listen at {request}: {error}{way_out}") from error
    assert isinstance(sock, socket.socket)
    return sock


def sibling_endpoint(endpoint: str, folder: str, name: str, ports: str | None = None) -> str:
    """What a process of the session asks for as its own endpoint, given its node's: the same kinds of sockets.
    ``name``: of its file, at most 16 characters; ``ports``: see ``Config.worker_ports``."""
    requests = []
    for part in transports.alternatives(endpoint):
        if part.startswith("unix:"):
            requests.append(f"unix:{os.path.join(folder, name)}")
        else:
            requests.append(f"{part.rpartition(':')[0]}:{ports or 0}")
    return " ".join(requests)
