"""Tokens: where they are read, which ones are refused, and that no error shows one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minray._base.config import Config
from minray.wire.secret import MAX_BYTES, MIN_BYTES, TokenError, make_token, read_token_file, token_of

GOOD = "0123456789abcdef" * 4


def write(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_made_token_is_new_and_good_enough(tmp_path: Path) -> None:
    one, two = make_token(), make_token()
    assert one != two
    assert len(one) == 64
    assert read_token_file(write(tmp_path / "token", one.decode())) == one


@pytest.mark.parametrize("mode", [0o600, 0o400])
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "  \n\n"])
def test_a_file(tmp_path: Path, mode: int, end: str) -> None:
    assert read_token_file(write(tmp_path / "token", GOOD + end, mode)) == GOOD.encode()


def test_a_link_to_a_file_of_ours(tmp_path: Path) -> None:
    write(tmp_path / "token", GOOD)
    (tmp_path / "link").symlink_to(tmp_path / "token")
    assert read_token_file(str(tmp_path / "link")) == GOOD.encode()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622, 0o644, 0o777])
def test_a_file_that_others_may_read_or_write_is_refused_with_the_way_out(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "token", GOOD, mode)
    with pytest.raises(TokenError, match=rf"is open to others \(its mode is {mode:04o}\): chmod 600 {path}"):
        read_token_file(path)


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "token", GOOD)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(TokenError, match=f"belongs to user {me}, not to you"):
        read_token_file(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="'/nowhere/token' cannot be read: No such file"):
        read_token_file("/nowhere/token")
    with pytest.raises(TokenError, match="is no regular file"):
        read_token_file(str(tmp_path))
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(TokenError, match="is no regular file"):  # and nobody waits for a writer
        read_token_file(str(tmp_path / "pipe"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("short secret", f"has only 12 bytes and can be guessed; {MIN_BYTES} at least"),
        (GOOD + "\n" + GOOD, "more than one line"),
        ("x" * (MAX_BYTES + 1), "more than one line or"),
    ],
)
def test_what_is_no_token(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path / "token", text)
    with pytest.raises(TokenError, match=problem) as raised:
        read_token_file(path)
    assert path in str(raised.value)
    assert "secrets.token_hex" in str(raised.value)
    assert not text.strip() or text.strip() not in str(raised.value)


def test_the_users_token(tmp_path: Path) -> None:
    path = write(tmp_path / "token", GOOD)
    assert token_of(Config.from_env({})) is None
    assert token_of(Config.from_env({"MINRAY_TOKEN": GOOD})) == GOOD.encode()
    assert token_of(Config.from_env({"MINRAY_TOKEN_FILE": path})) == GOOD.encode()
    assert token_of(Config.from_env({}, token_file=path)) == GOOD.encode()
    with pytest.raises(TokenError, match="MINRAY_TOKEN has only 6 bytes") as raised:
        token_of(Config.from_env({"MINRAY_TOKEN": "sesame"}))
    assert "sesame" not in str(raised.value)
