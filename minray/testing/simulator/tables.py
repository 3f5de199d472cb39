"""The tables of a head that can be killed: what is committed survives, what is not is gone.

Rows are encoded as they are for SQLite, so what comes back is never the object that went in.
"""

from __future__ import annotations

from minray.gcs.effects import Row
from minray.gcs.tables import Tables, TablesError
from minray.wire.codec import decode, encode

Rows = dict[str, dict[bytes, bytes]]  # table → key → an encoded row


class CommittedTables(Tables):
    """One life's tables over ``rows``, which outlive it. While ``full`` nothing can be written."""

    def __init__(self, rows: Rows) -> None:
        super().__init__("a file")
        self.rows = rows
        self.full = False

    def commit(self) -> None:
        """See Tables."""
        if self.full and self._dirty:
            raise TablesError("cannot write the head's tables: the disk is full")
        for (table, key), row in self._dirty.items():
            if row is None:
                self.rows.setdefault(table, {}).pop(key, None)
            else:
                self.rows.setdefault(table, {})[key] = encode(row)
        self._dirty.clear()

    def load(self, table: str) -> list[tuple[bytes, Row]]:
        """See Tables."""
        return [(key, decode(row)) for key, row in sorted(self.rows.get(table, {}).items())]
