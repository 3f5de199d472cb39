"""Rows about the runtime as a whole: start and end, what it costs while idle, very many tasks.

Each runs in fresh processes (``probes``), because it is about a process from its beginning.
"""

from __future__ import annotations

from typing import Any

from .row import Bench, Metric, RowList, Sample, SkipRow, summary

rows = RowList()


def ask_probe(bench: Bench, probe: str, **options: Any) -> dict[str, Any]:
    """The answer of a probe. SkipRow where it cannot run."""
    if bench.fresh is None:
        raise SkipRow("no fresh processes here")
    answer = bench.fresh(probe, **options)
    if "skip" in answer:
        raise SkipRow(answer["skip"])
    return answer


@rows.add(
    "startup",
    Metric("startup", "import + init + first task", "s", lower_is_better=True),
    Metric("startup_import", "… of which import", "s", lower_is_better=True),
    Metric("shutdown", "shutdown", "s", lower_is_better=True),
    session=False,
)
def startup(bench: Bench) -> dict[str, Sample]:
    """A fresh process: import, init(), one task and its result; then shutdown(). Three times."""
    times = [ask_probe(bench, "start") for _ in range(3)]
    return {key: summary([time[key] for time in times]) for key in ("startup", "startup_import", "shutdown")}


@rows.add(
    "idle",
    Metric("idle_memory", "idle runtime, 2 workers, memory", "MB", lower_is_better=True),
    Metric("idle_driver", "… of which the driver", "MB", lower_is_better=True),
    Metric("idle_cpu", "idle runtime, 2 workers, CPU", "%", lower_is_better=True),
    session=False,
)
def idle(bench: Bench) -> dict[str, Sample]:
    """Two workers that have run a task; then nothing. Proportional memory and CPU of driver and runtime."""
    answer = ask_probe(bench, "idle", seconds=max(3.0, bench.seconds))
    return {key: Sample(answer[key]) for key in ("idle_memory", "idle_driver", "idle_cpu")}


@rows.add(
    "many",
    Metric("many_submit", "very many tasks at once, submitted"),
    Metric("many_finish", "… finished"),
    Metric("many_bytes", "… driver memory per outstanding task", "B", lower_is_better=True),
    Metric("many_left", "… memory left after del", "%", lower_is_better=True),
    session=False,
    ours_only=True,
)
def many(bench: Bench) -> dict[str, Sample]:
    """Submit very many tasks while none can run, then let them run; see ``probes.many``."""
    answer = ask_probe(bench, "many", tasks=bench.size(bench.options.get("tasks", 1_000_000)))
    return {key: Sample(answer[key]) for key in ("many_submit", "many_finish", "many_bytes", "many_left")}
