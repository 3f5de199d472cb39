"""Whether a node's labels are what a request asks for. Pure.

A *selector* is ``{label: (op, values)}``; all its labels must agree. Ops: ``in`` and ``notin`` compare with the
values, ``exists`` and ``absent`` only look whether the node has the label. A node without the label satisfies
``notin``, as in Ray.

Used wherever nodes are chosen: by the GCS for actors and placement groups, by nodes for leases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Labels = Mapping[str, str]
Selector = Mapping[str, tuple[str, Sequence[str]]]
OPS = ("in", "notin", "exists", "absent")


def matches(labels: Labels, selector: Selector) -> bool:
    """Whether a node with these labels satisfies the selector."""
    return all(agrees(labels, name, op, values) for name, (op, values) in selector.items())


def agrees(labels: Labels, name: str, op: str, values: Sequence[str]) -> bool:
    """Whether a node with these labels satisfies one condition."""
    value = labels.get(name)
    if op == "in":
        return value is not None and value in values
    if op == "notin":
        return value is None or value not in values
    if op == "exists":
        return value is not None
    assert op == "absent", f"{op!r} is no operator for labels; there are {', '.join(OPS)}"
    return value is None


def describe_selector(selector: Selector) -> str:
    """For a message: ``zone in (a, b), gpu exists``."""
    parts = []
    for name, (op, values) in selector.items():
        parts.append(f"{name} {op} ({', '.join(values)})" if op in ("in", "notin") else f"{name} {op}")
    return ", ".join(parts)
