"""Random orders of everything that can happen to actors: names stay unique, DEAD is final, nothing is lost.

The model plays the node: it keeps which incarnations it was told to run, and answers each order in any order.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from minray.gcs.actor_record import ALIVE, DEAD
from minray.gcs.actors import ActorError, ActorTable
from minray.gcs.effects import Effects
from minray.gcs.nodes import NodeTable
from minray.wire.messages import ActorUpdate, StartActor, StopActor
from tests.gcs.support import JOB, NODE, actor_id, ended, spec, started

NUMBERS = st.integers(0, 5)
OWNERS = [b"1" * 28, b"2" * 28]


class Actors(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        nodes = NodeTable()
        nodes.add({"node_id": NODE, "resources": {"CPU": 40_000}}, 0.0)
        self.table = ActorTable(nodes.place, keep_dead=100)
        self.running: dict[tuple[bytes, int], bool] = {}  # on the node: ordered; True once it has started
        self.stopping: set[tuple[bytes, int]] = set()
        self.said: dict[bytes, ActorUpdate] = {}
        self.lives = 0
        self.pauses: list[tuple[bytes, int]] = []

    def act(self, effects: Effects) -> None:
        for kind, *rest in effects:
            if kind == "order" and isinstance(rest[1], StartActor):
                key = (rest[1].actor_id, rest[1].incarnation)
                assert key not in self.running, "ordered twice"
                assert not [k for k in self.running if k[0] == key[0]], "two incarnations side by side"
                self.running[key] = False
            elif kind == "order" and isinstance(rest[1], StopActor):
                self.stopping.add((rest[1].actor_id, rest[1].incarnation))
            elif kind == "later":
                assert rest[0] > 0
                self.pauses.append((rest[1], rest[2]))
            elif kind == "notify":
                update: ActorUpdate = rest[1]
                before = self.said.get(update.actor_id)
                assert before is None or before.state != DEAD, "said something after DEAD"
                assert before is None or before.incarnation <= update.incarnation
                self.said[update.actor_id] = update

    @rule(
        number=NUMBERS,
        named=st.booleans(),
        restarts=st.integers(-1, 2),
        detached=st.booleans(),
        owner=st.integers(0, 1),
    )
    def create(self, number: int, named: bool, restarts: int, detached: bool, owner: int) -> None:
        self.lives += 1
        made = spec(
            self.lives * 10 + number,
            name=f"name{number % 2}" if named else None,
            options={"max_restarts": restarts},
            lifetime="detached" if detached else None,
            owner=(NODE, OWNERS[owner], "unix:/driver"),
        )
        try:
            _, effects = self.table.create(made, subscriber=1)
        except ActorError as error:
            assert error.kind == "ActorAlreadyExistsError"
            return
        self.act(effects)

    def pick(self, number: int) -> tuple[bytes, int] | None:
        keys = sorted(self.running)
        return keys[number % len(keys)] if keys else None

    @rule(number=st.integers(0, 50), fails=st.booleans())
    def start(self, number: int, fails: bool) -> None:
        key = self.pick(number)
        if key is not None and not self.running[key]:
            self.running[key] = True
            self.act(self.table.started(NODE, started(*key, error=b"error" if fails else None)))

    @rule(number=st.integers(0, 50), intended=st.booleans())
    def end(self, number: int, intended: bool) -> None:
        key = self.pick(number)
        if key is not None:
            del self.running[key]
            self.stopping.discard(key)
            self.act(self.table.ended(NODE, ended(*key, **({"intended": True} if intended else {}))))

    @rule(number=st.integers(0, 50), no_restart=st.booleans())
    def kill(self, number: int, no_restart: bool) -> None:
        key = self.pick(number)
        if key is not None:
            self.act(self.table.kill(key[0], no_restart))

    @rule(number=st.integers(0, 50))
    def out_of_scope(self, number: int) -> None:
        key = self.pick(number)
        if key is not None:
            self.act(self.table.out_of_scope(key[0]))

    @rule()
    def pause_ends(self) -> None:
        if self.pauses:
            self.act(self.table.pause_over(*self.pauses.pop(0)))

    @rule(owner=st.integers(0, 1))
    def owner_dies(self, owner: int) -> None:
        self.act(self.table.owner_died(OWNERS[owner], "exit code 1"))

    @rule()
    def job_ends(self) -> None:
        self.act(self.table.job_finished(JOB))

    @invariant()
    def consistent(self) -> None:
        self.table.check_invariants()
        for key in self.running:
            state = self.table.state_of(key[0])
            if state == DEAD:
                assert self.running[key] is False or key in self.stopping, f"{key} runs on and on"

    def teardown(self) -> None:
        """At rest: the node obeys; whoever is not dead is alive and runs exactly once."""
        for _ in range(1000):
            self.pause_ends()
            waiting = [key for key, up in self.running.items() if key in self.stopping or not up]
            if not waiting:
                if not self.pauses:
                    break
                continue
            key = waiting[0]
            if key in self.stopping:
                self.end(sorted(self.running).index(key), intended=True)
            else:
                self.start(sorted(self.running).index(key), fails=False)
        living: dict[bytes, Any] = {}
        for aid, update in self.said.items():
            assert self.table.state_of(aid) == update.state
            if update.state == ALIVE:
                living[aid] = update.incarnation
        assert living == {aid: incarnation for aid, incarnation in self.running}
        assert actor_id(0) not in living


Actors.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestActors = Actors.TestCase
