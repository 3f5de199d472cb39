"""The life of placement groups, by hand: what is ordered from nodes, what comes of their answers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from minray._base.groups import GONE
from minray.gcs.actors import ActorError
from minray.gcs.effects import Effects, Row
from minray.gcs.placement_groups import TABLE, GroupGone, PlacementGroupTable
from minray.wire.messages import BundlesPrepared, CommitBundles, PrepareBundles, ReleaseBundles

JOB, OTHER_JOB = b"\x01\0\0\0", b"\x02\0\0\0"
A, B, C = b"a" * 28, b"b" * 28, b"c" * 28
CPU = 10_000
C1, C2, C4 = {"CPU": CPU}, {"CPU": 2 * CPU}, {"CPU": 4 * CPU}


def gid(number: int, job: bytes = JOB) -> bytes:
    return number.to_bytes(14, "big") + job


class Head:
    """A table, what its nodes say is free, and what it ordered."""

    def __init__(self, **cpus: int) -> None:
        self.now = 100.0
        self.free: dict[bytes, dict[str, int]] = {}
        self.dead_actors: set[bytes] = set()
        self.rows: dict[bytes, Row] = {}
        self.orders: list[tuple[bytes, Any]] = []
        self.answers: list[tuple[Any, bool, Any]] = []
        self.settled: list[bytes] = []
        self.table = self.fresh_table()
        for letter, count in cpus.items():
            self.join(letter.encode() * 28, count)

    def fresh_table(self) -> PlacementGroupTable:
        return PlacementGroupTable(
            lambda node_id: self.free.get(node_id, {}), lambda actor: actor not in self.dead_actors, keep_removed=5
        )

    def do(self, effects: Effects) -> None:
        for kind, *rest in effects:
            if kind == "save":
                assert rest[0] == TABLE
                if rest[2] is None:
                    del self.rows[rest[1]]
                else:
                    self.rows[rest[1]] = rest[2]
            elif kind == "order":
                self.orders.append((rest[0], rest[1]))
            elif kind == "answer":
                self.answers.append((rest[0], rest[1], rest[2]))
            else:
                assert kind == "group", kind
                self.settled.append(rest[0])
        self.table.check_invariants()

    def join(self, node_id: bytes, cpus: int, held: Any = (), labels: Any = None) -> None:
        totals = {"CPU": cpus * CPU}
        self.free.setdefault(node_id, dict(totals))
        self.do(self.table.node_joined(node_id, totals, labels or {}, held, self.now))

    def create(self, number: int, *bundles: dict[str, int], strategy: str = "PACK", **fields: Any) -> Any:
        job = fields.get("job_id", JOB)
        spec = {
            "group_id": gid(number, job),
            "job_id": job,
            "creator_actor": None,
            "name": "",
            "namespace": "ns",
            "lifetime": None,
            "strategy": strategy,
            "bundles": list(bundles),
            "selectors": [],
            "soft_target": None,
            **fields,
        }
        answer, effects = self.table.create(spec, self.now)
        self.do(effects)
        return answer

    def take(self, kind: type[Any]) -> list[tuple[bytes, Any]]:
        found = [(n, m) for n, m in self.orders if isinstance(m, kind)]
        self.orders = [(n, m) for n, m in self.orders if not isinstance(m, kind)]
        return found

    def answer(self, ok: bool = True, only: bytes | None = None) -> None:
        """The nodes answer what they were asked to prepare."""
        asked = [(n, m) for n, m in self.take(PrepareBundles)]
        for node_id, message in asked:
            if only in (None, node_id):
                said = BundlesPrepared(message.group_id, message.attempt, ok, node_id)
                self.do(self.table.prepared(node_id, said, self.now))
            else:
                self.orders.append((node_id, message))

    def state(self, number: int) -> tuple[str, str]:
        """State and the letters of the bundles' nodes."""
        shown = self.table.public(gid(number))[gid(number).hex()]
        nodes = shown["bundles_to_node_id"]
        return shown["state"], "".join(chr(int(nodes[i][:2] or "2d", 16)) for i in sorted(nodes))

    def remove(self, number: int) -> None:
        self.do(self.table.remove(gid(number), self.now))

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(1000):
            due = self.table.next_deadline()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.do(self.table.tick(self.now))
        else:
            raise AssertionError("it wants to be called for ever")
        self.now = end


# --- two phases -----------------------------------------------------------------------------------


def test_created_in_two_phases() -> None:
    head = Head(a=2, b=2)
    assert head.create(1, C2, C2) == {"state": "PREPARING", "warning": None}
    assert sorted(n for n, _ in head.orders) == [A, B]
    assert head.table.wait(gid(1), "waiter") is None
    head.answer(only=A)
    assert head.take(CommitBundles) == []
    assert head.state(1) == ("PENDING", "--")
    head.answer()
    assert sorted(n for n, _ in head.take(CommitBundles)) == [A, B]
    assert head.answers == [("waiter", True, "CREATED")]
    assert head.state(1) == ("CREATED", "ab")
    assert head.settled == [gid(1)]
    assert head.table.wait(gid(1), "late") == (True, "CREATED")


def test_one_no_is_the_end_of_the_attempt_everywhere() -> None:
    head = Head(a=2, b=2)
    head.create(1, C2, C2)
    head.answer(only=A)
    head.answer(ok=False)
    assert sorted(n for n, _ in head.take(ReleaseBundles)) == [A, B]
    assert head.state(1) == ("PENDING", "--")
    head.join(C, 2)
    assert sorted(n for n, _ in head.orders) == [A, C], "the node that refused is left out"
    head.answer()
    assert head.state(1)[0] == "CREATED"


def test_a_node_that_refused_is_asked_again_later() -> None:
    head = Head(a=2)
    head.create(1, C2)
    head.answer(ok=False)
    head.take(ReleaseBundles)
    assert head.orders == []
    head.pass_time(2)
    head.answer()
    assert head.state(1) == ("CREATED", "a")


def test_answers_of_an_attempt_that_is_over() -> None:
    head = Head(a=2, b=2)
    head.create(1, C2, C2)
    (_, first), (_, second) = head.take(PrepareBundles)
    head.do(head.table.node_lost(A, head.now))
    head.take(ReleaseBundles)
    head.do(head.table.prepared(B, BundlesPrepared(gid(1), first.attempt, True, B), head.now))
    assert [n for n, _ in head.take(ReleaseBundles)] == [B]
    head.do(head.table.prepared(B, BundlesPrepared(gid(1), first.attempt, False, B), head.now))
    assert head.orders == []
    head.do(head.table.prepared(B, BundlesPrepared(gid(9), 1, True, B), head.now))
    assert head.take(ReleaseBundles)[0][1].attempt == -1
    assert second.attempt == first.attempt


def test_an_answer_said_twice() -> None:
    head = Head(a=2, b=2)
    head.create(1, C2, C2)
    (node_id, asked), _ = head.take(PrepareBundles)
    for _ in range(2):
        head.do(head.table.prepared(node_id, BundlesPrepared(gid(1), asked.attempt, True, node_id), head.now))
    assert head.orders == []


# --- waiting --------------------------------------------------------------------------------------


def test_what_fits_nowhere_stays_pending_with_a_warning() -> None:
    head = Head(a=2, b=4)
    warning = head.create(1, C1, {"CPU": 100 * CPU}, name="big")["warning"]
    for part in ("'big'", gid(1).hex(), "CPU: 100", A.hex()[:8], B.hex()[:8], "CPU: 4", "PACK"):
        assert part in warning, part
    assert head.create(2, C4, C4, strategy="STRICT_PACK")["warning"] is not None
    assert head.create(3, C1, C1, C1, strategy="STRICT_SPREAD")["warning"] is not None
    assert head.orders == []
    assert head.state(1) == ("PENDING", "--")
    head.join(C, 120)
    head.answer()
    assert [head.state(n)[0] for n in (1, 2, 3)] == ["CREATED"] * 3


def test_on_one_node_it_waits_in_that_nodes_queue() -> None:
    head = Head(a=4)
    head.free[A] = {"CPU": CPU}  # tasks hold the rest
    assert head.create(1, C4)["warning"] is None
    ((node_id, asked),) = head.orders
    assert node_id == A
    assert head.table.next_deadline() is None, "it holds nothing there, so it needs no deadline"
    head.create(2, C1)
    assert len(head.orders) == 2, "a small one is not held up"
    head.answer()
    assert head.state(1) == ("CREATED", "a")
    assert asked.bundles == [(0, C4)]


def test_a_group_that_waits_on_one_node_moves_where_there_is_room() -> None:
    head = Head(a=4, b=4)
    head.free[A] = head.free[B] = {"CPU": 0}
    head.create(1, C4)
    ((first, _),) = head.take(PrepareBundles)
    other = B if first == A else A
    head.free[other] = {"CPU": 4 * CPU}
    head.do(head.table.view_changed(head.now))
    assert [(n, type(m)) for n, m in head.orders] == [(first, ReleaseBundles), (other, PrepareBundles)]


def test_a_node_that_seemed_to_have_room_and_had_none() -> None:
    head = Head(a=4)
    head.create(1, C4)
    head.take(PrepareBundles)
    head.free[A] = {"CPU": 0}
    head.join(B, 4)
    head.now += 0.1
    head.do(head.table.view_changed(head.now))
    assert head.orders == [], "the answer may be on its way"
    head.now += 1.0
    head.do(head.table.view_changed(head.now))
    assert [(n, type(m)) for n, m in head.orders] == [(A, ReleaseBundles), (B, PrepareBundles)]


def test_other_groups_are_waited_for_here_and_not_at_nodes() -> None:
    head = Head(a=4)
    head.create(1, C4)
    head.answer()
    head.create(2, C4)
    assert head.take(PrepareBundles) == []
    head.remove(1)
    head.answer()
    assert head.state(2) == ("CREATED", "a")


def test_an_attempt_on_several_nodes_has_a_deadline() -> None:
    head = Head(a=2, b=2)
    head.create(1, C2, C2)
    head.answer(only=A)
    head.take(PrepareBundles)
    head.pass_time(1.5)
    released = head.take(ReleaseBundles)
    assert sorted(n for n, _ in released) == [A, B]
    again = head.take(PrepareBundles)
    assert {m.attempt for _, m in again} == {2}


def test_busy_nodes_are_pressed_ever_more_patiently() -> None:
    """Tasks hold both nodes, by the view: the attempt takes what it gets, for a while, and lets go."""
    head = Head(a=2, b=2)
    head.free[A] = head.free[B] = {"CPU": CPU}
    head.create(1, C2, C2)
    tries = []
    for _ in range(8):
        tries.append(head.now)
        assert len(head.take(PrepareBundles)) == 2
        while not head.orders:
            head.pass_time(0.5)
        while not any(isinstance(m, PrepareBundles) for _, m in head.orders):
            head.pass_time(0.5)
    gaps = [later - sooner for sooner, later in itertools.pairwise(tries)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 20


def test_of_those_that_race_for_nodes_one_goes_first() -> None:
    head = Head(a=2, b=2, c=2)
    for number in (1, 2, 3):
        head.create(number, C1, C1, C1, strategy="STRICT_SPREAD")
    assert {m.group_id for _, m in head.orders} == {gid(1)}
    head.answer()
    assert {m.group_id for _, m in head.take(PrepareBundles)} == {gid(2)}


def test_small_ones_cannot_starve_a_large_one() -> None:
    head = Head(a=4)
    held = []
    for number in (1, 2, 3, 4):
        head.create(number, C1)
        head.answer()
        held.append(number)
    head.create(100, C4, name="large")
    for number in range(5, 60):
        if not held:
            break
        head.remove(held.pop(0))
        head.create(number, C1)
        if head.take(PrepareBundles):
            message = BundlesPrepared(gid(number), 1, True, A)
            head.do(head.table.prepared(A, message, head.now))
            held.append(number)
    assert not held, "the large one is never let in"
    assert {m.group_id for _, m in head.orders if isinstance(m, PrepareBundles)} <= {gid(100)}


def test_a_large_one_that_waits_for_an_actor_does_not_hold_up_small_ones_for_long() -> None:
    head = Head(a=4)
    head.free[A] = {"CPU": 3 * CPU}  # an actor holds the fourth for ever
    head.create(1000, C4)
    head.take(PrepareBundles)
    late = 0
    for number in range(1, 200):
        head.create(number, C1)
        if not head.take(PrepareBundles):
            late += 1
            while not head.take(PrepareBundles):
                head.pass_time(0.5)
        head.do(head.table.prepared(A, BundlesPrepared(gid(number), 1, True, A), head.now))
        head.remove(number)
    assert late <= 8


# --- names and other requests ---------------------------------------------------------------------


def test_names() -> None:
    head = Head(a=4)
    head.create(1, C1, name="x")
    with pytest.raises(ActorError, match="name 'x' already exists in namespace 'ns'") as caught:
        head.create(2, C1, name="x")
    assert caught.value.kind == "RaySystemError"
    head.create(2, C1, name="x", namespace="other")
    assert head.table.named("x", "ns") == {"group_id": gid(1), "bundles": [C1]}
    head.remove(1)
    with pytest.raises(ActorError, match="Failed to look up placement group with name: x"):
        head.table.named("x", "ns")
    head.create(3, C1, name="x")


def test_asked_again_nothing_happens() -> None:
    head = Head(a=4)
    head.create(1, C1, name="x")
    orders = len(head.orders)
    assert head.create(1, C1, name="x")["state"] == "PREPARING"
    assert len(head.orders) == orders


def test_what_is_shown() -> None:
    head = Head(a=4)
    head.create(1, C1, {"CPU": CPU // 2}, name="x", strategy="SPREAD")
    head.now += 0.5
    head.answer()
    (shown,) = head.table.public().values()
    assert shown["placement_group_id"] == gid(1).hex()
    assert (shown["name"], shown["strategy"], shown["state"]) == ("x", "SPREAD", "CREATED")
    assert shown["bundles"] == {0: {"CPU": 1.0}, 1: {"CPU": 0.5}}
    assert shown["bundles_to_node_id"] == {0: A.hex(), 1: A.hex()}
    assert shown["stats"]["end_to_end_creation_latency_ms"] == pytest.approx(500)
    assert head.table.public(gid(9)) == {}
    assert head.table.bundles_of(gid(1)) == [C1, {"CPU": CPU // 2}]
    with pytest.raises(ActorError, match="does not know"):
        head.table.bundles_of(gid(9))


# --- removal --------------------------------------------------------------------------------------


def test_removal_in_each_state() -> None:
    head = Head(a=4, b=4)
    head.create(1, {"CPU": 50 * CPU})  # pending
    head.create(2, C4, C1)  # being prepared
    for number in (1, 2):
        assert head.table.wait(gid(number), number) is None
        head.remove(number)
    assert [a[:2] for a in head.answers] == [(1, False), (2, False)]
    assert "was removed by remove_placement_group()" in head.answers[0][2]
    assert sorted(n for n, _ in head.take(ReleaseBundles)) == [A, B]
    head.take(PrepareBundles)
    head.create(3, C4, C1)
    head.answer()
    head.remove(3)
    assert sorted((n, m.attempt) for n, m in head.take(ReleaseBundles)) == [(A, -1), (B, -1)]
    head.remove(3)
    head.remove(77)
    assert head.take(ReleaseBundles) == []
    assert head.state(3) == ("REMOVED", "--")
    ok, why = head.table.wait(gid(3), 3) or (True, "")
    assert not ok
    assert gid(3).hex() in why


def test_only_the_last_removed_are_remembered() -> None:
    head = Head(a=4)
    for number in range(1, 9):
        head.create(number, C1)
        head.answer()
        head.remove(number)
    assert sorted(head.table.public()) == [gid(n).hex() for n in range(4, 9)]
    assert set(head.rows) == {gid(n) for n in range(4, 9)}
    ok, _ = head.table.wait(gid(1), 1) or (True, "")
    assert not ok


def test_waiters_that_go_away() -> None:
    head = Head(a=4)
    head.free[A] = {}
    head.create(1, C1)
    for waiter in ("x", "y", "z"):
        head.table.wait(gid(1), waiter)
    head.table.unwait(gid(1), "x")
    head.table.forget_waiters(lambda waiter: waiter == "y")
    head.answer()
    assert head.answers == [("z", True, "CREATED")]


# --- who made them --------------------------------------------------------------------------------


def test_the_end_of_a_job_takes_its_groups_along() -> None:
    head = Head(a=8)
    living, dead = b"L" * 16, b"D" * 16
    head.dead_actors.add(dead)
    head.create(1, C1)
    head.create(2, C1, lifetime="detached")
    head.create(3, C1, creator_actor=living)
    head.create(4, C1, creator_actor=dead)
    head.create(5, C1, job_id=OTHER_JOB)
    head.answer()
    head.do(head.table.job_finished(JOB, head.now))
    assert [head.state(n)[0] for n in (1, 2, 3, 4)] == ["REMOVED", "CREATED", "CREATED", "REMOVED"]
    head.do(head.table.actors_changed(head.now))
    assert head.state(3)[0] == "CREATED"
    head.dead_actors.add(living)
    head.do(head.table.actors_changed(head.now))
    assert head.state(3)[0] == "REMOVED"
    assert head.table.counts()["CREATED"] == 2
    head.do(head.table.job_finished(OTHER_JOB, head.now))


# --- nodes that die and come ----------------------------------------------------------------------


def test_bundles_of_a_dead_node_are_placed_anew() -> None:
    head = Head(a=2, b=2, c=2)
    head.create(1, C1, C1, C1, strategy="STRICT_SPREAD")
    head.answer()
    head.take(CommitBundles)
    assert head.state(1) == ("CREATED", "abc")
    head.do(head.table.node_lost(B, head.now))
    assert head.state(1) == ("RESCHEDULING", "a-c")
    assert head.orders == []
    assert head.table.wait(gid(1), "w") is None, "it is not there until it is whole again"
    d = b"d" * 28
    head.join(d, 2)
    ((node_id, asked),) = head.orders
    assert (node_id, asked.bundles, asked.attempt) == (d, [(1, C1)], 2)
    head.answer()
    assert head.state(1) == ("CREATED", "adc")
    assert [n for n, _ in head.take(CommitBundles)] == [d]
    assert head.answers == [("w", True, "CREATED")]
    head.remove(1)
    assert sorted(n for n, _ in head.take(ReleaseBundles)) == [A, C, d]


def test_a_packed_group_goes_elsewhere_as_a_whole() -> None:
    head = Head(a=2, b=4)
    head.create(1, C1, C1, strategy="STRICT_PACK")
    head.answer()
    assert head.state(1) == ("CREATED", "aa")
    head.do(head.table.node_lost(A, head.now))
    head.answer()
    assert head.state(1) == ("CREATED", "bb")


def test_a_node_dies_while_it_is_asked() -> None:
    head = Head(a=2, b=2, c=2)
    head.create(1, C2, C2)
    head.answer(only=A)
    head.orders.clear()
    head.do(head.table.node_lost(B, head.now))
    assert [(n, type(m)) for n, m in head.orders if n == A] == [(A, ReleaseBundles), (A, PrepareBundles)]
    head.answer()
    assert head.state(1) == ("CREATED", "ac")


def test_a_second_node_dies_while_the_first_is_replaced() -> None:
    head = Head(a=2, b=2, c=2, d=2)
    head.create(1, C1, C1, C1, strategy="STRICT_SPREAD")
    head.answer()
    head.do(head.table.node_lost(A, head.now))
    assert head.state(1)[0] == "RESCHEDULING"
    head.do(head.table.node_lost(B, head.now))
    head.join(b"e" * 28, 2)
    head.answer()
    assert head.state(1)[0] == "CREATED"
    assert sorted(head.state(1)[1]) == ["c", "d", "e"]


def test_removed_while_it_is_placed_anew() -> None:
    head = Head(a=2, b=2)
    head.create(1, C1, C1, strategy="STRICT_SPREAD")
    head.answer()
    head.do(head.table.node_lost(A, head.now))
    head.remove(1)
    assert [n for n, _ in head.take(ReleaseBundles)] == [B]
    assert head.table.counts()["REMOVED"] == 1


# --- actors ---------------------------------------------------------------------------------------


def test_actors_go_where_their_bundle_is() -> None:
    head = Head(a=1, b=1, c=1)
    head.create(1, C1, C1, strategy="STRICT_SPREAD")
    assert head.table.place(gid(1), 0, {}) is None
    head.answer()
    assert head.table.place(gid(1), 1, {}) == B
    assert head.table.place(gid(1), -1, {A: 3}) == B
    assert head.table.place(gid(1), -1, {}, avoid=A) == B
    assert head.table.place(gid(1), 0, {}, avoid=A) == A, "there is no other"
    head.do(head.table.node_lost(B, head.now))
    head.take(PrepareBundles)
    assert head.table.place(gid(1), 1, {}) is None
    assert head.table.place(gid(1), -1, {}) == A
    head.remove(1)
    with pytest.raises(GroupGone, match=f"{GONE}: placement group {gid(1).hex()} was removed"):
        head.table.place(gid(1), 0, {})
    with pytest.raises(GroupGone, match="does not know"):
        head.table.place(gid(9), 0, {})


# --- a head that comes back -----------------------------------------------------------------------


def test_a_head_that_comes_back_knows_its_groups() -> None:
    head = Head(a=2, b=2)
    head.create(1, C2, name="x", lifetime="detached")
    head.answer()
    head.create(2, C2, C1)
    head.create(3, C1)
    head.answer()
    head.remove(3)
    head.orders.clear()
    again = Head()
    again.free = head.free
    again.table.restore(list(head.rows.items()), again.now)
    again.table.check_invariants()
    assert again.table.named("x", "ns")["group_id"] == gid(1)
    assert again.state(1) == ("CREATED", "a")
    assert again.state(2)[0] == "PENDING"
    assert again.state(3)[0] == "REMOVED"
    # A has the first group still; B holds a part of the second one's old attempt, and one that nobody knows
    again.join(A, 2, held=[(gid(1), 1), (gid(3), 1)])
    assert [(type(m), m.group_id) for _, m in again.orders] == [
        (CommitBundles, gid(1)),
        (ReleaseBundles, gid(3)),
    ]
    again.orders.clear()
    again.join(B, 2, held=[(gid(2), 1), (gid(77), 4)])
    released = [(m.group_id, m.attempt) for _, m in again.take(ReleaseBundles)]
    assert released == [(gid(2), 1), (gid(77), -1)]
    again.create(4, C1)
    assert again.table.named("x", "ns")


def test_a_node_that_comes_back_without_its_bundles() -> None:
    head = Head(a=2)
    head.create(1, C2)
    head.answer()
    again = Head()
    again.free = head.free
    again.table.restore(list(head.rows.items()), again.now)
    again.join(A, 2, held=[])
    ((_, asked),) = again.take(PrepareBundles)
    assert asked.attempt == 2
    assert again.state(1) == ("RESCHEDULING", "-")


def test_a_node_that_joins_again_hears_what_it_may_have_missed() -> None:
    head = Head(a=2, b=2)
    head.create(1, C2)
    head.answer()
    head.create(2, C2)
    head.orders.clear()
    head.join(A, 2, held=[(gid(1), 1)])
    head.join(B, 2, held=[])
    assert [(n, type(m), m.group_id) for n, m in head.orders] == [
        (A, CommitBundles, gid(1)),
        (B, PrepareBundles, gid(2)),
    ]


def test_labels_of_bundles() -> None:
    head = Head()
    head.join(A, 4, labels={"zone": "x"})
    head.join(B, 4, labels={"zone": "y"})
    in_y = {"zone": ("in", ("y",))}
    head.create(1, C1, C1, selectors=[in_y, None])
    head.answer()
    assert head.state(1) == ("CREATED", "bb")
    warning = head.create(2, C1, selectors=[{"zone": ("in", ("z",))}])["warning"]
    assert "where zone in (z)" in warning
    head.create(3, C1, strategy="STRICT_PACK", soft_target=B)
    head.answer()
    assert head.state(3) == ("CREATED", "b")
