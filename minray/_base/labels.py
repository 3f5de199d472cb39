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
    for name, (op, values) in selector.items():
        value = labels.get(name)
        if op == "in":
            agrees = value is not None and value in values
        elif op == "notin":
            agrees = value is None or value not in values
        elif op == "exists":
            agrees = value is not None
        else:
            assert op == "absent", f"{op!r} is no operator for labels; there are {', '.join(OPS)}"
            agrees = value is None
        if not agrees:
            return False
    return True


def describe_selector(selector: Selector) -> str:
    """For a message: ``zone in (a, b), gpu exists``."""
    parts = []
    for name, (op, values) in selector.items():
        parts.append(f"{name} {op} ({', '.join(values)})" if op in ("in", "notin") else f"{name} {op}")
    return ", ".join(parts)
