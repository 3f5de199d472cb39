"""The life of every placement group: which nodes hold its bundles, who has its name, who waits for it. Pure.

    PENDING ──tried──▶ PREPARING ──ready──▶ CREATED ──lost──▶ RESCHEDULING ──ready──▶ CREATED
       ▲                   │                                      (tried, refused: stays)
       └──── refused ──────┘            any ──gone──▶ REMOVED

``group_requests`` calls this with what core workers ask (create, remove, wait) and what nodes say (prepared, joined,
lost); it does the effects that come back. A group is created in two phases: a *trial* asks nodes to reserve
(PrepareBundles), and when all have said yes they are told to open what they reserved (CommitBundles); one no,
or a lost node, ends the trial everywhere (ReleaseBundles). When a node is lost, only the bundles that it had
are placed anew; the others stay as they are.

Who waits, and for what. Groups are tried in the order of their creation whenever something changes. A trial on *one*
node may wait there as long as it takes: it holds nothing meanwhile, so nothing can lock; if another node has room
sooner, it moves. A trial on several nodes holds what it got, so it has a deadline (PATIENCE_S, doubled each
time), and no two such trials touch the same node: of any that race, one goes first, and none waits for another in
a circle. Small groups may overtake a large one that waits; once OVERTAKEN have, and the room that it lacks is held by
such younger ones, its nodes are closed to younger groups for a while (GUARD_S, doubled each time): it cannot
starve.

A *spec* is a dict of built-ins: ``group_id``, ``job_id``, ``creator_actor`` (or None), ``name``, ``namespace``,
``lifetime`` ("detached" or None), ``strategy``, ``bundles`` (a list of resources in units), ``selectors`` (one per
bundle, or none), ``soft_target`` (a node, for STRICT_PACK, or None).

Invariants: a name belongs to at most one group that is not REMOVED, and REMOVED is final; a created group has a node
for every bundle, any other has none for at least one; the ledger holds exactly what groups have, or have asked
several nodes (or one with room) for; nobody waits for a group that is created or removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from typing import Any

from minray._base.groups import ANY_BUNDLE, GONE
from minray.gcs.actors import ActorError
from minray.gcs.bundle_ledger import Available, Ledger
from minray.gcs.bundle_placement import add, choose
from minray.gcs.effects import Effects, Row, order, save
from minray.gcs.group_record import (
    CREATED,
    GUARD_S,
    LOST,
    MAX_GUARD_S,
    MAX_PATIENCE_S,
    NEXT,
    OVER,
    OVERTAKEN,
    PATIENCE_S,
    PENDING,
    PREPARING,
    READY,
    REFUSED,
    REMOVED,
    RESCHEDULING,
    TRIED,
    Group,
    Trial,
    Waiter,
)
from minray.gcs.nodes import Unplaceable
from minray.wire.messages import BundlesPrepared, CommitBundles, PrepareBundles, ReleaseBundles, Resources

TABLE = "placement_groups"
KEEP_REMOVED = 1000
WHOLE_GROUP = -1  # as an attempt: all that a node has of the group
ELDERS = 8  # groups that wait and are looked at when the question is who was overtaken
MOVERS = 16  # trials that wait on one node and are looked at when another may have room
LOOK_S = 0.1  # between two looks at what nodes report: many nodes report often
AT_ONCE_S = 0.5  # what a node that seemed to have room may take to say yes


class GroupGone(Unplaceable):
    """Nothing can be placed in this group, now or later."""


class PlacementGroupTable:
    """Every group that is not removed, and the last removed ones.

    Args:
        available: what is free on a living node, as it said last, in units.
        actor_lives: whether an actor is not dead: groups that a detached actor made live as long as it.
    """

    def __init__(
        self, available: Available, actor_lives: Callable[[bytes], bool], keep_removed: int = KEEP_REMOVED
    ) -> None:
        self._ledger = Ledger(available)
        self._actor_lives = actor_lives
        self._keep_removed = keep_removed
        self._groups: dict[bytes, Group] = {}
        self._names: dict[tuple[str, str], bytes] = {}
        self._removed: dict[bytes, None] = {}  # in the order of removal
        self._waiting: dict[int, Group] = {}  # by number and in its order: those that lack a bundle
        self._busy: set[bytes] = set()  # nodes of trials on several nodes
        self.of_job: dict[bytes, dict[bytes, None]] = {}  # groups that are not removed
        self._orphans: dict[bytes, None] = {}  # their job has ended; the actor that made them lives
        self._count = 0
        self._looked_at = -LOOK_S  # when reports of nodes were last considered
        self._look_at: float | None = None  # when they will be again

    def restore(self, rows: list[tuple[bytes, Row]], now: float) -> None:
        """Take over what an earlier life of the head had saved. Nodes say what they hold when they join."""
        for group_id, (spec, state, attempt, places, number) in sorted(rows, key=lambda item: item[1][4]):
            group = self._groups[group_id] = Group(spec, number, now)
            group.state = PENDING if state == PREPARING else state
            group.attempt, group.places = attempt, dict(places)
            self._count = max(self._count, number)
            if state == REMOVED:
                self._removed[group_id] = None
                continue
            if group.name_key is not None:
                self._names[group.name_key] = group_id
            self.of_job.setdefault(spec["job_id"], {})[group_id] = None
            for index, (node_id, _) in group.places.items():
                self._ledger.hold(node_id, [group.bundles[index]], asked=False)
            if state != CREATED:
                self._waiting[number] = group

    # --- requests of core workers -------------------------------------------------------------------

    def create(self, spec: dict[str, Any], now: float) -> tuple[dict[str, Any], Effects]:
        """A new group: ``{"state", "warning"}``, the latter a text if no node could ever hold it.

        Raises ActorError("RaySystemError") for a name that is taken. Asked again with one group_id (a retry),
        nothing happens.
        """
        known = self._groups.get(spec["group_id"])
        if known is not None:
            return {"state": known.state, "warning": None}, []
        group = Group(spec, self._count + 1, now)
        key = group.name_key
        if key is not None and key in self._names:
            raise ActorError(
                "RaySystemError",
                f"Failed to create placement group {group.group_id.hex()!r} because name {key[1]!r} already exists "
                f"in namespace {key[0]!r}: choose another name, or look the group up by get_placement_group()",
            )
        self._count += 1
        self._groups[group.group_id] = group
        if key is not None:
            self._names[key] = group.group_id
        self.of_job.setdefault(spec["job_id"], {})[group.group_id] = None
        self._waiting[group.number] = group
        effects = self._try(group, now)
        warning = self._hopeless(group) if group.trial is None else None
        return {"state": group.state, "warning": warning}, [self._saved(group), *effects]

    def remove(self, group_id: bytes, now: float) -> Effects:
        """Give its resources back; what runs in it is killed. Nothing if it is unknown or removed."""
        group = self._groups.get(group_id)
        if group is None:
            return []
        return self._remove(group, "was removed by remove_placement_group()") + self._pass(now)

    def named(self, name: str, namespace: str) -> dict[str, Any]:
        """``{"group_id", "bundles"}`` of whoever has that name. Raises ActorError("ValueError")."""
        group_id = self._names.get((namespace, name))
        if group_id is None:
            raise ActorError(
                "ValueError",
                f"Failed to look up placement group with name: {name}. It was never created in namespace "
                f"{namespace!r}, or it has been removed",
            )
        return {"group_id": group_id, "bundles": self._groups[group_id].bundles}

    def bundles_of(self, group_id: bytes) -> list[dict[str, int]]:
        """What its bundles hold. Raises ActorError("ValueError") for a group that nobody knows."""
        group = self._groups.get(group_id)
        if group is None:
            raise ActorError("ValueError", f"this cluster does not know placement group {group_id.hex()}")
        return group.bundles

    def wait(self, group_id: bytes, waiter: Waiter) -> tuple[bool, Any] | None:
        """(True, state) if it is created; (False, why) if it never will be; None: ``waiter`` will be told."""
        group = self._groups.get(group_id)
        if group is None:
            return False, f"this cluster does not know placement group {group_id.hex()} (any more)"
        if group.state == CREATED:
            return True, CREATED
        if group.state == REMOVED:
            return False, f"{group.what()} {group.spec['removed']}"
        group.waiters[waiter] = None
        return None

    def unwait(self, group_id: bytes, waiter: Waiter) -> None:
        """It need not be told any more."""
        group = self._groups.get(group_id)
        if group is not None:
            group.waiters.pop(waiter, None)

    def forget_waiters(self, of: Callable[[Waiter], bool]) -> None:
        """Those are gone."""
        for group in self._waiting.values():
            for waiter in [w for w in group.waiters if of(w)]:
                del group.waiters[waiter]

    # --- for actors ---------------------------------------------------------------------------------

    def place(
        self, group_id: bytes, index: int, actors: Mapping[bytes, int], avoid: bytes | None = None
    ) -> bytes | None:
        """The node for an actor in that bundle, or in any (-1); None while it has none. Raises GroupGone."""
        group = self._groups.get(group_id)
        if group is None or group.state == REMOVED:
            why = f"this cluster does not know placement group {group_id.hex()}"
            raise GroupGone(f"{GONE}: {group.what() + ' ' + group.spec['removed'] if group is not None else why}")
        able = [n for i, (n, _) in group.places.items() if index in (ANY_BUNDLE, i) and n in self._ledger]
        return min(able, key=lambda n: (n == avoid, actors.get(n, 0))) if able else None

    # --- what nodes say -------------------------------------------------------------------------------

    def prepared(self, node_id: bytes, message: BundlesPrepared, now: float) -> Effects:
        """A node has reserved its part of a trial, or will not."""
        group = self._groups.get(message.group_id)
        trial = group.trial if group is not None else None
        if group is None or group.state == REMOVED:
            return [order(node_id, ReleaseBundles(message.group_id, WHOLE_GROUP, "nobody wants it any more"))]
        if trial is None or message.attempt != group.attempt or node_id not in trial.unanswered:
            known = trial is not None and message.attempt == group.attempt and node_id in trial.nodes
            if not message.ok or known or (node_id, message.attempt) in group.places.values():
                return []
            return [order(node_id, ReleaseBundles(group.group_id, message.attempt, "this attempt is over"))]
        if not message.ok:
            group.refused.add(node_id)
            return self._abort(group, now) + self._pass(now)
        trial.unanswered.discard(node_id)
        if trial.claims:
            self._ledger.confirm(node_id, [group.bundles[i] for i in trial.nodes[node_id]])
        if trial.unanswered:
            return []
        opens = trial.until is not None or group.guard is not None  # nodes that others may use then
        return self._commit(group, trial, now) + (self._pass(now) if opens else [])

    def node_joined(
        self,
        node_id: bytes,
        totals: Resources,
        labels: Mapping[str, str],
        held: Collection[tuple[bytes, int]],
        now: float,
    ) -> Effects:
        """A node is there, perhaps again. ``held``: (group, attempt) of what it has reserved or opened."""
        self._ledger.join(node_id, totals, labels)
        effects: Effects = []
        for group_id, attempt in held:
            group = self._groups.get(group_id)
            if group is None or group.state == REMOVED:
                effects.append(order(node_id, ReleaseBundles(group_id, WHOLE_GROUP, "it is not known any more")))
            elif (node_id, attempt) in group.places.values():
                effects.append(order(node_id, CommitBundles(group_id, attempt)))
            elif group.trial is None or attempt != group.attempt or node_id not in group.trial.nodes:
                effects.append(order(node_id, ReleaseBundles(group_id, attempt, "this attempt is over")))
        kept = set(held)
        for group in list(self._groups.values()):
            if group.trial is not None and node_id in group.trial.unanswered:
                effects.append(self._prepare(group, node_id))
            missed = [i for i, (n, no) in group.places.items() if n == node_id and (group.group_id, no) not in kept]
            if missed:
                effects += self._lose(group, missed, now)
        return effects + self._pass(now)

    def node_lost(self, node_id: bytes, now: float) -> Effects:
        """A machine is gone, with the bundles that it had."""
        self._ledger.leave(node_id)
        effects: Effects = []
        for group in list(self._groups.values()):
            if group.trial is not None and node_id in group.trial.nodes:
                effects += self._abort(group, now, penalty=False)
            missed = [i for i, (n, _) in group.places.items() if n == node_id]
            if missed:
                effects += self._lose(group, missed, now)
        return effects + self._pass(now)

    def view_changed(self, now: float) -> Effects:
        """Nodes have said what is free now."""
        if not self._waiting or self._look_at is not None:
            return []
        if now < self._looked_at + LOOK_S:
            self._look_at = self._looked_at + LOOK_S
            return []
        return self._look(now)

    def _look(self, now: float) -> Effects:
        self._looked_at, self._look_at = now, None
        return self._move(now) + self._pass(now)

    # --- the end of those who made them -----------------------------------------------------------------

    def job_finished(self, job_id: bytes, now: float) -> Effects:
        """A driver is gone, and with it its groups, but for detached ones and those of living detached actors."""
        effects: Effects = []
        for group_id in list(self.of_job.get(job_id, ())):
            group = self._groups[group_id]
            creator = group.spec.get("creator_actor")
            if group.detached:
                continue
            if creator is not None and self._actor_lives(creator):
                self._orphans[group_id] = None
            else:
                effects += self._remove(group, f"was removed: its job {job_id.hex()} has ended")
        return effects + (self._pass(now) if effects else [])

    @property
    def has_orphans(self) -> bool:
        """Whether an actor's death could end a group."""
        return bool(self._orphans)

    def actors_changed(self, now: float) -> Effects:
        """Actors may have died: their groups go, if nothing else keeps them."""
        effects: Effects = []
        for group_id in list(self._orphans):
            group = self._groups[group_id]
            if not self._actor_lives(group.spec["creator_actor"]):
                effects += self._remove(group, "was removed: its job has ended, and the actor that made it is dead")
        return effects + (self._pass(now) if effects else [])

    # --- time -----------------------------------------------------------------------------------------

    def tick(self, now: float) -> Effects:
        """What a moment that ``next_deadline`` named brings."""
        effects: Effects = []
        for group in list(self._waiting.values()):
            if group.trial is not None and group.trial.until is not None and group.trial.until <= now:
                effects += self._abort(group, now)
            if group.guard is not None and group.guard[0] <= now:
                group.guard = None
            if group.retry_at <= now:
                group.retry_at = 0.0
                group.refused.clear()
        if self._look_at is not None and self._look_at <= now:
            return effects + self._look(now)
        return effects + self._pass(now)

    def next_deadline(self) -> float | None:
        """When ``tick`` is due; None: not before something happens."""
        moments = [self._look_at] if self._look_at is not None else []
        for group in self._waiting.values():
            if group.trial is not None and group.trial.until is not None:
                moments.append(group.trial.until)
            elif group.trial is None and group.retry_at:
                moments.append(group.retry_at)
            if group.guard is not None:
                moments.append(group.guard[0])
        return min(moments, default=None)

    # --- trying ---------------------------------------------------------------------------------------

    def _pass(self, now: float) -> Effects:
        """Try all who wait, in the order of their creation."""
        effects: Effects = []
        failed: set[Any] = set()
        for group in list(self._waiting.values()):
            if group.trial is not None or group.shape() in failed:
                continue
            tried = self._try(group, now)
            effects += tried
            if not tried:
                failed.add(group.shape())
        return effects

    def _try(self, group: Group, now: float) -> Effects:
        closed = {node_id for elder in self._elders(group) for node_id in self._guarded(elder, now)}
        closed |= group.refused
        question = group.question()
        placement = self._ledger.place(question, closed)
        at_once = placement is not None
        if placement is None:
            placement = choose(question, self._ledger.prospects(closed))
        if placement is None:
            return []
        nodes: dict[bytes, list[int]] = {}
        for index in sorted(placement):
            nodes.setdefault(placement[index], []).append(index)
        if len(nodes) == 1:
            return self._start(group, Trial(nodes, claims=at_once, until=None), now)
        if not self._busy.isdisjoint(nodes) or (not at_once and group.retry_at > now):
            return []
        return self._start(group, Trial(nodes, claims=True, until=now + group.patience), now)

    def _start(self, group: Group, trial: Trial, now: float) -> Effects:
        group.state = NEXT[group.state, TRIED]
        group.attempt += 1
        group.trial, group.tried_at = trial, now
        for node_id, indices in trial.nodes.items():
            if trial.claims:
                self._ledger.hold(node_id, [group.bundles[i] for i in indices], asked=True)
            if trial.until is not None:
                self._busy.add(node_id)
        if trial.claims:
            for elder in self._elders(group):
                served = elder.trial is not None and elder.trial.claims  # it has room, and is being told so
                elder.overtaken += elder.guard is None and not served
        return [self._saved(group), *(self._prepare(group, node_id) for node_id in trial.nodes)]

    def _prepare(self, group: Group, node_id: bytes) -> tuple[Any, ...]:
        assert group.trial is not None
        bundles = [(i, group.bundles[i]) for i in group.trial.nodes[node_id]]
        return order(node_id, PrepareBundles(group.group_id, group.attempt, bundles))

    def _end_trial(self, group: Group) -> Trial:
        trial = group.trial
        assert trial is not None
        group.trial = None
        for node_id, indices in trial.nodes.items():
            if trial.claims:
                bundles = [group.bundles[i] for i in indices]
                self._ledger.release(node_id, bundles, asked=node_id in trial.unanswered)
            if trial.until is not None:
                self._busy.discard(node_id)
        return trial

    def _abort(self, group: Group, now: float, *, penalty: bool = True) -> Effects:
        """The trial has failed: everybody lets go."""
        trial = self._end_trial(group)
        group.state = NEXT[group.state, REFUSED]
        if penalty:
            group.retry_at = now + group.patience
            group.patience = min(2 * group.patience, MAX_PATIENCE_S)
        release = ReleaseBundles(group.group_id, group.attempt, "this attempt is over")
        return [order(node_id, release) for node_id in trial.nodes if node_id in self._ledger]

    def _commit(self, group: Group, trial: Trial, now: float) -> Effects:
        self._end_trial(group)
        for node_id, indices in trial.nodes.items():
            self._ledger.hold(node_id, [group.bundles[i] for i in indices], asked=False)
            group.places.update({i: (node_id, group.attempt) for i in indices})
        group.state = NEXT[group.state, READY]
        group.created_at = now
        group.patience, group.retry_at = PATIENCE_S, 0.0
        group.overtaken, group.tolerance = 0, OVERTAKEN
        group.guard, group.guard_s = None, GUARD_S
        group.refused.clear()
        del self._waiting[group.number]
        commit = CommitBundles(group.group_id, group.attempt)
        orders = [order(node_id, commit) for node_id in trial.nodes]
        return [self._saved(group), *orders, *self._tell(group, True, CREATED)]

    def _lose(self, group: Group, indices: list[int], now: float) -> Effects:
        """These bundles are gone with their node."""
        effects = self._abort(group, now, penalty=False) if group.trial is not None else []
        for index in indices:
            node_id, _ = group.places.pop(index)
            self._ledger.release(node_id, [group.bundles[index]], asked=False)
        group.state = NEXT[group.state, LOST]
        self._waiting[group.number] = group
        self._waiting = dict(sorted(self._waiting.items()))
        return [*effects, self._saved(group)]

    def _move(self, now: float) -> Effects:
        """Those that wait on one node go where there is room at once."""
        effects: Effects = []
        failed: set[Any] = set()
        for group in [g for g in self._waiting.values() if g.trial is not None and _stays(g, g.trial, now)][:MOVERS]:
            trial = group.trial
            assert trial is not None
            if trial.claims:  # the node had no room after all
                trial.claims = False
                for node_id, indices in trial.nodes.items():
                    self._ledger.release(node_id, [group.bundles[i] for i in indices], asked=True)
            shape = (group.shape(), *trial.nodes)
            if shape not in failed and choose(group.question(), self._ledger.rooms(trial.nodes)) is not None:
                effects += self._abort(group, now, penalty=False) + self._try(group, now)
            else:
                failed.add(shape)
        return effects

    # --- fairness -------------------------------------------------------------------------------------

    def _elders(self, group: Group) -> Iterator[Group]:
        """Those that wait and were there before it; the first few."""
        for elder in islice(self._waiting.values(), ELDERS):
            if elder.number >= group.number:
                return
            yield elder

    def _guarded(self, elder: Group, now: float) -> Collection[bytes]:
        """The nodes that are closed to younger groups, because ``elder`` was overtaken too often.

        If their end alone would make room for it, that is tried again after as many more; if tasks, actors or
        older groups stand in its way, too, then ever more rarely: perhaps they stay for ever.
        """
        if elder.guard is None and elder.overtaken >= elder.tolerance:
            younger = self._held_by_younger(elder)
            placement = choose(elder.question(), self._ledger.rooms(given_back=younger))
            if placement is None:
                elder.tolerance *= 2
                placement = choose(elder.question(), self._ledger.prospects(given_back=younger))
            elder.overtaken = 0
            if placement is not None:
                elder.guard = (now + elder.guard_s, frozenset(placement.values()))
                elder.guard_s = min(2 * elder.guard_s, MAX_GUARD_S)
        return elder.guard[1] if elder.guard is not None and elder.guard[0] > now else ()

    def _held_by_younger(self, elder: Group) -> dict[bytes, dict[str, int]]:
        held: dict[bytes, dict[str, int]] = {}
        for group in self._groups.values():
            if group.number > elder.number:
                for node_id, bundle in group.holdings():
                    add(held.setdefault(node_id, {}), bundle)
        return held

    # --- the end --------------------------------------------------------------------------------------

    def _remove(self, group: Group, reason: str) -> Effects:
        if group.state == REMOVED:
            return []
        nodes = {node_id: None for node_id, _ in group.places.values()}
        if group.trial is not None:
            nodes.update(dict.fromkeys(self._end_trial(group).nodes))
        for index, (node_id, _) in group.places.items():
            self._ledger.release(node_id, [group.bundles[index]], asked=False)
        group.places.clear()
        group.state = NEXT[group.state, OVER]
        group.spec = {**group.spec, "removed": reason}
        group.guard = None
        if group.name_key is not None:
            del self._names[group.name_key]
        self._waiting.pop(group.number, None)
        self._orphans.pop(group.group_id, None)
        of_job = self.of_job[group.spec["job_id"]]
        del of_job[group.group_id]
        if not of_job:
            del self.of_job[group.spec["job_id"]]
        text = f"{group.what()} {reason}"
        release = ReleaseBundles(group.group_id, WHOLE_GROUP, text)
        effects = [self._saved(group), *(order(node_id, release) for node_id in nodes if node_id in self._ledger)]
        effects += self._tell(group, False, text)
        self._removed[group.group_id] = None
        while len(self._removed) > self._keep_removed:
            oldest = next(iter(self._removed))
            del self._removed[oldest], self._groups[oldest]
            effects.append(save(TABLE, oldest, None))
        return effects

    def _tell(self, group: Group, ok: bool, value: Any) -> Effects:
        """Whoever waits for the group, and the actors that wait to be placed in it."""
        waiters, group.waiters = group.waiters, {}
        return [*(("answer", waiter, ok, value) for waiter in waiters), ("group", group.group_id)]

    def _saved(self, group: Group) -> tuple[Any, ...]:
        return save(TABLE, group.group_id, group.row())

    def _hopeless(self, group: Group) -> str | None:
        """A text, if all nodes together could not hold the group even if they were empty."""
        rooms = self._ledger.empty()
        return None if choose(group.question(), rooms) is not None else group.why_hopeless(rooms)

    # --- what is shown --------------------------------------------------------------------------------

    def public(self, group_id: bytes | None = None) -> dict[str, dict[str, Any]]:
        """Every known group as users see it, by its id in hexadecimal; or that one alone."""
        wanted = self._groups if group_id is None else [i for i in (group_id,) if i in self._groups]
        return {i.hex(): self._groups[i].public() for i in wanted}

    def waiting(self, limit: int) -> list[tuple[str, str, str]]:
        """The first of those that lack a bundle: (which, what it asks for, why it waits), for tools."""
        return [group.waits(self._hopeless(group) is not None) for group in islice(self._waiting.values(), limit)]

    def counts(self) -> dict[str, int]:
        """How many groups are in each state."""
        found = dict.fromkeys((PENDING, PREPARING, CREATED, RESCHEDULING, REMOVED), 0)
        for group in self._groups.values():
            found[group.state] += 1
        return found

    def check_invariants(self) -> None:
        """Raise AssertionError where the table contradicts itself."""
        living = {i: group for i, group in self._groups.items() if group.state != REMOVED}
        assert set(self._removed) == set(self._groups) - set(living), "the list of the removed is wrong"
        assert len(self._removed) <= self._keep_removed
        named = {g.name_key: i for i, g in living.items() if g.name_key is not None}
        assert self._names == named, "names and groups disagree"
        lacking = {g.number: g for g in living.values() if g.state != CREATED}
        assert list(self._waiting.items()) == sorted(lacking.items()), "the list of those that wait is wrong"
        held: dict[bytes, dict[str, int]] = {}
        busy: list[bytes] = []
        for group in self._groups.values():
            complete = len(group.places) == len(group.bundles)
            assert complete == (group.state == CREATED), group
            assert group.trial is None or group.state in (PREPARING, RESCHEDULING), group
            assert group.trial is not None or group.state != PREPARING, group
            assert not group.waiters or group.state not in (CREATED, REMOVED), f"{group} has waiters"
            if group.trial is not None:
                assert group.trial.unanswered, f"{group}: all have answered"
                assert len(group.trial.nodes) == 1 or group.trial.until is not None, f"{group} could lock others"
                busy += group.trial.nodes if group.trial.until is not None else ()
            for node_id, bundle in group.holdings():
                add(held.setdefault(node_id, {}), bundle)
        assert self._busy == set(busy), "the nodes of trials are wrong"
        assert len(busy) == len(set(busy)), "two trials on several nodes share one"
        self._ledger.check_invariants(held)
        assert self._orphans.keys() <= living.keys()
        assert sum(map(len, self.of_job.values())) == len(living), "the index of jobs is wrong"


def _stays(group: Group, trial: Trial, now: float) -> bool:
    """Whether it waits on a single node that has no room after all."""
    return trial.until is None and (not trial.claims or group.tried_at + AT_ONCE_S <= now)
