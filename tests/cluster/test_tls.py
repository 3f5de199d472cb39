"""A cluster whose machines speak TLS: everything works, nothing on TCP is plain, and who does not fit is told, on both
ends. (The wire's own tests of TLS: tests/wire/test_tls.py.)"""

from __future__ import annotations

import warnings
from pathlib import Path

import psutil
import pytest

import minray as ray
from minray._base.config import Config
from minray.cluster_utils import Cluster
from minray.wire.auth import PROOF_SIZE, TLS_ONLY, ClientHandshake
from minray.wire.tls import TlsFileError
from minray.worker.tool import Tool
from tests.cluster.conftest import QUICK, eventually
from tests.wire.certificates import Files, make_authority, make_certificate
from tests.wire.test_ports import say

BIG = 20_000_000


class Pki:
    """Two authorities. ``alien`` trusts the cluster's, whose nodes do not trust it."""

    def __init__(self, folder: Path) -> None:
        for name in ("ours", "theirs"):
            make_authority(folder, name)
        self.head = make_certificate(folder, "head", "ours")
        self.node = make_certificate(folder, "node", "ours")
        self.theirs = make_certificate(folder, "stranger", "theirs")
        self.alien = Files(self.theirs.cert, self.theirs.key, self.head.ca)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def settings(files: Files) -> dict[str, str]:
    return {"tls_cert": files.cert, "tls_key": files.key, "tls_ca": files.ca}


def options(files: Files) -> list[str]:
    return [f"--tls-cert={files.cert}", f"--tls-key={files.key}", f"--tls-ca={files.ca}"]


def variables(files: Files) -> dict[str, str]:
    return {"MINRAY_TLS_CERT": files.cert, "MINRAY_TLS_KEY": files.key, "MINRAY_TLS_CA": files.ca}


@ray.remote(num_cpus=0, resources={"there": 1})
class There:
    """An actor on the second node."""

    def __init__(self) -> None:
        self.kept = None

    def node(self):
        return ray.get_runtime_context().get_node_id()

    def make(self, size):
        return bytes(range(256)) * (size // 256)

    def keep(self, value):
        self.kept = value
        return len(value)

    def echo(self, value):
        return value

    def calls(self, other):
        return ray.get([other.echo.remote(i) for i in range(5)])


@ray.remote
def twice(x):
    return 2 * x


@ray.remote
def size_of(value):
    return len(value)


@ray.remote(num_cpus=0)
class Here:
    def echo(self, value):
        return value


def tcp_ports() -> set[tuple[str, int]]:
    """Where this process and its descendants listen for other machines."""
    found = set()
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its name is another one in psutil 6
            try:
                conns = process.connections("inet")
            except psutil.NoSuchProcess:
                continue
        found |= {(conn.laddr.ip, conn.laddr.port) for conn in conns if conn.status == psutil.CONN_LISTEN}
    return found


def test_two_nodes_and_everything_between_them(make_cluster, pki):
    """Each node has a certificate of its own."""
    cluster = make_cluster({"resources": {"there": 2}, "_system_config": settings(pki.node)}, **settings(pki.head))
    cluster.connect()
    there, here = There.remote(), Here.remote()
    (second,) = [node.node_id for node in cluster.worker_nodes]
    assert ray.get(there.node.remote()) == second
    assert ray.get([there.echo.remote(i) for i in range(200)]) == list(range(200))
    assert ray.get(there.calls.remote(here)) == list(range(5))
    remote = twice.options(resources={"there": 1})
    assert ray.get([remote.remote(i) for i in range(50)]) == [2 * i for i in range(50)]

    made = ray.get(there.make.remote(BIG))  # a big object comes
    assert made == bytes(range(256)) * (BIG // 256)
    put = ray.put(made[::-1])
    assert ray.get(there.keep.remote(put)) == len(made)  # and goes
    assert ray.get(there.echo.remote(put)) == made[::-1]
    assert ray.get(size_of.options(resources={"there": 1}).remote(there.make.remote(256_000))) == 256_000


def test_no_port_of_any_process_speaks_without_tls(make_cluster, pki):
    cluster = make_cluster({"resources": {"there": 2}}, **settings(pki.head))
    cluster.connect()
    there = There.remote()
    assert ray.get(there.keep.remote(ray.put(bytes(BIG)))) == BIG
    assert ray.get(twice.remote(1)) == 2
    ports = tcp_ports()
    assert len(ports) >= 5  # two nodes, two workers, the driver
    for port in ports:
        answer = say(port, ClientHandshake(b"whatever").start())
        assert answer[8:10] == TLS_ONLY.to_bytes(2, "little") and answer[-PROOF_SIZE:] == bytes(PROOF_SIZE)
    assert ray.get(twice.remote(2)) == 4


def test_the_commands(shell, pki):
    address = shell.head(*options(pki.head))
    joined = shell.minray("start", f"--address={address}", "--num-cpus=1", '--resources={"there": 1}',
                          MINRAY_TEMP_DIR=(elsewhere := str(shell.root / "token-elsewhere")),
                          MINRAY_TOKEN_FILE=shell.info(address).token_path, **variables(pki.node))  # fmt: skip
    assert "has joined" in joined
    assert "2 alive" in shell.minray("status")  # the node's files are in its session's record
    assert "2 nodes" in shell.minray("health-check")
    program = """
import minray as ray
ray.init(address="auto")

@ray.remote(resources={"there": 1})
def big(value):
    return value + bytes(5_000_000)

print(len(ray.get(big.remote(bytes(5_000_000)))))
"""
    assert shell.driver(program) == "10000000\n"
    assert shell.driver(program, **variables(pki.head)) == "10000000\n"
    assert shell.driver(program, MINRAY_TEMP_DIR=elsewhere) == "10000000\n"  # through the second node
    assert "2 alive" in shell.minray("status", f"--address={address}", *options(pki.node), MINRAY_TEMP_DIR=elsewhere)
    shell.minray("stop", MINRAY_TEMP_DIR=elsewhere)
    assert shell.minray("stop").count(": ended") == 1
    shell.leaves_nothing()


def test_a_session_of_one_machine(shell, pki):
    """Its unix sockets need no TLS, and do not even load it; where it takes TCP, that is TLS as well."""
    program = """
import sys
import minray as ray
ray.init(num_cpus=2, _system_config={"transport": TRANSPORT})
square = ray.remote(lambda x: x * x)
print(ray.get([square.remote(i) for i in range(4)]), "ssl" in sys.modules)
"""
    for transport, loaded in (("unix", False), ("tcp", True)):
        text = shell.driver(program.replace("TRANSPORT", repr(transport)), **variables(pki.node))
        assert text == f"[0, 1, 4, 9] {loaded}\n"
    shell.leaves_nothing()


def test_who_does_not_fit_is_told_and_so_is_the_head(shell, pki):
    """A node and a question that are plain, of another authority, or of one that only they accept."""
    address = shell.head(*options(pki.head))
    elsewhere = {
        "MINRAY_TEMP_DIR": str(shell.root / "token-elsewhere"), "MINRAY_TOKEN_FILE": shell.info(address).token_path,
    }  # fmt: skip
    wrong = [
        ({}, "the other side speaks TLS and this side does not: set MINRAY_TLS_CERT", "this side takes only TLS"),
        (variables(pki.theirs), "the other side's certificate is refused", "the other side refuses this side's"),
        (variables(pki.alien), "the other side refuses this side's certificate", "side's certificate is refused"),
    ]
    for env, told_here, told_there in wrong:
        for command in ("start", "status"):
            text = shell.minray(command, f"--address={address}", code=1, **elsewhere, **env)
            (line,) = text.splitlines()
            assert f"minray {command}: the head at {address} and this machine do not come together" in line
            assert told_here in line and "MINRAY_TLS_C" in line
        assert told_there in shell.log(address)
    assert "1 node" in shell.minray("health-check")
    shell.minray("stop")
    shell.leaves_nothing()


def test_a_cluster_without_tls_and_who_has_it(shell, pki):
    address = shell.head()
    elsewhere = {
        "MINRAY_TEMP_DIR": str(shell.root / "token-elsewhere"), "MINRAY_TOKEN_FILE": shell.info(address).token_path,
    }  # fmt: skip
    text = shell.minray("start", f"--address={address}", *options(pki.node), code=1, **elsewhere)
    assert f"the head at {address}" in text and "this side takes only TLS and the other side does not" in text
    assert "the other side speaks TLS and this side does not" in shell.log(address)
    for where in (f'"{address}"', '"auto"', "None"):
        text = shell.run(
            "-c", f"import minray as ray; ray.init(address={where})", code=1, **variables(pki.node)
        )  # fmt: skip
        assert "ConnectionError" in text and pki.node.cert in text and "does not use TLS" in text
    shell.minray("stop")
    shell.leaves_nothing()


def test_a_driver_that_names_other_files_than_its_node(shell, pki):
    address = shell.head(*options(pki.head))
    text = shell.run("-c", 'import minray as ray; ray.init(address="auto")', code=1, **variables(pki.theirs))
    assert "ConnectionError" in text and address in text and pki.theirs.ca in text and pki.head.ca in text
    assert "unset them" in text
    shell.minray("stop")
    shell.leaves_nothing()


def test_files_that_cannot_be_used_are_named_before_anything_starts(shell, pki):
    nothing = str(shell.root / "nothing.pem")
    wrong = [
        ([f"--tls-cert={pki.head.cert}"], "MINRAY_TLS_KEY and MINRAY_TLS_CA is missing beside MINRAY_TLS_CERT"),
        (options(Files(nothing, pki.head.key, pki.head.ca)), f"the TLS certificate {nothing!r} cannot be read"),
        (options(Files(pki.head.cert, pki.node.key, pki.head.ca)), "key values mismatch"),
    ]
    for words, named in wrong:
        for start in (["--head"], ["--address=127.0.0.1:1", f"--token-file={shell.token()}"]):
            (line,) = shell.minray("start", *start, *words, code=1).splitlines()
            assert line.startswith("minray start: ") and named in line
    shell.leaves_nothing()
    with pytest.raises(TlsFileError, match=r"nothing.pem' cannot be read"):
        Cluster(True, head_node_args={"_system_config": settings(Files(nothing, pki.head.key, pki.head.ca))})


def test_a_node_of_cluster_utils_that_does_not_fit(make_cluster, pki):
    cluster = make_cluster(**settings(pki.head))
    with pytest.raises(ray.exceptions.RaySystemError, match="the other side's certificate is refused"):
        cluster.add_node(_system_config=settings(pki.theirs))
    log = Path(cluster.head_node.session_dir, "logs", "daemon.log")
    eventually(lambda: "refuses this side's certificate" in log.read_text(), "the head's log says so")
    with Tool(Config(**QUICK), f"tcp:{cluster.address}", cluster._head.token) as tool:
        with pytest.raises(ConnectionError, match="the other side speaks TLS and this side does not"):
            tool.ask("nodes")
    assert cluster.worker_nodes == set() or not any(node.alive() for node in cluster.worker_nodes)
