"""The words and the syntax of Python's own standard library, counted by every core of this machine.

Reads each source file of the standard library, counts its words and the kinds of its syntax nodes, ranks
them, and compares the library proper with its tests. Then does the same work without minray, checks that
both results are equal, and prints how much faster the parallel run was.

    python examples/word_count.py [--limit FILES] [--num-cpus N] [--root FOLDER] [--no-serial]

What it shows of minray:

* ``count_chunk`` is a task: it gets file names, reads real files, returns a tally;
* ``merge`` is a task over other tasks' results: a tree of them reduces the tallies pair by pair, where
  they lie, as soon as both halves are there (the driver never waits in between);
* ``Progress`` is an actor: tasks report to it while they work, the driver asks it for the running totals.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import sysconfig
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import minray as ray

WORD = re.compile(r"[A-Za-z_]\w*")
NOT_OURS = {"site-packages", "dist-packages", "__pycache__"}
Tally = dict[str, Counter[str]]  # "library words", "library syntax", "library files", "tests words", …


# --- the work itself, the same for both runs ----------------------------------------------------------


def find_sources(root: Path, limit: int | None) -> list[tuple[str, int]]:
    """(path, bytes) of the Python files below ``root``, the largest first; installed packages left out."""
    found = [path for path in root.rglob("*.py") if not NOT_OURS.intersection(path.relative_to(root).parts)]
    sources = sorted(((str(path), path.stat().st_size) for path in found), key=lambda s: (-s[1], s[0]))
    return sources if limit is None else sources[:: max(1, len(sources) // limit)][:limit]


def empty_tally() -> Tally:
    kinds = ("words", "syntax", "files")
    return {f"{part} {kind}": Counter() for part in ("library", "tests") for kind in kinds}


def count_file(path: str, tally: Tally) -> None:
    """Add one file to ``tally``: its words, and the node types of its syntax tree."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    part = "tests" if {"test", "tests", "idle_test"}.intersection(Path(path).parts) else "library"
    words = WORD.findall(text)
    tally[f"{part} words"].update(words)
    files = tally[f"{part} files"]
    files.update({"files": 1, "bytes": len(text), "words": len(words)})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in strings are not our business
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):  # some files are broken on purpose, to test with
        files.update({"not Python": 1})
        return
    tally[f"{part} syntax"].update(type(node).__name__ for node in ast.walk(tree))


def add_tally(into: Tally, other: Tally) -> Tally:
    for key, counter in other.items():
        into[key].update(counter)
    return into


# --- the parallel run ---------------------------------------------------------------------------------


@ray.remote
class Progress:
    """The running totals. Every counting task reports each file to it."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()

    def add(self, files: int, size: int) -> None:
        self.totals.update(files=files, bytes=size)

    def read(self) -> dict[str, int]:
        return dict(self.totals)


@ray.remote
def count_chunk(sources: list[tuple[str, int]], progress: Any) -> Tally:
    tally = empty_tally()
    for path, size in sources:
        count_file(path, tally)
        progress.add.remote(1, size)
    return tally


@ray.remote
def merge(one: Tally, other: Tally) -> Tally:
    # What a task is given is its own copy: it may be changed.
    return add_tally(one, other)


def deal(sources: list[tuple[str, int]], chunks: int) -> list[list[tuple[str, int]]]:
    """Deal the files out so that every chunk has about the same number of bytes."""
    hands: list[list[tuple[str, int]]] = [[] for _ in range(min(chunks, len(sources)))]
    weights = [0] * len(hands)
    for source in sources:  # the largest first: the rest evens out
        lightest = weights.index(min(weights))
        hands[lightest].append(source)
        weights[lightest] += source[1]
    return hands


def count_parallel(sources: list[tuple[str, int]], cpus: int) -> Tally:
    progress = Progress.options(num_cpus=0).remote()
    level = [count_chunk.remote(chunk, progress) for chunk in deal(sources, 4 * cpus)]
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        odd = level[-1:] if len(level) % 2 else []
        level = [merge.remote(one, other) for one, other in pairs] + odd
    [result] = level
    total = sum(size for _, size in sources)
    show = ProgressLine(len(sources), total)
    while not ray.wait([result], timeout=0.2)[0]:
        show.update(ray.get(progress.read.remote()))
    show.finish(ray.get(progress.read.remote()))
    tally: Tally = ray.get(result)
    return tally


class ProgressLine:
    """One line that is written over and over on a terminal, and every tenth of the way elsewhere."""

    def __init__(self, files: int, size: int) -> None:
        self.files, self.size, self.shown = files, size, -1
        self.begin = time.perf_counter()

    def update(self, totals: dict[str, int]) -> None:
        share = totals.get("bytes", 0) / max(1, self.size)
        terminal = sys.stdout.isatty()
        if not terminal and int(10 * share) == self.shown:
            return
        self.shown = int(10 * share)
        megabytes = totals.get("bytes", 0) / 1e6
        speed = megabytes / (time.perf_counter() - self.begin)
        files = f"{totals.get('files', 0):,} of {self.files:,} files"
        line = f"[{'#' * round(30 * share):30}] {files}, {megabytes:.1f} MB, {speed:.1f} MB/s"
        print(f"\r{line}" if terminal else line, end="" if terminal else "\n", flush=True)

    def finish(self, totals: dict[str, int]) -> None:
        self.update(totals)
        if sys.stdout.isatty():
            print()


def count_serial(sources: list[tuple[str, int]]) -> Tally:
    tally = empty_tally()
    for path, _ in sources:
        count_file(path, tally)
    return tally


# --- the report ---------------------------------------------------------------------------------------


def print_ranking(title: str, counter: Counter[str], other: Counter[str], top: int = 10) -> None:
    """The most frequent entries, with their share here and in the other part."""
    print(f"\n{title:24} {'count':>10} {'per 1,000':>10} {'in tests':>10}")
    total, other_total = max(1, counter.total()), max(1, other.total())
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    for rank, (name, count) in enumerate(ranked[:top], 1):
        here, there = 1000 * count / total, 1000 * other[name] / other_total
        print(f"{rank:3}. {name:19} {count:>10,} {here:>10.2f} {there:>10.2f}")


def print_contrast(tally: Tally, top: int = 8) -> None:
    """The words that one part uses far more often than the other."""
    library, tests = tally["library words"], tally["tests words"]
    sizes = max(1, library.total()), max(1, tests.total())

    def lead(word: str) -> float:
        return (library[word] + 20) / sizes[0] / ((tests[word] + 20) / sizes[1])

    ranked = sorted(library.keys() | tests.keys(), key=lambda word: (lead(word), word))
    print(f"\nmore typical of the library: {', '.join(reversed(ranked[-top:]))}")
    print(f"more typical of its tests:   {', '.join(ranked[:top])}")


def print_report(tally: Tally) -> None:
    for part in ("library", "tests"):
        files = tally[f"{part} files"]
        print(
            f"{part}: {files['files']:,} files, {files['words']:,} words, "
            f"{len(tally[f'{part} words']):,} different ones, {files['not Python']} that are no Python"
        )
    print_ranking("words of the library", tally["library words"], tally["tests words"])
    print_ranking("syntax of the library", tally["library syntax"], tally["tests syntax"])
    print_contrast(tally)


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the standard library's words and syntax in parallel.")
    add = parser.add_argument
    add("--limit", type=int, help="only so many files, taken evenly from all")
    add("--num-cpus", type=int, help="how many workers (default: as many as there are CPUs)")
    add("--root", type=Path, default=Path(sysconfig.get_paths()["stdlib"]), help="what to read")
    add("--no-serial", action="store_true", help="leave the serial run and the comparison out")
    arguments = parser.parse_args()

    sources = find_sources(arguments.root, arguments.limit)
    if not sources:
        print(f"there is no Python file below {arguments.root}", file=sys.stderr)
        return 1
    ray.init(num_cpus=arguments.num_cpus)
    cpus = int(ray.cluster_resources()["CPU"])
    size = sum(size for _, size in sources) / 1e6
    print(f"counting {len(sources):,} files, {size:.1f} MB, below {arguments.root} with {cpus} workers")
    begin = time.perf_counter()
    tally = count_parallel(sources, cpus)
    parallel = time.perf_counter() - begin
    ray.shutdown()
    print_report(tally)
    if arguments.no_serial:
        print(f"\nparallel: {parallel:.2f} s")
        return 0
    begin = time.perf_counter()
    same = count_serial(sources) == tally
    serial = time.perf_counter() - begin
    print(f"\nserial {serial:.2f} s, parallel {parallel:.2f} s with {cpus} workers: ", end="")
    print(f"{serial / parallel:.2f} times as fast")
    print("both results are equal" if same else "THE RESULTS DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
