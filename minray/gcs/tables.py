"""What the GCS remembers, in SQLite: one table per kind of row, a key and an encoded row each.

``service`` hands in the saves that the pure machines ask for; they gather here and become durable by one
``commit`` per reactor turn, before any reply of that turn leaves. Rows are tuples of built-ins, encoded by
the wire's codec: nothing in a file can make the head run code. Names of actors are not a table of their
own: the rows of actors say them.

With a path the database is a WAL file with ``synchronous=NORMAL``: it survives the death of the process; a
power loss may cost the latest turns, but not the file. Without a path (a head that ``init()`` started, which
ends with its driver) it lives in memory, and a commit need not come before a reply: ``durable`` tells which.
SQLite itself is loaded by the first commit or load, so that a head starts without it.

A file is looked at as a whole when it is opened: one that is not ours, of another format, or damaged is refused, and
never written to. It is locked for as long as it is open: no two heads share one.

Invariant: after ``commit`` the database holds exactly the last row given for every key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minray.gcs.effects import Row
from minray.wire.codec import decode, encode
from minray.wire.errors import WireError

if TYPE_CHECKING:
    import sqlite3

TABLES = ("nodes", "jobs", "actors", "actor_specs", "placement_groups", "kv", "answers")
FORMAT = 2  # grows when rows change their shape
OURS = 0x6D696E72  # the file's application id


LOCK_S = 0.5  # how long a head that is just ending may still hold its file
FRESH = "start without --resume for a new cluster"


class TablesError(Exception):
    """The database cannot be read or written; the text says which and why."""


class Tables:
    """One head's rows. Not thread-safe: the reactor's thread owns it.

    Args:
        path: the file; None: in memory.
        resume: the file has to be there, with what an earlier head has written.
    """

    def __init__(self, path: str | None = None, *, resume: bool = False) -> None:
        self.path = path
        self._resume = resume
        self._db: sqlite3.Connection | None = None
        self._dirty: dict[tuple[str, bytes], Row | None] = {}

    @property
    def durable(self) -> bool:
        """Whether what is committed outlives this process."""
        return self.path is not None

    @property
    def dirty(self) -> bool:
        """Whether there is something to commit."""
        return bool(self._dirty)

    def save(self, table: str, key: bytes, row: Row | None) -> None:
        """Gather one row for the next commit; None forgets the key. The last word per key counts."""
        if table not in TABLES:
            raise ValueError(f"no table {table!r}; there are {', '.join(TABLES)}")
        self._dirty[table, key] = row

    def commit(self) -> None:
        """Write all that was gathered, in one transaction. Raises TablesError; the rows stay gathered."""
        if not self._dirty:
            return
        puts: dict[str, list[tuple[bytes, bytes]]] = {}
        drops: dict[str, list[tuple[bytes]]] = {}
        for (table, key), row in self._dirty.items():
            if row is None:
                drops.setdefault(table, []).append((key,))
            else:
                puts.setdefault(table, []).append((key, encode(row)))
        db = self._open()
        import sqlite3

        try:
            with db:  # one transaction: all or nothing
                for table, pairs in puts.items():
                    db.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", pairs)
                for table, keys in drops.items():
                    db.executemany(f"DELETE FROM {table} WHERE key = ?", keys)
        except sqlite3.Error as error:
            raise TablesError(f"cannot write the head's tables {self._where()}: {error}") from error
        self._dirty.clear()

    def load(self, table: str) -> list[tuple[bytes, Row]]:
        """All committed rows of a table, in the order of their keys."""
        if table not in TABLES:
            raise ValueError(f"no table {table!r}; there are {', '.join(TABLES)}")
        if self._db is None and not self.durable:
            return []
        db = self._open()
        import sqlite3

        try:
            rows = db.execute(f"SELECT key, row FROM {table} ORDER BY key").fetchall()
        except sqlite3.Error as error:
            raise TablesError(self._damaged(str(error))) from error
        try:
            return [(bytes(key), decode(row)) for key, row in rows]
        except (WireError, TypeError) as error:
            raise TablesError(self._damaged(f"a row of {table!r} is no row: {error}")) from error

    def close(self) -> None:
        """Commit what is left and close, in any case."""
        try:
            if self.durable:
                self.commit()
        finally:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _where(self) -> str:
        return repr(self.path) if self.path is not None else "in memory"

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            import sqlite3

            try:
                db = sqlite3.connect(self.path or ":memory:", timeout=LOCK_S)
                try:
                    self._set_up(db)
                except BaseException:
                    db.close()
                    raise
            except sqlite3.Error as error:
                raise TablesError(self._cannot_open(error)) from error
            self._db = db
        return self._db

    def _cannot_open(self, error: sqlite3.Error) -> str:
        import sqlite3

        text = str(error)
        if "locked" in text:
            return f"the head's tables {self._where()} are in use: the head that they belong to still runs ({text})"
        if type(error) is sqlite3.DatabaseError:  # no OperationalError: what is in the file is wrong
            return self._damaged(text)
        return f"cannot open the head's tables {self._where()}: {text}"

    def _damaged(self, what: str) -> str:
        return (
            f"cannot open the head's tables {self._where()}: they are damaged, or no tables of minray ({what}). What "
            f"they held is lost: {FRESH}"
        )

    def _set_up(self, db: sqlite3.Connection) -> None:
        if self.durable:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._look_at(db)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
        with db:
            for table in TABLES:
                db.execute(f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY, row BLOB NOT NULL)")
            db.execute(f"PRAGMA application_id={OURS}")
            db.execute(f"PRAGMA user_version={FORMAT}")

    def _look_at(self, db: sqlite3.Connection) -> None:
        """Refuse a file that is not ours, before anything is written to it."""
        (count,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (format_found,) = db.execute("PRAGMA user_version").fetchone()
        (whose,) = db.execute("PRAGMA application_id").fetchone()
        if not count and not whose and not format_found:
            if self._resume:
                raise TablesError(f"the head's tables {self._where()} are empty: {FRESH}")
            return  # it has just been made
        if whose != OURS:
            raise TablesError(f"{self._where()} is a database of something else, not the head's tables: {FRESH}")
        if format_found != FORMAT:
            raise TablesError(
                f"the head's tables {self._where()} have format {format_found}, this version of minray reads "
                f"{FORMAT}: use the version that wrote them, or {FRESH}"
            )
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise TablesError(self._damaged(verdict))
