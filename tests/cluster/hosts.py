"""Three hosts on this machine: network namespaces on one switch, each with an address of its own.

    host0 (10.77.x.1) ──┐
    host1 (10.77.x.2) ──┼── switch          ``cut(1)`` pulls host1's cable, ``join(1)`` plugs it in again
    host2 (10.77.x.3) ──┘

Processes share everything but the network; a test gives each host a temp folder of its own (``Driver`` does). Needs
root, or the right to make namespaces, and iproute2: ``why_not`` says what is missing. ``slow(1, "20mbit")`` makes
host1's cable a bad one, both ways.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import lru_cache

COUNT = 3


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


@lru_cache(maxsize=1)
def why_not() -> str:
    """Why this machine has no such hosts; "" if it does."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    name = f"mr{os.getpid():x}"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "b0", "type", "bridge")
            _ip("-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        finally:
            _ip("netns", "del", name)
    except (OSError, subprocess.SubprocessError) as error:
        return f"no network namespaces here: {getattr(error, 'stderr', None) or error}".strip()
    return ""


@lru_cache(maxsize=1)
def why_not_slow() -> str:
    """Why a link cannot be made slow here; "" if it can."""
    if why_not():
        return why_not()
    try:
        with Lan() as lan:
            lan.slow(0, "20mbit")
    except (OSError, subprocess.SubprocessError) as error:
        return f"no slow links here: {getattr(error, 'stderr', None) or error}".strip()
    return ""


class Lan:
    """See the file's head. A context manager."""

    def __init__(self) -> None:
        self._name = f"mr{os.urandom(3).hex()}"
        net = os.getpid() % 250
        self.addresses = [f"10.77.{net}.{i + 1}" for i in range(COUNT)]

    def __enter__(self) -> Lan:
        switch = self._name + "s"
        _ip("netns", "add", switch)
        try:
            _ip("-n", switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", switch, "link", "set", "br0", "up")
            for i, address in enumerate(self.addresses):
                host = f"{self._name}{i}"
                _ip("netns", "add", host)
                peer = ["peer", "name", "eth0", "netns", host]
                _ip("-n", switch, "link", "add", f"port{i}", "type", "veth", *peer)
                _ip("-n", switch, "link", "set", f"port{i}", "master", "br0")
                _ip("-n", switch, "link", "set", f"port{i}", "up")
                _ip("-n", host, "address", "add", f"{address}/24", "dev", "eth0")
                _ip("-n", host, "link", "set", "lo", "up")
                _ip("-n", host, "link", "set", "eth0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for suffix in ("s", *map(str, range(COUNT))):
            subprocess.run(["ip", "netns", "del", self._name + suffix], capture_output=True, check=False)

    def wrapper(self, host: int) -> list[str]:
        """The command that runs what follows on that host."""
        return ["ip", "netns", "exec", f"{self._name}{host}"]

    def cut(self, host: int) -> None:
        """Pull its cable: nobody is told."""
        _ip("-n", self._name + "s", "link", "set", f"port{host}", "down")

    def join(self, host: int) -> None:
        """Plug it in again."""
        _ip("-n", self._name + "s", "link", "set", f"port{host}", "up")

    def slow(self, host: int, rate: str) -> None:
        """Let no more through, either way; what waits for longer than a moment is dropped."""
        switch = (self._name + "s", f"port{host}")
        for netns, device in (switch, (f"{self._name}{host}", "eth0")):
            limit = ["tbf", "rate", rate, "burst", "16kb", "latency", "100ms"]
            command = ["tc", "-n", netns, "qdisc", "add", "dev", device, "root", *limit]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
