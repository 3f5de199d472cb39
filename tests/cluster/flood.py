"""A program that knocks at ports without a token, in every bad way, and holds on to what it has opened.

    python flood.py COUNT HOST:PORT …     prints "knocked N" after COUNT connections to each port; ends with its stdin
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import sys
from collections import deque

from minray.wire.auth import MAGIC, ClientHandshake
from minray.wire.framing import encode_frame
from tests.wire.mutators import CLIENT_HELLO

OPEN_MAX = 300  # at once, per port; more than a listener keeps
RESET = struct.pack("ii", 1, 0)  # close with a reset


def words(number: int) -> bytes:
    """What one of them says at once."""
    greeting = ClientHandshake(b"no token").start()
    said = [
        b"",  # nothing
        b"\x00garbage" * 10_000,
        MAGIC[:5],  # half a header
        greeting,  # and nothing more
        greeting + os.urandom(32),
        greeting + os.urandom(32) + encode_frame(pickle.dumps((1, "never read"))),
        encode_frame(pickle.dumps((1, "never read"))) * 1000,
        (1 << 30).to_bytes(4, "little"),  # a huge frame
        CLIENT_HELLO,
        CLIENT_HELLO[:50],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        greeting[:1],  # more follows, a byte at a time
    ]
    return said[number % len(said)]


def knock(port: tuple[str, int], number: int) -> socket.socket | None:
    """One connection; None if it is over at once."""
    sock = socket.create_connection(port, timeout=20)
    sock.setblocking(False)
    if number % 13 == 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        return None
    with contextlib.suppress(OSError):  # hung up on us: as it should
        sock.send(words(number))
    return sock


def main() -> None:
    count = int(sys.argv[1])
    ports = [(host, int(port)) for host, _, port in (word.rpartition(":") for word in sys.argv[2:])]
    held: dict[tuple[str, int], deque[socket.socket]] = {port: deque() for port in ports}
    drip = ClientHandshake(b"no token").start()
    for number in range(count):
        for port, socks in held.items():
            sock = knock(port, number)
            if sock is not None:
                socks.append(sock)
            if len(socks) > OPEN_MAX:
                socks.popleft().close()
            slow = socks[number % len(socks)] if socks else None
            if slow is not None:
                with contextlib.suppress(OSError):
                    slow.send(drip[number % len(drip) :][:1])
    print(f"knocked {count}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
