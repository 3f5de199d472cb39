"""The part of the GCS's service that is about placement groups: requests in, the machine's effects out.

``GcsService`` is made of this and its own; the methods here are called with its state, on its thread. Requests of
core workers (answers, errors by kind):

* ``create_placement_group(spec)`` → {state, warning}. RaySystemError for a name that is taken, or
  if its job has ended
* ``wait_placement_group(group_id)`` → "CREATED" when it is there. ValueError if it is removed, or was never known.
  Answered as late as need be; ``unwait_placement_group(group_id, request_id)`` says that nobody waits any more
* ``remove_placement_group(group_id)`` → True
* ``get_placement_group(name, namespace)`` → {group_id, bundles}. ValueError
* ``placement_group_bundles(group_id)`` → [resources in units]. ValueError
* ``waiting_placement_groups()`` → [(which, what it asks for, why it waits)], at most WAITING, for tools
* ``list_placement_groups(group_id or None)`` → {hexadecimal id: what ``placement_group_table`` shows}

Nodes ask ``wait_placement_group`` for tasks that want to run in a group that is not there. What a node says when
it joins may have ``bundles``: [(group_id, attempt)] of what it holds already.

Invariant: one timer is armed for the machine's earliest deadline, none when it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from minray.gcs.actor_record import DEAD
from minray.gcs.actors import ActorError, ActorTable
from minray.gcs.effects import Effects, notify, order
from minray.gcs.jobs import JobTable
from minray.gcs.links import NodeLinks, Scheduler
from minray.gcs.nodes import NodeTable
from minray.gcs.placement_groups import PlacementGroupTable
from minray.wire.messages import BundlesPrepared, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Iterable

WAIT = "wait_placement_group"
GROUP_METHODS = frozenset(
    {
        "create_placement_group", WAIT, "unwait_placement_group", "remove_placement_group",
        "get_placement_group", "placement_group_bundles", "list_placement_groups", "waiting_placement_groups",
    }
)  # fmt: skip
EARLIEST_S = 0.001
WAITING = 50


class GroupRequests:
    """See the file's head. What it needs of the service is declared here."""

    _reactor: Scheduler
    _now: Callable[[], float]
    _nodes: NodeTable
    _links: NodeLinks
    _jobs: JobTable
    _actors: ActorTable
    _available: Callable[[], Iterable[Mapping[str, int]]]
    _do: Callable[[Effects], None]
    _may_undo: Callable[[Callable[[], None]], None]

    def _init_groups(self, balance: Callable[[], Mapping[str, int]] | None) -> None:
        self._balance = balance
        self._groups = PlacementGroupTable(self._free_on, self._actor_lives)
        self._group_timer_at: float | None = None

    def _free_on(self, node_id: bytes) -> Mapping[str, int]:
        """What is free on a living node, as it said last; of the node of this process, what is free now."""
        if node_id == self._links.local():
            if self._balance is not None:
                return self._balance()
            for available in self._available():
                return available
        if not self._nodes.is_alive(node_id):  # it is just being lost
            return {}
        available = self._nodes.row(node_id)[4]
        assert isinstance(available, dict)
        return available

    def _actor_lives(self, actor_id: bytes) -> bool:
        return self._actors.state_of(actor_id) not in (None, DEAD)

    def _place_actor(
        self, spec: Mapping[str, Any], actors_per_node: Mapping[bytes, int], avoid: bytes | None = None
    ) -> bytes | None:
        """ActorTable's place: in its group, or where the nodes' table says."""
        target = spec.get("placement_group")
        if target is None:
            return self._nodes.place(spec, actors_per_node, avoid)
        return self._groups.place(target[0], target[1], actors_per_node, avoid)

    # --- events of the service ------------------------------------------------------------------------

    def _groups_node_joined(self, info: Mapping[str, Any]) -> None:
        held = [(bytes(group_id), int(attempt)) for group_id, attempt in info.get("bundles") or ()]
        totals, labels = info.get("resources") or {}, info.get("labels") or {}
        self._do_groups(self._groups.node_joined(info["node_id"], totals, labels, held, self._now()))

    def _groups_node_lost(self, node_id: bytes) -> None:
        """Call it before the actors hear of it: some of them are to be placed in what is left."""
        self._groups.forget_waiters(lambda waiter: waiter[0] == node_id)
        self._do_groups(self._groups.node_lost(node_id, self._now()))

    def _groups_view_changed(self) -> None:
        self._do_groups(self._groups.view_changed(self._now()))

    def _groups_job_finished(self, job_id: bytes) -> None:
        """Call it after the actors have heard of it."""
        self._do_groups(self._groups.job_finished(job_id, self._now()))

    def _groups_turn_ends(self) -> None:
        """Actors may have died in this turn."""
        if self._groups.has_orphans:
            self._do_groups(self._groups.actors_changed(self._now()))

    def _on_bundles_prepared(self, node_id: bytes, message: BundlesPrepared) -> None:
        self._do_groups(self._groups.prepared(node_id, message, self._now()))

    def _do_groups(self, effects: Effects) -> None:
        """The machine's effects, among them the two that are its own."""
        for effect in effects:
            if effect[0] == "answer":
                _, (who, request_id), ok, value = effect
                reply = Reply(request_id, ok, value if ok else ("ValueError", value))
                self._do([notify(who, reply) if isinstance(who, int) else order(who, reply)])
            elif effect[0] == "group":
                self._do(self._actors.group_changed(effect[1]))
            else:
                self._do([effect])
        self._arm_group_timer()

    def _arm_group_timer(self) -> None:
        due = self._groups.next_deadline()
        if due is not None and (self._group_timer_at is None or due < self._group_timer_at):
            self._group_timer_at = due
            self._reactor.call_later(max(EARLIEST_S, due - self._now()), lambda: self._on_group_timer(due))

    def _on_group_timer(self, due: float) -> None:
        if due == self._group_timer_at:  # else an earlier one was armed since
            self._group_timer_at = None
            self._do_groups(self._groups.tick(self._now()))

    # --- requests -------------------------------------------------------------------------------------

    def _must_wait(self, who: int | bytes, request: Request) -> bool:
        """Whether this request is one that waits for a group that is not there yet: then it is answered later."""
        if request.method != WAIT or len(request.args) != 1 or type(request.args[0]) is not bytes:
            return False
        return self._groups.wait(request.args[0], (who, request.request_id)) is None

    def _on_wait_placement_group(self, number: int, group_id: bytes) -> str:
        known = self._groups.wait(group_id, ())
        assert known is not None, "_must_wait was to be asked before"
        ok, value = known
        if not ok:
            raise ActorError("ValueError", value)
        return str(value)

    def _on_unwait_placement_group(self, number: int, group_id: bytes, request_id: int) -> bool:
        self._groups.unwait(group_id, (number, request_id))
        return True

    def _on_create_placement_group(self, number: int, spec: dict[str, Any]) -> dict[str, Any]:
        creator = spec.get("creator_actor")
        alone = spec.get("lifetime") is None and not (creator is not None and self._actor_lives(creator))
        if alone and self._jobs.has_ended(spec["job_id"]):  # this request has taken longer than the news of the end
            raise ActorError(
                "RaySystemError",
                f"placement group {spec['group_id'].hex()} is not made: its job {spec['job_id'].hex()} has ended. What "
                "is to outlive a job is made with lifetime='detached', or by a detached actor",
            )
        is_new = not self._groups.public(spec["group_id"])
        answer, effects = self._groups.create(spec, self._now())
        self._do_groups(effects)
        if is_new:
            self._may_undo(lambda: self._do_groups(self._groups.remove(spec["group_id"], self._now())))
        return answer

    def _on_remove_placement_group(self, number: int, group_id: bytes) -> bool:
        self._do_groups(self._groups.remove(group_id, self._now()))
        return True

    def _on_get_placement_group(self, number: int, name: str, namespace: str) -> dict[str, Any]:
        return self._groups.named(name, namespace)

    def _on_placement_group_bundles(self, number: int, group_id: bytes) -> list[dict[str, int]]:
        return self._groups.bundles_of(group_id)

    def _on_waiting_placement_groups(self, number: int) -> list[tuple[str, str, str]]:
        return self._groups.waiting(WAITING)

    def _on_list_placement_groups(self, number: int, group_id: bytes | None = None) -> dict[str, dict[str, Any]]:
        return self._groups.public(group_id)
