"""What a row of the benchmark is, and how a rate is measured. Both sides use exactly this code.

A row is a function of a ``Bench``: it gets the module under test (``bench.ray``: minray, Ray, or nothing
for the floors), defines its tasks and actors inside itself (so that they travel by value and the workers
need not find this file), and returns what it measured.

How a rate is measured: the call is run once, and again for up to a second, unmeasured; then in
four windows until ``seconds`` have passed, each window timed as a whole. The rate is the total over the
total; the spread is the standard deviation over the windows. A call that takes longer than ``seconds``
is measured once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

WINDOWS = 4
WARM_UP = 1.0


class SkipRow(Exception):
    """This row cannot run here; the message says why."""


@dataclass(frozen=True)
class Sample:
    """One measured number: its value in the metric's unit, its spread, and how many calls it rests on."""

    value: float
    spread: float = 0.0
    count: int = 1


@dataclass(frozen=True)
class Metric:
    """What a number means: the key it has in the JSON, its words in the table, its unit and direction."""

    key: str
    title: str
    unit: str = "/s"
    lower_is_better: bool = False


class Api(Protocol):
    """What a module must offer to be measured: the part of Ray's API that the rows use."""

    exceptions: Any
    util: Any

    def init(self, **options: Any) -> Any: ...
    def shutdown(self) -> None: ...
    def remote(self, *arguments: Any, **options: Any) -> Any: ...
    def put(self, value: Any) -> Any: ...
    def get(self, refs: Any) -> Any: ...
    def wait(self, refs: list[Any], **options: Any) -> tuple[list[Any], list[Any]]: ...
    def kill(self, actor: Any) -> None: ...
    def cluster_resources(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Bench:
    """What a row is given.

    ``scale`` multiplies the sizes of the big workloads (1: those of Ray's own benchmark). ``fresh`` runs a
    probe of ``probes`` in a fresh process of the same interpreter with the same module.
    """

    ray: Api
    seconds: float = 2.0
    scale: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    fresh: Callable[..., dict[str, Any]] | None = None
    clock: Callable[[], float] = time.perf_counter

    def size(self, number: int, least: int = 1) -> int:
        """``number``, scaled."""
        return max(least, round(number * self.scale))

    def rate(self, call: Callable[[], object], per_call: float = 1.0) -> Sample:
        """How often per second ``call`` ran, times ``per_call`` (what one call is worth)."""
        clock = self.clock
        warm_up = min(WARM_UP, self.seconds / 2)
        begin = clock()
        calls = 0
        while True:
            call()
            calls += 1
            warm = clock() - begin
            if warm >= warm_up:
                break
        # Read the clock every so often only: it must not be part of a call of a microsecond.
        step = max(1, int(calls / warm * self.seconds / WINDOWS / 10))
        rates: list[float] = []
        total_calls, total_time = 0, 0.0
        while total_time < self.seconds:
            calls, begin = 0, clock()
            while True:
                for _ in range(step):
                    call()
                calls += step
                elapsed = clock() - begin
                if elapsed >= self.seconds / WINDOWS:
                    break
            rates.append(calls / elapsed)
            total_calls += calls
            total_time += elapsed
        return Sample(per_call * total_calls / total_time, per_call * deviation(rates), total_calls)


def deviation(values: list[float]) -> float:
    """The standard deviation of ``values``; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def summary(values: list[float]) -> Sample:
    """The median of repeated measurements, with their deviation."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Sample(median, deviation(values), len(values))


@dataclass(frozen=True)
class Row:
    """One row: a name for ``--rows``, its metrics, and its function."""

    name: str
    metrics: tuple[Metric, ...]
    run: Callable[[Bench], Sample | dict[str, Sample]]
    session: bool = True  # init() before, shutdown() after
    ours_only: bool = False
    writes: bool = False  # gigabytes, to the folder that ``--disk`` names: not run without that

    def measure(self, bench: Bench) -> dict[str, Sample]:
        """Run it; one sample per metric."""
        result = self.run(bench)
        samples = {self.metrics[0].key: result} if isinstance(result, Sample) else result
        if set(samples) != {metric.key for metric in self.metrics}:
            raise AssertionError(f"row {self.name} measured {sorted(samples)}, not its metrics")
        return samples


class RowList(list[Row]):
    """The rows of one file, filled by its decorator ``@rows.add(…)``."""

    def add(
        self,
        name: str,
        *metrics: Metric | str,
        session: bool = True,
        ours_only: bool = False,
        writes: bool = False,
    ) -> Callable[[Callable[[Bench], Any]], Callable[[Bench], Any]]:
        """Register a function as the row ``name``. A metric given as a string is a rate per second."""
        made = tuple(Metric(name, metric) if isinstance(metric, str) else metric for metric in metrics)

        def register(function: Callable[[Bench], Any]) -> Callable[[Bench], Any]:
            self.append(Row(name, made, function, session, ours_only, writes))
            return function

        return register
