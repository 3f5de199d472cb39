"""Checks of the options that say where something runs: strategies, placement groups, label selectors.

Used by the tables in ``options.py``, in the form of ``option_checks``: ``(name, value) -> the value to keep``. The
classes that users write belong to ``minray.util``, above this room, so they are told by their names.

A label condition travels as ``(op, values)``, see ``labels``. Written in ``label_selector``: "v", "!v", "in(a, b)",
"!in(a, b)"; in NodeLabelSchedulingStrategy: In, NotIn, Exists, DoesNotExist.

Invariant: no check changes its argument.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from minray._base.groups import ANY_BUNDLE, GroupTarget, shape_of
from minray._base.ids import UNIQUE_ID_SIZE
from minray._base.labels import describe_selector
from minray._base.option_checks import integer, optional_bool, optional_dict, wrong_type
from minray._base.resources import to_units

Condition = tuple[str, tuple[str, ...]]
Conditions = dict[str, Condition]
Strategy = str | tuple[str, bytes, bool] | tuple[str, Conditions, Conditions] | None
"""None, "SPREAD", ("affinity", node_id, soft) or ("labels", hard, soft)."""

DEFAULT = "DEFAULT"  # said aloud, it is more than None: such a task leaves its parent's placement group
NO_GROUP = "none"  # in place of a group: said aloud that there is to be none

_PART = r"[A-Za-z0-9](?:[-._A-Za-z0-9]{0,61}[A-Za-z0-9])?"
_VALUE = re.compile(rf"(?:{_PART})?")
_LABEL = re.compile(rf"(?:[-.a-z0-9]{{1,253}}/)?{_PART}")
_SELECTOR = re.compile(r"(?P<no>!?)(?:in\((?P<list>[^()]*)\)|(?P<one>[^()!]*))")
_OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "absent"}


def strategy(name: str, value: Any) -> Strategy | GroupTarget:
    """What ``scheduling_strategy=`` means: a Strategy, DEFAULT, NO_GROUP or a GroupTarget; None: not said."""
    if value is None:
        return None
    if isinstance(value, str):
        if value in (DEFAULT, "SPREAD"):
            return value
        raise ValueError(
            f"option {name} as a str must be 'DEFAULT' or 'SPREAD', got {value!r}; for more, pass one of "
            "minray.util.scheduling_strategies: PlacementGroup-, NodeAffinity- or NodeLabelSchedulingStrategy"
        )
    kind = type(value).__name__
    if kind == "PlacementGroupSchedulingStrategy":
        index, capture = value.placement_group_bundle_index, value.placement_group_capture_child_tasks
        return group_target(f"{name}.placement_group", value.placement_group, index, capture)
    if kind == "NodeLabelSchedulingStrategy":
        hard = conditions(f"{name}.hard", value.hard)
        return ("labels", hard, conditions(f"{name}.soft", value.soft))
    if kind != "NodeAffinitySchedulingStrategy":
        wrong_type(name, value, "None, 'DEFAULT', 'SPREAD' or a scheduling strategy of minray.util")
    return ("affinity", _node_id(name, value.node_id), bool(value.soft))


def _node_id(name: str, node_id: Any) -> bytes:
    text = node_id.hex() if hasattr(node_id, "hex") else node_id
    if not isinstance(text, str):
        wrong_type(f"{name}.node_id", node_id, "a str of hexadecimal digits")
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != UNIQUE_ID_SIZE:
        digits = 2 * UNIQUE_ID_SIZE
        raise ValueError(
            f"option {name}: node_id must be {digits} hexadecimal digits, got {node_id!r}; nodes() lists them"
        )
    return raw


# --- placement groups -----------------------------------------------------------------------------


def placement_group(name: str, value: Any) -> Any:
    """A PlacementGroup; "default": that of whoever submits, if it captures; None: none."""
    if value is not None and value != "default" and not _is_group(value):
        wrong_type(name, value, "a PlacementGroup, 'default' or None")
    return value


def _is_group(value: Any) -> bool:
    return type(value).__name__ == "PlacementGroup" and hasattr(value, "bundle_specs")


def group_target(name: str, group: Any, index: Any, capture: Any) -> str | GroupTarget:
    """Where in a PlacementGroup; NO_GROUP for none. ValueError for an index that the group does not have."""
    if group is not None and not _is_group(group):
        wrong_type(name, group, "a PlacementGroup or None")
    number = integer("placement_group_bundle_index", index)
    if number is None:
        wrong_type("placement_group_bundle_index", index, "an int, -1 for any bundle")
    wanted = optional_bool("placement_group_capture_child_tasks", capture)
    if group is None or group.is_empty:
        return NO_GROUP
    shapes = tuple(shape_of(to_units(bundle)) for bundle in group.bundle_specs)
    if number != ANY_BUNDLE and not 0 <= number < len(shapes):
        raise ValueError(
            f"placement group bundle index {index!r} is invalid: {group.id!r} has bundles 0 to {len(shapes) - 1}; "
            "-1 means any of them"
        )
    return GroupTarget(group.id.binary(), number, wanted, shapes)


# --- labels ---------------------------------------------------------------------------------------


def conditions(name: str, value: Any) -> Conditions:
    """``{label: In("a"), …}`` of a NodeLabelSchedulingStrategy."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        wrong_type(name, value, 'a dict such as {"zone": In("a")}')
    found: Conditions = {}
    for label, operator in value.items():
        op = _OPERATORS.get(type(operator).__name__)
        if op is None:
            wrong_type(f"{name}[{label!r}]", operator, "In, NotIn, Exists or DoesNotExist")
        found[_label(name, label)] = (op, tuple(operator.values))
    return found


def label_selector(name: str, value: Any) -> Conditions | None:
    """``{label: "v", "!v", "in(a, b)" or "!in(a, b)"}``."""
    written = optional_dict(name, value)
    if not written:
        return None
    return {_label(name, label): _condition(name, label, text) for label, text in written.items()}


def bundle_selectors(name: str, value: Any, count: int) -> list[Conditions]:
    """``bundle_label_selector=``: one selector per bundle; [] if there are none."""
    if value is None or value == []:
        return []
    if not isinstance(value, (list, tuple)):
        wrong_type(name, value, "a list of label selectors, one per bundle")
    if len(value) != count:
        raise ValueError(f"{name} must have one selector per bundle: got {len(value)} for {count} bundles")
    return [label_selector(f"{name}[{i}]", selector) or {} for i, selector in enumerate(value)]


def _label(name: str, label: Any) -> str:
    if not isinstance(label, str):
        raise TypeError(f"option {name}: labels are strings, got {type(label).__name__}: {label!r}")
    if not _LABEL.fullmatch(label):
        raise ValueError(
            f"option {name}: {label!r} is no label: at most 63 letters, digits, '-', '_' and '.', the first and the "
            "last a letter or digit, perhaps after a prefix as in 'example.com/name'"
        )
    return label


def _condition(name: str, label: str, text: Any) -> Condition:
    if not isinstance(text, str):
        raise TypeError(f"option {name}[{label!r}] must be a str, got {type(text).__name__}: {text!r}")
    match = _SELECTOR.fullmatch(text)
    values: list[str] = []
    if match is not None:
        listed = match["list"]
        values = [match["one"]] if listed is None else [part.strip() for part in listed.split(",")]
        if listed is not None and "" in values:
            match = None
    if match is None or not all(_VALUE.fullmatch(part) for part in values):
        raise ValueError(
            f"option {name}[{label!r}]: {text!r} is no condition: write 'v', '!v', 'in(a, b)' or '!in(a, b)', each "
            "value at most 63 letters, digits, '-', '_' and '.', the first and the last a letter or digit"
        )
    return ("notin" if match["no"] else "in", tuple(values))


# --- both together --------------------------------------------------------------------------------


def whereabouts(values: Mapping[str, Any]) -> tuple[Strategy, GroupTarget | None, bool]:
    """The strategy, the group, and whether it goes into the group of whoever submits it (if that captures)."""
    said = values.get("scheduling_strategy")
    group = values.get("placement_group", "default")
    index = values.get("placement_group_bundle_index")
    capture = values.get("placement_group_capture_child_tasks")
    target: Any = said if isinstance(said, GroupTarget) or said == NO_GROUP else None
    if group is not None and group != "default":
        if said is not None:
            raise ValueError(
                f"placement_group={group!r} and scheduling_strategy are both given: write only scheduling_strategy="
                "PlacementGroupSchedulingStrategy(placement_group, …)"
            )
        target = group_target("placement_group", group, ANY_BUNDLE if index is None else index, capture)
    elif index not in (None, ANY_BUNDLE):
        raise ValueError(f"placement_group_bundle_index={index!r} says nothing without a placement_group")
    selector = values.get("label_selector")
    inherits = said is None and group == "default" and capture is not False and not selector
    if isinstance(target, GroupTarget):
        if selector:
            raise NotImplementedError(
                f"label_selector ({describe_selector(selector)}) in a placement group is not implemented in minray: "
                "the bundle decides on the node, see bundle_label_selector of placement_group()"
            )
        return None, target, False
    strategy = None if said in (DEFAULT, NO_GROUP) else said
    return (_with_selector(strategy, selector) if selector else strategy), None, inherits


def _with_selector(strategy: Strategy, selector: Conditions) -> Strategy:
    if strategy is None or strategy == "SPREAD":
        return ("labels", selector, {})
    if strategy[0] == "labels":
        hard: Any = strategy[1]
        twice = sorted(label for label in hard.keys() & selector.keys() if hard[label] != selector[label])
        if twice:
            raise ValueError(f"label_selector and scheduling_strategy say different things about {', '.join(twice)}")
        return ("labels", {**hard, **selector}, strategy[2])  # type: ignore[return-value]
    raise NotImplementedError(
        f"label_selector ({describe_selector(selector)}) beside a node affinity is not implemented in minray: the "
        "affinity names one node already"
    )


def hashable(strategy: Strategy) -> Any:
    """A strategy as part of a scheduling key."""
    if not isinstance(strategy, tuple) or strategy[0] != "labels":
        return strategy
    parts: Any = strategy[1:]
    return ("labels", *(tuple(sorted((label, *c) for label, c in part.items())) for part in parts))
