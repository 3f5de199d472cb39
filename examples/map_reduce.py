"""Map-reduce over several machines: which functions of Python's standard library does the library itself use most?

    sources ──put──▶ map ─┬─▶ piece 0 ──▶ reduce 0 ──▶ ranking ─┐
                     map ─┼─▶ piece 1 ──▶ reduce 1 ──▶ ranking ─┼──▶ the answer
                     map ─┴─▶ …           …                     ┘
                     on every node          pieces change nodes here: the shuffle

A map task parses some of the files and cuts what it finds into one piece per reduce task, by the names' checksum.
So a reduce task gets, from every map task and node, all that is known of its share of the names: it joins the
places where a name is defined with those where it is used. The pieces are return values of their own
(``num_returns``): they stay on the node that made them until a reduce task asks for its one, and travel straight to
it; the driver never holds them.

    python examples/map_reduce.py                     on this machine, or on your latest cluster if there is one
    python examples/map_reduce.py --nodes 3           three nodes, started here for as long as it runs
    python examples/map_reduce.py --address HOST:PORT on that cluster
"""

from __future__ import annotations

import argparse
import ast
import sys
import sysconfig
import time
import warnings
import zlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import minray as ray
from minray.cluster_utils import Cluster

NOT_OURS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings"}
Sources = list[tuple[str, str]]  # path below the library's folder, with slashes; text


@dataclass
class Piece:
    """What one map task has found of one share of the names."""

    made_on: str  # the node
    defined: set[str] = field(default_factory=set)  # "functools.wraps", "collections.OrderedDict", …
    used: dict[str, list[str]] = field(default_factory=dict)  # the same kind of name → modules that use it


@dataclass
class Ranking:
    """What one reduce task has made of its share."""

    names: int  # that are defined
    unused: int  # of these: by no other module
    top: list[tuple[int, str]]  # how many other modules use it, and its name
    made_on: str
    taken_from: Counter[str]  # node → pieces


# --- the work itself: plain functions, the same for both runs --------------------------------------------


def share_of(name: str, shares: int) -> int:
    """Which reduce task is responsible. Not hash(): that of a str differs from process to process."""
    return zlib.crc32(name.encode()) % shares


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def names_in(module: str, text: str) -> tuple[set[str], set[str]]:
    """The functions and classes that a module defines at its top level, and those of others that it uses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in strings are not our business
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return set(), set()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {f"{module}.{node.name}" for node in tree.body if isinstance(node, kinds)}
    nodes = list(ast.walk(tree))
    used: set[str] = set()
    modules: dict[str, str] = {}  # what a module is called here → its name
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            used |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            used.add(f"{modules[node.value.id]}.{node.attr}")
    return defined, used


def cut(sources: Sources, shares: int, node: str) -> list[Piece]:
    """The map step: one piece per share of the names."""
    pieces = [Piece(node) for _ in range(shares)]
    for path, text in sources:
        module = module_of(path)
        defined, used = names_in(module, text)
        for name in defined:
            pieces[share_of(name, shares)].defined.add(name)
        for name in used:
            pieces[share_of(name, shares)].used.setdefault(name, []).append(module)
    return pieces


def join(pieces: list[Piece], top: int, node: str) -> Ranking:
    """The reduce step: definitions meet uses."""
    counts = dict.fromkeys(sorted(set().union(*(piece.defined for piece in pieces))), 0)
    for piece in pieces:
        for name, modules in piece.used.items():
            if name in counts:
                counts[name] += len(modules)
    best = sorted(((count, name) for name, count in counts.items() if count), key=rank)[:top]
    unused = sum(count == 0 for count in counts.values())
    return Ranking(len(counts), unused, best, node, Counter(piece.made_on for piece in pieces))


def rank(entry: tuple[int, str]) -> tuple[int, str]:
    return (-entry[0], entry[1])


# --- on the cluster ----------------------------------------------------------------------------------------


def here() -> str:
    node: str = ray.get_runtime_context().get_node_id()
    return node


@ray.remote(scheduling_strategy="SPREAD")
def map_task(sources: Sources, shares: int) -> tuple[Piece | str, ...]:
    """One return value per piece, and a last one, for the driver: where it ran."""
    return (*cut(sources, shares, here()), here())


@ray.remote(scheduling_strategy="SPREAD")
def reduce_task(top: int, *pieces: Piece) -> Ranking:
    return join(list(pieces), top, here())


def map_reduce(sources: Sources, maps: int, reduces: int, top: int) -> tuple[list[str], list[Ranking]]:
    """Where each map task ran, and what each reduce task has made."""
    # Objects, so that a node that has no such files gets them, too.
    shards = [ray.put(sources[i::maps]) for i in range(maps)]
    rows = [map_task.options(num_returns=reduces + 1).remote(shard, reduces) for shard in shards]
    *columns, places = zip(*rows, strict=True)
    rankings = [reduce_task.remote(top, *column) for column in columns]
    return ray.get(list(places)), ray.get(rankings)


# --- the report --------------------------------------------------------------------------------------------


def print_answer(rankings: list[Ranking], top: int) -> None:
    names, unused = sum(r.names for r in rankings), sum(r.unused for r in rankings)
    print(f"\n{names:,} functions and classes, {unused:,} of them used by no other module; the most used ones:")
    for count, name in sorted((entry for r in rankings for entry in r.top), key=rank)[:top]:
        print(f"  {name:32} by {count:>3} modules")


def print_shuffle(places: list[str], rankings: list[Ranking]) -> None:
    print(f"\n{'node':10} {'map tasks':>10} {'reduce tasks':>13} {'pieces from other nodes':>24}")
    for node in sorted({*places, *(r.made_on for r in rankings)}):
        mine = [r for r in rankings if r.made_on == node]
        strange = sum(r.taken_from.total() - r.taken_from[node] for r in mine)
        of = f"{strange} of {len(places) * len(mine)}"
        print(f"{node[:8]:10} {places.count(node):>10} {len(mine):>13} {of:>24}")


def read_sources(root: Path, limit: int | None) -> Sources:
    paths = sorted(path for path in root.rglob("*.py") if not NOT_OURS & set(path.relative_to(root).parts))
    if limit is not None:
        paths = paths[:: max(1, len(paths) // limit)][:limit]
    return [(path.relative_to(root).as_posix(), path.read_text("utf-8", "replace")) for path in paths]


def main() -> int:
    parser = argparse.ArgumentParser(description="The standard library's most used functions, by map-reduce.")
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--nodes", type=int, metavar="N", help="start N nodes of 2 CPUs here, for this run")
    where.add_argument("--address", metavar="HOST:PORT", help="of a cluster (default: your latest one, else none)")
    add("--maps", type=int, metavar="N", help="map tasks (default: two per CPU)")
    add("--reduces", type=int, metavar="N", help="reduce tasks (default: one per CPU)")
    add("--root", type=Path, default=Path(sysconfig.get_paths()["stdlib"]), metavar="FOLDER", help="what to read")
    add("--limit", type=int, metavar="N", help="only so many files, taken evenly from all")
    add("--top", type=int, default=10, metavar="N", help="how many names to show")
    add("--no-serial", action="store_true", help="leave the serial run and the comparison out")
    arguments = parser.parse_args()
    sources = read_sources(arguments.root, arguments.limit)
    if not sources:
        print(f"there is no Python file below {arguments.root}", file=sys.stderr)
        return 1

    with ExitStack() as stack:
        address = arguments.address
        if arguments.nodes is not None:
            cluster = stack.enter_context(Cluster(initialize_head=True, head_node_args={"num_cpus": 2}))
            for _ in range(arguments.nodes - 1):
                cluster.add_node(num_cpus=2)
            address = cluster.address
        stack.enter_context(ray.init(address))
        cpus = int(ray.cluster_resources()["CPU"])
        maps, reduces = arguments.maps or 2 * cpus, arguments.reduces or cpus
        size = sum(len(text) for _, text in sources) / 1e6
        print(f"{len(sources):,} files, {size:.1f} MB: {maps} map and {reduces} reduce tasks", end=" ")
        print(f"on {len(ray.nodes())} nodes with {cpus} CPUs")
        begin = time.perf_counter()
        places, rankings = map_reduce(sources, maps, reduces, arguments.top)
        parallel = time.perf_counter() - begin

    print_answer(rankings, arguments.top)
    print_shuffle(places, rankings)
    if arguments.no_serial:
        print(f"\nparallel: {parallel:.2f} s")
        return 0
    begin = time.perf_counter()
    alone = join(cut(sources, 1, ""), arguments.top, "")
    serial = time.perf_counter() - begin
    return compare(alone, rankings, arguments.top, serial, parallel)


def compare(alone: Ranking, rankings: list[Ranking], top: int, serial: float, parallel: float) -> int:
    print(f"\nserial {serial:.2f} s, parallel {parallel:.2f} s: {serial / parallel:.2f} times as fast")
    best = sorted((entry for r in rankings for entry in r.top), key=rank)[:top]
    counts = (sum(r.names for r in rankings), sum(r.unused for r in rankings))
    same = (best, counts) == (alone.top, (alone.names, alone.unused))
    print("both results are equal" if same else "THE RESULTS DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
