"""``minray microbenchmark``: its options, and the order of events. Called by ``minray.cli.main``.

Prints one line per metric as soon as its row is measured, then the floors and remarks; with ``--json``
one object instead (progress then goes to standard error). Exit status: 0 if every row of ours was
measured, 1 if one failed. A bar that is missed is a finding, not a failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from .catalogue import FLOORS, ROWS, select
from .report import Result, Table, remarks, results
from .row import Row
from .turns import PeerError, Side, Turns

_EPILOG = """\
Rows are run in fresh sessions, ours and theirs by turns. An idle machine gives steadier numbers; ratios
are what compares between machines. Sizes are those of Ray's own benchmark: --scale 0.1 is a quick look.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--rows", metavar="NAME,…", help="only the rows with these (parts of) names; see --list")
    add("--list", action="store_true", help="list the rows and exit")
    add("--seconds", type=_positive, default=2.0, help="how long to measure each row (default: 2)")
    add("--rounds", type=int, default=1, help="turns per row and side; the median counts (default: 1)")
    add("--scale", type=_positive, default=1.0, help="multiply the big sizes (default: 1)")
    add("--tasks", type=int, default=1_000_000, help="tasks that row 'many' submits (default: 10^6)")
    add("--disk", metavar="FOLDER", help="run the rows that write gigabytes to a disk, there (with --rows: also those)")
    add("--num-cpus", type=int, help="init(num_cpus=…) on both sides (default: what each finds)")
    add("--compare", metavar="MODULE", help="run the same rows on this module, e.g. ray, by turns")
    add("--compare-python", metavar="PATH", help="the interpreter that has it; implies --compare ray")
    add("--no-floors", action="store_true", help="leave out raw floors and standard pools")
    add("--limit", type=_positive, default=300.0, help="give a row up after so many seconds (default: 300)")
    add("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or instead of the table")


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be positive: {text}")
    return value


def _absolute(folder: str | None) -> str | None:
    return None if folder is None else os.path.abspath(folder)


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark and return the exit status."""
    try:
        names = [name.strip() for name in (arguments.rows or "").split(",") if name.strip()]
        rows = select(names, disk=arguments.disk is not None)
    except ValueError as error:
        print(f"minray microbenchmark: {error}", file=sys.stderr)
        return 2
    if arguments.list:
        _print_list(sys.stdout)
        return 0
    sides = _sides(arguments)
    if isinstance(sides, str):
        print(f"minray microbenchmark: {sides}", file=sys.stderr)
        return 2
    out = sys.stderr if arguments.json == "-" else sys.stdout
    try:
        return _Run(arguments, sides, out).all(rows)
    except PeerError as error:
        print(f"minray microbenchmark: {error}", file=sys.stderr)
        return 1


def _print_list(out: TextIO) -> None:
    for row in ROWS.values():
        only = " (only with --disk)" if row.writes else ""
        print(f"{row.name:24}{'; '.join(metric.title for metric in row.metrics)}{only}", file=out)
    print("\nbeside them, unless --no-floors:", file=out)
    for row in FLOORS.values():
        print(f"{row.name:24}{row.metrics[0].title}", file=out)


def _sides(arguments: argparse.Namespace) -> list[Side] | str:
    """Ours, and theirs if asked for; or what is wrong with the request."""
    root = str(Path(__file__).resolve().parents[3])
    ours = Side("minray", "minray", root=root)
    name, python = arguments.compare, arguments.compare_python
    if name is None and python is None:
        return [ours]
    name = name or "ray"
    if python is None and importlib.util.find_spec(name) is None:
        return f"this interpreter has no module {name!r}: name one that has it with --compare-python PATH"
    return [ours, Side(name, name, python or sys.executable)]


class _Run:
    """One run: asks, prints, collects."""

    def __init__(self, arguments: argparse.Namespace, sides: list[Side], out: TextIO) -> None:
        self.arguments = arguments
        self.out = out
        self.turns = Turns(sides, limit=arguments.limit)
        self.lines: list[Result] = []
        init = {} if arguments.num_cpus is None else {"num_cpus": arguments.num_cpus}
        self.request = {
            "seconds": arguments.seconds,
            "scale": arguments.scale,
            "init": init,
            "options": {"tasks": arguments.tasks, "disk": _absolute(arguments.disk)},
        }

    def all(self, rows: list[Row]) -> int:
        begin = time.monotonic()
        with self.turns:
            hellos = self.turns.start()
            machine = _machine(hellos, self.arguments)
            self._say(_heading(machine))
            labels = [f"{label} {hello['version']}".strip() for label, hello in hellos.items()]
            table = Table(labels[0], labels[1] if len(labels) > 1 else None)
            self._say(table.head())
            for row in rows:
                self._row(row, table)
        floors = [] if self.arguments.no_floors else self._floors()
        for remark in remarks([*self.lines, *floors]):
            self._say(remark)
        self._say(f"({time.monotonic() - begin:.0f} s)")
        if self.arguments.json is not None:
            self._write(machine, floors)
        return 1 if any(line.ours.failed for line in self.lines) else 0

    def _row(self, row: Row, table: Table) -> None:
        answers: dict[str, list[dict[str, Any]]] = {side.label: [] for side in self.turns.sides}
        for _ in range(max(1, self.arguments.rounds)):
            for side, answer in self.turns.run(row, self.request):
                answers[side.label].append(answer)
                if "traceback" in answer:
                    print(f"{side.label}, row {row.name}:\n{answer['traceback']}", file=sys.stderr)
        ours, *theirs = answers.values()
        made = results(row, ours, theirs[0] if theirs else None)
        self.lines += made
        for line in made:
            self._say(table.line(line))

    def _floors(self) -> list[Result]:
        self._say("\nwithout a runtime:")
        table, lines = Table("this machine", None), []
        with Turns([Side("the floors", "")], limit=self.arguments.limit) as turns:
            for row in FLOORS.values():
                answers = [answer for _, answer in turns.run(row, self.request)]
                lines += results(row, answers, None)
                self._say(table.line(lines[-1]))
        self._say("")
        return lines

    def _write(self, machine: dict[str, Any], floors: list[Result]) -> None:
        made = {
            "machine": machine,
            "rows": [line.as_dict() for line in self.lines],
            "floors": [line.as_dict() for line in floors],
            "remarks": remarks([*self.lines, *floors]),
        }
        text = json.dumps(made, indent=2, ensure_ascii=False)
        if self.arguments.json == "-":
            print(text)
        else:
            Path(self.arguments.json).write_text(text + "\n", encoding="utf-8")

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)


def _machine(hellos: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load": load,
        "sides": hellos,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "scale": arguments.scale,
    }


def _heading(machine: dict[str, Any]) -> str:
    sides = ", ".join(
        f"{label} {hello['version']} on Python {hello['python']}" for label, hello in machine["sides"].items()
    )
    load = "" if machine["load"] is None else f", load {machine['load']:.1f}"
    scale = "" if machine["scale"] == 1 else f", sizes × {machine['scale']:g}"
    return f"{sides}; {machine['cpus']} CPUs{load}; {machine['seconds']:g} s per row{scale}\n"
