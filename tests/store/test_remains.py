"""The end of a session's files."""

from __future__ import annotations

from pathlib import Path

from minray.store import segments
from minray.store.remains import remove_session, remove_tree


def test_a_folder_goes_with_everything_in_it_and_nothing_beyond(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    folder = tmp_path / "session"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").touch()
    (folder / "link").symlink_to(outside)
    remove_tree(str(folder))
    assert not folder.exists()
    assert (outside / "precious").exists()
    remove_tree(str(folder))


def test_segments_of_the_journal_go_first(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    folder.mkdir()
    made = segments.choose("file", str(folder))
    made.create("mrtest-1", 4096)
    made.close()
    remove_session(str(folder))
    assert not folder.exists()


def test_a_garbled_journal_does_not_keep_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    folder.mkdir()
    (folder / "segments.journal").write_bytes(b"\xff\xfe nonsense")
    remove_session(str(folder))
    assert not folder.exists()
