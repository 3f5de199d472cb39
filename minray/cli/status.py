"""``minray status``: a cluster's nodes, what of them is in use, and what waits and why.

    the head's cluster_status ──▶ report(…), pure ──▶ columns

Amounts read "in use / in all"; bytes in GiB, or in MiB where there is less than one. Resources that minray makes by
itself for placing (``node:…``, those of placement groups) and its own labels are not shown. ON DISK is there
when objects had to go there: now, and out and back in all.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minray.cli.common import add_tls, add_token_file, add_which, guarded, settings

HEAD_MARK = "node:__internal_head__"
GIB = 1024.0**3
_BYTES = ("memory", "object_store_memory")
_NAMES = {"object_store_memory": "STORE"}
_IN_GROUP = re.compile(r"(.+?)_group_(?:(\d+)_)?([0-9a-f]{36})")
_SLACK = 1e-6  # amounts are multiples of 1/10000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_which(parser)
    add_token_file(parser)
    add_tls(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print it and return the exit status: 1 if the cluster does not answer."""
    return guarded("status", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from minray import clusters

    config = settings(arguments)
    access = clusters.access_to(config, arguments.address)
    nodes, groups = (clusters.ask(config, access, method) for method in ("cluster_status", "waiting_placement_groups"))
    print("\n".join(report(access.address, nodes, groups)))
    return 0


def report(
    address: str, nodes: Sequence[Mapping[str, Any]], groups: Sequence[tuple[str, str, str]] = ()
) -> list[str]:
    """The lines. ``nodes``: as ``gcs.nodes.NodeTable.status`` has them; ``groups``: the placement groups that wait."""
    living = [node for node in nodes if node["alive"]]
    dead = [node for node in nodes if not node["alive"]]
    lines = [f"Cluster at {address}: {len(living)} alive" + f", {len(dead)} dead" * bool(dead), ""]
    lines += columns(_node_rows(living))
    if dead:
        lines += ["", "Dead:"]
        lines += [f"  {node['node_id'][:8]}  {node['address']}  {node['death_reason']}" for node in dead]
    waiting = _waiting_rows(living) + [["1", *group] for group in groups]
    if len(waiting) > 1:
        return [*lines, "", "Waiting:", *columns(waiting)]
    return [*lines, "", "Nothing waits."]


def _node_rows(nodes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    kinds = [kind for kind in ("CPU", "GPU", *_BYTES) if any(kind in node["totals"] for node in nodes)]
    rows = [["NODE", "ADDRESS", "NAME", *(_NAMES.get(kind, kind.upper()) for kind in kinds)]]
    rows[0] += ["ON DISK", "OTHER", "LABELS"]
    sums: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for node in nodes:
        totals, free = _shown(node["totals"]), node["available"]
        used = {name: max(0.0, amount - free.get(name, 0.0)) for name, amount in totals.items()}
        for total, part in zip(sums, (used, totals), strict=True):
            for name, amount in part.items():
                total[name] = total.get(name, 0.0) + amount
        name = str(node["node_name"] or node["hostname"]) + " (head)" * (HEAD_MARK in node["totals"])
        labels = ",".join(f"{key}={value}" for key, value in sorted(node["labels"].items()) if key[:7] != "ray.io/")
        amounts = _amounts(kinds, used, totals, _disk([node]))
        rows.append([node["node_id"][:8], node["address"], name, *amounts, labels])
    if len(nodes) > 1:
        rows.append(["all", "", "", *_amounts(kinds, *sums, _disk(nodes)), ""])
    return rows


def _shown(totals: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in totals.items() if not name.startswith("node:") and "_group_" not in name}


def _disk(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Objects that memory had no room for: on disk now, and what was written and read in all."""
    stores = [node["store"] for node in nodes if node["store"]]
    if not stores:
        return ""
    sums = [sum(store[name] for store in stores) for name in ("on_disk", "spilled_bytes", "restored_bytes")]
    unit, letter = (GIB, "G") if max(sums) >= GIB else (GIB / 1024, "M")
    now, out, back = (f"{amount / unit:.1f}{letter}" for amount in sums)
    return f"{now} (out {out}, back {back})"


def _amounts(
    kinds: Sequence[str], used: Mapping[str, float], totals: Mapping[str, float], disk: str
) -> list[str]:
    main = [_use(kind, used.get(kind, 0.0), totals[kind]) if kind in totals else "-" for kind in kinds]
    rest = [f"{name} {_use(name, used[name], totals[name])}" for name in sorted(totals) if name not in kinds]
    return [*main, disk, ", ".join(rest)]


def _use(name: str, used: float, total: float) -> str:
    if name in _BYTES:
        unit, letter = (GIB, "G") if total >= GIB else (GIB / 1024, "M")
        return f"{used / unit:.1f}/{total / unit:.1f}{letter}"
    return f"{used:g}/{total:g}"


def _waiting_rows(nodes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    counts: dict[tuple[str, str], int] = {}
    reasons: dict[tuple[str, str], str] = {}
    for node in nodes:
        for text, needs, count in node["waiting"]:
            key = (str(text), _needs(needs))
            counts[key] = counts.get(key, 0) + int(count)
            reasons[key] = why(needs, nodes)
    return [["COUNT", "WHAT", "NEEDS", "WHY"]] + [
        [str(count), key[0], key[1], reasons[key]] for key, count in sorted(counts.items(), key=lambda item: -item[1])
    ]


def _needs(needs: Mapping[str, float]) -> str:
    plain, where = _out_of_group(needs)
    amounts = ", ".join(
        f"{name} {amount / GIB:.1f}G" if name in _BYTES else f"{name} {amount:g}"
        for name, amount in sorted(plain.items())
    )
    return " ".join(part for part in (amounts, where) if part)


def _out_of_group(needs: Mapping[str, float]) -> tuple[dict[str, float], str]:
    """What is needed under the names that users write, and in which placement group: "" for none."""
    found = {name: _IN_GROUP.fullmatch(name) for name in needs}
    plain = {match[1] if match else name: needs[name] for name, match in found.items()}
    if not any(found.values()):
        return plain, ""
    plain.pop("bundle", None)
    index, group = max((match[2] or "", match[3]) for match in found.values() if match)
    return plain, f"in {f'bundle {index} of ' * bool(index)}placement group {group[:8]}"


def why(needs: Mapping[str, float], nodes: Sequence[Mapping[str, Any]]) -> str:
    """Why a request for so much waits."""
    could = [node for node in nodes if _fits(needs, node["totals"])]
    if not could and _out_of_group(needs)[1]:
        return "its placement group is not there yet"
    if not could:
        lacking = [
            f"{name} {amount:g} (the most that one has: {max(node['totals'].get(name, 0.0) for node in nodes):g})"
            for name, amount in sorted(needs.items())
            if not any(_fits({name: amount}, node["totals"]) for node in nodes)
        ]
        return "no node can ever hold it: " + (", ".join(lacking) or "none has all of it together")
    short = sorted(
        {
            name
            for node in could
            for name, amount in needs.items()
            if amount > node["available"].get(name, 0.0) + _SLACK
        }
    )
    if short and _out_of_group(needs)[1]:
        return f"{', '.join(sorted(_out_of_group(dict.fromkeys(short, 0.0))[0]))} in use in its placement group"
    if short:
        return f"{', '.join(short)} in use on the {len(could)} node{'s' * (len(could) > 1)} that could hold it"
    return "a worker for it starts"


def _fits(needs: Mapping[str, float], totals: Mapping[str, float]) -> bool:
    return all(amount <= totals.get(name, 0.0) + _SLACK for name, amount in needs.items())


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words as lines, each column as wide as its widest word; the last one, and empty ones, need no room."""
    kept = [i for i in range(len(rows[0])) if i == 0 or any(row[i] for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in kept]
    return ["  ".join(row[i].ljust(width) for i, width in zip(kept, widths, strict=True)).rstrip() for row in rows]
