"""Rows in SQLite: one suite for the file and the memory, and what only a file can do."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from minray.gcs.tables import FORMAT, Tables, TablesError


@pytest.fixture(params=["file", "memory"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tables]:
    made = Tables(str(tmp_path / "gcs.sqlite") if request.param == "file" else None)
    yield made
    made.close()


def test_the_last_word_per_key_counts(tables: Tables) -> None:
    tables.save("kv", b"a", (b"1",))
    tables.save("kv", b"a", (b"2", [1, None], {"x": 1.5}))
    tables.save("kv", b"b", (b"3",))
    tables.save("jobs", b"a", ("job",))
    assert tables.dirty
    tables.commit()
    assert not tables.dirty
    assert tables.load("kv") == [(b"a", (b"2", [1, None], {"x": 1.5})), (b"b", (b"3",))]
    tables.save("kv", b"a", None)
    tables.save("kv", b"never", None)
    tables.commit()
    assert tables.load("kv") == [(b"b", (b"3",))] and tables.load("jobs") == [(b"a", ("job",))]


def test_nothing_to_load_before_the_first_commit(tables: Tables) -> None:
    assert tables.load("actors") == []
    tables.commit()
    assert tables.load("actors") == []


def test_unknown_tables_are_refused(tables: Tables) -> None:
    with pytest.raises(ValueError, match="no table 'names'"):
        tables.save("names", b"", ())
    with pytest.raises(ValueError, match="no table 'names'"):
        tables.load("names")


def test_a_file_survives(tmp_path: Path) -> None:
    path = str(tmp_path / "gcs.sqlite")
    first = Tables(path)
    assert first.durable
    first.save("kv", b"a", (b"1",))
    first.close()
    second = Tables(path)
    assert second.load("kv") == [(b"a", (b"1",))]
    second.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "gcs.sqlite")
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={FORMAT + 1}")
    db.close()
    with pytest.raises(TablesError, match=f"have format {FORMAT + 1}"):
        Tables(path).load("kv")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    tables = Tables(str(tmp_path / "gcs.sqlite"))
    tables.save("kv", b"a", (b"1",))
    with pytest.raises(TablesError, match="cannot open the head's tables"):
        tables.commit()


def test_a_file_that_is_no_database_is_named_and_the_rows_stay(tmp_path: Path) -> None:
    path = tmp_path / "gcs.sqlite"
    path.write_bytes(b"not a database" * 100)
    tables = Tables(str(path))
    tables.save("kv", b"a", (b"1",))
    with pytest.raises(TablesError, match="cannot open the head's tables"):
        tables.commit()
    assert tables.dirty
    path.unlink()
    tables.commit()
    assert tables.load("kv") == [(b"a", (b"1",))]
    tables.close()
