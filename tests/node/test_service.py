"""NodeService with a real reactor and real connections; the launcher and the GCS are fakes of this process.

A ``FakeLauncher`` starts nothing: the test connects as the worker that was ordered, and says how it ended.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from minray._base.config import Config
from minray._base.process import own_identity
from minray._base.status_page import StatusPageWriter
from minray.node.launcher import LauncherEvents
from minray.node.service import NodeService
from minray.wire.errors import WireError
from minray.wire.messages import (
    ActorEnded,
    ActorStarted,
    CreateActor,
    Died,
    ExitWorker,
    ExtentGrant,
    ExtentRequest,
    Hello,
    LeaseConfirm,
    LeaseDemand,
    LeaseGrant,
    LeaseInfeasible,
    LogAck,
    LogLines,
    Message,
    Register,
    Registered,
    Reply,
    Request,
    StopActor,
    Watch,
    WorkerName,
    pack,
    unpack,
)
from minray.wire.reactor import Connection, Reactor

from .processes import wait_for
from .support import CPU1, JOB, NODE, actor_order

TOKEN = b"t" * 32
M = TypeVar("M", bound=Message)


class FakeLauncher:
    """Notes orders; the test tells what became of them."""

    def __init__(self, events: LauncherEvents) -> None:
        self.events = events
        self.orders: dict[int, dict[str, Any]] = {}
        self.killed: list[int] = []
        self.closed = False
        self.on_kill: Callable[[int], None] = lambda number: None

    def start(self, number: int, order: Mapping[str, Any]) -> None:
        self.orders[number] = dict(order)

    def kill(self, number: int, signum: int = 9) -> None:
        self.killed.append(number)
        self.on_kill(number)

    def close(self) -> None:
        self.closed = True


class Node(NodeService):
    def _make_launcher(self, events: LauncherEvents) -> Any:
        return FakeLauncher(events)


class Client:
    """A driver or a worker, as seen from the wire."""

    def __init__(self, bench: Bench, hello: Hello) -> None:
        self.bench = bench
        self.hello = hello
        self.got: list[Message] = []
        self.closed = False
        self.conn = bench.outside.dial(bench.endpoint, hello, self)

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        self.got += [unpack(raw) for raw in messages]

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        self.closed = True

    def send(self, *messages: Message) -> None:
        self.conn.send_many([pack(m) for m in messages])

    def take(self, kind: type[M]) -> M:
        """The next message of that kind; it is forgotten then."""
        message = wait_for(lambda: next((m for m in self.got if isinstance(m, kind)), None))
        assert isinstance(message, kind)
        self.got.remove(message)
        return message

    def ask(self, method: str, *args: Any) -> Reply:
        self.send(Request(77, method, args))
        return self.take(Reply)


class Bench:
    """A node on a thread of its own, with a GCS that says yes."""

    more: ClassVar[dict[str, Any]] = {}  # about the session

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder / "s"
        (self.folder / "logs").mkdir(parents=True)
        store = {"segments": "file", "store_memory": 1 << 24, "extent_size": 1 << 20}
        config = Config(num_cpus=2, debug=True, **store, **settings)  # type: ignore[arg-type]
        self.reactor = Reactor(token=TOKEN, max_frame=1 << 20, background=False, name="node", spin_us=0)
        self.outside = Reactor(token=TOKEN, max_frame=1 << 20, background=True, name="test", spin_us=0)
        self.to_gcs: list[Message] = []
        self.ended: list[str] = []
        listener = socket.socket(socket.AF_INET)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        self.endpoint = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        session = {
            "name": "s",
            "dir": str(self.folder),
            "temp_dir": str(folder),
            "log_dir": str(self.folder / "logs"),
            "prefix": "mrtestnode",
            "endpoint": self.endpoint,
            "token": TOKEN,
            "sys_path": ["/of/the/session"],
            "driver": None,
            **self.more,
        }
        self.node = Node(
            self.reactor,
            config,
            session=session,
            node={"resources": {"disk": 3}, "num_gpus": 0},
            node_id=NODE,
            zygote_sock=None,
            zygote_life=None,
            gcs_send=self.gcs,
            end_session=self.ended.append,
        )
        self.node.start()
        self.launcher: FakeLauncher = self.node.workers.launcher  # type: ignore[assignment]
        self.reactor.listen_socket(listener, self.node.on_accept)
        self.thread = threading.Thread(target=self.reactor.run_forever)
        self.thread.start()

    def gcs(self, message: Message) -> None:
        self.to_gcs.append(message)
        if isinstance(message, Request) and message.method != "job_end":
            value: Any = {"job_id": JOB, "namespace": "ns"} if message.method == "add_job" else {}
            if message.method == "add_node":
                value = {"heartbeat_s": 0.5}
            self.reactor.call_soon(lambda: self.node.on_gcs(Reply(message.request_id, True, value)))

    def do(self, fn: Callable[[], None]) -> None:
        """On the node's thread; waits for it."""
        done = threading.Event()
        self.reactor.call_soon(lambda: (fn(), done.set()))  # type: ignore[func-returns-value]
        assert done.wait(20)

    def driver(self, **info: Any) -> Client:
        pid, started = own_identity()
        client = Client(self, Hello("driver", os.urandom(28), b"", b"", pid, started, "unix:/driver"))
        client.send(Register(True, -1, {"namespace": None, "sys_path": ["/job"], "cwd": "/", **info}))
        return client

    def worker(self, number: int) -> Client:
        """Connect as a worker that was ordered."""
        order = wait_for(lambda: self.launcher.orders.get(number))
        hello = Hello("worker", order["worker_id"], NODE, b"", 4000 + number, 1.0, f"unix:/w{number}")
        client = Client(self, hello)
        client.send(Register(False, number, {}))
        return client

    def exits(self, number: int, status: int = 0) -> None:
        """Its parent has reaped it."""
        self.do(lambda: self.launcher.events.on_exited(number, status, 1 << 20))

    def told_gcs(self, kind: type[M]) -> M:
        message = wait_for(lambda: next((m for m in self.to_gcs if isinstance(m, kind)), None))
        assert isinstance(message, kind)
        self.to_gcs.remove(message)
        return message

    def end(self) -> None:
        """The session ends in good order."""
        if self.node.ending is None:
            self.launcher.on_kill = lambda number: self.launcher.events.on_exited(number, 9, 0)
            ended = threading.Event()
            self.reactor.call_soon(lambda: self.node.shutdown("the test is over", ended.set))
            assert ended.wait(20)

    def close(self) -> None:
        self.end()
        self.reactor.stop()
        self.thread.join(20)
        self.reactor.close()
        self.outside.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, shutdown_grace_s=0.01)
    yield made
    made.close()


def demand(wanted: int = 1, **changes: Any) -> LeaseDemand:
    fields: dict[str, Any] = {
        "key": 1,
        "wanted": wanted,
        "resources": CPU1,
        "depth": 0,
        "strategy": None,
        "env_vars": {},
        "description": "task f",
        "refused": 0,
        "hold": False,
        "again": True,
        **changes,
    }
    return LeaseDemand(**fields)


def test_a_driver_gets_its_job_and_workers_are_started_ahead(bench: Bench) -> None:
    driver = bench.driver(env_vars={"A": "1"})
    answer = driver.take(Registered)
    assert (answer.job_id, answer.node_id, answer.gcs_endpoint) == (JOB, NODE, bench.endpoint)
    assert answer.session["namespace"] == "ns"
    assert answer.session["segment_dir"].startswith("file:")
    assert answer.session["totals"]["disk"] == 3.0
    wait_for(lambda: set(bench.launcher.orders) == {1, 2})
    order = bench.launcher.orders[1]
    assert order["sys_path"] == ["/job"]
    assert order["env_vars"] == {"A": "1"}
    assert os.path.exists(order["stdout"])
    first = bench.worker(1)
    assert first.take(Registered).job_config["env_vars"] == {"A": "1"}
    assert not os.path.exists(order["stdout"]), "its name is not needed any more"


def test_a_lease_from_demand_to_death(bench: Bench) -> None:
    driver = bench.driver()
    driver.take(Registered)
    worker = bench.worker(1)
    worker.take(Registered)
    driver.send(demand())
    grant = driver.take(LeaseGrant)
    confirm = worker.take(LeaseConfirm)
    assert grant.worker == (NODE, worker.hello.worker_id, "unix:/w1")
    assert confirm.lease_no == grant.lease_no
    assert confirm.owner == (NODE, driver.hello.worker_id, "unix:/driver")
    order = bench.launcher.orders[1]
    StatusPageWriter(order["status_page"], order["slot"]).start(grant.lease_no, 41, 2)
    worker.send(WorkerName("f"))
    wait_for(lambda: bench.node.logs.name(1) == "f")
    with open(f"/proc/self/fd/{bench.node.logs._sources[1].pipes[0].fd}", "wb", buffering=0) as pipe:
        pipe.write(b"last words\n")
    with open(order["stack_file"], "w") as file:
        file.write("Fatal Python error")
    worker.conn.close()
    bench.exits(1, 11)
    died = driver.take(Died)
    assert (died.lease_no, died.running_seq, died.running_attempt) == (grant.lease_no, 41, 2)
    assert died.cause["signal"] == 11 and died.cause["task"] == "f"
    assert died.cause["log_tail"] == ["last words"]
    assert died.cause["stack"] == "Fatal Python error"
    assert not died.cause["expected"]
    lines = next(i for i, m in enumerate(driver.got) if isinstance(m, LogLines)) if driver.got else -1
    assert lines >= 0, "the last lines came before the news of the death"
    assert bench.told_gcs(Died).worker_id == worker.hello.worker_id
    assert not os.path.exists(order["stack_file"])


def test_what_ran_under_an_earlier_lease_is_not_charged(bench: Bench) -> None:
    driver = bench.driver()
    worker = bench.worker(1)
    worker.take(Registered)
    driver.send(demand())
    grant = driver.take(LeaseGrant)
    order = bench.launcher.orders[1]
    StatusPageWriter(order["status_page"], order["slot"]).start(grant.lease_no - 1, 41, 2)
    bench.exits(1, 9)
    assert driver.take(Died).running_seq == -1


def test_watchers_hear_of_workers_and_drivers(bench: Bench) -> None:
    driver = bench.driver()
    driver.take(Registered)
    first, second = bench.worker(1), bench.worker(2)
    first.take(Registered)
    second.take(Registered)
    first.send(Watch(second.hello.worker_id, NODE))
    first.send(Watch(b"x" * 28, NODE))
    assert first.take(Died).worker_id == b"x" * 28
    bench.exits(2, 3 << 8)
    died = first.take(Died)
    assert (died.worker_id, died.lease_no, died.cause["exit_code"]) == (second.hello.worker_id, -1, 3)


def test_actors_come_and_go(bench: Bench) -> None:
    driver = bench.driver()
    driver.take(Registered)
    order = actor_order(owner=(NODE, driver.hello.worker_id, "unix:/driver"), lifetime_resources=CPU1)
    bench.do(lambda: bench.node.on_gcs(order))
    worker = bench.worker(1)
    create = worker.take(CreateActor)
    assert create.actor_id == order.actor_id
    started = ActorStarted(order.actor_id, 0, (NODE, worker.hello.worker_id, "unix:/w1"), None)
    worker.send(started)
    assert bench.told_gcs(ActorStarted) == started
    worker.send(ActorEnded(order.actor_id, 0, {"text": "exit_actor() was called", "intended": True}))
    assert worker.conn.closed is False
    wait_for(lambda: bench.node.workers._processes[1].ordered)
    assert not any(isinstance(m, ActorEnded) for m in bench.to_gcs), "not before the process is gone"
    bench.exits(1)
    ended = bench.told_gcs(ActorEnded)
    assert ended.cause["intended"] and ended.cause["text"] == "exit_actor() was called"


def test_stopping_an_actor(bench: Bench) -> None:
    driver = bench.driver()
    driver.take(Registered)
    order = actor_order(owner=(NODE, driver.hello.worker_id, "unix:/driver"))
    bench.do(lambda: bench.node.on_gcs(order))
    worker = bench.worker(1)
    worker.take(CreateActor)
    bench.do(lambda: bench.node.on_gcs(StopActor(order.actor_id, 0, True, "out of scope")))
    assert worker.take(ExitWorker) == ExitWorker(True, "out of scope")
    bench.do(lambda: bench.node.on_gcs(StopActor(order.actor_id, 0, False, "kill")))
    assert bench.launcher.killed == [1]
    bench.exits(1, 9)
    assert bench.told_gcs(ActorEnded).cause["intended"]


def test_a_driver_that_hangs_up_ends_its_job(bench: Bench) -> None:
    driver = bench.driver()
    driver.take(Registered)
    idle, leased = bench.worker(1), bench.worker(2)
    leased.take(Registered)
    driver.send(demand())
    idle.take(Registered)
    both = (idle, leased)
    taken = wait_for(lambda: [w for w in both if any(isinstance(m, LeaseConfirm) for m in w.got)])[0]
    other = idle if taken is leased else leased
    driver.conn.close()
    assert other.take(ExitWorker).graceful
    number = 1 if taken is idle else 2
    wait_for(lambda: number in bench.launcher.killed)
    assert bench.told_gcs(Died).worker_id == driver.hello.worker_id
    wait_for(lambda: set(bench.launcher.killed) == {1, 2}), "after the grace the idle one, too"


def test_a_worker_without_a_connection_is_given_to_nobody(bench: Bench) -> None:
    driver = bench.driver()
    driver.take(Registered)
    worker = bench.worker(1)
    worker.take(Registered)
    worker.conn.close()
    wait_for(lambda: worker.hello.worker_id not in bench.node.peers)
    driver.send(demand())
    second = bench.worker(2)
    assert driver.take(LeaseGrant).worker[1] == second.hello.worker_id
    bench.exits(1, 9)


def test_nobody_can_pretend_to_be_an_ordered_worker(bench: Bench) -> None:
    bench.driver().take(Registered)
    wait_for(lambda: 1 in bench.launcher.orders)
    fake = Client(bench, Hello("worker", b"z" * 28, NODE, b"", 1, 1.0, ""))
    fake.send(Register(False, 1, {}))
    wait_for(lambda: fake.closed)
    early = Client(bench, Hello("worker", b"y" * 28, NODE, b"", 1, 1.0, ""))
    early.send(demand())
    wait_for(lambda: early.closed)


def test_lines_reach_the_driver_and_acks_give_credit(bench: Bench) -> None:
    driver = bench.driver()
    driver.take(Registered)
    bench.worker(1).take(Registered)
    pipe = bench.node.logs._sources[1].pipes[0]
    os.write(pipe.fd, b"hello\nworld\n")
    assert driver.take(LogLines) == LogLines(4001, "worker", False, ["hello", "world"])
    wait_for(lambda: bench.node.logs._under_way == {JOB: 12})
    driver.send(LogAck(12))
    wait_for(lambda: bench.node.logs._under_way == {JOB: 0})


def test_a_driver_that_wants_no_lines_gets_none_and_holds_up_nobody(bench: Bench) -> None:
    driver = bench.driver(log_to_driver=False)
    driver.take(Registered)
    bench.worker(1).take(Registered)
    os.write(bench.node.logs._sources[1].pipes[0].fd, b"hello\n")
    assert driver.ask("flush_logs").ok
    assert not any(isinstance(m, LogLines) for m in driver.got)
    assert not bench.node.logs._under_way


def test_the_store_answers_its_writers(bench: Bench) -> None:
    driver = bench.driver()
    driver.take(Registered)
    driver.send(ExtentRequest(5, 4096))
    grant = driver.take(ExtentGrant)
    assert grant.request_id == 5
    assert os.path.exists(bench.folder / "segments" / grant.name)


def test_requests_of_tools(bench: Bench) -> None:
    tool = Client(bench, Hello("tool", os.urandom(28), b"", b"", 1, 1.0, ""))
    assert tool.ask("node_info").value["node_id"] == NODE
    assert tool.ask("stats").value["workers"]["IDLE"] == 0
    unknown = tool.ask("nonsense")
    assert not unknown.ok and "nonsense" in unknown.value[1]


def test_a_start_that_fails_three_times_is_told_with_its_reason(bench: Bench) -> None:
    driver = bench.driver()
    driver.take(Registered)
    wait_for(lambda: len(bench.launcher.orders) == 2)
    events, text = bench.launcher.events, "cannot fork: no more processes"
    bench.do(lambda: events.on_failed(1, text))
    bench.do(lambda: events.on_failed(2, text))
    driver.send(demand())
    wait_for(lambda: 3 in bench.launcher.orders)
    bench.do(lambda: events.on_failed(3, text))
    error = driver.take(LeaseInfeasible)
    assert error.fatal and "no more processes" in error.text


def test_the_end_of_a_node_leaves_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, shutdown_grace_s=0.01)
    driver = bench.driver()
    driver.take(Registered)
    worker = bench.worker(1)
    worker.take(Registered)
    os.write(bench.node.logs._sources[1].pipes[0].fd, b"no newline at the end")
    bench.end()
    assert worker.take(ExitWorker).graceful
    assert driver.take(LogLines).lines == ["no newline at the end"]
    wait_for(lambda: driver.closed)
    assert bench.launcher.closed
    assert not bench.folder.exists()
    bench.close()


def test_a_lost_launcher_ends_the_session(bench: Bench) -> None:
    driver = bench.driver()
    driver.take(Registered)
    bench.do(lambda: bench.launcher.events.on_launcher_lost("its zygote died"))
    assert bench.ended == ["its zygote died"]
    assert "its zygote died" in driver.take(LogLines).lines[0]


def test_an_idle_node_has_no_timer(bench: Bench) -> None:
    driver = bench.driver()
    driver.take(Registered)
    for number in (1, 2):
        bench.worker(number).take(Registered)
    time.sleep(0)
    wait_for(lambda: bench.node._timer is None)
