"""Turns answers into lines of a table, and into one JSON object. Pure: prints nothing, measures nothing.

``Result`` is one metric of one row on all sides, with its bar judged. Repeated rounds of a row are
merged by the median, so that one disturbed turn does not decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .bars import BARS, Bar, times_better
from .row import Metric, Row, summary


@dataclass
class Side:
    """What one side answered for one metric, over the rounds."""

    values: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    problem: str = ""  # why there is no value
    failed: bool = False  # … and that is an error, not a row that can't run here

    @property
    def value(self) -> float | None:
        return summary(self.values).value if self.values else None

    @property
    def spread(self) -> float:
        return max([summary(self.values).spread, *self.spreads]) if self.values else 0.0


@dataclass
class Result:
    """One line of the table."""

    row: str
    metric: Metric
    ours: Side = field(default_factory=Side)
    theirs: Side | None = None

    @property
    def bar(self) -> Bar | None:
        return BARS.get(self.metric.key)

    @property
    def ratio(self) -> float | None:
        if self.theirs is None or self.ours.value is None or self.theirs.value is None:
            return None
        return times_better(self.metric, self.ours.value, self.theirs.value)

    @property
    def met(self) -> bool | None:
        if self.bar is None or self.ours.value is None:
            return None
        return self.bar.met(self.metric, self.ours.value, self.ratio)

    def as_dict(self) -> dict[str, Any]:
        """This line for the JSON."""
        answer: dict[str, Any] = {"row": self.row, "metric": self.metric.key, "title": self.metric.title}
        answer |= {"unit": self.metric.unit, "lower_is_better": self.metric.lower_is_better}
        for name, side in (("ours", self.ours), ("theirs", self.theirs)):
            if side is not None:
                answer[name] = {"value": side.value, "spread": side.spread, "rounds": side.values}
                if side.problem:
                    answer[name]["problem"] = side.problem
        answer["ratio"] = self.ratio
        if self.bar is not None:
            answer["bar"] = {"ratio": self.bar.ratio, "limit": self.bar.limit, "goal": self.bar.goal}
            answer["met"] = self.met
        return answer


def results(row: Row, ours: list[dict[str, Any]], theirs: list[dict[str, Any]] | None) -> list[Result]:
    """The lines of one row from both sides' answers, round by round. ``theirs`` is None without one."""
    made: list[Result] = []
    for metric in row.metrics:
        result = Result(row.name, metric, _side(metric, ours))
        if theirs is not None and not row.ours_only:
            result.theirs = _side(metric, theirs)
        made.append(result)
    return made


def _side(metric: Metric, answers: Iterable[dict[str, Any]]) -> Side:
    side = Side()
    for answer in answers:
        if "metrics" in answer:
            sample = answer["metrics"][metric.key]
            side.values.append(sample["value"])
            side.spreads.append(sample["spread"])
        else:
            side.failed = "error" in answer
            side.problem = answer["error"] if side.failed else f"skipped: {answer['skip']}"
    return side


def number(value: float) -> str:
    """Three or four digits, thousands with commas: ``0.0123``, ``4.56``, ``789``, ``12,346``."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


class Table:
    """Lines of fixed width, one at a time: a line can be printed as soon as its row is measured."""

    def __init__(self, ours: str, theirs: str | None, title_width: int = 46) -> None:
        self._theirs = theirs is not None
        self._width = title_width
        self._names = (ours, theirs or "")

    def head(self) -> str:
        """The heading and the rule under it."""
        cells = self._cells(self._names[0], self._names[1], "ratio", "first bar", "met", "goal")
        line = f"{'row':{self._width}}{cells}".rstrip()
        return f"{line}\n{'-' * len(line)}"

    def line(self, result: Result) -> str:
        """One metric; what went wrong instead of a number is said on lines of its own."""
        metric, bar = result.metric, result.bar
        met = "" if bar is None else {True: "yes", False: "NO", None: "?"}[result.met]
        ratio = "" if result.ratio is None else f"{number(result.ratio)} x"
        cells = self._cells(
            self._value(result.ours, metric),
            self._value(result.theirs, metric),
            ratio,
            "" if bar is None else bar.text(metric),
            met,
            "" if bar is None else bar.goal,
        )
        lines = [f"{metric.title:{self._width}}{cells}".rstrip()]
        problems = [side.problem for side in (result.ours, result.theirs) if side is not None]
        return "\n".join([*lines, *(f"    {_short(text)}" for text in problems if text)])

    def _cells(self, ours: str, theirs: str, ratio: str, bar: str, met: str, goal: str) -> str:
        compared = f"{theirs:>24}{ratio:>10}" if self._theirs else ""
        return f"{ours:>24}{compared}  {bar:<15}{met:<5}{goal}"

    @staticmethod
    def _value(side: Side | None, metric: Metric) -> str:
        if side is None:
            return ""
        if side.value is None:
            return "–"
        spread = f" ± {number(side.spread)}" if side.spread else ""
        unit = metric.unit if metric.unit.startswith("/") else f" {metric.unit}"
        return f"{number(side.value)}{spread}{unit}"


def _short(problem: str) -> str:
    """Its first line, and of a remote error's many the last one too: there stands what went wrong."""
    first, *rest = (line.strip() for line in problem.splitlines() if line.strip())
    return f"{first} … {rest[-1]}"[:200] if rest else first[:200]


def remarks(lines: Iterable[Result]) -> list[str]:
    """What ratios to Ray don't tell: distance to the machine's floor, and the bars that were missed."""
    measured = list(lines)
    values = {line.metric.key: line.ours.value for line in measured if line.ours.value}
    said: list[str] = []
    if "tasks_sync" in values and "unix_round_trip" in values:
        trips = values["unix_round_trip"] / values["tasks_sync"]
        said.append(f"one synchronous task costs {number(trips)} raw unix socket round trips (goal: 2)")
    for key in ("put_gigabytes", "put_gigabytes_clients"):
        if key in values and "memcpy" in values:
            share = values[key] / values["memcpy"]
            said.append(f"{key} runs at {number(share)} of a warm memory copy (goal: 0.7)")
    judged = [line.met for line in measured if line.bar is not None]
    met, missed = judged.count(True), judged.count(False)
    said.append(f"{len(judged)} bars: {met} met, {missed} missed, {len(judged) - met - missed} not judged")
    said += [f"missed: {line.metric.title}" for line in measured if line.met is False]
    return said
