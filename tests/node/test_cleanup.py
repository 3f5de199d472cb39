"""The end of a session's files and processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minray.node import cleanup
from minray.node.reaper import follow
from minray.store import segments

from .processes import is_gone, wait_for


def test_a_folder_goes_with_everything_in_it_and_nothing_beyond(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    folder = tmp_path / "session"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").touch()
    (folder / "link").symlink_to(outside)
    cleanup.remove_tree(str(folder))
    assert not folder.exists()
    assert (outside / "precious").exists()
    cleanup.remove_tree(str(folder))


def test_segments_of_the_journal_go_first(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    folder.mkdir()
    made = segments.choose("file", str(folder))
    made.create("mrtest-1", 4096)
    made.close()
    cleanup.remove_session(str(folder))
    assert not folder.exists()


def test_a_garbled_journal_does_not_keep_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    folder.mkdir()
    (folder / "segments.journal").write_bytes(b"\xff\xfe nonsense")
    cleanup.remove_session(str(folder))
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "getsid"), reason="sessions of processes")
def test_a_session_of_processes_ends_but_for_who_has_left_it() -> None:
    code = (
        "import subprocess, sys, time\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "kids = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]\n"
        "print(*(k.pid for k in kids), flush=True)\ntime.sleep(600)"
    )
    leader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    mine, own = map(int, leader.stdout.readline().split())
    try:
        wait_for(lambda: os.getsid(own) == own)
        hit = cleanup.kill_session(leader.pid)
        assert {leader.pid, mine} <= set(hit)
        wait_for(lambda: is_gone(mine))
        assert not is_gone(own), "a user's own setsid children are theirs"
        assert cleanup.kill_session(leader.pid) == []
    finally:
        os.kill(own, 9)
        leader.wait()
        leader.stdout.close()


def test_the_reaper_knows_who_is_left() -> None:
    assert follow(["/folder\n", "+1\n", "+2\n", "-1\n", "+3\n"]) == ("/folder", [2, 3])
    assert follow([]) == ("", [])
