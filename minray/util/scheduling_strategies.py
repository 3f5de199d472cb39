"""Where a task or an actor should run: what ``scheduling_strategy=`` takes beside "DEFAULT" and "SPREAD".

Plain values. What can be seen to be wrong here is refused here; the rest where they are given as an option.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NodeAffinitySchedulingStrategy:
    """Run on the node ``node_id`` (hexadecimal). If it is not alive or too small: elsewhere if ``soft``, else an error.

    Raises:
        ValueError: as in Ray, ``_spill_on_unavailable`` without ``soft``, ``_fail_on_unavailable`` with it.
        NotImplementedError: one of them in its place. A node that is busy is waited for.
    """

    node_id: str
    soft: bool
    _spill_on_unavailable: bool = False
    _fail_on_unavailable: bool = False

    def __post_init__(self) -> None:
        if self._spill_on_unavailable and not self.soft:
            raise ValueError("_spill_on_unavailable=True cannot be set with soft=False: set soft=True")
        if self._fail_on_unavailable and self.soft:
            raise ValueError("_fail_on_unavailable=True cannot be set with soft=True: set soft=False")
        for name in ("_spill_on_unavailable", "_fail_on_unavailable"):
            if getattr(self, name):
                raise NotImplementedError(f"{name}=True is not implemented in minray: leave it out")


@dataclass(frozen=True)
class PlacementGroupSchedulingStrategy:
    """Run in a bundle of ``placement_group`` (None: in none, also where children are captured).

    ``placement_group_bundle_index``: which one, -1 for any. ``placement_group_capture_child_tasks``: whether what the
    task or actor submits goes into the group as well, if it says nothing else; None: as for whoever submits it.
    """

    placement_group: Any
    placement_group_bundle_index: int = -1
    placement_group_capture_child_tasks: bool | None = None


class _Values:
    """A condition on a label's value."""

    def __init__(self, *values: str) -> None:
        self.values = values

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.values))})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, _Values) and other.values == self.values

    def __hash__(self) -> int:
        return hash((type(self), self.values))


class _SomeValues(_Values):
    def __init__(self, *values: str) -> None:
        kind = type(self).__name__
        if not values:
            raise ValueError(f"{kind}() needs at least one value, e.g. {kind}('a', 'b')")
        for value in values:
            if not isinstance(value, str):
                raise ValueError(f"{kind}() takes values of type str, got {type(value).__name__}: {value!r}")
        super().__init__(*values)


class In(_SomeValues):
    """The label has one of these values."""


class NotIn(_SomeValues):
    """The label has none of these values; a node without the label will do."""


class Exists(_Values):
    """The label is there."""

    def __init__(self) -> None:
        super().__init__()


class DoesNotExist(_Values):
    """The label is not there."""

    def __init__(self) -> None:
        super().__init__()


@dataclass(frozen=True)
class NodeLabelSchedulingStrategy:
    """Run on a node whose labels fit all of ``hard``, and if possible all of ``soft``: ``{label: In("a"), …}``.

    Raises:
        ValueError: one of them is not such a dict, or both are empty.
    """

    hard: dict[str, _Values] | None
    soft: dict[str, _Values] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, value in (("hard", self.hard), ("soft", self.soft)):
            if value is not None and not isinstance(value, dict):
                raise ValueError(f'{name}= must be a dict, e.g. {{"zone": In("a")}}, got {value!r}')
            for label, condition in (value or {}).items():
                if not isinstance(label, str):
                    raise ValueError(f"{name}=: labels are of type str, got {type(label).__name__}: {label!r}")
                if not isinstance(condition, _Values):
                    raise ValueError(
                        f"{name}=: the condition of {label!r} must be In, NotIn, Exists or DoesNotExist, "
                        f"got {condition!r}"
                    )
        if not self.hard and not self.soft:
            raise ValueError("hard= and soft= are both empty: leave the strategy out, or name a label")
