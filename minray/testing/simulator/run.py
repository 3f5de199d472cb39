"""The simulation: a world, a scheduler that chooses what happens next, and a judge who looks at each step.

    seed ──▶ scheduler ──▶ Event ──▶ apply ──▶ world        one line of a story: ``act d1 83``, ``deliver d1 n1 7``
                            │                    │
                            └▶ events (a story)  └▶ judge ──▶ SimulationError

Everything that happens is an event; what is random within it comes from the event's own *dice*. So a story (the
list of events) can be played again without the scheduler, also with some events left out: see ``scenario``.
``run(seed)`` lets drivers work for some steps; then links heal, everybody lets go, and nothing may be left.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from minray.testing.simulator.ledger import SimulationError
from minray.testing.simulator.network import GCS_ID, Pair, kind_of
from minray.testing.simulator.node import Node
from minray.testing.simulator.store import BAD, FINE, FULL, KIB
from minray.testing.simulator.user import Frame
from minray.testing.simulator.worker import Call, Worker
from minray.testing.simulator.world import World
from minray.wire.messages import Sealed

REST_STEPS = 40_000
REST_S = 120.0  # simulated: what waits so long waits for something that will not come
FULL_CHECK = 20  # steps
A_MOMENT_S = 0.12
A_WHILE_S = 2.7
HEAD_NAME = "head"
HEADS = 3  # that die in a story at most, if no driver dies with them
MEMORY = 270  # KiB: three or four objects
FOREVER_S = 60.0
YOUNG = 120  # steps, in which there is little to lose
HEARTBEATS = ("NodeReport", "StoreReport", "eof")


class Event(NamedTuple):
    """One thing that happens. ``a``, ``b``: names of processes and machines, or seconds."""

    kind: str
    a: str = ""
    b: str = ""
    dice: int = 0

    def __str__(self) -> str:
        return " ".join(str(part) for part in self if part != "")


class Setting(NamedTuple):
    """What a world is made of, besides events."""

    nodes: int = 1
    cpus: int = 1
    drivers: int = 1
    little_lineage: int = 0
    rest: int = 0  # the seed of what happens when everybody lets go
    apart: int = 0  # no driver is on the head's machine
    actors: int = 0  # user code mostly makes, calls and kills them
    memory: int = 0  # KiB of the machine's store, if there is one; 0: as much as anybody wants


class Simulation(World):
    """One cluster and one story."""

    def __init__(self, setting: Setting, seed: int = 0, *, kills: int = 0, cuts: int = 0) -> None:
        self.setting = setting
        super().__init__(
            nodes=setting.nodes, cpus=setting.cpus, drivers=setting.drivers,
            little_lineage=bool(setting.little_lineage), apart=bool(setting.apart), full_of_actors=bool(setting.actors),
            memory=setting.memory * KIB,
        )  # fmt: skip
        self.steps = 0
        self.events: list[Event] = []
        self.kills_left = kills
        self.cuts_left = cuts
        self.heads_left = min(kills, HEADS) if setting.apart else 0
        self._choices = random.Random(seed)
        self._slow: Pair | None = None  # nothing arrives there while there is something else

    # -- events --------------------------------------------------------------------------------------

    def happen(self, kind: str, a: str = "", b: str = "") -> bool:
        """The scheduler wants this to happen."""
        return self.apply(Event(kind, a, b, self._choices.getrandbits(24)))

    def apply(self, event: Event) -> bool:
        """Let it happen. False: it cannot, and nothing has changed, or next to nothing."""
        self.events.append(event)
        self.rng.seed(event.dice)
        return bool(getattr(self, "_on_" + event.kind)(event.a, event.b))

    def _on_deliver(self, source: str, target: str) -> bool:
        pair = (self.id_of(source), self.id_of(target))
        if pair not in self.network.queues or (self.network.cuts and self.network.is_cut(*pair)):
            return False
        self.deliver(pair)
        return True

    def _on_act(self, name: str, _: str) -> bool:
        process = self.processes.get(self.id_of(name))
        if process is None:
            return False
        if isinstance(process, Worker):
            acted = process.step()
        else:
            programs = [p for p in self.programs if p.process is process]
            acted = bool(programs)
            for program in programs:
                program.step()
        if process.alive:
            process.perform()
        return acted

    def _on_turn(self, name: str, _: str) -> bool:
        process = self.processes.get(self.id_of(name))
        if process is None or not process.core.calls.dirty:
            return False
        process.core.calls.flush()
        process.perform()
        return True

    def _on_wait(self, seconds: str, _: str) -> bool:
        return self.advance(float(seconds))

    def _on_jump(self, seconds: str, _: str) -> bool:
        """The clocks jump: whatever was due meanwhile is late."""
        self.ledger.seen["jump"] += 1
        self.clock.now += float(seconds)
        self.fire()
        return True

    def _on_start(self, name: str, _: str) -> bool:
        assert name == HEAD_NAME, "nodes start workers, and machines that are lost do not come back"
        return self.start_head()

    def _on_kill(self, name: str, _: str) -> bool:
        if name == HEAD_NAME:
            return self.kill_head()
        process = self.processes.get(self.id_of(name))
        if process is None:
            return False
        actor = isinstance(process, Worker) and process.actor is not None
        what = "a driver" if process.is_driver else "an actor" if actor else "a worker"
        self.ledger.seen["death of " + what] += 1
        self.kill(process.worker_id)
        return True

    def _on_lose(self, name: str, _: str) -> bool:
        return self._lose(name, silent=False)

    def _on_freeze(self, name: str, _: str) -> bool:
        return self._lose(name, silent=True)

    def _lose(self, name: str, *, silent: bool) -> bool:
        node = self.nodes.get(self.id_of(name))
        if node is None or node.is_head:
            return False
        self.lose_machine(node, silent=silent)
        return True

    def _on_cut(self, source: str, target: str) -> bool:
        self.ledger.seen["cut"] += 1
        self.network.cuts[(self.id_of(source), self.id_of(target))] = None
        return True

    def _on_disk(self, name: str, state: str) -> bool:
        node = self.nodes.get(self.id_of(name))
        if node is None or not self.memory:
            return False
        node.store.disk.state = state  # type: ignore[attr-defined]
        return True

    def _on_heal(self, _a: str, _b: str) -> bool:
        self.network.cuts.clear()
        return True

    # -- the scheduler ---------------------------------------------------------------------------------

    def step(self, *, user_code: bool = True) -> bool:
        """Something happens. False: nothing can, unless time passes."""
        self.steps += 1
        rng = self._choices
        harm = 0.08 if self.steps > YOUNG else 0.01
        if (self.kills_left or self.cuts_left) and rng.random() < harm and self._misfortune():
            return True
        if not self.gcs.alive and rng.random() < 0.05:
            return self.happen("start", HEAD_NAME)
        silence = bool(self.network.cuts or self.frozen or self.memory)  # it takes a while to be noticed; so do disks
        often = 0.3 if self.memory else 0.08 if silence or self.gcs.life > 1 or not self.gcs.alive else 0.02
        if rng.random() < often:
            self._reports_arrive()
            for _ in range(rng.choice((1, 1, 4)) if silence else 1):  # each ends with the next timer
                self.happen("wait", str(rng.choice((A_MOMENT_S, A_WHILE_S)) if silence else A_MOMENT_S))
        if user_code and self.memory and rng.random() < 0.02:
            self.happen("disk", self.head.name, rng.choice((FINE, FULL, BAD, BAD)))
        if self.network.cuts and rng.random() < 0.01:
            self.happen("heal")
        busy = self.network.busy()
        if self.heads_left and self.gcs.alive and rng.random() < 0.04 and self._head_is_asked(busy):
            self.heads_left -= 1
            return self.happen("kill", HEAD_NAME)
        if busy and rng.random() < 0.6:
            source, target = self._next_pair(busy)
            return self.happen("deliver", self.name_of(source), self.name_of(target))
        if user_code and self.programs and rng.random() < 0.4:
            return self.happen("act", str(rng.choice(self.programs).process))
        if self._somebody_acts():
            return True
        if busy:
            source, target = rng.choice(busy)
            if (source, target) in self.network.queues:
                self.happen("deliver", self.name_of(source), self.name_of(target))
        return bool(busy)

    def _reports_arrive(self) -> None:
        """Time passes quickly here, and who wants an object waits only so long for its writer's report of it."""
        queues = self.network.queues
        for pair in self.network.busy() if self.memory else ():
            while any(isinstance(message, Sealed) for message in queues.get(pair, ())):
                self.happen("deliver", self.name_of(pair[0]), self.name_of(pair[1]))

    def _head_is_asked(self, busy: list[Pair]) -> bool:
        """Whether something is on its way to the head that it will have to act on: then its death hurts."""
        queues = self.network.queues
        return any(pair[1] == GCS_ID and kind_of(queues[pair][0]) not in HEARTBEATS for pair in busy)

    def _next_pair(self, busy: list[Pair]) -> Pair:
        """Any of them; but now and then one connection is slow for a while, and much happens meanwhile."""
        rng = self._choices
        if rng.random() < 0.04:
            self._slow = rng.choice(busy) if rng.random() < 0.7 else None
        pair = rng.choice(busy)
        if pair == self._slow and len(busy) > 1:
            pair = rng.choice([other for other in busy if other != pair])
        return pair

    def _somebody_acts(self) -> bool:
        workers = self.workers()
        self._choices.shuffle(workers)
        for worker in workers:
            if worker.could_act() and worker.alive and self.happen("act", str(worker)):
                return True
        for process in list(self.processes.values()):
            if process.core.calls.dirty:  # the reactor's turn
                return self.happen("turn", str(process))
        return False

    def _misfortune(self) -> bool:
        rng = self._choices
        others = [node for node in self.nodes.values() if not node.is_head]
        if self.cuts_left and others and rng.random() < 0.5:
            self.cuts_left -= 1
            names = [node.name for node in (self.nodes.values() if rng.random() < 0.5 else (self.head,))]
            return self._cut(rng.choice(others).name, rng.choice(names))
        if not self.kills_left:
            return False
        self.kills_left -= 1
        if others and self.gcs.alive and rng.random() < 0.03:
            return self.happen("kill", HEAD_NAME)
        if others and rng.random() < 0.3:
            return self.happen(rng.choice(("lose", "freeze")), rng.choice(self._which_may_be_lost(others)).name)
        if rng.random() < 0.05:
            return self.happen("jump", str(rng.choice((1.0, 7.0, 40.0))))
        victims = [str(worker) for worker in self._who_may_die()]
        if len(self.programs) > 1 and rng.random() < 0.2:
            victims = [str(self.programs[-1].process)]
        return bool(victims) and self.happen("kill", rng.choice(victims))

    def _which_may_be_lost(self, others: list[Node]) -> list[Node]:
        """Often one where actors live, or where results of others lie: that hurts more."""
        rng = self._choices
        if rng.random() < 0.3:
            hosts = {worker.node.node_id for worker in self.workers() if worker.actor is not None}
        else:
            home = {one[:12]: machine for one, machine in self.network.machine_of.items()}
            copies = self.ledger.copies.items()
            hosts = {place[0] for object_id, places in copies for place in places if place[0] != home[object_id[:12]]}
        return [node for node in others if node.node_id in hosts] or others

    def _who_may_die(self) -> list[Worker]:
        """Often an actor, or who is busy: that hurts more."""
        rng, workers = self._choices, self.workers()
        actors = [worker for worker in workers if worker.actor is not None]
        if actors and rng.random() < (0.8 if self.setting.actors else 0.4):
            return actors
        busy = [worker for worker in workers if worker.call is not None]
        return busy if busy and rng.random() < 0.7 else workers

    def _cut(self, one: str, other: str) -> bool:
        if one == other:
            return False
        done = self.happen("cut", one, other)
        if self._choices.random() < 0.5:
            self.happen("cut", other, one)
        return done

    # -- rest ----------------------------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """Links heal, there is a head, everybody lets go, and nothing may be left."""
        self._choices = random.Random(self.setting.rest)
        self._slow = None
        self.kills_left = self.cuts_left = self.heads_left = 0
        self.network.cuts.clear()
        self.start_head()
        self._on_disk(self.head.name, FINE)
        self.settle()
        for _ in range(2):  # what is lost is asked for, and then there
            self._read_everything()
            self.settle()
        while self.let_go():
            self.settle()
        self.judge.rest()

    def _read_everything(self) -> None:
        """Whoever has a reference looks at what is there."""
        for process in list(self.processes.values()):
            frames: list[Frame] = [program for program in self.programs if program.process is process]
            reader = Frame(process)
            reader.look_at([handle for frame in frames or [reader] for handle in frame.in_hand()])
            reader.close(keeps=0.0)
            process.perform()

    def settle(self) -> None:
        """Let everything finish that can."""
        until = self.clock.now + REST_S
        for _ in range(REST_STEPS):
            if not self.step(user_code=False):
                self.judge.quiet()
                beats = any(self.gcs.is_member(one) for one in self.machines if one not in self.nodes)
                if not self.advance(FOREVER_S, beats=beats) and not self._end_a_wait():
                    return
                if self.clock.now > until and self._somebody_waits_for_room():
                    return
            self.judge.step(everything=self.steps % FULL_CHECK == 0)
        raise SimulationError("it does not come to rest")

    def _somebody_waits_for_room(self) -> bool:
        """Groups and actors that find no room look again and again: let go of what they wait for."""
        if any(node.table.queue for node in self.nodes.values()):
            return True
        return bool(self.gcs.open_groups())

    def _end_a_wait(self) -> bool:
        """Pieces of user code may wait for each other in a ring, or for an item that a generator does not
        yield before its consumer goes on: then some timeout ends."""
        frames: list[Frame] = list(self.programs)
        for worker in self.workers():
            frames += worker.frames()
        for frame in frames:
            for stream in frame.streams:
                if frame.next_item(stream):
                    frame.process.perform()
                    return True
        for frame in frames:
            if frame.waiting is not None and not frame.process.is_driver and not frame.for_memory:
                self._check_stuck(frame)
                frame.waiting = None
                return True
        return False

    def _check_stuck(self, frame: Frame) -> None:
        """A producer waits for its consumer although that has everything: both would wait for ever."""
        if isinstance(frame, Call) and frame.producing:
            owner = self.processes.get(frame.owner[1])
            stream = owner.core.streams.get(frame.seq) if owner is not None else None
            if stream is not None and stream.consumed == stream.produced:
                raise SimulationError(f"generator {frame.seq} and its consumer wait for each other")

    def let_go(self) -> bool:
        """Everybody drops everything; False if there was nothing."""
        found = False
        for program in self.programs:
            found |= bool(program.handles or program.streams)
            program.close(keeps=0.0)
        for process in list(self.processes.values()):
            found |= bool(process.kept)
            while process.kept:
                object_id, _ = process.kept.pop()
                process.core.refs.drop(object_id)
            process.perform()
        found |= self._remove_groups()
        return found or self._free_resources() or self._return_lost_grants()

    def _remove_groups(self) -> bool:
        found = False
        for facts in map(self.ledger.groups.__getitem__, self.gcs.open_groups()):
            driver = self.processes.get(self.driver_of(facts.job_id)[1])
            if driver is not None and not facts.let_go:
                facts.removed = facts.let_go = found = True
                driver.ask_gcs("remove_placement_group", facts.group_id)
        return found

    def _return_lost_grants(self) -> bool:
        """A giver died after it had told the owner, and before it told the taker: that counts as long as the taker
        lives (see docs/ownership.md). Here it is taken back, so that nothing else can hide behind it."""
        found = False
        for (object_id, taker), grants in self.ledger.lost_grants.items():
            for process in self.processes.values():
                record = process.core.objects.get(object_id)
                if record is not None and record.owner is None and (record.borrowers or {}).get(taker, 0) > 0:
                    count = min(grants, (record.borrowers or {})[taker])
                    process.core.refs.on_releases(taker, [(object_id, count)])
                    process.perform()
                    found = True
        return found

    def _free_resources(self) -> bool:
        """What waits for a CPU may hold the handle of the actor that has it, for life: kill that."""
        if not self.programs or not any(p.core.objects for p in self.processes.values()):
            return False
        leases = [lease for node in self.nodes.values() for lease in node.table.leases.values()]
        holders = [lease.demand.actor for lease in leases if lease.demand.actor is not None]
        for actor in holders:
            facts = self.ledger.actor(actor.actor_id)
            assert facts is not None
            facts.kills.append(True)
            self.programs[0].process.ask_gcs("kill_actor", actor.actor_id, True)
        return bool(holders)


def setting_of(seed: int, nodes: int | None = None) -> Setting:
    """The world of that seed: half of them have several machines."""
    if nodes is None:
        nodes = 1 if seed % 2 else 2 + seed // 2 % 3
    apart = seed // 6 % 2 if nodes > 1 else 0
    return Setting(
        nodes, 1 + seed % 3 if nodes == 1 else 1 + (seed % 3 == 0), 1 + (seed % 5 == 0), int(seed % 7 == 0), seed,
        apart=apart, actors=int(seed // 4 % 3 == 1), memory=MEMORY if nodes == 1 and seed // 2 % 2 else 0,
    )  # fmt: skip


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings that services write about lost nodes."""
    logger = logging.getLogger("minray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def run(seed: int, *, steps: int = 300, kills: int = 0, nodes: int | None = None) -> Simulation:
    """One story: drivers work for ``steps`` steps, then everybody lets go. Raises SimulationError, whose ``setting``
    and ``events`` tell the story up to the moment when they let go."""
    setting = setting_of(seed, nodes)
    active: int | None = None
    with quietly():
        sim = Simulation(setting, seed, kills=kills, cuts=kills if setting.nodes > 1 else 0)
        try:
            for _ in range(steps):
                sim.step()
                sim.judge.step(everything=sim.steps % FULL_CHECK == 0)
            active = len(sim.events)
            sim.come_to_rest()
        except Exception as error:  # also what a machine raises: none of it may happen
            where = f"seed {seed}, kills {kills}, step {sim.steps}"
            raise SimulationError.of(error, setting, sim.events[:active], where) from error
    return sim
