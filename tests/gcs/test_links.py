"""The GCS among several nodes: joining, news, deadlines, fences, jobs and deaths across nodes. No process."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from minray._base.config import Config
from minray.gcs.service import GcsService
from minray.gcs.tables import Tables
from minray.wire.codec import decode
from minray.wire.messages import (
    ActorUpdate,
    ClusterView,
    Died,
    Fenced,
    Introduce,
    Message,
    NodeReport,
    Reply,
    Request,
    StartActor,
    StopActor,
    Watch,
    unpack,
)
from tests.gcs.support import JOB, NODE, OWNER, actor_id, ended, spec, started
from tests.gcs.test_service import Peer

M = TypeVar("M", bound=Message)
CPU = {"CPU": 10_000}


class Clock:
    """A reactor whose time the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.soon: list[Callable[[], None]] = []
        self.later: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def call_soon(self, fn: Callable[[], None]) -> None:
        self.soon.append(fn)

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> None:
        heapq.heappush(self.later, (self.now + delay_s, next(self._count), fn))

    def turn(self) -> None:
        while self.soon:
            self.soon.pop(0)()

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        self.turn()
        while self.later and self.later[0][0] <= end:
            due, _, fn = heapq.heappop(self.later)
            self.now = max(self.now, due)
            fn()
            self.turn()
        self.now = end


class Link:
    """A node's connection."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.frames: list[bytes] = []
        self.closed = False

    def send(self, message: tuple[Any, ...]) -> None:
        assert not self.closed
        self.got.append(unpack(message))

    def send_frame(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.send(decode(frame[4:]))

    def close(self) -> None:
        self.closed = True

    def take(self, kind: type[M]) -> list[M]:
        found = [message for message in self.got if isinstance(message, kind)]
        self.got = [message for message in self.got if not isinstance(message, kind)]
        return found


class World:
    """A head with its own node."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.local: list[Message] = []
        self.gcs = GcsService(
            self.clock,
            Tables(),
            wall=lambda: 1.0,
            make_namespace=lambda: "made up",
            available=lambda: [{"CPU": 5_000}],
            config=Config(node_timeout_s=8.0),
            now=lambda: self.clock.now,
        )
        self.gcs.attach_node(NODE, self.local.append)
        self.says(NODE, Request(1, "add_node", ({"node_id": NODE, "resources": CPU},)))
        self.links: dict[bytes, Link] = {}

    def says(self, node_id: bytes, message: Message) -> None:
        self.gcs.on_node(node_id, message)
        self.clock.turn()
        self.gcs.check_invariants()

    def join(self, number: int, link: Link | None = None, **info: Any) -> tuple[bytes, Link]:
        node_id = bytes([number]) * 28
        link = self.links[node_id] = link or Link()
        made = {"node_id": node_id, "resources": CPU, "endpoint": f"tcp:n{number}:1", **info}
        self.gcs.admit_node(node_id, link, Request(0, "add_node", (made,)))
        self.clock.turn()
        self.gcs.check_invariants()
        return node_id, link

    def ask(self, method: str, *args: Any) -> Any:
        peer = Peer()
        self.gcs.on_request(peer, Request(5, method, args))
        self.clock.turn()
        (reply,) = [message for message in peer.got if isinstance(message, Reply)]
        return reply.value


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.gcs.close()


def test_a_session_of_one_node_has_no_timer_and_no_news(world: World) -> None:
    world.says(NODE, NodeReport({}, CPU, 0, []))
    world.clock.later = [entry for entry in world.clock.later if "commit" not in repr(entry[2])]
    assert world.clock.later == []
    assert not [message for message in world.local if isinstance(message, ClusterView)]


def test_joining(world: World) -> None:
    node, link = world.join(1, labels={"zone": "a"})
    assert link.take(Reply) == [Reply(0, True, {"heartbeat_s": 1.0})]
    world.clock.pass_time(0.01)
    (view,) = link.take(ClusterView)
    assert [row[0] for row in view.nodes] == [NODE, node]
    assert view.nodes[1] == (node, "tcp:n1:1", "127.0.0.1", CPU, CPU, {"zone": "a"}, 0)
    (view,) = [message for message in world.local if isinstance(message, ClusterView)]
    assert [row[0] for row in view.nodes] == [NODE, node]  # a newcomer too: it had not heard of anybody
    assert [shown["Alive"] for shown in world.ask("nodes")] == [True, True]
    assert world.ask("cluster_resources") == {"CPU": 2.0}


def test_news_come_in_batches_and_are_encoded_once(world: World) -> None:
    (first, one), (_, two) = world.join(1), world.join(2)
    world.clock.pass_time(1.0)
    for link in (one, two):
        link.got.clear(), link.frames.clear()
    for cpus in (9_000, 8_000):
        world.says(first, NodeReport({"CPU": cpus}, CPU, 1, []))
        world.clock.pass_time(0.02)
    assert [view.nodes[0][4] for view in two.take(ClusterView)] == [{"CPU": 9_000}]  # at once, after a silence
    world.clock.pass_time(0.2)
    assert two.take(ClusterView) == [
        ClusterView([(first, None, None, None, {"CPU": 8_000}, None, 1)], [])
    ]
    assert one.frames[-1] is two.frames[-1]
    world.says(first, NodeReport({"CPU": 8_000}, CPU, 1, []))
    world.clock.pass_time(1.0)
    assert two.take(ClusterView) == []  # nothing new
    assert world.ask("available_resources") == {"CPU": 0.5 + 0.8 + 1.0}
    (shown,) = [node for node in world.ask("cluster_status") if node["node_id"] == first.hex()]
    assert shown["available"] == {"CPU": 0.8} and shown["load"] == 1


def test_a_silent_node_is_lost_and_fenced(world: World) -> None:
    (quiet, one), (busy, two) = world.join(1), world.join(2)
    for _ in range(20):
        world.clock.pass_time(0.5)
        world.says(busy, NodeReport(CPU, CPU, 0, []))
    assert one.closed and one.take(Fenced)[0].reason == "it has not reported for 8 s"
    assert not two.closed
    assert [view.gone for view in two.take(ClusterView) if view.gone] == [[quiet]]
    dead = [node for node in world.ask("nodes") if not node["Alive"]]
    assert [node["NodeID"] for node in dead] == [quiet.hex()] and "8 s" in dead[0]["DeathReasonMessage"]
    world.says(quiet, NodeReport({}, CPU, 0, []))  # it is ignored
    world.gcs.node_closed(quiet, one, "the connection has ended")
    late = Link()
    world.join(1, late)
    assert late.closed and "8 s" in late.take(Fenced)[0].reason


def test_a_node_of_another_head_is_refused(world: World) -> None:
    _, link = world.join(1, again=True)
    assert link.closed and "another one" in link.take(Fenced)[0].reason
    assert [shown["Alive"] for shown in world.ask("nodes")] == [True]
    _, link = world.join(1)
    assert not link.closed


def test_a_head_that_slept_blames_nobody(world: World) -> None:
    _, link = world.join(1)
    world.clock.pass_time(1.0)
    world.clock.now += 60.0  # SIGSTOP: no timer ran meanwhile
    world.clock.pass_time(0.1)
    assert not link.closed
    world.clock.pass_time(9.0)
    assert link.closed


def test_a_closed_connection_is_the_nodes_end_and_its_return_is_refused(world: World) -> None:
    node, link = world.join(1)
    world.gcs.node_closed(node, Link(), "an older one")
    assert [n["Alive"] for n in world.ask("nodes")] == [True, True]
    world.gcs.node_closed(node, link, "its connection has ended")
    assert [n["Alive"] for n in world.ask("nodes")] == [True, False]
    back = Link()
    world.join(1, back)
    assert back.take(Fenced) and back.closed


def test_a_second_connection_of_a_living_node_fences_it(world: World) -> None:
    world.join(1)
    again = Link()
    world.join(1, again)
    assert "lost" in again.take(Fenced)[0].reason and again.closed
    assert [n["Alive"] for n in world.ask("nodes")] == [True, False]


def test_leaving_in_good_order(world: World) -> None:
    node, _ = world.join(1)
    world.says(node, Request(0, "leave", ("it was told to",)))
    assert [n["DeathReasonMessage"] for n in world.ask("nodes")] == ["", "it was told to"]


def test_the_end_of_the_head_is_the_end_of_its_nodes(world: World) -> None:
    node, link = world.join(1)
    world.gcs.end("signal 15")
    assert "the head of the cluster has ended: signal 15" in link.take(Fenced)[0].reason
    world.gcs.node_closed(node, link, "closed")
    assert all(n["Alive"] for n in world.ask("nodes"))  # nobody is told what nobody needs to know any more


def add_job(world: World, node_id: bytes, driver: bytes = OWNER, config: Any = None) -> bytes:
    info = {"driver_worker_id": driver, "node_id": node_id, "config": config}
    before = len(world.local)
    world.says(node_id, Request(9, "add_job", (info,)))
    got = world.links[node_id].take(Reply)[-1] if node_id in world.links else world.local[before]
    assert isinstance(got, Reply)
    return bytes(got.value["job_id"])


def test_a_job_is_introduced_to_a_node_before_its_first_actor_there(world: World) -> None:
    node, link = world.join(1)
    config = {"sys_path": ["/x"], "env_vars": {"A": "1"}, "namespace": ""}
    assert add_job(world, NODE, config=config) == JOB
    for number in (1, 2):
        world.ask("create_actor", spec(number, strategy=("affinity", node, False)))
    wanted = {**config, "namespace": "made up", "ended": False}
    kinds = [type(message) for message in link.got if not isinstance(message, ClusterView)]
    assert kinds[-3:] == [Introduce, StartActor, StartActor]
    assert link.take(Introduce) == [Introduce(JOB, wanted)]
    world.ask("create_actor", spec(3, strategy=("affinity", NODE, False)))
    assert not [message for message in world.local if isinstance(message, Introduce)]  # it is at home there
    assert all(job.keys() >= {"job_id", "is_dead"} and "config" not in job for job in world.ask("jobs"))


def test_of_a_job_that_is_over_a_node_hears_each_time(world: World) -> None:
    """It forgets what it has no use for; a detached actor may come to it again, even to its driver's node."""
    node, link = world.join(1)
    add_job(world, NODE, config={"sys_path": ["/x"]})
    made = {"lifetime": "detached", "options": {"max_restarts": -1}, "strategy": ("affinity", node, False)}
    world.ask("create_actor", spec(1, **made))
    world.ask("create_actor", spec(2, **{**made, "strategy": ("affinity", NODE, False)}))
    assert len(link.take(Introduce)) == 1
    world.says(NODE, Died(OWNER, -1, -1, -1, {"text": "exit code 0"}))
    for node_id, number, got in ((node, 1, link.got), (NODE, 2, world.local)):
        got.clear()
        for incarnation in range(2):
            world.says(node_id, ended(actor_id(number), incarnation))
        introductions = [message for message in got if isinstance(message, Introduce)]
        assert [message.job_config["ended"] for message in introductions] == [True, True]


def test_whoever_waits_for_the_end_of_a_job_hears_it(world: World) -> None:
    node, link = world.join(1)
    add_job(world, NODE)
    link.got.clear()
    world.says(node, Request(7, "job_end", (JOB,)))
    assert link.take(Reply) == []
    world.says(NODE, Died(OWNER, -1, -1, -1, {"text": "exit code 0"}))
    assert link.take(Reply) == [Reply(7, True, True)]
    world.says(node, Request(8, "job_end", (JOB,)))
    assert link.take(Reply) == [Reply(8, True, True)]


def test_the_jobs_of_a_lost_nodes_drivers_are_over(world: World) -> None:
    node, _ = world.join(1)
    add_job(world, node)
    world.ask("create_actor", spec(strategy=("affinity", NODE, False), owner=(node, OWNER, "")))
    world.gcs.node_lost(node, "no heartbeat")
    world.clock.turn()
    assert [job["is_dead"] for job in world.ask("jobs")] == [True]
    assert [m.actor_id for m in world.local if isinstance(m, StopActor)] == [actor_id(1)]


def test_an_actor_on_a_lost_node_restarts_on_another(world: World) -> None:
    (first, one), (second, two) = world.join(1, resources={"x": 1}), world.join(2, resources={"x": 1})
    peer = Peer()
    made = spec(placement_resources={"x": 1}, options={"max_restarts": 1})
    world.gcs.on_request(peer, Request(5, "create_actor", (made,)))
    world.clock.turn()
    here, there = ((first, second), (one, two))
    if not one.take(StartActor):
        here, there = (second, first), (two, one)
        assert two.take(StartActor)
    world.says(here[0], started(actor_id(1)))
    world.gcs.node_lost(here[0], "no heartbeat")
    world.clock.turn()
    assert there[1].take(StartActor) == [StartActor(actor_id(1), 1, made)]
    states = [message.state for message in peer.got if isinstance(message, ActorUpdate)]
    assert states == ["ALIVE", "RESTARTING"]


def test_watching_across_nodes(world: World) -> None:
    (first, one), (second, two) = world.join(1), world.join(2)
    worker = b"w" * 28
    world.says(first, Watch(worker, second))
    assert two.take(Watch) == [Watch(worker, second)]
    world.says(NODE, Watch(worker, second))
    died = Died(worker, -1, -1, -1, {"text": "exit code 1"})
    world.says(second, died)
    assert one.take(Died) == [died] and [m for m in world.local if isinstance(m, Died)] == [died]
    world.says(first, Watch(worker, b"?" * 28))
    assert "does not know it" in one.take(Died)[0].cause["text"]
    world.says(first, Watch(b"v" * 28, second))
    world.gcs.node_lost(second, "no heartbeat")
    world.clock.turn()
    (died,) = one.take(Died)
    assert died.worker_id == b"v" * 28 and died.cause["node_died"]
    assert world.ask("gcs_stats")["watches"] == 0


def test_an_answer_about_a_stranger_ends_nobodys_actors(world: World) -> None:
    node, _ = world.join(1)
    world.ask("create_actor", spec())
    world.says(node, Died(OWNER, -1, -1, -1, {"text": "who?", "unknown": True}))
    assert world.ask("gcs_stats")["actors"]["PENDING"] == 1
