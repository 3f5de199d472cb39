"""Every port that a session opens, of whatever process and kind: a stranger gets nothing out of it, a planted pickle
is loaded by none of them, and the session works on."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import ssl
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import psutil
import pytest

import minray as ray
from minray.cluster_utils import Cluster
from minray.wire.auth import ClientHandshake, ServerHandshake
from minray.wire.codec import encode
from minray.wire.framing import encode_frame
from minray.wire.messages import pack
from tests.wire.certificates import Files, make_authority, make_certificate
from tests.wire.mutators import damage
from tests.wire.support import LONG, hello

Address = str | tuple[str, int]


class Betrayer:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


@ray.remote
def f(x: int) -> int:
    return x + 1


@ray.remote
class Actor:
    def big(self) -> bytes:
        return bytes(5_000_000)


class Session(NamedTuple):
    """What runs, and the certificate that gets somebody to its handshake."""

    nodes: int
    tls: Files | None
    elsewhere: dict[str, float]  # resources of the node that is not ours, if there is one


@pytest.fixture(params=["unix", "tcp", "cluster", "cluster with tls"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Session]:
    if request.param.startswith("cluster"):
        files, system = None, {}
        if request.param.endswith("tls"):
            make_authority(tmp_path, "ours")
            files = make_certificate(tmp_path, "node", "ours")
            system = {"tls_cert": files.cert, "tls_key": files.key, "tls_ca": files.ca}
        with Cluster(True, head_node_args={"num_cpus": 2, "_system_config": system}) as cluster:
            cluster.add_node(num_cpus=2, resources={"there": 2})
            cluster.connect()
            yield Session(2, files, {"there": 1})
            ray.shutdown()
    else:
        ray.init(num_cpus=2, _system_config={"transport": request.param})
        yield Session(1, None, {})
        ray.shutdown()


def everybody() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def ports() -> set[Address]:
    """Where the processes of the session listen."""
    found: set[Address] = set()
    for process in everybody():
        with contextlib.suppress(psutil.NoSuchProcess), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its name is another one in psutil 6
            for conn in process.connections("inet"):
                if conn.status == psutil.CONN_LISTEN:
                    found.add((conn.laddr.ip, conn.laddr.port))
            for conn in process.connections("unix"):
                if conn.laddr and stat.S_ISSOCK(os.stat(conn.laddr).st_mode):
                    found.add(conn.laddr)
    return found


def say(address: Address, data: bytes, tls: Files | None = None) -> bytes:
    """What a port answers until it hangs up, when ``data`` is all that comes. ``tls``: through TLS."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    answer = b""
    plain = socket.socket(family)
    plain.settimeout(LONG)
    plain.connect(address)
    with contextlib.closing(plain if tls is None else _around(plain, tls)) as sock:
        with contextlib.suppress(OSError):  # cut off in the middle
            sock.sendall(data)
            socket.socket.shutdown(sock, socket.SHUT_WR)  # an SSLSocket's own would end TLS before the answer
            while got := sock.recv(65536):
                answer += got
    return answer


def _around(sock: socket.socket, tls: Files) -> socket.socket:
    """TLS as a member of the cluster would begin it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_cert_chain(tls.cert, tls.key)
    context.load_verify_locations(tls.ca)
    return context.wrap_socket(sock)


def whispers(path: str) -> list[bytes]:
    """What a stranger may say, with a pickle in it that makes a folder when it is loaded."""
    plain = [pickle.dumps((1, Betrayer(path)), protocol) for protocol in range(6)]
    framed = [encode_frame(data) for data in plain]
    greeting = ClientHandshake(b"no token").start()
    answer = ServerHandshake(b"no token").feed(greeting)
    first = encode_frame(encode(pack(hello())))
    made = [b"", *plain, *framed, first + framed[5], greeting, greeting + framed[5], greeting + bytes(32) + framed[5]]
    made += [greeting + answer[-32:] + first + framed[5], answer + framed[5], b"\x16\x03\x01" + framed[5]]
    made += [b"POST / HTTP/1.1\r\nContent-Length: 500\r\n\r\n" + plain[2], framed[5] * 2000]
    rng = Random(7)
    return made + [damage(rng, data) for data in made if data for _ in range(3)]


def test_no_port_lets_a_stranger_do_anything(session: Session, tmp_path: Path) -> None:
    actor = Actor.options(resources=session.elsewhere).remote()
    assert ray.get(f.remote(1)) == 2
    assert len(ray.get(actor.big.remote())) == 5_000_000  # there is a data socket now, in a cluster
    path = tmp_path / "betrayed"
    found = ports()
    # Each node, a worker of each, and the driver; in a cluster at two places: unix and TCP.
    assert len(found) >= (3 if session.nodes == 1 else 2 * 5)
    for address in found:
        for data in whispers(str(path)):
            answer = say(address, data)
            assert len(answer) <= 76, (address, data[:80], answer)  # a header and a proof that it knows the token
            if session.tls is not None and not isinstance(address, str):
                answer = say(address, data, session.tls)
                assert len(answer) <= 76, (address, data[:80], answer)
    assert not path.exists()
    assert ray.get(f.remote(2)) == 3
    assert len(ray.get(actor.big.remote())) == 5_000_000


def test_nobody_else_on_this_machine_reaches_a_unix_port(tmp_path: Path) -> None:
    ray.init(num_cpus=1)
    try:
        ray.get(f.remote(1))
        for address in ports():
            assert isinstance(address, str)
            folder = os.stat(os.path.dirname(address))
            assert folder.st_uid == os.geteuid()
            assert stat.S_IMODE(folder.st_mode) == 0o700
    finally:
        ray.shutdown()


def test_the_token_is_in_no_command_line_and_no_environment() -> None:
    ray.init(num_cpus=1)
    try:
        ray.get(f.remote(1))
        from minray.worker.session_folder import SessionInfo

        folder = os.path.dirname(next(address for address in ports() if isinstance(address, str)))
        info = SessionInfo.read(folder)
        assert info is not None
        token = info.token().decode()
        for process in everybody():
            with contextlib.suppress(psutil.NoSuchProcess):
                assert token not in " ".join(process.cmdline())
                assert token not in str(process.environ())
    finally:
        ray.shutdown()
