"""The life of every actor, its name, and who wants to hear of it. Pure.

    PENDING ──started──▶ ALIVE ──lost, restarts left──▶ RESTARTING ──started──▶ ALIVE
       └────────────────────┴────────── over ────────────────┴──▶ DEAD

``service`` calls this with requests of core workers (create, kill, out of scope, subscribe) and with what
nodes report (started, ended, owner died, node lost); it does the effects that come back. A node is told to
start an actor's *incarnation* (0, then one more for each restart); what an older incarnation still says is
ignored, and a fenced one that reports to have started is stopped. A kill that lets the actor restart waits
for the end of the old incarnation, so that two never run side by side. A node where the actor would have to wait,
though another has room, *bounces* it: the same incarnation is placed again, and no restart is used. An actor that
ends again and again before it is ready is started again after a pause that grows (``pause_s``).

A *spec* is a dict of built-ins, made by the creator and read here only for: ``actor_id``, ``job_id``,
``owner`` (Address), ``name``, ``namespace``, ``lifetime`` ("detached" or None), ``class_name``,
``method_meta``, ``options`` (``max_restarts``, ``get_if_exists``), ``strategy``, ``placement_resources``,
``placement_group`` (None, or where in which group: see _base.groups).
Nodes and workers read the rest: ``function_id``, ``class_blob``, ``args``, ``arg_refs``,
``lifetime_resources``, ``env_vars``.

Invariants: a name belongs to at most one actor that is not dead; DEAD is final; a dead actor has neither
name, node nor subscriber; only the newest dead are remembered, without their class and arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minray.gcs.actor_record import ALIVE, DEAD, LOST, NEXT, OVER, PENDING, RESTARTING, STARTED, Actor, pause_s
from minray.gcs.effects import Effects, Row, later, notify, order, save
from minray.gcs.nodes import Unplaceable
from minray.wire.messages import ActorEnded, ActorStarted, ActorUpdate, StartActor, StopActor

KEEP_DEAD = 2000
TABLE, SPEC_TABLE = "actors", "actor_specs"
Place = Callable[[Mapping[str, Any], Mapping[bytes, int], bytes | None], bytes | None]
_REQUIRED = ("actor_id", "job_id", "owner", "class_name", "method_meta", "options")
_ONLY_FOR_STARTING = ("class_blob", "args", "arg_refs")  # what a dead actor's spec can do without


class ActorError(Exception):
    """A request that cannot be served; ``kind`` is the name of the error that the caller raises."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Index:
    """Which actors (or actors of which subscriber) belong to a key; empty entries vanish."""

    def __init__(self) -> None:
        self.of: dict[Any, set[bytes]] = {}

    def add(self, key: Any, actor_id: bytes) -> None:
        self.of.setdefault(key, set()).add(actor_id)

    def discard(self, key: Any, actor_id: bytes) -> None:
        ids = self.of.get(key)
        if ids is not None:
            ids.discard(actor_id)
            if not ids:
                del self.of[key]

    def get(self, key: Any) -> list[bytes]:
        return sorted(self.of.get(key, ()))


class ActorTable:
    """Every actor that is not dead, and the last dead ones. ``place`` is ``NodeTable.place``."""

    def __init__(self, place: Place, keep_dead: int = KEEP_DEAD) -> None:
        self._place = place
        self._keep_dead = keep_dead
        self._actors: dict[bytes, Actor] = {}
        self._names: dict[tuple[str, str], bytes] = {}
        self._dead: dict[bytes, None] = {}  # in the order of their deaths
        self._unplaced: dict[bytes, None] = {}  # wait for a first node to join, for their group, or in a pause
        self._per_node: dict[bytes, int] = {}  # living actors, for placement
        self._of_node, self._of_owner, self._of_job = _Index(), _Index(), _Index()
        self._of_subscriber = _Index()

    def restore(self, specs: list[tuple[bytes, Row]], rows: list[tuple[bytes, Row]]) -> None:
        """Take over what an earlier life of the head had saved. Nodes report anew what really runs."""
        states = dict(rows)
        for actor_id, (spec,) in specs:
            actor = Actor(spec)
            actor.take_row(states[actor_id])
            self._actors[actor_id] = actor
            if actor.state == DEAD:
                self._dead[actor_id] = None
                continue
            self._of_owner.add(actor.owner_id, actor_id)
            self._of_job.add(spec["job_id"], actor_id)
            if actor.node_id is not None:
                self._attach(actor, actor.node_id)
            elif actor.awaited is None:
                self._unplaced[actor_id] = None
            if actor.name_key is not None and not actor.leaving:
                self._names[actor.name_key] = actor_id

    # --- requests of core workers -----------------------------------------------------------------

    def create(self, spec: dict[str, Any], subscriber: int) -> tuple[dict[str, Any], Effects]:
        """A new actor, or, with ``get_if_exists``, the one that has the name. The creator of a new one is
        subscribed to it. The answer is ``Actor.info()`` plus ``created``.

        Raises ActorError("ActorAlreadyExistsError") for a name that is taken. Asked again with one actor_id
        (a retry), the answer is the same and nothing happens.
        """
        missing = [key for key in _REQUIRED if spec.get(key) is None]
        if missing:
            raise ActorError("RaySystemError", f"an actor's spec lacks {', '.join(missing)}")
        known = self._actors.get(spec["actor_id"])
        if known is not None:
            self._subscribe(known, subscriber)
            return {**known.info(), "created": True}, []
        actor = Actor(spec)
        key = actor.name_key
        if key is not None and key in self._names:
            holder = self._actors[self._names[key]]
            if spec["options"].get("get_if_exists"):
                return {**holder.info(), "created": False}, []
            raise ActorError(
                "ActorAlreadyExistsError",
                f"an actor named {key[1]!r} already exists in namespace {key[0]!r} (a "
                f"{holder.spec['class_name']}): choose another name, or use get_if_exists=True",
            )
        self._actors[actor.actor_id] = actor
        if key is not None:
            self._names[key] = actor.actor_id
        self._of_owner.add(actor.owner_id, actor.actor_id)
        self._of_job.add(spec["job_id"], actor.actor_id)
        self._subscribe(actor, subscriber)
        effects = [save(SPEC_TABLE, actor.actor_id, (spec,)), *self._dispatch(actor)]
        return {**actor.info(), "created": True}, effects

    def get_named(self, name: str, namespace: str) -> dict[str, Any]:
        """``Actor.info()`` of whoever has that name. Raises ActorError("ValueError") if nobody has."""
        actor_id = self._names.get((namespace, name))
        if actor_id is None:
            raise ActorError(
                "ValueError",
                f"Failed to look up actor with name {name!r} in namespace {namespace!r}: it was never created, it "
                "has died, or it was created in another namespace",
            )
        return self._actors[actor_id].info()

    def list_named(self, namespace: str | None) -> list[dict[str, str]]:
        """Names of one namespace, or of all if None, as ``{"name", "namespace"}``, sorted."""
        keys = sorted(key for key in self._names if namespace is None or key[0] == namespace)
        return [{"name": name, "namespace": space} for space, name in keys]

    def kill(self, actor_id: bytes, no_restart: bool) -> Effects:
        """End it at once. Without ``no_restart`` it restarts if it has restarts left.

        Raises ActorError("ActorHandleNotFoundError") for an actor that this cluster never knew.
        """
        actor = self._actors.get(actor_id)
        if actor is None:
            raise ActorError(
                "ActorHandleNotFoundError",
                f"actor {actor_id.hex()} is not known to this cluster: its handle is of an earlier session",
            )
        if actor.state == DEAD:
            return []
        cause = {"kind": "killed", "text": "it was killed by kill()", "expected": True}
        if not no_restart and (actor.awaited is not None or actor.node_id is None):
            return []  # its restart is on the way already, or it has not begun
        if no_restart or actor.leaving or actor.restarts_left == 0:
            return self._over(actor, cause, graceful=False)
        old = actor.incarnation
        assert actor.node_id is not None  # else it would have been on its way above
        stop = order(actor.node_id, StopActor(actor_id, old, False, str(cause["text"])))
        effects = self._restart(actor, cause)
        actor.awaited = old
        return [*effects, self._saved(actor), stop]

    def out_of_scope(self, actor_id: bytes) -> Effects:
        """Nobody can call it any more: it ends after what is queued. Detached actors stay."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.state == DEAD or actor.detached or actor.leaving:
            return []
        cause = {
            "kind": "out_of_scope",
            "text": "all references to it went out of scope",
            "expected": True,
        }
        if actor.state != ALIVE or actor.node_id is None:
            return self._over(actor, cause, graceful=True)
        actor.leaving, actor.cause = True, cause
        self._drop_name(actor)
        stop = StopActor(actor_id, actor.incarnation, True, str(cause["text"]))
        return [self._saved(actor), order(actor.node_id, stop)]

    def subscribe(self, actor_id: bytes, subscriber: int) -> Effects:
        """Tell ``subscriber`` the state now, and each change until the actor is dead."""
        actor = self._actors.get(actor_id)
        if actor is None:
            cause = {"kind": "unknown", "text": "this cluster does not know it, or it died long ago"}
            return [notify(subscriber, ActorUpdate(actor_id, DEAD, 0, None, cause))]
        self._subscribe(actor, subscriber)
        return [notify(subscriber, actor.update())]

    def unsubscribe(self, actor_id: bytes, subscriber: int) -> None:
        """No more of this actor to ``subscriber``."""
        actor = self._actors.get(actor_id)
        if actor is not None:
            actor.subscribers.discard(subscriber)
        self._of_subscriber.discard(subscriber, actor_id)

    def subscriber_gone(self, subscriber: int) -> None:
        """Its connection is closed."""
        for actor_id in self._of_subscriber.get(subscriber):
            self.unsubscribe(actor_id, subscriber)

    # --- reports of nodes -------------------------------------------------------------------------

    def started(self, node_id: bytes, report: ActorStarted) -> Effects:
        """``__init__`` has run, or raised."""
        actor = self._actors.get(report.actor_id)
        if actor is None or not self._current(actor, node_id, report.incarnation):
            graceful = actor is not None and actor.cause.get("kind") == "out_of_scope"
            text = "this incarnation is not wanted any more"
            return [order(node_id, StopActor(report.actor_id, report.incarnation, graceful, text))]
        if actor.state == ALIVE:
            return []  # said twice
        if report.error is not None:
            text = f"the constructor of {actor.spec['class_name']} raised an exception"
            cause = {"kind": "creation_failed", "text": text, "creation_error": report.error}
            return self._over(actor, cause, graceful=True)
        actor.state = NEXT[actor.state, STARTED]
        actor.address = report.address
        actor.failures = 0
        return [self._saved(actor), *self._announce(actor)]

    def ended(self, node_id: bytes, report: ActorEnded) -> Effects:
        """The worker of that incarnation is gone, or it could never be placed."""
        actor = self._actors.get(report.actor_id)
        if actor is None or actor.state == DEAD:
            return []
        if actor.awaited is not None:
            return self._dispatch(actor) if report.incarnation == actor.awaited else []
        if not self._current(actor, node_id, report.incarnation):
            return []
        if report.cause.get("bounced"):
            actor.bounces += 1
            return self._dispatch(actor, avoid=node_id)
        return self._end_of_incarnation(actor, dict(report.cause))

    def owner_died(self, worker_id: bytes, text: str) -> Effects:
        """The process that created them is gone: its actors end, but for the detached ones."""
        text = f"its owner died: {text}"
        cause = {"kind": "owner_died", "text": text, "owner_died": True, "expected": True}
        return self._end_all(self._of_owner.get(worker_id), cause)

    def any_of_job(self, job_id: bytes) -> bool:
        """Whether an actor of that job is not dead."""
        return bool(self._of_job.get(job_id))

    def job_finished(self, job_id: bytes) -> Effects:
        """Its driver is gone: its actors end, but for the detached ones and those that they have created."""
        cause = {"kind": "job_finished", "text": f"its job {job_id.hex()} has ended", "expected": True}
        actor_ids = self._of_job.get(job_id)
        outlive = {actor_id for actor_id in actor_ids if self._actors[actor_id].detached}
        frontier = set(outlive)
        while frontier:
            addresses = [self._actors[actor_id].address for actor_id in frontier]
            owned = {child for address in addresses if address for child in self._of_owner.get(address[1])}
            frontier = owned - outlive
            outlive |= frontier
        return self._end_all([actor_id for actor_id in actor_ids if actor_id not in outlive], cause)

    def _end_all(self, actor_ids: list[bytes], cause: dict[str, Any]) -> Effects:
        effects: Effects = []
        for actor_id in actor_ids:
            actor = self._actors[actor_id]
            if not actor.detached:
                effects += self._over(actor, cause, graceful=False)
        return effects

    def node_lost(self, node_id: bytes, text: str) -> Effects:
        """A machine is gone, with all owners and all incarnations there."""
        owners = {actor.owner_id for actor in self._actors.values() if actor.spec["owner"][0] == node_id}
        effects: Effects = []
        for owner_id in sorted(owners):
            effects += self.owner_died(owner_id, text)
        for actor_id in self._of_node.get(node_id):
            actor = self._actors[actor_id]
            if actor.awaited is not None:
                effects += self._dispatch(actor)
            else:
                effects += self._end_of_incarnation(actor, {"kind": "node_died", "text": text})
        return effects

    def node_joined(self) -> Effects:
        """There is a node now: those that waited for one are placed."""
        waiting, self._unplaced = self._unplaced, {}
        effects: Effects = []
        for actor_id in waiting:
            effects += self._dispatch(self._actors[actor_id])
        return effects

    def group_changed(self, group_id: bytes) -> Effects:
        """A placement group is there, or gone: those that wait for a place in it are placed, or end."""
        effects: Effects = []
        for actor_id in list(self._unplaced):
            target = self._actors[actor_id].spec.get("placement_group")
            if target is not None and target[0] == group_id:
                del self._unplaced[actor_id]
                effects += self._dispatch(self._actors[actor_id])
        return effects

    # --- a node that comes back: see ``reunion`` ------------------------------------------------------

    def on_node(self, node_id: bytes) -> list[Actor]:
        """The actors that the table has there."""
        return [self._actors[actor_id] for actor_id in self._of_node.get(node_id)]

    def owners_on(self, node_id: bytes) -> list[bytes]:
        """The processes there that have created actors which are not dead."""
        owners = (self._actors[next(iter(ids))].spec["owner"] for ids in self._of_owner.of.values())
        return sorted(owner[1] for owner in owners if owner[0] == node_id)

    def order_again(self, actor: Actor) -> tuple[Any, ...]:
        """The order to start the current incarnation, which its node may have or not."""
        assert actor.node_id is not None
        return order(actor.node_id, StartActor(actor.actor_id, actor.incarnation, actor.spec))

    def found(self, node_id: bytes, actor_id: bytes, incarnation: int, report: ActorStarted | None) -> Effects:
        """A node has this one, and ``report`` is what it said when that had started."""
        actor = self._actors.get(actor_id)
        if actor is None or not self._current(actor, node_id, incarnation):
            return self.started(node_id, report or ActorStarted(actor_id, incarnation, None, None))  # it is stopped
        effects = self.started(node_id, report) if report is not None else []
        if actor.leaving and actor.state == ALIVE:
            stop = StopActor(actor_id, incarnation, True, str(actor.cause["text"]))
            effects.append(order(node_id, stop))
        return effects

    # --- inside -----------------------------------------------------------------------------------

    def _current(self, actor: Actor, node_id: bytes, incarnation: int) -> bool:
        return actor.awaited is None and actor.incarnation == incarnation and actor.node_id == node_id

    def _end_of_incarnation(self, actor: Actor, cause: dict[str, Any]) -> Effects:
        if cause.get("unschedulable"):
            cause.setdefault("kind", "unschedulable")
        elif cause.get("intended"):
            cause.setdefault("kind", "exited")
        else:
            cause.setdefault("kind", "worker_died")
            if actor.restarts_left != 0 and not actor.leaving:
                return self._start_again(actor, cause)
        if actor.leaving:
            cause = {**cause, "kind": "out_of_scope", "text": actor.cause["text"]}
        return self._over(actor, cause, graceful=False, stop=False)

    def _start_again(self, actor: Actor, cause: dict[str, Any]) -> Effects:
        """Its worker is gone: now, or after a pause if it never gets ready."""
        actor.failures += actor.state != ALIVE and cause["kind"] == "worker_died"
        pause = pause_s(actor.failures)
        if not pause:
            return [*self._restart(actor, cause), *self._dispatch(actor)]
        often = f"ended {actor.failures} times in a row before it was ready; started again in {pause:g} s"
        effects = self._restart(actor, {**cause, "text": f"{cause.get('text', 'it ended')} ({often})"})
        self._detach(actor)
        self._unplaced[actor.actor_id] = None
        return [*effects, self._saved(actor), later(pause, actor.actor_id, actor.incarnation)]

    def pause_over(self, actor_id: bytes, incarnation: int) -> Effects:
        """What ``later`` had asked for."""
        actor = self._actors.get(actor_id)
        if actor is None or actor_id not in self._unplaced or actor.incarnation != incarnation:
            return []
        del self._unplaced[actor_id]
        return self._dispatch(actor)

    def _restart(self, actor: Actor, cause: dict[str, Any]) -> Effects:
        """The next incarnation is due; not yet ordered."""
        actor.state = NEXT[actor.state, LOST]
        actor.incarnation += 1
        actor.bounces = 0
        if actor.restarts_left > 0:
            actor.restarts_left -= 1
        actor.address, actor.cause = None, cause
        return self._announce(actor)

    def _dispatch(self, actor: Actor, avoid: bytes | None = None) -> Effects:
        """Order the current incarnation from a node, or end the actor if no node may ever have it."""
        actor.awaited = None
        self._detach(actor)
        try:
            node_id = self._place(actor.spec, self._per_node, avoid)
        except Unplaceable as error:
            cause = {"kind": "unschedulable", "unschedulable": True, "text": str(error)}
            return self._over(actor, cause, graceful=False)
        if node_id is None:
            self._unplaced[actor.actor_id] = None
            return [self._saved(actor)]
        self._attach(actor, node_id)
        spec = {**actor.spec, "bounces": actor.bounces} if actor.bounces else actor.spec
        return [self._saved(actor), order(node_id, StartActor(actor.actor_id, actor.incarnation, spec))]

    def _over(self, actor: Actor, cause: dict[str, Any], *, graceful: bool, stop: bool = True) -> Effects:
        """The end: final, announced, and the name is free again."""
        effects: Effects = []
        if stop and actor.node_id is not None and actor.awaited is None:
            text = str(cause.get("text", ""))
            effects.append(order(actor.node_id, StopActor(actor.actor_id, actor.incarnation, graceful, text)))
        actor.state = NEXT[actor.state, OVER]
        actor.address, actor.awaited, actor.cause = None, None, cause
        self._drop_name(actor)
        self._detach(actor)
        self._unplaced.pop(actor.actor_id, None)
        self._of_owner.discard(actor.owner_id, actor.actor_id)
        self._of_job.discard(actor.spec["job_id"], actor.actor_id)
        actor.spec = {key: value for key, value in actor.spec.items() if key not in _ONLY_FOR_STARTING}
        effects += [save(SPEC_TABLE, actor.actor_id, (actor.spec,)), self._saved(actor)]
        effects += self._announce(actor)
        for subscriber in sorted(actor.subscribers):
            self._of_subscriber.discard(subscriber, actor.actor_id)
        actor.subscribers.clear()
        self._dead[actor.actor_id] = None
        while len(self._dead) > self._keep_dead:
            oldest = next(iter(self._dead))
            del self._dead[oldest], self._actors[oldest]
            effects += [save(TABLE, oldest, None), save(SPEC_TABLE, oldest, None)]
        return effects

    def _saved(self, actor: Actor) -> tuple[Any, ...]:
        return save(TABLE, actor.actor_id, actor.row())

    def _announce(self, actor: Actor) -> Effects:
        update = actor.update()
        return [notify(subscriber, update) for subscriber in sorted(actor.subscribers)]

    def _subscribe(self, actor: Actor, subscriber: int) -> None:
        if actor.state != DEAD:
            actor.subscribers.add(subscriber)
            self._of_subscriber.add(subscriber, actor.actor_id)

    def _drop_name(self, actor: Actor) -> None:
        key = actor.name_key
        if key is not None and self._names.get(key) == actor.actor_id:
            del self._names[key]

    def _attach(self, actor: Actor, node_id: bytes) -> None:
        actor.node_id = node_id
        self._of_node.add(node_id, actor.actor_id)
        self._per_node[node_id] = self._per_node.get(node_id, 0) + 1

    def _detach(self, actor: Actor) -> None:
        if actor.node_id is None:
            return
        self._of_node.discard(actor.node_id, actor.actor_id)
        self._per_node[actor.node_id] -= 1
        if not self._per_node[actor.node_id]:
            del self._per_node[actor.node_id]
        actor.node_id = None

    # --- for tests and statistics -----------------------------------------------------------------

    def state_of(self, actor_id: bytes) -> str | None:
        """PENDING, ALIVE, RESTARTING, DEAD; None if unknown."""
        actor = self._actors.get(actor_id)
        return None if actor is None else actor.state

    def counts(self) -> dict[str, int]:
        """How many actors are in each state."""
        found = dict.fromkeys((PENDING, ALIVE, RESTARTING, DEAD), 0)
        for actor in self._actors.values():
            found[actor.state] += 1
        return found

    def check_invariants(self) -> None:
        """Raise AssertionError where the table contradicts itself."""
        living = {key: actor for key, actor in self._actors.items() if actor.state != DEAD}
        assert set(self._dead) == set(self._actors) - set(living), "the list of the dead is wrong"
        assert len(self._dead) <= self._keep_dead
        for actor_id, actor in self._actors.items():
            assert (actor.address is not None) == (actor.state == ALIVE), f"{actor}: address {actor.address}"
            assert actor.awaited is None or actor.state == RESTARTING, f"{actor} awaits {actor.awaited}"
            if actor.state == DEAD:
                assert actor.node_id is None and not actor.subscribers, f"{actor} is held by somebody"
            elif actor.node_id is None:
                assert actor_id in self._unplaced, f"{actor} is nowhere"
            for subscriber in actor.subscribers:
                assert actor_id in self._of_subscriber.of.get(subscriber, ()), f"{actor}: {subscriber}"
        named = {a.name_key: key for key, a in living.items() if a.name_key is not None and not a.leaving}
        assert self._names == named, "names and actors disagree"
        for index in (self._of_owner, self._of_job):
            assert sum(len(ids) for ids in index.of.values()) == len(living), "an index is wrong"
        per_node = {node_id: len(ids) for node_id, ids in self._of_node.of.items()}
        assert self._per_node == per_node, "the counts of actors per node are wrong"
        assert set(self._unplaced) <= set(living), "a dead actor waits for a node"
