"""Placement groups: bundles of resources reserved together, on one node or on several. Public as ``minray.util``'s.

    group = placement_group([{"CPU": 2}, {"CPU": 2}], strategy="SPREAD")
    ray.get(group.ready())
    f.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0)).remote()

A PlacementGroup is a thin value: an id, and what its bundles hold. It can be passed to tasks and pickled; where only
the id is known (``get_current_placement_group``) the bundles are asked for when somebody wants them. What a group is
and where it is, the GCS knows (``gcs.placement_groups``).

Making and removing an ordinary group does not wait for the cluster's answer; whoever reads its ``id`` does. So nobody
can tell another process of a group that the cluster does not know yet, or of one that it takes for living.

Invariant: groups are equal when their ids are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from minray._base import current
from minray._base.groups import READY_TASK, STRATEGIES
from minray._base.ids import PlacementGroupID
from minray._base.placement_checks import bundle_selectors
from minray._base.resources import from_units, quantity_to_units
from minray.object_ref import ObjectRef

_UNLIMITED = 30 * 24 * 3600.0  # a wait beyond this is one without end


class PlacementGroup:
    """A handle to a group of bundles. Made by ``placement_group()`` and ``get_placement_group()``."""

    def __init__(self, id: PlacementGroupID, bundle_cache: list[dict[str, float]] | None = None) -> None:
        self._id = id
        self._settle: Callable[[], None] | None = None  # until the cluster has answered
        self._own = False  # made here, without a name, to go with the job
        self.bundle_cache = bundle_cache

    @property
    def id(self) -> PlacementGroupID:
        """Its id. RaySystemError if it was just made, and the cluster cannot be reached."""
        if self._settle is not None:
            self._settle()
            self._settle = None
        return self._id

    @staticmethod
    def empty() -> PlacementGroup:
        """What stands for no group."""
        return PlacementGroup(PlacementGroupID.nil(), [])

    @property
    def is_empty(self) -> bool:
        """Whether this stands for no group."""
        return self._id.is_nil()

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """What each bundle holds: name → amount (memory in bytes). ValueError for a group that nobody knows."""
        if self.bundle_cache is None:
            found = current.ensure().gcs("placement_group_bundles", self._id.binary())
            self.bundle_cache = [from_units(bundle) for bundle in found]
        return self.bundle_cache

    @property
    def bundle_count(self) -> int:
        """How many bundles it has."""
        return len(self.bundle_specs)

    def ready(self) -> ObjectRef[Any]:
        """A ref that becomes ready when the group is there: a task that runs in it and returns it. Its ``get``
        raises TaskPlacementGroupRemoved if the group is removed before."""
        from minray.remote_function import make_remote_function
        from minray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        here = PlacementGroupSchedulingStrategy(self, placement_group_capture_child_tasks=False)
        options = {"num_cpus": 0, "scheduling_strategy": here, "name": READY_TASK}
        check = make_remote_function(_reserved, options)
        ref: ObjectRef[Any] = check.remote(self)
        return ref

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Wait until the group is there; False if it is not after so many seconds (also if no node could ever
        hold it: then a warning has said so).

        Raises:
            ValueError: the group is removed, meanwhile or before, or was never known here.
            TypeError: ``timeout_seconds`` is no number.
        """
        if isinstance(timeout_seconds, bool) or not isinstance(timeout_seconds, (int, float)):
            raise TypeError(
                f"timeout_seconds must be a number, got {type(timeout_seconds).__name__}: {timeout_seconds!r}"
            )
        if math.isnan(timeout_seconds):
            raise ValueError("timeout_seconds must be a number of seconds, got nan")
        timeout = None if timeout_seconds > _UNLIMITED else float(timeout_seconds)
        rt = current.ensure()
        if timeout is not None and timeout <= 0:
            shown = rt.gcs("list_placement_groups", self._id.binary())
            return bool(shown) and shown[self._id.hex()]["state"] == "CREATED"
        return bool(rt.wait_for_group(self._id.binary(), timeout))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self._id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (self.id, self.bundle_cache)


def _reserved(placement_group: PlacementGroup) -> PlacementGroup:
    """The task behind ``PlacementGroup.ready``."""
    return placement_group


def placement_group(
    bundles: list[dict[str, float]],
    strategy: str | None = "PACK",
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
    topology_strategy: dict[str, str] | None = None,
) -> PlacementGroup:
    """Reserve bundles of resources, all or none of them. Returns at once; see ``ready`` and ``wait``.

    :param bundles: what each holds, e.g. ``[{"CPU": 1, "GPU": 1}, {"CPU": 2}]`` (memory in bytes).
    :param strategy: "PACK" (on as few nodes as can be), "SPREAD" (on as many), "STRICT_PACK" (on one), or
        "STRICT_SPREAD" (each on a node of its own).
    :param name: to find it by ``get_placement_group``, in this job's namespace.
    :param lifetime: None: it goes with this job (or with the detached actor that makes it); "detached": it stays
        until it is removed.
    :param bundle_label_selector: for each bundle, the labels of its node, as in the option ``label_selector``.

    Raises:
        ValueError, TypeError: an argument is wrong.
        RaySystemError: the name is taken.
    """
    selectors = bundle_selectors("bundle_label_selector", bundle_label_selector, _count(bundles))
    units = [_bundle(i, bundle) for i, bundle in enumerate(bundles)]
    strategy = "PACK" if strategy is None else strategy
    if strategy not in STRATEGIES:
        raise ValueError(
            f"Invalid placement group strategy {strategy}. Supported strategies are: {', '.join(STRATEGIES)}."
        )
    if lifetime not in (None, "detached"):
        raise ValueError(f"Placement group `lifetime` argument must be either `None` or 'detached'. Got {lifetime!r}.")
    if not isinstance(name, str):
        raise TypeError(f'name must be a str, "" for none, got {type(name).__name__}: {name!r}')
    if topology_strategy:
        raise NotImplementedError(f"topology_strategy={topology_strategy!r} is not implemented in minray")
    rt = current.ensure()
    group_id = PlacementGroupID.from_random().binary()[: -len(rt.job_id)] + rt.job_id
    spec = {
        "group_id": group_id,
        "job_id": rt.job_id,
        "creator_actor": rt.context().actor_id,
        "name": name,
        "namespace": rt.namespace,
        "lifetime": lifetime,
        "strategy": strategy,
        "bundles": units,
        "selectors": selectors,
        "soft_target": _target_node(_soft_target_node_id, strategy),
    }
    made = PlacementGroup(PlacementGroupID(group_id), [from_units(bundle) for bundle in units])
    made._settle = rt.create_group(spec)
    made._own = not name and lifetime is None
    return made


def _count(bundles: Any) -> int:
    if not isinstance(bundles, list):
        raise ValueError(f"Placement group bundles must be a list, got {type(bundles)}.")
    if not bundles:
        raise ValueError(
            'Bundles must be a non-empty list of resource dictionaries. For example: `[{"CPU": 1.0}, {"GPU": 1.0}]`. '
            "Got empty list instead."
        )
    return len(bundles)


def _bundle(index: int, bundle: Any) -> dict[str, int]:
    """One bundle in units."""
    if not isinstance(bundle, dict):
        raise ValueError(
            'Bundles must be a non-empty list of resource dictionaries. For example: `[{"CPU": 1.0}, {"GPU": 1.0}]`. '
            f"Got {bundle!r} as bundle {index}."
        )
    units: dict[str, int] = {}
    for resource, amount in bundle.items():
        if not (isinstance(resource, str) and resource):
            raise ValueError(f"bundle {index}: resource names are non-empty strings, got {resource!r}")
        if isinstance(amount, (bool, str)) or amount is None:
            raise ValueError(f"bundle {index}: the amount of {resource} must be a number, got {amount!r}")
        try:
            units[resource] = quantity_to_units(resource, amount)
        except TypeError as error:
            raise ValueError(f"bundle {index}: {error}") from None
        if resource == "GPU" and amount > 1 and amount % 1:
            raise ValueError(f"bundle {index}: GPUs above 1 are whole ones, got {amount!r}")
    units = {resource: amount for resource, amount in units.items() if amount}
    if not units:
        raise ValueError(
            f"Bundles cannot be an empty dictionary or resources with only 0 values. Got {bundle!r} as bundle {index}."
        )
    return units


def _target_node(node_id: Any, strategy: str) -> bytes | None:
    if node_id is None:
        return None
    if strategy != "STRICT_PACK":
        raise ValueError(f"_soft_target_node_id works with strategy STRICT_PACK only, got {strategy}")
    try:
        return bytes.fromhex(node_id)
    except (TypeError, ValueError):
        raise ValueError(f"_soft_target_node_id must be a node's id in hexadecimal, got {node_id!r}") from None


def _checked(value: Any, what: str) -> PlacementGroup:
    if not isinstance(value, PlacementGroup):
        raise TypeError(f"{what} takes a PlacementGroup, got {type(value).__name__}: {value!r}")
    return value


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Give a group's resources back, soon. What runs in it is killed, what waits for it fails. Twice is harmless.

    Raises:
        TypeError: not a PlacementGroup.
    """
    group = _checked(placement_group, "remove_placement_group()")
    group._settle = current.ensure().remove_group(group._id.binary(), wait=not group._own)


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What is known of a group ({} if nothing is), or of all groups, living or lately removed, by their ids in
    hexadecimal: placement_group_id, name, bundles, bundles_to_node_id, strategy, state ("PENDING", "CREATED",
    "RESCHEDULING", "REMOVED"), stats.

    Raises:
        TypeError: neither a PlacementGroup nor None.
    """
    rt = current.ensure()
    if placement_group is None:
        table: dict[str, Any] = rt.gcs("list_placement_groups")
        return table
    group = _checked(placement_group, "placement_group_table()")
    found = rt.gcs("list_placement_groups", group._id.binary())
    return dict(found.get(group._id.hex(), {}))


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group that has this name in this job's namespace.

    Raises:
        ValueError: nobody has it, or it is empty.
        TypeError: not a str.
    """
    if placement_group_name is None or placement_group_name == "":
        raise ValueError("Please supply a non-empty value to get_placement_group")
    if not isinstance(placement_group_name, str):
        kind = type(placement_group_name).__name__
        raise TypeError(f"get_placement_group() takes a str, got {kind}: {placement_group_name!r}")
    rt = current.ensure()
    found = rt.gcs("get_placement_group", placement_group_name, rt.namespace)
    bundles = [from_units(bundle) for bundle in found["bundles"]]
    return PlacementGroup(PlacementGroupID(found["group_id"]), bundles)


def get_current_placement_group() -> PlacementGroup | None:
    """The group that this task or actor runs in; None if it is in none, and in a driver."""
    group_id = current.ensure().context().placement_group_id
    return None if group_id is None else PlacementGroup(PlacementGroupID(group_id))


__all__ = [
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]
