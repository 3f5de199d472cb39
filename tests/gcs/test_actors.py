"""The life of an actor, its name and its subscribers, without a process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from minray.gcs.actor_record import ALIVE, DEAD, PENDING, RESTARTING
from minray.gcs.actors import ActorError, ActorTable
from minray.gcs.nodes import NodeTable, Unplaceable
from minray.wire.messages import ActorStarted, StartActor, StopActor
from tests.gcs.support import JOB, NODE, OWNER, actor_id, ended, orders, spec, started, updates

ONE = actor_id(1)


@pytest.fixture
def table() -> Iterator[ActorTable]:
    nodes = NodeTable()
    nodes.add({"node_id": NODE, "resources": {"CPU": 20_000}}, 0.0)
    made = ActorTable(nodes.place)
    yield made
    made.check_invariants()


def cause_of(effects: list[Any]) -> dict[str, Any]:
    (update,) = [effect[2] for effect in effects if effect[0] == "notify"]
    return dict(update.cause)


def alive(table: ActorTable, number: int = 1, **changes: Any) -> bytes:
    made = spec(number, **changes)
    table.create(made, subscriber=7)
    table.started(NODE, started(made["actor_id"]))
    return bytes(made["actor_id"])


def restarts(count: int) -> dict[str, Any]:
    return {"options": {"max_restarts": count}}


def test_creation_orders_a_start_and_subscribes_the_creator(table: ActorTable) -> None:
    answer, effects = table.create(spec(), subscriber=7)
    assert answer["created"] and answer["state"] == PENDING and answer["actor_id"] == ONE
    assert orders(effects) == [StartActor(ONE, 0, spec())]
    effects = table.started(NODE, started(ONE))
    assert updates(effects) == [(7, ALIVE, 0)]


def test_asked_twice_for_one_id_creates_once(table: ActorTable) -> None:
    table.create(spec(name="a"), subscriber=7)
    answer, effects = table.create(spec(name="a"), subscriber=8)
    assert answer["created"] and not effects
    assert [s for s, _, _ in updates(table.started(NODE, started(ONE)))] == [7, 8]


def test_a_spec_without_its_parts_changes_nothing(table: ActorTable) -> None:
    broken = spec(name="a")
    del broken["method_meta"]
    with pytest.raises(ActorError, match="lacks method_meta"):
        table.create(broken, subscriber=7)
    assert table.counts()[PENDING] == 0


def test_a_failed_constructor_is_final(table: ActorTable) -> None:
    table.create(spec(**restarts(5)), subscriber=7)
    effects = table.started(NODE, started(ONE, error=b"pickled error"))
    assert updates(effects) == [(7, DEAD, 0)]
    assert cause_of(effects)["creation_error"] == b"pickled error"
    assert orders(effects) == [StopActor(ONE, 0, True, "the constructor of Counter raised an exception")]


def test_a_lost_worker_restarts_as_often_as_allowed(table: ActorTable) -> None:
    alive(table, **restarts(2))
    for incarnation in (1, 2):
        effects = table.ended(NODE, ended(ONE, incarnation - 1))
        assert updates(effects) == [(7, RESTARTING, incarnation)]
        assert [(m.incarnation) for m in orders(effects) if isinstance(m, StartActor)] == [incarnation]
        assert updates(table.started(NODE, started(ONE, incarnation))) == [(7, ALIVE, incarnation)]
    effects = table.ended(NODE, ended(ONE, 2, exit_code=1))
    assert updates(effects) == [(7, DEAD, 2)] and not orders(effects)
    assert cause_of(effects)["kind"] == "worker_died" and cause_of(effects)["exit_code"] == 1


def test_max_restarts_of_minus_one_never_ends(table: ActorTable) -> None:
    alive(table, **restarts(-1))
    for incarnation in range(1, 50):
        assert updates(table.ended(NODE, ended(ONE, incarnation - 1))) == [(7, RESTARTING, incarnation)]
        table.started(NODE, started(ONE, incarnation))
    assert table.state_of(ONE) == ALIVE


def test_one_that_never_gets_ready_is_started_again_after_pauses_that_grow(table: ActorTable) -> None:
    table.create(spec(owner=(b"another node", OWNER, "unix:/driver"), **restarts(-1)), subscriber=7)
    pauses = []
    for incarnation in range(14):
        effects = table.ended(NODE, ended(ONE, incarnation))
        assert updates(effects) == [(7, RESTARTING, incarnation + 1)]
        if orders(effects):
            pauses.append(0.0)
            continue
        ((_, pause, *who),) = [effect for effect in effects if effect[0] == "later"]
        pauses.append(pause)
        assert f"ended {incarnation + 1} times in a row before it was ready" in cause_of(effects)["text"]
        assert [m.incarnation for m in orders(table.pause_over(*who))] == [incarnation + 1]  # type: ignore[attr-defined]
        assert table.pause_over(*who) == []
    assert pauses == [0, 0, 0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 10]
    table.started(NODE, started(ONE, 14))
    assert orders(table.ended(NODE, ended(ONE, 14)))  # it was ready: at once
    for _ in range(10):
        assert orders(table.node_lost(NODE, "power"))  # and that is no fault of its own


def test_what_happens_during_such_a_pause(table: ActorTable) -> None:
    for number in (1, 2, 3):
        table.create(spec(number, **restarts(-1)), subscriber=7)
        for incarnation in range(4):
            effects = table.ended(NODE, ended(actor_id(number), incarnation))
        assert not orders(effects)
    assert table.kill(ONE, no_restart=False) == []  # its restart is on the way
    assert updates(table.kill(ONE, no_restart=True)) == [(7, DEAD, 4)]
    assert table.pause_over(ONE, 4) == []
    assert len(orders(table.node_joined())) == 2  # a new place may be a better one
    table.ended(NODE, ended(actor_id(2), 4))
    assert table.pause_over(actor_id(2), 4) == []  # of an earlier pause
    assert len(orders(table.pause_over(actor_id(2), 5))) == 1


def test_an_intended_exit_is_not_followed_by_a_restart(table: ActorTable) -> None:
    alive(table, **restarts(5))
    effects = table.ended(NODE, ended(ONE, intended=True))
    assert updates(effects) == [(7, DEAD, 0)] and cause_of(effects)["kind"] == "exited"


def test_what_cannot_be_placed_is_dead(table: ActorTable) -> None:
    table.create(spec(**restarts(5)), subscriber=7)
    effects = table.ended(NODE, ended(ONE, unschedulable=True, text="needs GPU: 1, the node has none"))
    assert updates(effects) == [(7, DEAD, 0)] and cause_of(effects)["unschedulable"]


@pytest.mark.parametrize("incarnation", [0, 2])
def test_what_another_incarnation_says_is_ignored(table: ActorTable, incarnation: int) -> None:
    alive(table, **restarts(5))
    table.ended(NODE, ended(ONE, 0))
    assert table.ended(NODE, ended(ONE, incarnation)) == []
    effects = table.started(NODE, started(ONE, incarnation))
    assert [(m.incarnation, m.graceful) for m in orders(effects) if isinstance(m, StopActor)] == [
        (incarnation, False)
    ]
    assert table.state_of(ONE) == RESTARTING


def test_what_another_node_says_is_ignored(table: ActorTable) -> None:
    alive(table)
    assert table.ended(b"x" * 28, ended(ONE)) == []
    assert table.state_of(ONE) == ALIVE


def test_started_twice_is_said_once(table: ActorTable) -> None:
    alive(table)
    assert table.started(NODE, started(ONE)) == []


def test_kill_is_final_at_once_and_frees_the_name(table: ActorTable) -> None:
    alive(table, name="a", **restarts(5))
    effects = table.kill(ONE, no_restart=True)
    assert updates(effects) == [(7, DEAD, 0)] and cause_of(effects)["kind"] == "killed"
    assert orders(effects) == [StopActor(ONE, 0, False, "it was killed by kill()")]
    assert table.kill(ONE, no_restart=True) == []
    assert table.ended(NODE, ended(ONE)) == []
    table.create(spec(2, name="a"), subscriber=7)


def test_kill_during_the_wait_for_a_restart_ends_it(table: ActorTable) -> None:
    alive(table, **restarts(1))
    table.kill(ONE, no_restart=False)
    effects = table.kill(ONE, no_restart=True)
    assert updates(effects) == [(7, DEAD, 1)] and not orders(effects)  # the old one is stopped already
    assert table.ended(NODE, ended(ONE, 0, intended=True)) == []


def test_kill_with_restart_waits_for_the_end_of_the_old_incarnation(table: ActorTable) -> None:
    alive(table, **restarts(1))
    effects = table.kill(ONE, no_restart=False)
    assert updates(effects) == [(7, RESTARTING, 1)]
    assert orders(effects) == [StopActor(ONE, 0, False, "it was killed by kill()")]
    assert table.kill(ONE, no_restart=False) == []  # on its way already
    effects = table.ended(NODE, ended(ONE, 0, intended=True))
    assert [m.incarnation for m in orders(effects) if isinstance(m, StartActor)] == [1]
    table.started(NODE, started(ONE, 1))
    assert table.state_of(ONE) == ALIVE


def test_kill_with_restart_but_none_left_is_final(table: ActorTable) -> None:
    alive(table)
    assert updates(table.kill(ONE, no_restart=False)) == [(7, DEAD, 0)]


def test_killing_a_stranger_says_so(table: ActorTable) -> None:
    with pytest.raises(ActorError, match="earlier session") as caught:
        table.kill(actor_id(9), no_restart=True)
    assert caught.value.kind == "ActorHandleNotFoundError"


def test_out_of_scope_ends_after_the_queue(table: ActorTable) -> None:
    alive(table, name="a", **restarts(5))
    effects = table.out_of_scope(ONE)
    assert not updates(effects)
    assert [(m.incarnation, m.graceful) for m in orders(effects) if isinstance(m, StopActor)] == [(0, True)]
    assert table.list_named(None) == []
    assert table.out_of_scope(ONE) == []
    effects = table.ended(NODE, ended(ONE, exit_code=1))  # even if it crashes on its way out
    assert updates(effects) == [(7, DEAD, 0)] and cause_of(effects)["kind"] == "out_of_scope"


def test_out_of_scope_before_it_started(table: ActorTable) -> None:
    table.create(spec(), subscriber=7)
    effects = table.out_of_scope(ONE)
    assert updates(effects) == [(7, DEAD, 0)]
    assert [m.graceful for m in orders(effects) if isinstance(m, StopActor)] == [True]
    late = orders(table.started(NODE, started(ONE)))
    assert [m.graceful for m in late if isinstance(m, StopActor)] == [True]


def test_detached_actors_stay(table: ActorTable) -> None:
    alive(table, name="a", lifetime="detached")
    assert table.out_of_scope(ONE) == []
    assert table.owner_died(OWNER, "exit code 1") == []
    assert table.job_finished(JOB) == []
    assert table.state_of(ONE) == ALIVE


def test_the_owners_death_ends_its_actors(table: ActorTable) -> None:
    alive(table, 1, **restarts(5))
    alive(table, 2, owner=(NODE, b"p" * 28, "unix:/other"))
    effects = table.owner_died(OWNER, "exit code 1")
    assert updates(effects) == [(7, DEAD, 0)] and cause_of(effects)["owner_died"]
    assert table.state_of(actor_id(2)) == ALIVE


def test_the_jobs_end_ends_its_actors(table: ActorTable) -> None:
    other = b"\x02\0\0\0"
    alive(table, 1)
    alive(table, 2, job_id=other)
    assert updates(table.job_finished(JOB)) == [(7, DEAD, 0)]
    assert table.state_of(actor_id(2, other)) == ALIVE


def test_what_a_detached_actor_has_created_outlives_the_job_with_it(table: ActorTable) -> None:
    def grown(number: int, owner: bytes, **changes: Any) -> bytes:
        worker = bytes([number]) * 28
        made = spec(number, owner=(NODE, owner, "unix:/o"), **changes)
        table.create(made, subscriber=number)
        table.started(NODE, ActorStarted(made["actor_id"], 0, (NODE, worker, "unix:/w"), None))
        return worker

    detached = grown(1, OWNER, lifetime="detached")
    child = grown(2, detached)
    grown(3, child)
    plain = grown(4, OWNER)
    grown(5, plain)
    assert sorted(updates(table.job_finished(JOB))) == [(4, DEAD, 0), (5, DEAD, 0)]
    table.check_invariants()
    assert updates(table.owner_died(detached, "exit code 1")) == [(2, DEAD, 0)]
    assert updates(table.owner_died(child, "exit code 1")) == [(3, DEAD, 0)]


def test_names_are_taken_once_per_namespace(table: ActorTable) -> None:
    table.create(spec(1, name="a"), subscriber=7)
    table.create(spec(2, name="a", namespace="elsewhere"), subscriber=7)
    with pytest.raises(ActorError, match="'a' already exists in namespace 'ns'") as caught:
        table.create(spec(3, name="a"), subscriber=7)
    assert caught.value.kind == "ActorAlreadyExistsError"
    assert table.list_named("ns") == [{"name": "a", "namespace": "ns"}]
    assert [n["namespace"] for n in table.list_named(None)] == ["elsewhere", "ns"]


def test_get_if_exists_finds_or_creates(table: ActorTable) -> None:
    options = {"options": {"get_if_exists": True}}
    first, _ = table.create(spec(1, name="a", **options), subscriber=7)
    second, effects = table.create(spec(2, name="a", **options), subscriber=7)
    assert first["created"] and not second["created"]
    assert second["actor_id"] == ONE and not effects


def test_get_named(table: ActorTable) -> None:
    alive(table, name="a")
    assert table.get_named("a", "ns")["method_meta"] == b"methods"
    with pytest.raises(ActorError, match="actor with name 'a' in namespace 'other'"):
        table.get_named("a", "other")


def test_subscribing_tells_the_state_now(table: ActorTable) -> None:
    table.create(spec(), subscriber=7)
    assert updates(table.subscribe(ONE, 8)) == [(8, PENDING, 0)]
    table.subscriber_gone(7)
    assert updates(table.started(NODE, started(ONE))) == [(8, ALIVE, 0)]
    table.unsubscribe(ONE, 8)
    assert updates(table.kill(ONE, no_restart=True)) == []
    assert updates(table.subscribe(ONE, 8)) == [(8, DEAD, 0)]
    assert updates(table.subscribe(actor_id(9), 8)) == [(8, DEAD, 0)]


def test_the_dead_are_slim_and_few() -> None:
    table = ActorTable(lambda spec, load, avoid: NODE, keep_dead=2)
    for number in range(4):
        table.create(spec(number), subscriber=7)
        effects = table.kill(actor_id(number), no_restart=True)
        saved = [effect[3] for effect in effects if effect[:3] == ("save", "actor_specs", actor_id(number))]
        assert [row for row in saved if "class_blob" in row[0]] == []
    assert table.counts()[DEAD] == 2
    table.check_invariants()


def test_a_lost_node_restarts_its_actors_elsewhere() -> None:
    nodes = NodeTable()
    table = ActorTable(nodes.place)
    first, second = b"1" * 28, b"2" * 28
    nodes.add({"node_id": first, "resources": {"CPU": 10_000}}, 0.0)
    table.create(spec(**restarts(1)), subscriber=7)
    nodes.add({"node_id": second, "resources": {"CPU": 10_000}}, 0.0)
    table.started(first, started(ONE))
    nodes.lost(first, "no heartbeat")
    effects = table.node_lost(first, "no heartbeat")
    assert [(effect[1], effect[2].incarnation) for effect in effects if effect[0] == "order"] == [(second, 1)]
    nodes.lost(second, "no heartbeat")
    assert updates(table.node_lost(second, "no heartbeat")) == [(7, DEAD, 1)]
    table.check_invariants()


def test_without_a_node_actors_wait_for_one() -> None:
    nodes = NodeTable()
    table = ActorTable(nodes.place)
    _, effects = table.create(spec(), subscriber=7)
    assert orders(effects) == []
    table.check_invariants()
    nodes.add({"node_id": NODE, "resources": {}}, 0.0)
    assert orders(table.node_joined()) == [StartActor(ONE, 0, spec())]
    table.check_invariants()


def test_hard_affinity_to_a_dead_node_is_unschedulable(table: ActorTable) -> None:
    gone = b"g" * 28
    answer, effects = table.create(spec(strategy=("affinity", gone, False)), subscriber=7)
    assert (
        answer["state"] == DEAD and answer["cause"]["unschedulable"] and gone.hex() in answer["cause"]["text"]
    )
    answer, effects = table.create(spec(2, strategy=("affinity", gone, True)), subscriber=7)
    assert answer["state"] == PENDING and len(orders(effects)) == 1


def test_a_restored_table_goes_on() -> None:
    def place(spec: Any, load: Any, avoid: Any) -> bytes:
        return NODE

    rows: dict[tuple[str, bytes], Any] = {}

    def keep(effects: list[Any]) -> None:
        rows.update({(e[1], e[2]): e[3] for e in effects if e[0] == "save"})

    old = ActorTable(place)
    for number, name in ((1, "a"), (2, "b"), (3, None)):
        keep(old.create(spec(number, name=name, **restarts(1)), subscriber=7)[1])
        keep(old.started(NODE, started(actor_id(number))))
    keep(old.kill(actor_id(2), no_restart=True))
    new = ActorTable(place)
    new.restore(
        [(key, row) for (table, key), row in rows.items() if table == "actor_specs"],
        [(key, row) for (table, key), row in rows.items() if table == "actors"],
    )
    new.check_invariants()
    assert new.list_named(None) == [{"name": "a", "namespace": "ns"}]
    assert new.state_of(actor_id(2)) == DEAD
    assert [type(m) for m in orders(new.ended(NODE, ended(ONE, 0)))] == [StartActor]


def test_placing_may_fail_at_a_restart() -> None:
    places: list[Any] = [NODE, Unplaceable("its node is gone")]

    def place(spec: Any, load: Any, avoid: Any) -> bytes:
        found = places.pop(0)
        if isinstance(found, Unplaceable):
            raise found
        return bytes(found)

    table = ActorTable(place)
    table.create(spec(**restarts(5)), subscriber=7)
    effects = table.ended(NODE, ended(ONE))
    assert updates(effects) == [(7, RESTARTING, 1), (7, DEAD, 1)] and not orders(effects)
    table.check_invariants()


def two_nodes() -> tuple[NodeTable, ActorTable]:
    nodes = NodeTable()
    for number in (1, 2):
        nodes.add({"node_id": bytes([number]) * 28, "resources": {"CPU": 10_000}}, 0.0)
    return nodes, ActorTable(nodes.place)


def place_of(effects: list[Any]) -> list[tuple[bytes, int, Any]]:
    return [
        (effect[1], effect[2].incarnation, effect[2].spec.get("bounces"))
        for effect in effects
        if effect[0] == "order" and isinstance(effect[2], StartActor)
    ]


def test_a_bounced_actor_goes_to_another_node_and_no_restart_is_used() -> None:
    _, table = two_nodes()
    _, effects = table.create(spec(), subscriber=7)
    ((first, _, _),) = place_of(effects)
    effects = table.ended(first, ended(ONE, bounced=True))
    ((second, incarnation, bounces),) = place_of(effects)
    assert second != first and incarnation == 0 and bounces == 1 and updates(effects) == []
    table.check_invariants()
    assert table.ended(first, ended(ONE, bounced=True)) == []  # said twice
    effects = table.ended(second, ended(ONE, bounced=True))
    assert place_of(effects) == [(first, 0, 2)]
    assert updates(table.started(first, started(ONE))) == [(7, ALIVE, 0)]
    table.check_invariants()


def test_a_bounce_that_crosses_with_the_end_of_the_actor() -> None:
    _, table = two_nodes()
    _, effects = table.create(spec(), subscriber=7)
    ((first, _, _),) = place_of(effects)
    table.kill(ONE, no_restart=True)
    assert table.ended(first, ended(ONE, bounced=True)) == []
    _, effects = table.create(spec(2, **restarts(1)), subscriber=7)
    ((first, _, _),) = place_of(effects)
    table.kill(actor_id(2), no_restart=False)
    effects = table.ended(first, ended(actor_id(2), bounced=True))
    assert [(incarnation, bounces) for _, incarnation, bounces in place_of(effects)] == [(1, None)]
    table.check_invariants()


def test_a_lost_node_takes_its_owners_actors_with_it_wherever_they_run() -> None:
    nodes, table = two_nodes()
    lost, other = bytes([1]) * 28, bytes([2]) * 28
    owner = (lost, b"p" * 28, "tcp:x:1")
    for number, changes in ((1, {}), (2, {"lifetime": "detached"}), (3, {"owner": (other, b"q" * 28, "")})):
        here = spec(number, strategy=("affinity", other, False), **{"owner": owner, **changes})
        table.create(here, subscriber=7)
        table.started(other, started(actor_id(number)))
    nodes.lost(lost, "no heartbeat")
    effects = table.node_lost(lost, "no heartbeat")
    assert updates(effects) == [(7, DEAD, 0)]
    assert [m.actor_id for m in orders(effects)] == [ONE] and isinstance(orders(effects)[0], StopActor)
    assert table.state_of(actor_id(2)) == table.state_of(actor_id(3)) == ALIVE
    table.check_invariants()
