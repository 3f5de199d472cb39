"""The rows in the order of the table, by name. Floors are a list of their own: they have no runtime."""

from __future__ import annotations

from collections.abc import Iterable

from . import floors, rows_actors, rows_cluster, rows_disk, rows_groups, rows_objects, rows_runtime, rows_tasks
from .row import Row

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        *rows_tasks.rows,
        *rows_actors.rows,
        *rows_objects.rows,
        *rows_groups.rows,
        *rows_runtime.rows,
        *rows_cluster.rows,
        *rows_disk.rows,
    )
}
FLOORS: dict[str, Row] = {row.name: row for row in floors.rows}


def select(patterns: Iterable[str], disk: bool = False) -> list[Row]:
    """The rows whose name is, or else contains, one of ``patterns``. If there are none: with ``disk`` those that
    write to disk, else all others.

    :raises ValueError: a pattern that fits no row, or one that writes to disk, without ``disk``.
    """
    wanted: set[str] = set()
    for pattern in patterns:
        found = {pattern} if pattern in ROWS else {name for name in ROWS if pattern in name}
        if not found:
            raise ValueError(f"no row is called {pattern!r}: there are {', '.join(ROWS)}")
        wanted |= found
    chosen = [row for name, row in ROWS.items() if (name in wanted if wanted else row.writes == disk)]
    refused = [row.name for row in chosen if row.writes and not disk]
    if refused:
        raise ValueError(f"{', '.join(refused)} write gigabytes: name a folder for them with --disk FOLDER")
    return chosen
