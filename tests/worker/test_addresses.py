"""Addresses as users write them, and the file of the latest cluster."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from minray._base.config import Config
from minray._base.process import own_identity
from minray.worker import addresses
from minray.worker.addresses import forget_latest, latest_path, living_latest, meant, numeric, read_latest, write_latest
from minray.worker.session_folder import find_sessions, make_session, sweep_dead


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(temp_dir=str(tmp_path))


def cluster_here(config: Config, address: str) -> None:
    info = make_session(str(config.temp_dir), None, b"token")
    replace(info, daemon=own_identity(), gcs=f"tcp:{address}").write()


def test_numbers() -> None:
    assert numeric("127.0.0.1:5") == numeric("tcp:127.0.0.1:5") == numeric("localhost:5") == "127.0.0.1:5"
    assert numeric("[::1]:5") == "[::1]:5"
    assert addresses.here_towards("127.0.0.1:5") == "127.0.0.1"


@pytest.mark.parametrize("text", ["", "5", ":5", "a", "a:", "a:b", "a:0", "a:65536", "ray://a:5", "a/b:5"])
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT") as refused:
        numeric(text)
    assert repr(text) in str(refused.value)


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(ConnectionError, match="'no host has this name'"):
        numeric("no host has this name:5")


def test_the_latest_cluster_is_private_and_the_last_one_written(config: Config) -> None:
    assert read_latest(config) is None
    write_latest(config, "127.0.0.1:5")
    write_latest(config, "127.0.0.1:6")
    assert read_latest(config) == "127.0.0.1:6"
    assert stat.S_IMODE(os.stat(latest_path(config)).st_mode) == 0o600
    assert os.listdir(str(config.temp_dir)) == [os.path.basename(latest_path(config))]
    forget_latest(config, "127.0.0.1:5")
    assert read_latest(config) == "127.0.0.1:6"
    forget_latest(config, "127.0.0.1:6")
    assert read_latest(config) is None


@pytest.mark.parametrize("content", ["", "nonsense", "127.0.0.1:99999", "\xe4:5"])
def test_a_spoilt_file_is_none(config: Config, content: str) -> None:
    Path(latest_path(config)).write_text(content, encoding="latin-1")
    assert read_latest(config) is None


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users here")
def test_what_belongs_to_somebody_else_is_not_seen(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    write_latest(config, "127.0.0.1:5")
    cluster_here(config, "127.0.0.1:5")
    path, me = latest_path(config), os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    os.rename(path, latest_path(config))
    assert read_latest(config) is None and find_sessions(config) == []
    assert sweep_dead(str(config.temp_dir)) == []
    monkeypatch.undo()
    assert len(find_sessions(config)) == 1


def test_latest_lives_only_with_a_node_here(config: Config) -> None:
    write_latest(config, "127.0.0.1:5")
    cluster_here(config, "127.0.0.1:6")
    assert living_latest(config) is None
    cluster_here(config, "127.0.0.1:5")
    assert living_latest(config) == "127.0.0.1:5"


def test_which_cluster_is_meant(config: Config) -> None:
    with pytest.raises(ConnectionError, match=r"MINRAY_ADDRESS is not set.*latest-cluster.*minray start --head"):
        meant(config, "auto")
    write_latest(config, "127.0.0.1:5")
    assert meant(config, None) == meant(config, "auto") == "127.0.0.1:5"
    there = config.replace(address="localhost:6")
    assert meant(there, None) == meant(there, "auto") == "127.0.0.1:6"
    assert meant(there, "127.0.0.1:7") == "127.0.0.1:7"
    assert meant(config.replace(address="auto"), None) == "127.0.0.1:5"
