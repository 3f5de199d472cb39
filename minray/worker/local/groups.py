"""Local mode's placement groups: there is one machine, so a group is there at once, or waits for others to go.

What a group reserves counts as taken; what runs in it takes nothing more. As everything runs inside ``.remote()``, a
task cannot wait for a group that is not there: it fails, and says so.

Called by ``worker.local``: between ``core`` and ``actor_ops``. Invariants: a name belongs to one group that is not
removed; what created groups reserve fits into the machine's totals.
"""

from __future__ import annotations

from typing import Any

from minray._base import log
from minray._base import resources as res
from minray._base.groups import ANY_BUNDLE, GONE, GroupTarget, different, shape_of
from minray._base.labels import describe_selector, matches
from minray._base.options import ActorOptions, TaskOptions
from minray.exceptions import RaySystemError
from minray.worker.contract import TaskContext
from minray.worker.local.core import LocalCore

PENDING, CREATED, REMOVED = "PENDING", "CREATED", "REMOVED"


class LocalGroup:
    """One group. ``spec``: as for ``gcs.placement_groups``."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.state = PENDING
        self.bundles: list[dict[str, int]] = spec["bundles"]

    def total(self) -> dict[str, int]:
        """All bundles together."""
        total: dict[str, int] = {}
        for bundle in self.bundles:
            for name, amount in bundle.items():
                total[name] = total.get(name, 0) + amount
        return total

    def fits(self, totals: dict[str, int], labels: dict[str, str], held: dict[str, int]) -> bool:
        """Whether this machine can have it beside what others hold."""
        if self.spec["strategy"] == "STRICT_SPREAD" and len(self.bundles) > 1:
            return False  # there is no second machine
        if not all(matches(labels, selector) for selector in self.spec["selectors"]):
            return False
        return all(amount <= totals.get(n, 0) - held.get(n, 0) for n, amount in self.total().items())

    def public(self, node: str) -> dict[str, Any]:
        """As ``placement_group_table`` shows it."""
        where = node if self.state == CREATED else ""
        return {
            "placement_group_id": self.spec["group_id"].hex(),
            "name": self.spec["name"],
            "bundles": {i: res.from_units(bundle) for i, bundle in enumerate(self.bundles)},
            "bundles_to_node_id": dict.fromkeys(range(len(self.bundles)), where),
            "strategy": self.spec["strategy"],
            "state": self.state,
            "stats": {},
        }


class LocalGroupOps(LocalCore):
    """wait_for_group, remove_group and the GCS's methods for groups."""

    node_id: bytes  # what LocalRuntime adds

    def __init__(self, env_vars: dict[str, str]) -> None:
        super().__init__(env_vars)
        self._groups: dict[bytes, LocalGroup] = {}

    # --- what the GCS would answer ------------------------------------------------------------------

    def create_group(self, spec: dict[str, Any]) -> None:
        """See the contract."""
        self.enter()
        if spec["name"] and self._named(spec["name"], spec["namespace"]) is not None:
            raise RaySystemError(
                f"Failed to create placement group because name {spec['name']!r} already exists in namespace "
                f"{spec['namespace']!r}"
            )
        group = self._groups[spec["group_id"]] = LocalGroup(spec)
        self._try(group)
        hopeless = not group.fits(self._totals(), self.session["labels"], {})
        name = f" ({spec['name']!r})" if spec["name"] else ""
        warning = (
            f"placement group {spec['group_id'].hex()}{name} asks for {' | '.join(map(res.describe, group.bundles))} "
            f"with strategy {spec['strategy']}, and this machine has {res.describe(self._totals())} in all: it stays "
            "pending"
        )
        if hopeless:
            log.warning("minray: %s", warning)

    def _gcs_get_placement_group(self, name: str, namespace: str) -> dict[str, Any]:
        group = self._named(name, namespace)
        if group is None:
            raise ValueError(f"Failed to look up placement group with name: {name}")
        return {"group_id": group.spec["group_id"], "bundles": group.bundles}

    def _gcs_placement_group_bundles(self, group_id: bytes) -> list[dict[str, int]]:
        if group_id not in self._groups:
            raise ValueError(f"placement group {group_id.hex()} is not of this session")
        return self._groups[group_id].bundles

    def _gcs_list_placement_groups(self, group_id: bytes | None = None) -> dict[str, dict[str, Any]]:
        wanted = self._groups if group_id is None else [i for i in (group_id,) if i in self._groups]
        return {i.hex(): self._groups[i].public(self.node_id.hex()) for i in wanted}

    def _named(self, name: str, namespace: str) -> LocalGroup | None:
        for group in self._groups.values():
            if (group.spec["name"], group.spec["namespace"]) == (name, namespace) and group.state != REMOVED:
                return group
        return None

    # --- life ---------------------------------------------------------------------------------------

    def _totals(self) -> dict[str, int]:
        return res.to_units(self.session["totals"])

    def _held(self) -> dict[str, int]:
        held: dict[str, int] = {}
        for group in self._groups.values():
            if group.state == CREATED:
                for name, amount in group.total().items():
                    held[name] = held.get(name, 0) + amount
        return held

    def _try(self, group: LocalGroup) -> None:
        if group.fits(self._totals(), self.session["labels"], self._held()):
            group.state = CREATED
            self.take_resources(group.total())

    def wait_for_group(self, group_id: bytes, timeout: float | None) -> bool:
        """See the contract."""
        self.enter()
        group = self._groups.get(group_id)
        if group is not None and self.wait_until(lambda: group.state != PENDING, timeout, []):
            if group.state == CREATED:
                return True
            raise ValueError(f"placement group {group_id.hex()} was removed by remove_placement_group()")
        if group is None:
            raise ValueError(f"placement group {group_id.hex()} is not of this session")
        return False

    def remove_group(self, group_id: bytes, *, wait: bool) -> None:
        """See the contract."""
        self.enter()
        group = self._groups.get(group_id)
        if group is None or group.state == REMOVED:
            return
        if group.state == CREATED:
            self.take_resources(group.total(), -1)
        group.state = REMOVED
        self.group_removed(group_id, f"placement group {group_id.hex()} was removed")
        for other in self._groups.values():
            if other.state == PENDING:
                self._try(other)
        self.notify_all()

    def group_removed(self, group_id: bytes, text: str) -> None:
        """Overridden by who has actors in it."""

    # --- submissions ----------------------------------------------------------------------------------

    def placed_task(self, options: TaskOptions, name: str) -> TaskOptions:
        """The options of a task submitted here and now: perhaps in the group of its parent."""
        captured = self._captured(options.inherits)
        return options if captured is None else options.within(captured, f"task {name}")

    def placed_actor(self, options: ActorOptions, name: str) -> ActorOptions:
        """The same for an actor."""
        captured = self._captured(options.inherits)
        return options if captured is None else options.within(captured, f"actor {name}")

    def _captured(self, inherits: bool) -> GroupTarget | None:
        context = self.context()
        if not inherits or not context.capture_child_tasks or context.placement_group_id is None:
            return None
        bundles = different(map(shape_of, self._groups[context.placement_group_id].bundles))
        return GroupTarget(context.placement_group_id, ANY_BUNDLE, True, bundles)

    def enter_group(self, context: TaskContext, target: GroupTarget | None) -> None:
        """Let a call's context say in which group it runs."""
        if target is not None:
            capture = self.context().capture_child_tasks if target.capture is None else target.capture
            context.placement_group_id, context.capture_child_tasks = target.group_id, capture

    def unplaceable(self, options: TaskOptions | ActorOptions, need: dict[str, int]) -> str | None:
        """Why it cannot run here; None if it can."""
        target, strategy = options.group, options.strategy
        if isinstance(strategy, tuple) and strategy[0] == "labels":
            hard: Any = strategy[1]
            if not matches(self.session["labels"], hard):
                return f"It needs a node with {describe_selector(hard)}, and this is the only one."
        if target is None:
            return self.infeasible(need)
        group = self._groups.get(target.group_id)
        if group is None or group.state == REMOVED:
            return f"{GONE}: placement group {target.group_id.hex()} was removed, or is of another session"
        if group.state == PENDING:
            return (
                f"Its placement group {target.group_id.hex()} is pending. In local mode tasks run inside .remote(): "
                "they cannot wait for others to give resources back."
            )
        return None
