"""Which cluster is meant: addresses as users write them, and the file that names the latest one.

    init(address="auto")   MINRAY_ADDRESS, else the file, else ConnectionError
    init()                 MINRAY_ADDRESS, else the file if that cluster lives, else a session of its own
    minray status …        --address, MINRAY_ADDRESS, the file, the only cluster that runs here

A cluster's address is ``host:port`` of its head. Names are looked up once, here, so that two nodes of one cluster
record the same address however it was typed. The file ``latest-cluster-<uid>`` (0600) lies in the folder of the
user's sessions and has one line; ``minray start`` writes it, ``minray stop`` removes it.

Called by ``connect``, ``joined`` and ``minray.clusters``. Invariant: what these functions return is numeric, and its
port is in 1..65535.
"""

from __future__ import annotations

import os
import socket

from minray._base.config import Config
from minray.exceptions import RaySystemError
from minray.worker.session_folder import SessionInfo, find_sessions, write_private

START = "start one with `minray start --head`, or join one with `minray start --address=HOST:PORT`"


def numeric(address: str) -> str:
    """``host:port`` with the host's number. ValueError: it is no address. ConnectionError: nobody has that name."""
    host, colon, port = address.removeprefix("tcp:").rpartition(":")
    if not colon or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(
            f"address={address!r} is none of 'auto', 'local' and HOST:PORT (a port in 1..65535), as "
            "`minray start --head` prints it"
        )
    return join(number_of(host.removeprefix("[").removesuffix("]")), int(port))


def number_of(host: str) -> str:
    """The IP address of a host, IPv4 if it has one. Raises ConnectionError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectionError(f"there is no host {host!r} in this network: {error}") from None
    numbers = [str(entry[4][0]) for entry in found]
    return next((number for number in numbers if ":" not in number), numbers[0])


def join(host: str, port: int) -> str:
    """``host:port``, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def here_towards(address: str) -> str:
    """This machine's own address on the way to that one. Sends nothing. Raises ConnectionError."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((host.strip("[]"), int(port)))
        except OSError as error:
            raise ConnectionError(f"there is no way from this machine to {address}: {error}") from None
        return str(sock.getsockname()[0])


# --- the latest cluster ---------------------------------------------------------------------------------


def latest_path(config: Config) -> str:
    """The file of this user. (A folder that was named by hand may serve several.)"""
    return os.path.join(config.temp_root(), f"latest-cluster-{_user()}")


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def write_latest(config: Config, address: str) -> None:
    """From now on this one is the latest. RaySystemError if the file cannot be written."""
    path = latest_path(config)
    young = f"{path}.{os.getpid()}"
    try:
        write_private(young, address + "\n")
        os.replace(young, path)
    except OSError as error:
        raise RaySystemError(f"cannot write {path}, which says where your latest cluster is: {error}") from error


def read_latest(config: Config) -> str | None:
    """The latest cluster of this user; None if there is none, or the file is somebody else's or no such file."""
    path = latest_path(config)
    try:
        with open(path, encoding="ascii") as file:
            if hasattr(os, "geteuid") and os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            return numeric(file.read(256).strip())
    except (OSError, ValueError):
        return None


def forget_latest(config: Config, address: str) -> None:
    """That cluster is not the latest any more."""
    if read_latest(config) == address:
        try:
            os.unlink(latest_path(config))
        except FileNotFoundError:  # somebody else has done it
            return


# --- from what was said to an address -------------------------------------------------------------------


def nodes_here(config: Config, address: str) -> list[SessionInfo]:
    """The living nodes of that cluster on this machine that belong to this user: the head first."""
    found = [info for info in find_sessions(config) if info.gcs == f"tcp:{address}"]
    return sorted(found, key=lambda info: not info.is_head)


def living_latest(config: Config) -> str | None:
    """The latest cluster if a node of it lives here."""
    address = read_latest(config)
    return address if address is not None and nodes_here(config, address) else None


def meant(config: Config, said: str | None) -> str:
    """The cluster that a command or ``init(address=said)`` means; ``said``: None or "auto" leave it to the
    environment and the file. Raises ConnectionError with the way out, ValueError."""
    if said not in (None, "auto"):
        return numeric(str(said))
    if config.address not in (None, "auto", "local"):
        return numeric(str(config.address))
    address = read_latest(config)
    if address is None:
        raise ConnectionError(
            f"no cluster is known: MINRAY_ADDRESS is not set, and there is no {latest_path(config)}; {START}"
        )
    return address
