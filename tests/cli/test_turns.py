"""Peers and turns: real processes, on the fake module; what a peer's death, silence or error becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minray.cli.microbenchmark import command
from minray.cli.microbenchmark.catalogue import ROWS
from minray.cli.microbenchmark.turns import PeerError, Side, Turns

HERE = str(Path(__file__).parent)
FAKE = Side("fake", "fake_ray", root=HERE)
OTHER = Side("other", "fake_ray", root=HERE)
REQUEST: dict[str, Any] = {"seconds": 0.002, "scale": 0.001, "init": {}, "options": {"tasks": 10}}


def ask(turns: Turns, row: str, **changes: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(side.label, answer) for side, answer in turns.run(ROWS[row], {**REQUEST, **changes})]


def test_both_sides_run_the_same_row_by_turns() -> None:
    with Turns([FAKE, OTHER], limit=60) as turns:
        hellos = turns.start()
        assert {hello["version"] for hello in hellos.values()} == {"0.0-fake"}
        for row in ("tasks_sync", "actor_n_n_arg"):
            answers = ask(turns, row)
            assert [label for label, _ in answers] == ["fake", "other"]
            assert all(answer["metrics"][row]["value"] > 0 for _, answer in answers)


def test_a_probe_runs_in_a_fresh_process_of_each_side() -> None:
    with Turns([FAKE, OTHER], limit=60) as turns:
        answers = ask(turns, "startup")
        assert [label for label, _ in answers] == ["fake", "other"]
        assert all(answer["metrics"]["startup"]["value"] > 0 for _, answer in answers)


def test_a_row_of_ours_alone_has_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RAY", "die")
    with Turns([FAKE, OTHER], limit=60) as turns:
        ((label, answer),) = ask(turns, "many")
        assert label == "fake"
        assert "the process of probe 'many' ended with status 3" in answer["error"]


def test_an_error_is_the_row_s_result_and_the_peer_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RAY", "raise")
    with Turns([FAKE], limit=60) as turns:
        ((_, answer),) = ask(turns, "get_small")
        assert answer["error"] == "ValueError: the fake was told to raise"
        assert "Traceback" in answer["traceback"]
        ((_, answer),) = ask(turns, "put_small")
        assert "metrics" in answer


def test_a_peer_that_dies_tells_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RAY", "die")
    with Turns([FAKE], limit=60) as turns:
        for _ in range(2):  # the second turn gets a fresh process
            ((_, answer),) = ask(turns, "get_small")
            assert "ended with status 3" in answer["error"]
            assert "the last words of the fake" in answer["error"]


def test_a_peer_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RAY", "hang")
    with Turns([FAKE], limit=0.2) as turns:
        ((_, answer),) = ask(turns, "get_small")
        assert "no answer from fake within 0.2 s" in answer["error"]


def test_a_module_that_is_not_there() -> None:
    with Turns([Side("none", "there_is_no_such_module")], limit=60) as turns:
        with pytest.raises(PeerError, match="there_is_no_such_module"):
            turns.start()


# --- the command ------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, words: str, sides: list[Side] | None = None) -> int:
    from minray.cli.main import main

    if sides is not None:
        monkeypatch.setattr(command, "_sides", lambda arguments: sides)
    return main(["microbenchmark", *words.split()])


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--rows tasks_sync,idle --seconds 0.002 --scale 0.001 --no-floors"
    monkeypatch.setitem(ROWS, "idle", ROWS["put_small"])
    assert run(monkeypatch, words, [FAKE, OTHER]) == 0
    printed = capsys.readouterr().out
    assert "fake 0.0-fake" in printed
    assert "tasks, sync" in printed
    assert "ratio" in printed
    assert "2 bars:" in printed


def test_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = "--rows put_small --seconds 0.002 --scale 0.001 --rounds 2 --json"
    assert run(monkeypatch, words, [FAKE, OTHER]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["rows"][0]["metric"] == "put_small"
    assert len(made["rows"][0]["theirs"]["rounds"]) == 2
    assert {line["metric"] for line in made["floors"]} >= {"memcpy", "unix_round_trip", "executor_sync"}
    target = tmp_path / "result.json"
    assert run(monkeypatch, f"{words} {target} --no-floors", [FAKE]) == 0
    assert json.loads(target.read_text())["machine"]["sides"]["fake"]["version"] == "0.0-fake"
    assert "put, small" in capsys.readouterr().out


def test_a_failed_row_of_ours_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_RAY", "raise")
    assert run(monkeypatch, "--rows get_small --seconds 0.002 --no-floors", [FAKE]) == 1
    assert "the fake was told to raise" in capsys.readouterr().out


def test_wrong_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--rows dance") == 2
    assert "no row is called 'dance'" in capsys.readouterr().err
    assert run(monkeypatch, "--compare there_is_no_such_module") == 2
    assert "--compare-python" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, "--seconds 0")
