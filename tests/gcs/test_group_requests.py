"""Placement groups through the GCS's service: replies that come late, actors that wait for their group, timers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minray._base.groups import GONE
from minray.gcs.tables import Tables
from minray.wire.messages import (
    ActorUpdate,
    BundlesPrepared,
    CommitBundles,
    Died,
    PrepareBundles,
    ReleaseBundles,
    Reply,
    Request,
    StartActor,
)
from tests.gcs.support import JOB, NODE, OWNER, actor_id, ended, spec, started
from tests.gcs.test_service import Head, Peer, no_head_keeps_its_tables_open

__all__ = ["no_head_keeps_its_tables_open"]

GROUP, OTHER = b"g" * 14 + JOB, b"h" * 14 + JOB
HALF = {"CPU": 5_000}  # what the node of these tests has free


def group_spec(group_id: bytes = GROUP, *bundles: dict[str, int], **fields: Any) -> dict[str, Any]:
    return {
        "group_id": group_id,
        "job_id": JOB,
        "creator_actor": None,
        "name": "",
        "namespace": "ns",
        "lifetime": None,
        "strategy": "PACK",
        "bundles": list(bundles) or [HALF],
        "selectors": [],
        "soft_target": None,
        **fields,
    }


def prepared(head: Head, group_id: bytes = GROUP, attempt: int = 1, ok: bool = True) -> None:
    head.node(BundlesPrepared(group_id, attempt, ok, NODE))


def wait(head: Head, peer: Peer, group_id: bytes, number: int = 9) -> list[Any]:
    """Ask and see what came at once."""
    peer.got.clear()
    head.gcs.on_request(peer, Request(number, "wait_placement_group", (group_id,)))
    head.reactor.turn()
    head.gcs.check_invariants()
    return list(peer.got)


def in_group(number: int, index: int = -1, group_id: bytes = GROUP, **fields: Any) -> dict[str, Any]:
    return spec(number, placement_group=(group_id, index, False, ()), **fields)


def test_a_groups_life_through_the_service() -> None:
    head, peer, other = Head(), Peer(), Peer()
    assert head.ask(peer, "create_placement_group", group_spec(name="x")) == {
        "state": "PREPARING",
        "warning": None,
    }
    assert head.to_node == [PrepareBundles(GROUP, 1, [(0, HALF)])]
    assert wait(head, other, GROUP) == []
    prepared(head)
    assert head.to_node[1:] == [CommitBundles(GROUP, 1)]
    assert other.got == [Reply(9, True, "CREATED")]
    assert wait(head, other, GROUP) == [Reply(9, True, "CREATED")]
    assert head.ask(other, "get_placement_group", "x", "ns") == {"group_id": GROUP, "bundles": [HALF]}
    assert head.ask(other, "placement_group_bundles", GROUP) == [HALF]
    shown = head.ask(other, "list_placement_groups")
    assert shown == head.ask(other, "list_placement_groups", GROUP)
    assert shown[GROUP.hex()]["bundles_to_node_id"] == {0: NODE.hex()}
    assert head.ask(peer, "gcs_stats")["placement_groups"]["CREATED"] == 1
    assert head.ask(other, "remove_placement_group", GROUP) is True
    assert isinstance(head.to_node[-1], ReleaseBundles)
    assert head.ask(other, "get_placement_group", "x", "ns").value[0] == "ValueError"


def test_waiting_for_what_is_removed_or_unknown() -> None:
    head, peer = Head(), Peer()
    head.ask(peer, "create_placement_group", group_spec(GROUP, {"CPU": 10**9}))
    assert wait(head, peer, GROUP) == []
    head.gcs.on_request(Peer(), Request(1, "remove_placement_group", (GROUP,)))
    head.reactor.turn()
    (reply,) = peer.got
    assert isinstance(reply, Reply)
    assert (reply.ok, reply.value[0]) == (False, "ValueError")
    assert "was removed" in reply.value[1]
    assert wait(head, peer, GROUP)[0].ok is False
    assert "does not know" in wait(head, peer, OTHER)[0].value[1]
    assert "malformed" in head.ask(peer, "wait_placement_group").value[1]


def test_waiters_that_give_up_or_go_away() -> None:
    head, patient, bored, gone = Head(), Peer(), Peer(), Peer()
    head.ask(patient, "create_placement_group", group_spec())
    for peer in (patient, bored, gone):
        assert wait(head, peer, GROUP) == []
    head.ask(bored, "unwait_placement_group", GROUP, 9)
    head.gcs.on_close(gone)
    bored.got.clear()
    prepared(head)
    assert patient.got == [Reply(9, True, "CREATED")]
    assert bored.got == []


def test_a_node_waits_for_a_group_too() -> None:
    head, peer = Head(), Peer()
    head.ask(peer, "create_placement_group", group_spec())
    head.node(Request(33, "wait_placement_group", (GROUP,)))
    assert not any(isinstance(m, Reply) for m in head.to_node)
    prepared(head)
    assert head.to_node[-2:] == [CommitBundles(GROUP, 1), Reply(33, True, "CREATED")], "it opens it first"
    head.node(Request(34, "wait_placement_group", (OTHER,)))
    refused = head.to_node[-1]
    assert isinstance(refused, Reply)
    assert not refused.ok


def test_a_group_that_nothing_can_hold_comes_with_a_warning() -> None:
    head, peer = Head(), Peer()
    answer = head.ask(peer, "create_placement_group", group_spec(GROUP, {"CPU": 10**6}, name="big"))
    assert answer["state"] == "PENDING"
    assert "'big'" in answer["warning"]
    assert head.ask(peer, "create_placement_group", group_spec(OTHER, name="big")).value[0] == "RaySystemError"


def test_a_request_that_comes_after_the_end_of_its_job() -> None:
    head, peer = Head(), Peer()
    driver = {"driver_worker_id": b"d" * 28, "node_id": NODE}
    head.node(Request(2, "add_job", (driver,)))
    head.node(Request(3, "finish_job", (JOB,)))
    refused = head.ask(peer, "create_placement_group", group_spec(name="late"))
    assert refused.value[0] == "RaySystemError"
    assert "has ended" in refused.value[1]
    assert head.ask(peer, "list_placement_groups") == {}
    dead = head.ask(peer, "create_placement_group", group_spec(creator_actor=actor_id(7)))
    assert "has ended" in dead.value[1]
    head.ask(peer, "create_actor", spec(7, lifetime="detached", name="keeper"))
    head.ask(peer, "create_placement_group", group_spec(creator_actor=actor_id(7)))
    head.ask(peer, "create_placement_group", group_spec(OTHER, lifetime="detached"))
    assert len(head.ask(peer, "list_placement_groups")) == 2


def test_actors_wait_for_their_group() -> None:
    head, peer = Head(), Peer()
    head.ask(peer, "create_placement_group", group_spec())
    head.ask(peer, "create_actor", in_group(1))
    head.ask(peer, "create_actor", in_group(2, index=0))
    assert not any(isinstance(m, StartActor) for m in head.to_node)
    prepared(head)
    assert [type(m) for m in head.to_node[1:]] == [CommitBundles, StartActor, StartActor]
    head.ask(peer, "create_actor", in_group(3))
    assert isinstance(head.to_node[-1], StartActor)


def test_actors_of_a_group_that_is_removed() -> None:
    head, peer = Head(), Peer()
    head.ask(peer, "create_placement_group", group_spec(GROUP, {"CPU": 10**6}))
    head.ask(peer, "create_actor", in_group(1))
    head.ask(peer, "remove_placement_group", GROUP)
    (update,) = [m for m in peer.got if isinstance(m, ActorUpdate)]
    assert update.state == "DEAD"
    assert update.cause["unschedulable"]
    assert update.cause["text"].startswith(GONE)
    head.ask(peer, "create_actor", in_group(2))
    (update,) = [m for m in peer.got if isinstance(m, ActorUpdate)]
    assert update.cause["text"].startswith(GONE)


def test_an_actor_that_restarts_finds_its_group_removed() -> None:
    head, peer = Head(), Peer()
    head.ask(peer, "create_placement_group", group_spec())
    prepared(head)
    head.ask(peer, "create_actor", in_group(1, options={"max_restarts": -1}))
    head.node(started(actor_id(1)))
    head.ask(peer, "remove_placement_group", GROUP)
    peer.got.clear()
    head.node(ended(actor_id(1)))  # it was killed with the group, or died just before
    states = [m.state for m in peer.got if isinstance(m, ActorUpdate)]
    assert states[-1] == "DEAD"


def test_groups_go_with_their_job_or_with_the_detached_actor_that_made_them() -> None:
    head, peer = Head(), Peer()
    head.node(Request(2, "add_job", ({"driver_worker_id": OWNER},)))
    head.ask(peer, "create_actor", spec(1, lifetime="detached"))
    head.node(started(actor_id(1)))
    head.ask(peer, "create_placement_group", group_spec(GROUP))
    prepared(head)
    head.ask(peer, "create_placement_group", group_spec(OTHER, creator_actor=actor_id(1)))
    prepared(head, OTHER)
    head.node(Died(OWNER, -1, -1, -1, {"text": "gone"}))
    states = {i: shown["state"] for i, shown in head.ask(peer, "list_placement_groups").items()}
    assert states == {GROUP.hex(): "REMOVED", OTHER.hex(): "CREATED"}
    head.ask(peer, "kill_actor", actor_id(1), True)
    assert head.ask(peer, "list_placement_groups", OTHER)[OTHER.hex()]["state"] == "REMOVED"


def test_a_timer_for_what_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    head, peer = Head(), Peer()
    now = 100.0
    monkeypatch.setattr(head.gcs, "_now", lambda: now)
    head.ask(peer, "create_placement_group", group_spec())
    later = len(head.reactor.later)
    prepared(head, ok=False)
    assert len(head.reactor.later) == later + 1
    now += 5
    head.to_node.clear()
    head.reactor.later.pop()()
    head.reactor.turn()
    assert head.to_node == [PrepareBundles(GROUP, 2, [(0, HALF)])]
    assert len(head.reactor.later) == later, "nothing is due while an answer is awaited"


def test_a_lost_node_takes_its_bundles_along() -> None:
    head, peer = Head(), Peer()
    head.ask(peer, "create_placement_group", group_spec())
    prepared(head)
    head.gcs.node_lost(NODE, "it went away")
    head.gcs.check_invariants()
    assert head.ask(peer, "list_placement_groups")[GROUP.hex()]["state"] == "RESCHEDULING"


def test_groups_survive_the_head(tmp_path: Path) -> None:
    path = str(tmp_path / "tables.sqlite")
    head, peer = Head(Tables(path)), Peer()
    head.ask(peer, "create_placement_group", group_spec(name="kept", lifetime="detached"))
    prepared(head)
    head.ask(peer, "create_placement_group", group_spec(OTHER, {"CPU": 10**6}))
    head.gcs.close()
    again, peer = Head(Tables(path), join=False), Peer()
    assert again.ask(peer, "get_placement_group", "kept", "ns")["group_id"] == GROUP
    again.gcs.attach_node(NODE, again.to_node.append)
    info = {"node_id": NODE, "resources": {"CPU": 20_000}, "bundles": [(GROUP, 1), (b"?" * 14 + JOB, 3)]}
    again.node(Request(1, "add_node", (info,)))
    released = [m for m in again.to_node if isinstance(m, ReleaseBundles)]
    assert [(m.group_id, m.attempt) for m in released] == [(b"?" * 14 + JOB, -1)]
    assert CommitBundles(GROUP, 1) in again.to_node
    states = {i: shown["state"] for i, shown in again.ask(peer, "list_placement_groups").items()}
    assert states == {GROUP.hex(): "CREATED", OTHER.hex(): "PENDING"}
