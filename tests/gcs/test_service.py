"""The GCS with fake connections, a fake node and a hand-turned reactor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minray.gcs.answers import AnswerTable
from minray.gcs.service import GcsService
from minray.gcs.tables import Tables, TablesError
from minray.wire.messages import (
    ActorUpdate,
    Died,
    Message,
    Reply,
    Request,
    StartActor,
    StopActor,
    unpack,
)
from tests.gcs.support import JOB, NODE, OWNER, actor_id, ended, spec, started


class Reactor:
    """Runs what was asked for when told to."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.later: list[Callable[[], None]] = []

    def call_soon(self, fn: Callable[[], None]) -> None:
        self.soon.append(fn)

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> None:
        self.later.append(fn)

    def turn(self) -> None:
        while self.soon:
            self.soon.pop(0)()


class Peer:
    def __init__(self) -> None:
        self.got: list[Message] = []

    def send(self, message: tuple[Any, ...]) -> None:
        self.got.append(unpack(message))

    def cork(self) -> bool:
        return False

    def uncork(self) -> None:
        raise AssertionError("it was not corked")


HEADS: list[Head] = []


@pytest.fixture(autouse=True)
def no_head_keeps_its_tables_open() -> Iterator[None]:
    yield
    while HEADS:
        HEADS.pop().gcs.close()


class Head:
    def __init__(self, tables: Tables | None = None, join: bool = True) -> None:
        HEADS.append(self)
        self.reactor = Reactor()
        self.to_node: list[Message] = []
        self.tables = Tables() if tables is None else tables
        self.gcs = GcsService(
            self.reactor,
            self.tables,
            wall=lambda: 1000.0,
            make_namespace=lambda: "anonymous",
            available=lambda: [{"CPU": 5_000, "GPU": 0}],
        )
        if join:
            self.gcs.attach_node(NODE, self.to_node.append)
            self.node(Request(1, "add_node", ({"node_id": NODE, "resources": {"CPU": 20_000}},)))
            assert self.to_node.pop() == Reply(1, True, {"heartbeat_s": 1.0})

    def node(self, message: Message) -> None:
        before = len(self.to_node)
        self.gcs.on_node(NODE, message)
        assert len(self.to_node) == before, "the node was called from inside its own call"
        self.reactor.turn()
        self.gcs.check_invariants()

    def ask(self, peer: Peer, method: str, *args: Any) -> Any:
        peer.got.clear()
        self.gcs.on_request(peer, Request(5, method, args))
        assert not peer.got, "a reply left before the end of the turn"
        self.reactor.turn()
        self.gcs.check_invariants()
        (reply,) = [m for m in peer.got if isinstance(m, Reply)]
        assert reply.request_id == 5
        return reply.value if reply.ok else reply


def test_an_actors_life_through_the_service() -> None:
    head, peer, other = Head(), Peer(), Peer()
    aid = actor_id(1)
    assert head.ask(peer, "create_actor", spec(name="a"))["created"]
    assert head.to_node == [StartActor(aid, 0, spec(name="a"))]
    head.node(started(aid))
    assert [(m.state, m.address is not None) for m in peer.got if isinstance(m, ActorUpdate)] == [
        ("ALIVE", True)
    ]
    assert head.ask(other, "get_actor", "a", "ns")["actor_id"] == aid
    assert head.ask(other, "subscribe_actor", aid) is True
    assert [type(m) for m in other.got] == [ActorUpdate, Reply]
    assert head.ask(other, "list_named_actors", True, "") == [{"name": "a", "namespace": "ns"}]
    assert head.ask(other, "list_named_actors", False, "nowhere") == []
    assert head.ask(peer, "kill_actor", aid, True) is True
    assert isinstance(head.to_node[-1], StopActor)
    assert [m.state for m in other.got if isinstance(m, ActorUpdate)] == ["DEAD"]
    assert head.ask(peer, "gcs_stats")["actors"]["DEAD"] == 1


def test_errors_travel_as_their_kind_and_text() -> None:
    head, peer = Head(), Peer()
    assert head.ask(peer, "get_actor", "a", "ns").value[0] == "ValueError"
    assert head.ask(peer, "kill_actor", actor_id(9), True).value[0] == "ActorHandleNotFoundError"
    head.ask(peer, "create_actor", spec(1, name="a"))
    assert head.ask(peer, "create_actor", spec(2, name="a")).value[0] == "ActorAlreadyExistsError"
    assert "malformed: TypeError" in head.ask(peer, "kill_actor").value[1]
    assert "no method 'flush'" in head.ask(peer, "flush").value[1]
    assert "no method 'add_job'" in head.ask(peer, "add_job", {}).value[1]


def test_jobs_and_the_end_of_their_drivers() -> None:
    head, peer = Head(), Peer()
    info = {"driver_worker_id": OWNER, "driver_pid": 1}
    head.node(Request(2, "add_job", (info,)))
    assert head.to_node.pop() == Reply(2, True, {"job_id": JOB, "namespace": "anonymous"})
    head.ask(peer, "create_actor", spec(1))
    head.ask(peer, "create_actor", spec(2, lifetime="detached"))
    head.node(Died(OWNER, -1, -1, -1, {"text": "signal 9"}))
    assert [m.actor_id for m in head.to_node if isinstance(m, StopActor)] == [actor_id(1)]
    assert [job["is_dead"] for job in head.ask(peer, "jobs")] == [True]
    head.node(Request(3, "finish_job", (JOB,)))
    assert head.to_node[-1] == Reply(3, True, False)


def test_an_actor_that_is_asked_for_after_the_end_of_its_owner() -> None:
    """Its request took longer than the news of its end."""
    head, peer = Head(), Peer()
    head.node(Request(2, "add_job", ({"driver_worker_id": OWNER, "driver_pid": 1},)))
    assert head.ask(peer, "create_actor", spec(1))["created"]
    head.node(Died(OWNER, -1, -1, -1, {"text": "signal 9"}))
    assert head.ask(peer, "create_actor", spec(1))["created"], "this is the same request, asked again"
    refused = head.ask(peer, "create_actor", spec(2))
    assert refused.value[0] == "RaySystemError"
    assert "has ended" in refused.value[1] and actor_id(2).hex() in refused.value[1]
    assert head.ask(peer, "create_actor", spec(3, lifetime="detached"))["created"]
    assert head.ask(peer, "create_actor", spec(4, owner=(NODE, b"w" * 28, "unix:/w")))["created"], "of a detached one"
    head.node(Died(b"w" * 28, -1, -1, -1, {"text": "signal 9"}))
    refused = head.ask(peer, "create_actor", spec(6, owner=(NODE, b"w" * 28, "unix:/w")))
    assert "the process that asked for it has ended" in refused.value[1]
    head.gcs.node_lost(NODE, "it has not reported for 5 s")
    refused = head.ask(peer, "create_actor", spec(5, owner=(NODE, b"v" * 28, "unix:/v")))
    assert "it has not reported for 5 s" in refused.value[1]
    assert "detached" in refused.value[1]


def test_a_workers_death_ends_the_actors_that_it_owns() -> None:
    head, peer = Head(), Peer()
    head.ask(peer, "create_actor", spec(1, owner=(NODE, b"w" * 28, "unix:/w")))
    head.node(Died(b"w" * 28, -1, -1, -1, {"text": "signal 9"}))
    (update,) = [m for m in peer.got if isinstance(m, ActorUpdate)]
    assert update.state == "DEAD" and "signal 9" in update.cause["text"]


def test_an_owner_whom_its_node_does_not_remember_is_dead() -> None:
    head, peer = Head(), Peer()
    head.ask(peer, "create_actor", spec(1, owner=(NODE, b"w" * 28, "unix:/w")))
    head.ask(peer, "create_actor", spec(2, owner=(b"o" * 28, b"v" * 28, "unix:/v")))
    for who in (b"v", b"w"):
        head.node(Died(who * 28, -1, -1, -1, {"text": "not alive", "unknown": True}))
    updates = [m for m in peer.got if isinstance(m, ActorUpdate)]
    assert [(update.actor_id, update.state) for update in updates] == [(actor_id(1), "DEAD")]


def test_a_closed_connection_loses_its_subscriptions_but_nothing_dies() -> None:
    head, peer, other = Head(), Peer(), Peer()
    head.ask(peer, "create_actor", spec(1))
    head.ask(other, "subscribe_actor", actor_id(1))
    head.gcs.on_close(peer)
    head.gcs.on_close(Peer())
    peer.got.clear()
    head.node(started(actor_id(1)))
    assert peer.got == [] and [type(m) for m in other.got][-1] is ActorUpdate
    head.node(ended(actor_id(1)))


def test_resources_and_nodes_are_shown_in_floats() -> None:
    head, peer = Head(), Peer()
    assert head.ask(peer, "cluster_resources") == {"CPU": 2.0}
    assert head.ask(peer, "available_resources") == {"CPU": 0.5}
    assert [n["NodeID"] for n in head.ask(peer, "nodes")] == [NODE.hex()]


def test_key_values() -> None:
    head, peer = Head(), Peer()
    assert head.ask(peer, "kv_put", b"k", b"v", True, b"") is False
    assert head.ask(peer, "kv_get", b"k", b"") == b"v"
    assert head.ask(peer, "kv_exists", b"k", b"") is True
    assert head.ask(peer, "kv_keys", b"", b"") == [b"k"]
    assert head.ask(peer, "kv_del", b"k", False, b"") == 1
    assert head.ask(peer, "kv_put", "k", b"v", True, b"").value[0] == "RaySystemError"


def test_actors_wait_for_the_first_node() -> None:
    head, peer = Head(join=False), Peer()
    head.ask(peer, "create_actor", spec(1))
    head.gcs.attach_node(NODE, head.to_node.append)
    head.gcs.on_node(NODE, Request(1, "add_node", ({"node_id": NODE},)))
    head.reactor.turn()
    assert [type(m) for m in head.to_node] == [StartActor, Reply]


def test_a_lost_node() -> None:
    head, peer = Head(), Peer()
    head.ask(peer, "create_actor", spec(1))
    head.gcs.node_lost(NODE, "no heartbeat")
    head.gcs.node_lost(NODE, "no heartbeat")
    head.reactor.turn()
    assert [m.state for m in peer.got if isinstance(m, ActorUpdate)] == ["DEAD"]
    assert head.ask(peer, "nodes")[0]["Alive"] is False


def test_memory_commits_later_once_and_replies_do_not_wait() -> None:
    head, peer = Head(), Peer()
    head.ask(peer, "kv_put", b"k", b"v", True, b"")
    head.ask(peer, "kv_put", b"l", b"v", True, b"")
    assert len(head.reactor.later) == 1 and head.tables.dirty
    head.reactor.later.pop()()
    assert not head.tables.dirty and len(head.tables.load("kv")) == 2
    head.ask(peer, "kv_get", b"k", b"")
    assert head.reactor.later == []
    head.gcs.close()


def test_a_file_is_written_before_the_reply_leaves_and_read_by_the_next_head(tmp_path: Path) -> None:
    path = str(tmp_path / "gcs.sqlite")
    order: list[str] = []

    class Witness(Tables):
        def commit(self) -> None:
            order.append("commit")
            super().commit()

    class Hearer(Peer):
        def send(self, message: tuple[Any, ...]) -> None:
            order.append("send")
            super().send(message)

    head, peer = Head(Witness(path)), Hearer()
    order.clear()
    assert head.ask(peer, "create_actor", spec(1, name="a"))["created"]
    head.ask(peer, "kv_put", b"k", b"v", True, b"")
    assert order == ["commit", "send", "commit", "send"]
    head.gcs.close()
    again = Head(Tables(path))
    assert again.ask(peer, "get_actor", "a", "ns")["actor_id"] == actor_id(1)
    assert again.ask(peer, "kv_get", b"k", b"") == b"v"
    again.gcs.close()


def test_a_full_disk_is_an_error_to_who_asked_and_nothing_follows_until_there_is_room(tmp_path: Path) -> None:
    class Full(Tables):
        full = False

        def commit(self) -> None:
            if self.dirty and self.full:
                raise TablesError("cannot write the head's tables: disk full")
            super().commit()

    tables = Full(str(tmp_path / "gcs.sqlite"))
    head, peer, other = Head(tables), Peer(), Peer()
    assert head.ask(peer, "create_actor", spec(1, name="old"))["created"]
    head.node(started(actor_id(1)))
    head.to_node.clear()
    tables.full = True
    answer = head.ask(peer, "create_actor", spec(2, name="new"))
    assert not answer.ok and "disk full" in answer.value[1] and answer.value[0] == "RaySystemError"
    for refused in (("kv_put", b"k", b"v", True, b""), ("kill_actor", actor_id(1), True), ("create_actor", spec(3))):
        answer = head.ask(other, *refused)
        assert not answer.ok and "disk full" in answer.value[1], refused
    assert head.ask(other, "kv_get", b"k", b"") is None, "who only wants to know something is told"
    assert head.ask(other, "get_actor", "old", "ns")["state"] == "ALIVE"
    peer.got.clear()
    head.node(ended(actor_id(1), text="exit code 7"))  # it happens all the same, but nobody hears of it yet
    assert not peer.got and not head.to_node
    tables.full = False
    head.reactor.later.pop()()
    head.reactor.turn()
    assert [(m.actor_id, m.state) for m in peer.got if isinstance(m, ActorUpdate)] == [
        (actor_id(2), "DEAD"), (actor_id(1), "DEAD"),
    ]  # fmt: skip
    assert [type(m) for m in head.to_node] == [StartActor, StopActor], "what was refused is not left running"
    assert head.ask(other, "kv_put", b"k", b"v", True, b"") is False
    head.gcs.close()
    again = Head(Tables(str(tmp_path / "gcs.sqlite")))
    assert again.ask(other, "kv_get", b"k", b"") == b"v"
    assert not again.ask(other, "get_actor", "new", "ns").ok


def test_a_request_that_must_not_be_done_twice_is_done_once(tmp_path: Path) -> None:
    path, peer, me = str(tmp_path / "gcs.sqlite"), Peer(), b"m" * 28
    put = ("kv_put", (b"k", b"mine", False, b""))
    head = Head(Tables(path))
    assert head.ask(peer, "once", me, 5, *put) is False
    head.gcs.close()
    head = Head(Tables(path))
    assert head.ask(peer, "once", me, 5, *put) is False, "asked again: the same answer"
    assert head.ask(Peer(), "once", b"x" * 28, 5, *put) is True, "somebody else is too late"
    for number, wrong in enumerate(((5, "once", ()), (5, "nonsense", ()), (1,))):
        assert not head.ask(Peer(), "once", bytes([number]) * 28, *wrong).ok
    head.node(Died(me, -1, -1, -1, {"text": "gone"}))
    head.gcs.close()
    tables = Tables(path)
    assert [key for key, _ in tables.load("answers") if key.startswith(me)] == []
    tables.close()


def test_answers_are_kept_until_they_are_heard() -> None:
    table, rows, me = AnswerTable(most=2), {}, b"m" * 28
    for number, floor in ((1, 1), (2, 1), (5, 3)):
        rows.update((key, row) for _, _, key, row in table.note(me, floor, Reply(number, True, number * 10)))
    table.check_invariants()
    kept = [(key, row) for key, row in rows.items() if row is not None]
    again = AnswerTable()
    again.restore(kept)
    for one in (table, again):
        assert [one.recall(me, number) for number in (1, 2, 5)] == [None, None, Reply(5, True, 50)]
    for other in (b"x", b"y"):  # who has said nothing for longest is forgotten
        table.note(other * 28, 1, Reply(1, False, ("ValueError", "no")))
    assert table.recall(me, 5) is None and table.recall(b"x" * 28, 1) == Reply(1, False, ("ValueError", "no"))
    table.check_invariants()


def test_messages_that_no_node_sends_are_refused() -> None:
    with pytest.raises(TypeError, match="no StartActor"):
        Head().gcs.on_node(NODE, StartActor(b"", 0, {}))
