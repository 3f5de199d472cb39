"""A session's processes from start to end, with the real daemon and the real zygote."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minray._base.config import Config, child_environ
from minray._base.process import is_alive, own_identity
from minray.exceptions import RaySystemError
from minray.wire.messages import Hello, Reply, Request, pack, unpack
from minray.wire.reactor import Connection, Reactor, Waiter
from minray.worker.endpoints import sibling_endpoint
from minray.worker.launch import LocalCluster, launch
from minray.worker.session_folder import SessionInfo

needs_pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfds")
WAIT_S = 30.0
REPOSITORY = str(Path(__file__).resolve().parent.parent)


class Asker:
    """One connection to a head, for requests."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.reactor = Reactor(token=cluster.token, max_frame=1 << 20, background=True, name="test")
        pid, started = own_identity()
        self.waiter = Waiter()
        self.reply: Any = None
        hello = Hello("tool", os.urandom(28), b"", b"", pid, started, "")
        self.conn = self.reactor.dial(cluster.endpoint, hello, self)

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        self.reply = unpack(messages[-1])
        self.reactor.notify(self.waiter)

    def on_close(self, conn: Connection, error: Exception | None) -> None:
        self.reply = error
        self.reactor.notify(self.waiter)

    def ask(self, method: str, *args: Any) -> Any:
        self.waiter = Waiter()
        self.conn.send(pack(Request(1, method, args)))
        assert self.reactor.wait(self.waiter, WAIT_S)
        return self.reply.value if isinstance(self.reply, Reply) else self.reply


def ask(cluster: LocalCluster, method: str, *args: Any) -> Any:
    asker = Asker(cluster)
    try:
        return asker.ask(method, *args)
    finally:
        asker.reactor.close()


def wait_for_end(life: tuple[int, float] | None) -> None:
    """Until that process, which need not be ours, is dead."""
    assert life is not None
    try:
        fd = os.pidfd_open(life[0])
    except ProcessLookupError:
        return
    try:
        if is_alive(*life):
            assert select.select([fd], [], [], WAIT_S)[0], f"process {life[0]} lives on"
    finally:
        os.close(fd)


def nothing_left(cluster: LocalCluster) -> None:
    assert not os.path.exists(cluster.session_dir)
    assert cluster.daemon.poll() is not None
    assert cluster.zygote is None or cluster.zygote.poll() is not None


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(temp_dir=str(tmp_path), prestart=False)


@pytest.fixture
def cluster(config: Config) -> Iterator[LocalCluster]:
    made = launch(config, {"num_cpus": 2})
    yield made
    made.stop()
    nothing_left(made)


def test_a_session_serves_and_leaves_nothing(cluster: LocalCluster) -> None:
    assert cluster.endpoint.startswith("unix:")
    (node,) = ask(cluster, "nodes")
    assert node["Alive"] and node["Resources"]["CPU"] == 2.0
    info = SessionInfo.read(cluster.session_dir)
    assert info is not None and info.daemon is not None and info.daemon[0] == cluster.daemon.pid
    cluster.stop()
    nothing_left(cluster)
    assert "exit code 0" in cluster.explain_end()


def test_two_sessions_side_by_side(cluster: LocalCluster, config: Config) -> None:
    other = launch(config, {"num_cpus": 3})
    assert other.session_dir != cluster.session_dir
    assert ask(other, "cluster_resources")["CPU"] == 3.0
    other.stop()
    nothing_left(other)
    assert ask(cluster, "cluster_resources")["CPU"] == 2.0


def test_a_long_folder_means_tcp_on_the_loopback(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 150)
    cluster = launch(Config(temp_dir=str(folder), prestart=False))
    try:
        assert cluster.endpoint.startswith("tcp:127.0.0.1:")
        assert ask(cluster, "nodes")
    finally:
        cluster.stop()
    nothing_left(cluster)
    assert os.listdir(folder) == []


def test_unix_sockets_in_a_long_folder_are_refused_with_the_fix(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 150)
    with pytest.raises(RaySystemError, match="set MINRAY_TEMP_DIR"):
        launch(Config(temp_dir=str(folder), transport="unix"))
    assert os.listdir(folder) == []


def test_tcp_on_demand(config: Config) -> None:
    cluster = launch(config.replace(transport="tcp"))
    try:
        assert cluster.endpoint.startswith("tcp:127.0.0.1:")
        assert sibling_endpoint(cluster.endpoint, cluster.session_dir, "w1") == "tcp:127.0.0.1:0"
        assert ask(cluster, "nodes")
    finally:
        cluster.stop()
    nothing_left(cluster)


def test_without_fork_there_is_no_zygote(config: Config) -> None:
    cluster = launch(config.replace(launcher="spawn"))
    try:
        assert cluster.zygote is None and ask(cluster, "nodes")
    finally:
        cluster.stop()
    nothing_left(cluster)


DRIVER = """
import os, sys
from minray._base.config import Config
from minray.worker.launch import launch
cluster = launch(Config(temp_dir=sys.argv[1], prestart=False))
print(cluster.session_dir, flush=True)
sys.stdin.readline()
exec(sys.argv[2])
"""


@contextlib.contextmanager
def driver(folder: Path, then: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], SessionInfo]]:
    """A process that starts a session and, when told to, does ``then``."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environ({"PYTHONPATH": REPOSITORY, **env}),
        cwd="/",
    )
    assert process.stdout is not None and process.stdin is not None
    info = SessionInfo.read(process.stdout.readline().strip())
    assert info is not None
    yield process, info
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@needs_pidfd
@pytest.mark.parametrize(
    "then",
    [
        "os.kill(os.getpid(), 9)",
        "os._exit(3)",
        "raise ValueError('uncaught')",
        "os.execvp('sleep', ['sleep', '60'])",
        "os.fork() or os.read(0, 1)\nos.kill(os.getpid(), 9)",  # a child that holds all descriptors
    ],
)
def test_a_session_ends_with_its_driver_however_that_ends(tmp_path: Path, then: str) -> None:
    with driver(tmp_path, then) as (process, info):
        tell(process)
        wait_for_end(info.daemon)
        wait_for_end(info.zygote)
        assert os.listdir(tmp_path) == []


@needs_pidfd
def test_a_killed_head_is_cleared_up_by_the_zygote_and_explained(cluster: LocalCluster) -> None:
    assert ask(cluster, "nodes")
    os.kill(cluster.daemon.pid, signal.SIGKILL)
    wait_for_end(cluster.info.zygote)
    assert not os.path.exists(cluster.session_dir)
    assert "signal 9 (SIGKILL)" in cluster.explain_end()


@needs_pidfd
def test_a_killed_zygote_ends_the_session(cluster: LocalCluster) -> None:
    assert ask(cluster, "nodes") and cluster.zygote is not None
    os.kill(cluster.zygote.pid, signal.SIGKILL)
    wait_for_end(cluster.info.daemon)
    assert not os.path.exists(cluster.session_dir)


@needs_pidfd
def test_a_read_only_home_is_never_touched(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir()
    home.chmod(0o500)
    before = home.stat()
    with driver(folder, "cluster.stop()", HOME=str(home)) as (process, _):
        tell(process)
        assert process.wait(WAIT_S) == 0
    assert os.listdir(home) == [] and home.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(folder) == []


def test_the_default_folder_follows_tmpdir(tmp_path: Path) -> None:
    code = "from minray._base.config import Config; print(Config.from_env().temp_root())"
    command = [sys.executable, "-c", code]
    env = child_environ({"TMPDIR": str(tmp_path), "PYTHONPATH": REPOSITORY, "MINRAY_TEMP_DIR": None})
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(tmp_path / f"minray-{os.getuid()}")


@pytest.mark.parametrize("python", ["", "/nowhere/python"])
def test_an_interpreter_that_cannot_be_started(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(RaySystemError, match=r"sys\.executable|cannot start"):
        launch(config)
    assert os.listdir(tmp_path) == []


def test_a_head_that_dies_at_once_is_explained(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minray.worker.launch._DAEMON", "raise SystemExit('no such luck')")
    cluster = launch(config)
    assert isinstance(ask(cluster, "nodes"), Exception)
    cluster.daemon.wait(WAIT_S)
    assert "exit code 1" in cluster.explain_end() and "no such luck" in cluster.explain_end()
    cluster.stop()
    nothing_left(cluster)


def test_a_head_that_stays_ends_when_told(config: Config) -> None:
    cluster = launch(config, stays=True)
    try:
        assert ask(cluster, "nodes")
    finally:
        cluster.stop()
    nothing_left(cluster)


def test_stopping_twice_and_in_a_forked_child(cluster: LocalCluster) -> None:
    pid = os.fork()
    if pid == 0:
        cluster.after_fork_child()
        cluster.stop()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert ask(cluster, "nodes")
    cluster.stop()
    cluster.stop()


HEAVY = (
    "numpy", "cloudpickle", "psutil", "sqlite3", "ssl", "asyncio", "email", "logging", "tempfile",
    "subprocess", "multiprocessing", "unittest", "json",
)  # fmt: skip


def test_control_processes_load_little() -> None:
    code = (
        "import sys\nsys.path.append(sys.argv[1])\nimport minray.daemon, minray.node.service\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    command = [sys.executable, "-S", "-c", code, REPOSITORY]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
