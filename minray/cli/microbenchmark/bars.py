"""The bars: what a row has to reach, as DESIGN's section on performance states it. Pure.

A bar is a ratio to Ray in the same run (how many times better: more per second, or less of what should
be little), a limit in the metric's own unit, or both. The goal is where it should go from there; it is
shown, not judged. A metric without a bar is measured for information.
"""

from __future__ import annotations

from dataclasses import dataclass

from .row import Metric


@dataclass(frozen=True)
class Bar:
    """``ratio``: times Ray. ``limit``: in the metric's unit. ``goal``: in words."""

    ratio: float | None = None
    limit: float | None = None
    goal: str = ""

    def text(self, metric: Metric) -> str:
        """The bar in words: ``8 x``, ``< 0.5 s``, or both."""
        parts = [f"{self.ratio:g} x"] if self.ratio is not None else []
        if self.limit is not None:
            sign = "<" if metric.lower_is_better else ">"
            parts.append(f"{sign} {self.limit:g} {metric.unit}")
        return ", ".join(parts)

    def met(self, metric: Metric, ours: float, ratio: float | None) -> bool | None:
        """Whether ``ours`` reaches it. None if that takes a ratio and there is none."""
        if self.limit is not None:
            reached = ours <= self.limit if metric.lower_is_better else ours >= self.limit
            if not reached:
                return False
        if self.ratio is None:
            return True
        return None if ratio is None else ratio >= self.ratio


BARS: dict[str, Bar] = {
    "tasks_sync": Bar(8, goal="2 raw round trips"),
    "tasks_async": Bar(30, goal="60 x"),
    "tasks_clients": Bar(12, goal="25 x"),
    "tasks_and_get": Bar(25, goal="50 x"),
    "actor_sync": Bar(6, goal="10 x"),
    "actor_async": Bar(20, goal="40 x"),
    "actor_concurrent": Bar(6, goal="15 x"),
    "actor_1_n": Bar(12, goal="25 x"),
    "actor_n_n": Bar(12, goal="25 x"),
    "actor_n_n_arg": Bar(8, goal="25 x"),
    "asyncio_sync": Bar(5, goal="8 x"),
    "asyncio_async": Bar(10, goal="20 x"),
    "get_small": Bar(15, goal="50 x"),
    "put_small": Bar(30, goal="80 x"),
    "put_gigabytes": Bar(4, goal="0.7 of memcpy"),
    "put_gigabytes_clients": Bar(1.3, goal="0.7 of memcpy"),
    "get_10k_refs": Bar(3, goal="10 x"),
    "wait_1k": Bar(8, goal="20 x"),
    "wait_10k": Bar(limit=1.0),
    "groups": Bar(4, goal="10 x"),
    "actor_creation": Bar(30, goal="100/s"),
    "startup": Bar(10, limit=0.5, goal="0.25 s"),
    "shutdown": Bar(limit=0.5),
    "idle_memory": Bar(5, limit=100, goal="60 MB"),
    "idle_cpu": Bar(limit=1.0),
    "many_bytes": Bar(limit=1024),
    "many_left": Bar(limit=10),
    "far_sync": Bar(5),
    "far_async": Bar(5),
    "transfer_share": Bar(limit=0.6),
    "join": Bar(limit=1.0),
    "heartbeats": Bar(limit=5.0),
}


def times_better(metric: Metric, ours: float, theirs: float) -> float | None:
    """How many times better ``ours`` is; None where a division would say nothing."""
    better, worse = (theirs, ours) if metric.lower_is_better else (ours, theirs)
    return better / worse if worse > 0 else None
