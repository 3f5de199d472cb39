"""Placement groups as resources: the names under which a bundle is asked for, and who asks.

A node that opens bundle 2 of a group offers what the bundle holds under names of the group's own; a task in the
group asks for these names instead of the plain ones, and so runs on that node and in that bundle, by the rules
that hold for all resources:

    CPU_group_2_<group>     of bundle 2          bundle_group_2_<group>   1000 of each: a token of presence,
    CPU_group_<group>       of any bundle here   bundle_group_<group>     for requests of nothing else

Whoever asks for bundle 2 takes both names, who takes any bundle only the second: so the sums always agree.

Used by options (renaming), workers (what a user sees is renamed back), nodes and the GCS. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minray._base.ids import PLACEMENT_GROUP_ID_SIZE
from minray._base.resources import UNIT, describe

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
ANY_BUNDLE = -1
BUNDLE = "bundle"  # the token's name
TOKENS = 1000 * UNIT  # per bundle
TOKEN = UNIT // 1000  # what each task and actor in it takes
READY_TASK = "PlacementGroup.ready"  # the name of the task behind that method
GONE = "its placement group is gone"  # so begins the text of a failure for that reason

_DIGITS = 2 * PLACEMENT_GROUP_ID_SIZE
_MARK = "_group_"

Resources = Mapping[str, int]
Shape = tuple[tuple[str, int], ...]  # what a bundle holds, sorted by name


@dataclass(frozen=True, slots=True)
class GroupTarget:
    """Where in which group something is to run."""

    group_id: bytes
    index: int  # of the bundle, or ANY_BUNDLE
    capture: bool | None  # whether what it submits goes there too; None: as whoever submits it
    bundles: tuple[Shape, ...]  # of the whole group; of an inherited group the different ones

    def captured(self, *, inherited: bool) -> GroupTarget | None:
        """The target of its children that say nothing; None if they go elsewhere."""
        capture = inherited if self.capture is None else self.capture
        return GroupTarget(self.group_id, ANY_BUNDLE, True, different(self.bundles)) if capture else None

    def rename(self, request: Resources) -> dict[str, int]:
        """What to ask for in place of ``request``."""
        renamed: dict[str, int] = {}
        for name, amount in {**request, BUNDLE: TOKEN}.items():
            renamed[in_any(name, self.group_id)] = amount
            if self.index != ANY_BUNDLE:
                renamed[in_bundle(name, self.group_id, self.index)] = amount
        return renamed

    def check_fits(self, request: Resources, what: str) -> None:
        """Raise ValueError for a request that no bundle (or not the one named) can ever hold."""
        shapes = self.bundles if self.index == ANY_BUNDLE else self.bundles[self.index : self.index + 1]
        for shape in shapes:
            have = dict(shape)
            if all(have.get(name, 0) >= amount for name, amount in request.items()):
                return
        where = "any bundle" if self.index == ANY_BUNDLE else f"bundle {self.index}"
        held = " | ".join(describe(dict(shape)) for shape in different(shapes)) or "nothing"
        raise ValueError(
            f"{what} asks for {describe(request)}, which does not fit into {where} of placement group "
            f"{self.group_id.hex()} ({held}): ask for less, or make a group with larger bundles"
        )

    def to_wire(self) -> tuple[Any, ...]:
        """As built-in values."""
        return (self.group_id, self.index, self.capture, self.bundles)

    @classmethod
    def from_wire(cls, raw: tuple[Any, ...]) -> GroupTarget:
        """What ``to_wire`` made."""
        return cls(*raw)


def shape_of(resources: Resources) -> Shape:
    """A bundle as a value that can be compared and hashed."""
    return tuple(sorted(resources.items()))


def different(shapes: Iterable[Shape]) -> tuple[Shape, ...]:
    """Each shape once."""
    return tuple(dict.fromkeys(shapes))


def in_bundle(name: str, group_id: bytes, index: int) -> str:
    """What a resource is called in one bundle."""
    return f"{name}{_MARK}{index}_{group_id.hex()}"


def in_any(name: str, group_id: bytes) -> str:
    """What a resource is called in whichever bundle of the group."""
    return f"{name}{_MARK}{group_id.hex()}"


def offered(group_id: bytes, index: int, bundle: Resources) -> dict[str, int]:
    """What a node offers once it has opened this bundle."""
    names: dict[str, int] = {}
    for name, amount in {**bundle, BUNDLE: TOKENS}.items():
        names[in_bundle(name, group_id, index)] = amount
        names[in_any(name, group_id)] = amount
    return names


def group_of(request: Resources) -> bytes | None:
    """The group that a request is in; None if it is in none."""
    for name in request:
        if name.startswith(BUNDLE + _MARK) and len(name) >= _DIGITS:
            try:
                return bytes.fromhex(name[-_DIGITS:])
            except ValueError:
                continue
    return None


def bundle_of(request: Resources) -> int:
    """The bundle that a request names, or ANY_BUNDLE."""
    start = len(BUNDLE + _MARK)
    for name in request:
        if name.startswith(BUNDLE + _MARK) and name[start:-_DIGITS]:
            return int(name[start : -_DIGITS - 1])
    return ANY_BUNDLE


def plain_name(name: str) -> str:
    """What a resource is called outside its group; other names as they are."""
    at = name.rfind(_MARK)
    if at <= 0:
        return name
    tail = name[at + len(_MARK) :]
    index, _, digits = tail.rpartition("_")
    if len(digits) != _DIGITS or (index and not index.isdecimal()):
        return name
    try:
        bytes.fromhex(digits)
    except ValueError:
        return name
    return name[:at]


def plain(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request (or ids of instances, by resource) under the names that its user wrote."""
    found: dict[str, Any] = {}
    for name, value in request.items():
        original = plain_name(name)
        if original == name or original != BUNDLE:
            found[original] = value
    return found


def of_users(totals: Resources) -> dict[str, int]:
    """What a message says of a node: neither its own names nor those of groups on it."""
    return {name: n for name, n in totals.items() if not name.startswith("node:") and plain_name(name) == name}
