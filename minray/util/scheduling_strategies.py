"""Where a task or an actor should run: what ``scheduling_strategy=`` takes beside "DEFAULT" and "SPREAD".

Plain values, checked where they are given as an option: ``_base.option_checks`` tells them by their names
and turns them into what travels. Node affinity works; the strategies of placement groups and of labels
can be written down, and are refused with the feature's name when they are used, until it is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NodeAffinitySchedulingStrategy:
    """Run on the node ``node_id`` (hexadecimal). If it is not alive: elsewhere if ``soft``, else an error.

    The two ``_…_on_unavailable`` are accepted and have no effect.
    """

    node_id: str
    soft: bool
    _spill_on_unavailable: bool = False
    _fail_on_unavailable: bool = False


@dataclass(frozen=True)
class PlacementGroupSchedulingStrategy:
    """Run in a bundle of a placement group. Not built yet: using it raises NotImplementedError."""

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


class In(_Values):
    """The label has one of these values."""


class NotIn(_Values):
    """The label has none of these values."""


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
    """Run on a node whose labels fit ``hard``, and ``soft`` if one does. Not built yet: see above."""

    hard: dict[str, _Values]
    soft: dict[str, _Values] = field(default_factory=dict, kw_only=True)
