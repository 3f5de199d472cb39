"""Rows in SQLite: one suite for the file and the memory, and what only a file can do."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from minray.gcs.tables import FORMAT, OURS, Tables, TablesError


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
    db.execute(f"PRAGMA application_id={OURS}")
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


# --- files that are not what they should be ----------------------------------------------------------


def filled(path: Path) -> bytes:
    tables = Tables(str(path))
    for number in range(2000):
        tables.save("kv", b"%d" % number, (b"x" * 50, number))
    tables.close()
    return path.read_bytes()


@pytest.mark.parametrize("kept", [10, 100, 5000, 100_000])
def test_a_truncated_file_is_refused_and_left_as_it_is(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "gcs.sqlite"
    whole = filled(path)
    path.write_bytes(whole[:kept])
    with pytest.raises(TablesError, match=r"damaged, or no tables of minray.*start without --resume"):
        Tables(str(path)).load("kv")
    assert path.read_bytes() == whole[:kept]


def test_a_page_of_garbage_is_found_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gcs.sqlite"
    whole = bytearray(filled(path))
    whole[40_960:45_056] = b"\xff" * 4096
    path.write_bytes(whole)
    with pytest.raises(TablesError, match="damaged"):
        Tables(str(path)).load("jobs")


def test_a_row_that_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "gcs.sqlite"
    filled(path)
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE kv SET row = ? WHERE key = ?", (b"garbage", b"7"))
    db.close()
    tables = Tables(str(path))
    with pytest.raises(TablesError, match="a row of 'kv' is no row"):
        tables.load("kv")
    tables.close()


def test_a_database_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "gcs.sqlite"
    db = sqlite3.connect(path)
    with db:
        db.execute("CREATE TABLE songs (title)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(TablesError, match="something else"):
        Tables(str(path)).load("kv")
    assert path.read_bytes() == before


def test_who_goes_on_needs_something_to_go_on_with(tmp_path: Path) -> None:
    path = tmp_path / "gcs.sqlite"
    with pytest.raises(TablesError, match="are empty"):
        Tables(str(path), resume=True).load("kv")
    path.write_bytes(b"")
    with pytest.raises(TablesError, match="are empty"):
        Tables(str(path), resume=True).load("kv")
    path.unlink()
    filled(path)
    tables = Tables(str(path), resume=True)
    assert len(tables.load("kv")) == 2000
    tables.close()


def test_two_heads_do_not_share_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "gcs.sqlite")
    first = Tables(path)
    first.save("kv", b"a", (b"1",))
    first.commit()
    with pytest.raises(TablesError, match="in use"):
        Tables(path).load("kv")
    first.close()
    second = Tables(path)
    assert second.load("kv") == [(b"a", (b"1",))]
    second.close()


def test_a_full_disk_keeps_the_rows_for_later(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path / "gcs.sqlite"))
    tables.save("kv", b"a", (b"1",))
    tables.commit()
    assert tables._db is not None
    (pages,) = tables._db.execute("PRAGMA page_count").fetchone()
    tables._db.execute(f"PRAGMA max_page_count={pages}")
    tables.save("kv", b"b", (b"x" * 100_000,))
    with pytest.raises(TablesError, match=r"cannot write the head.s tables .*full"):
        tables.commit()
    assert tables.dirty
    tables._db.execute("PRAGMA max_page_count=1000000")
    tables.commit()
    assert [key for key, _ in tables.load("kv")] == [b"a", b"b"]
    tables.close()
