"""Folders of sessions: whose they are, what is recorded, what a sweep takes and what it leaves."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from minray._base.config import Config
from minray._base.process import is_alive, own_identity, start_time
from minray.exceptions import RaySystemError
from minray.worker import session_folder
from minray.worker.session_folder import SessionInfo, find_sessions, make_session, sweep_dead, user_folder

DEAD = (2**22 + 1, 1.0)  # above every pid of a default Linux


def mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(temp_dir=str(tmp_path))


def test_own_identity_is_alive_and_another_start_is_not() -> None:
    pid, started = own_identity()
    assert pid == os.getpid() and is_alive(pid, started)
    assert not is_alive(pid, started + 1) and not is_alive(*DEAD) and not is_alive(0, started)


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    started = start_time(child.pid)
    assert started is not None and is_alive(child.pid, started)
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not reaped
    assert start_time(child.pid) is None and not is_alive(child.pid, started)
    child.wait()


def test_the_default_folder_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = user_folder(Config())
    assert root == str(tmp_path / f"minray-{os.getuid()}") and mode(root) == 0o700
    os.chmod(root, 0o755)
    assert user_folder(Config()) == root and mode(root) == 0o700


def test_a_folder_that_somebody_else_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = Path(user_folder(Config()))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(RaySystemError, match=rf"belongs to user {os.getuid()}.*MINRAY_TEMP_DIR"):
        user_folder(Config())
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root.rmdir()
    root.symlink_to(tmp_path)
    with pytest.raises(RaySystemError, match="is not a folder"):
        user_folder(Config())


def test_a_folder_that_cannot_be_made_names_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RaySystemError, match="MINRAY_TEMP_DIR"):
        user_folder(Config(temp_dir=str(tmp_path / "file" / "below")))


def test_a_new_session(tmp_path: Path) -> None:
    info = make_session(str(tmp_path), own_identity(), b"\x01\x02")
    assert mode(info.folder) == 0o700 and mode(os.path.join(info.folder, "token")) == 0o600
    assert os.listdir(tmp_path) == [f"s_{info.prefix}"] and len(info.prefix) == 10
    assert info.token() == b"\x01\x02"
    info = replace(info, endpoint="unix:/x y", daemon=(5, 1.25), zygote=(6, 1.5))
    info.write()
    assert SessionInfo.read(info.folder) == info
    assert SessionInfo.read(str(tmp_path)) is None


def test_a_record_keeps_any_path_of_tls(tmp_path: Path) -> None:
    made = make_session(str(tmp_path), own_identity(), b"secret")
    assert made.tls is None
    odd = replace(made, tls=("/a b/c.pem", os.fsdecode(b"/\xff\n.key"), "/ä\u2028.pem"))
    odd.write()
    assert SessionInfo.read(made.folder) == odd


def test_a_sweep_takes_the_dead_and_leaves_the_living(tmp_path: Path) -> None:
    root = str(tmp_path)
    living = [
        make_session(root, own_identity(), b""),
        replace(make_session(root, None, b""), daemon=own_identity()),
        replace(make_session(root, DEAD, b""), zygote=own_identity()),
        make_session(root, None, b""),  # one that will stay: this process makes it just now
    ]
    dead = [
        replace(make_session(root, DEAD, b""), daemon=DEAD),
        replace(make_session(root, None, b""), starter=DEAD),
        replace(make_session(root, None, b""), starter=None, daemon=DEAD),
    ]
    for info in living + dead:
        info.write()
    (tmp_path / "something else").mkdir()
    young = tmp_path / ".new-abc"
    young.mkdir()
    assert sorted(sweep_dead(root)) == sorted(info.folder for info in dead)
    os.utime(young, (1, 1))
    assert sweep_dead(root) == [str(young)]
    assert len(os.listdir(root)) == len(living) + 1


def test_a_sweep_leaves_other_containers_alone(tmp_path: Path) -> None:
    host, boot, space = session_folder.this_place().split("/", 2)
    places = {
        f"{host}/{boot}/another": True,
        f"another/another/{space}": True,
        f"{host}/another/{space}": False,  # this host before it was booted
    }
    for place, stays in places.items():
        info = replace(make_session(str(tmp_path), DEAD, b""), place=place)
        info.write()
        assert sweep_dead(str(tmp_path)) == ([] if stays else [info.folder])


def test_a_sweep_unlinks_segments(tmp_path: Path) -> None:
    from minray.store.segments import choose, segment_name

    info = make_session(str(tmp_path), DEAD, b"")
    segments = choose("auto", info.folder)
    name = segment_name(f"{info.prefix}-", 1)
    segments.create(name, 4096)
    segments.close()
    assert sweep_dead(str(tmp_path)) == [info.folder]
    assert segments.list(info.prefix) == []


def test_find_sessions(config: Config, tmp_path: Path) -> None:
    assert find_sessions(Config(temp_dir=str(tmp_path / "none"))) == []
    first = replace(make_session(str(tmp_path), None, b""), daemon=own_identity(), created=1.0)
    second = replace(make_session(str(tmp_path), None, b""), daemon=own_identity(), created=2.0)
    gone = replace(make_session(str(tmp_path), own_identity(), b""), daemon=DEAD)
    for info in (first, second, gone):
        info.write()
    assert find_sessions(config) == [second, first]
