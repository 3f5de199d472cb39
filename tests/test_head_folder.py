"""What a killed head leaves, who may take it up, and when it is swept."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from minray._base.config import Config
from minray._base.process import own_identity, start_time
from minray.worker import head_folder
from minray.worker.head_folder import HeadRecord, dead_heads, make_head_folder, record_of, sweep_heads
from minray.worker.session_folder import make_session


@pytest.fixture
def gone() -> tuple[int, float]:
    """The life of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    life = (child.pid, start_time(child.pid) or 0.0)
    child.communicate()
    return life


def make(root: Path, daemon: tuple[int, float], keeper: tuple[int, float] | None = None, port: int = 7) -> HeadRecord:
    info = replace(make_session(str(root), None, b"secret"), daemon=daemon, tls=("/c rt", "/k", "/a"))
    folder = make_head_folder(str(root), info, b"secret")
    record = record_of(folder, "127.0.0.1", port, info, keeper)
    record.write()
    Path(record.tables).write_bytes(b"tables")
    return record


def test_a_record_is_read_as_it_was_written(tmp_path: Path, gone: tuple[int, float]) -> None:
    record = make(tmp_path, gone, keeper=own_identity())
    assert HeadRecord.read(record.folder) == record
    assert record.token() == b"secret" and record.address == "127.0.0.1:7"
    assert replace(record, host="::1").address == "[::1]:7"
    if os.name == "posix":
        assert os.stat(record.folder).st_mode & 0o77 == 0
        assert {os.stat(Path(record.folder, name)).st_mode & 0o77 for name in ("token", "head.info")} == {0}


@pytest.mark.parametrize("text", ["", "something else\n", "minray-head 1\nhost x\n", "minray-head 1\nnonsense\n"])
def test_what_is_no_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "head.info").write_text(text)
    assert HeadRecord.read(str(tmp_path)) is None and HeadRecord.read(str(tmp_path / "missing")) is None


def test_only_the_killed_that_were_to_stay_can_go_on(tmp_path: Path, gone: tuple[int, float]) -> None:
    config = Config(temp_dir=str(tmp_path))
    assert dead_heads(Config(temp_dir=str(tmp_path / "nowhere"))) == []
    alive, of_a_program = make(tmp_path, own_identity()), make(tmp_path, gone, own_identity())
    one = make(tmp_path, gone)
    two = make(tmp_path, gone, port=8)
    assert [record.port for record in dead_heads(config)] == [8, 7]
    assert {record.folder for record in dead_heads(config)} == {one.folder, two.folder}
    assert sweep_heads(str(tmp_path)) == [], "none of them is forgotten yet"
    assert os.path.isdir(alive.folder) and os.path.isdir(of_a_program.folder)


def test_what_nobody_asks_for_is_swept(
    tmp_path: Path, gone: tuple[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, of_a_program, one = make(tmp_path, own_identity()), make(tmp_path, gone, gone), make(tmp_path, gone)
    assert sweep_heads(str(tmp_path)) == [of_a_program.folder], "its program has ended"
    monkeypatch.setattr(head_folder, "KEPT_S", -1.0)
    assert sweep_heads(str(tmp_path)) == [one.folder]
    monkeypatch.setattr(head_folder, "YOUNG_S", -1.0)
    (tmp_path / "h_broken").mkdir()
    (tmp_path / "h_broken" / "head.info").write_text("nonsense")
    assert sweep_heads(str(tmp_path)) == [str(tmp_path / "h_broken")]
    assert os.path.isdir(alive.folder)
