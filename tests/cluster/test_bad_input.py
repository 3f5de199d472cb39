"""What a user of a cluster gets wrong: one clear error that names the value and the way out, and where there are two
ends, a line in the log of the other one. Nothing is left of what could not be."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from minray.worker.addresses import here_towards

OTHER_VERSION = """
import sys
from minray.wire import auth
CHANGE
from minray.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
PROTOCOL = """
real = auth.ClientHandshake.__init__
def other(self, token, **more):
    real(self, token, protocol=auth.PROTOCOL_VERSION + 1, **more)
auth.ClientHandshake.__init__ = other
"""
PYTHON = "auth._this_python = lambda: (3, 99)"


# --- tokens


def test_a_wrong_token(shell):
    address = shell.head(f"--token-file={shell.token()}")
    wrong = shell.token("f" * 32)
    text = shell.minray("start", f"--address={address}", f"--token-file={wrong}", code=1)
    assert address in text and "wrong token" in text and "MINRAY_TOKEN_FILE" in text
    assert "wrong token" in shell.log(address)
    assert "1 node" in shell.minray("health-check")
    assert len(shell.sessions()) == 1
    for command in ("status", "health-check"):  # from a machine that has no node
        elsewhere = {"MINRAY_TEMP_DIR": str(shell.root / "token-elsewhere"), "MINRAY_TOKEN_FILE": wrong}
        text = shell.minray(command, f"--address={address}", code=1, **elsewhere)
        assert address in text and "wrong token" in text and "MINRAY_TOKEN_FILE" in text
    assert shell.log(address).count("wrong token") == 3
    right = (shell.root / "token-012345").read_text()
    shell.minray("start", f"--address={address}", MINRAY_TOKEN=right)
    assert "2 alive" in shell.minray("status")
    shell.minray("stop")
    shell.leaves_nothing()


def test_tokens_that_must_not_be_used(shell):
    open_to_all = shell.token("0" * 32)
    (shell.root / "token-000000").chmod(0o644)
    short = shell.token("short")
    address = shell.head()
    for words in (["start", "--head"], ["start", f"--address={address}"], ["status", f"--address={address}"]):
        elsewhere = str(shell.root / "token-elsewhere")
        text = shell.minray(*words, code=1, MINRAY_TOKEN_FILE=open_to_all, MINRAY_TEMP_DIR=elsewhere)
        assert f"'{open_to_all}' is open to others (its mode is 0644): chmod 600 {open_to_all}" in text
        text = shell.minray(*words, f"--token-file={short}", code=1, MINRAY_TEMP_DIR=elsewhere)
        assert f"'{short}' has only 5 bytes and can be guessed" in text and "token_hex" in text
        text = shell.minray(*words, code=1, MINRAY_TOKEN="x" * 32, MINRAY_TOKEN_FILE=short, MINRAY_TEMP_DIR=elsewhere)
        assert f"MINRAY_TOKEN and MINRAY_TOKEN_FILE='{short}' are both set: unset one" in text
    assert len(shell.sessions()) == 1
    shell.minray("stop")
    shell.leaves_nothing()


def lan() -> str:
    try:
        here = here_towards("192.0.2.1:9")
    except ConnectionError:
        return ""
    return "" if here.startswith("127.") else here


@pytest.mark.skipif(not lan(), reason="this machine has no address in a network")
def test_nothing_is_open_to_a_network_without_a_good_token(shell):
    script = """
from minray.wire.reactor import Reactor
reactor = Reactor(token=TOKEN, max_frame=1 << 20, background=False, name="open")
reactor.listen("tcp:HOST:0", lambda conn: None)
"""
    for token, what in (("b''", "without a token"), ("b'12345678'", "with a token of 8 bytes")):
        text = shell.run("-c", script.replace("TOKEN", token).replace("HOST", lan()), code=1)
        assert f"refusing to listen on 'tcp:{lan()}:0'" in text and what in text and "set MINRAY_TOKEN_FILE" in text
    text = shell.minray("start", "--head", f"--host={lan()}", code=1, MINRAY_TOKEN="12345678")
    assert "MINRAY_TOKEN has only 8 bytes and can be guessed" in text
    shell.leaves_nothing()


# --- versions


@pytest.mark.parametrize(
    ("change", "said", "way_out"),
    [(PROTOCOL, "protocol versions differ", "install the same minray"), (PYTHON, "3.99", "use the same Python")],
    ids=["protocol", "python"],
)
def test_another_version(shell, change, said, way_out):
    address = shell.head()
    token = shell.info(address).token_path
    script = OTHER_VERSION.replace("CHANGE", change)
    for words in (["start"], ["status"]):
        elsewhere = str(shell.root / "token-elsewhere")
        text = shell.run(
            "-c", script, *words, f"--address={address}", f"--token-file={token}", code=1, MINRAY_TEMP_DIR=elsewhere
        )  # fmt: skip
        assert address in text and said in text and way_out in text
    assert shell.log(address).count(said) == 2 and way_out in shell.log(address)
    shell.minray("stop")
    shell.leaves_nothing()


# --- addresses


@contextlib.contextmanager
def listener(answer: bytes | None) -> Iterator[str]:
    """Somebody who is not minray: who hears something says ``answer``, and hangs up. None: says nothing ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    sock = server.accept()[0]
                except OSError:  # the end
                    return
                with sock:
                    sock.recv(1000)  # a socket that closes unread sends a reset instead of an end
                    sock.sendall(answer or b"")

        thread = threading.Thread(target=serve)
        if answer is not None:
            thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        if answer is not None:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    yield address


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """Packets to it are lost: the queue of its listener is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (nobody, "Connection refused"),
        (black_hole, "no answer"),
        (lambda: listener(None), "no answer"),
        (lambda: listener(b""), "closed the connection"),
        (lambda: listener(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "does not speak minray's protocol"),
    ],
    ids=["nobody", "packets lost", "silent", "hangs up", "a web server"],
)
def test_a_place_where_no_head_is(shell, place: Callable[[], contextlib.AbstractContextManager[str]], reason):
    with place() as address:
        for command in ("start", "status"):
            text = shell.minray(command, f"--address={address}", f"--token-file={shell.token()}", code=1)
            assert f"minray {command}: no cluster answers at {address}" in text and reason in text
            assert "minray status" in text or "Is this the address" in text
        text = shell.run("-c", f'import minray as ray; ray.init(address="{address}")', code=1)
        assert "ConnectionError" in text and address in text and "no node of it" in text
        assert "minray start --head" in text or f"minray start --address={address}" in text
    shell.leaves_nothing()


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "ray://h:1", ":1"])
def test_what_is_no_address(shell, address):
    for command in ("start", "status", "stop"):
        text = shell.minray(command, f"--address={address}", code=1)
        assert text.startswith(f"minray {command}: address='{address}' is none of") and "HOST:PORT" in text
    text = shell.run("-c", f'import minray as ray; ray.init(address="{address}")', code=1)
    assert "ValueError" in text and f"'{address}'" in text and "HOST:PORT" in text
    text = shell.run("-c", "import minray as ray; ray.init()", code=1, MINRAY_ADDRESS=address)
    assert "ValueError" in text and f"'{address}'" in text and "HOST:PORT" in text


def test_a_name_that_nobody_has(shell):
    for words in (["start"], ["status"]):
        text = shell.minray(*words, "--address=no-such-host.invalid:6379", code=1)
        assert "there is no host 'no-such-host.invalid' in this network" in text
    text = shell.run("-c", 'import minray as ray; ray.init(address="no-such-host.invalid:6379")', code=1)
    assert "ConnectionError" in text and "'no-such-host.invalid'" in text


# --- what is taken


def test_a_port_in_use(shell):
    address = shell.head()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for words in (["--head"], [f"--address={address}"]):
            text = shell.minray("start", *words, f"--port={port}", code=1)
            assert f"127.0.0.1:{port}" in text and "in use" in text and "another port" in text
    shell.minray("stop")
    shell.leaves_nothing()


def test_a_name_that_another_driver_has_taken(shell):
    program = """
import sys
import minray as ray
ray.init(address="auto", namespace="lab")

@ray.remote(num_cpus=0)
class Keeper:
    def hello(self):
        return "hello"

keeper = Keeper.options(name="the-keeper", lifetime="detached").remote()
print(ray.get(keeper.hello.remote()))
"""
    address = shell.head()
    assert shell.driver(program) == "hello\n"
    text = shell.run("-c", program, code=1)
    assert "ActorAlreadyExistsError" in text and "'the-keeper'" in text and "namespace 'lab'" in text
    assert "get_if_exists=True" in text
    assert "an actor named 'the-keeper' already exists in namespace 'lab'" in shell.log(address)
    assert shell.driver(program.replace("lifetime=", "get_if_exists=True, lifetime=")) == "hello\n"
    shell.minray("stop")
    shell.leaves_nothing()


# --- a driver that wants to decide what its nodes decide


def test_resources_for_a_cluster_that_runs(shell):
    address = shell.head()
    for said in ("num_cpus=1", "num_gpus=1", 'resources={"a": 1}', 'labels={"a": "b"}', "object_store_memory=10**9"):
        for where in (f'"{address}"', '"auto"'):
            text = shell.run("-c", f"import minray as ray; ray.init(address={where}, {said})", code=1)
            assert "ValueError" in text and where.strip('"') in text and said.partition("=")[0] in text
            assert "Leave them out" in text and 'init(address="local"' in text
    shell.minray("stop")
    shell.leaves_nothing()
