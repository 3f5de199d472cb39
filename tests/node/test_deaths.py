"""Watches and certificates, and what a certificate says."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from minray.node.certificates import STACK_LIMIT, OomWatch, certificate
from minray.node.deaths import DeathBook
from minray.wire.messages import Died

A, B, C = b"a" * 28, b"b" * 28, b"c" * 28


def told(effects: list[tuple[object, ...]]) -> dict[bytes, Died]:
    found = {}
    for kind, target, message in effects:
        assert kind == "send" and isinstance(target, bytes) and isinstance(message, Died)
        found[target] = message
    return found


def book() -> DeathBook:
    made = DeathBook(remembered=2)
    for who in (A, B, C):
        made.born(who)
    return made


def test_each_watcher_hears_of_a_death_once() -> None:
    made = book()
    assert made.watch(B, A) == made.watch(B, A) == made.watch(C, A) == []
    deaths = told(made.died(A, {"text": "x"}, (7, 1)))
    assert deaths.keys() == {B, C}
    assert deaths[B] == Died(A, -1, 7, 1, {"text": "x"})
    assert made.died(A, {}) == []
    made.check_invariants()


def test_the_owner_of_the_lease_is_not_told_twice() -> None:
    made = book()
    made.watch(B, A)
    made.watch(C, A)
    assert told(made.died(A, {}, told=B)).keys() == {C}


def test_the_dead_are_answered_for_at_once() -> None:
    made = book()
    made.died(A, {"text": "long ago"})
    assert told(made.watch(B, A))[B].cause == {"text": "long ago"}
    stranger = told(made.watch(B, b"z" * 28))[B]
    assert "does not know" in stranger.cause["text"]


def test_the_dead_watch_nobody() -> None:
    made = book()
    made.watch(B, A)
    made.died(B, {})
    made.check_invariants()
    assert made.died(A, {}) == []


def test_only_the_last_certificates_are_kept() -> None:
    made = book()
    for who in (A, B, C):
        made.died(who, {"text": who.hex()})
    assert made.certificate(A) is None
    assert made.certificate(C) is not None
    made.check_invariants()


# -- certificates ----------------------------------------------------------------------------------


def oom_root(folder: Path, kills: int) -> Path:
    (folder / "proc").mkdir(exist_ok=True)
    (folder / "proc" / "vmstat").write_text(f"pgfault 12\noom_kill {kills}\n")
    return folder


def make(status: int, tmp_path: Path, *, ordered: str | None = None, kills: int = 0) -> dict[str, object]:
    watch = OomWatch(str(oom_root(tmp_path, 0)))
    oom_root(tmp_path, kills)
    stack = str(tmp_path / "stack")
    return certificate(
        status, 5 << 20, pid=12, task="f", log_tail=["bye"], stack_file=stack, ordered=ordered, oom=watch
    )


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX statuses")
def test_exit_codes_and_signals(tmp_path: Path) -> None:
    assert make(3 << 8, tmp_path)["text"] == "the worker process ended with exit code 3"
    killed = make(signal.SIGSEGV, tmp_path)
    assert killed["signal"] == signal.SIGSEGV and killed["exit_code"] is None
    assert "SIGSEGV" in str(killed["text"])
    assert killed["peak_rss"] == 5 << 20 and killed["log_tail"] == ["bye"]
    assert not killed["expected"] and killed["task"] == "f" and killed["pid"] == 12
    assert "by itself" in str(make(0, tmp_path)["text"])


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX statuses")
def test_out_of_memory_is_guessed_only_after_a_kill_that_nobody_ordered(tmp_path: Path) -> None:
    assert not make(signal.SIGKILL, tmp_path)["oom"]
    struck = make(signal.SIGKILL, tmp_path, kills=1)
    assert struck["oom"] and "memory" in str(struck["text"])
    assert not make(signal.SIGKILL, tmp_path, kills=2, ordered="cancelled")["oom"]
    assert not make(signal.SIGSEGV, tmp_path, kills=3)["oom"]


def test_an_ordered_end_says_why(tmp_path: Path) -> None:
    cause = make(signal.SIGKILL, tmp_path, ordered="it was killed by kill()")
    assert cause["expected"] and cause["text"] == "it was killed by kill()"


def test_the_stack_is_read_but_not_without_end(tmp_path: Path) -> None:
    (tmp_path / "stack").write_text("Fatal Python error\n" + "x" * 10 * STACK_LIMIT)
    stack = str(make(3 << 8, tmp_path)["stack"])
    assert stack.startswith("Fatal Python error")
    assert len(stack) <= STACK_LIMIT
    os.unlink(tmp_path / "stack")
    assert make(3 << 8, tmp_path)["stack"] == ""


def test_a_system_without_counters_never_guesses(tmp_path: Path) -> None:
    assert not OomWatch(str(tmp_path)).struck()


# -- processes of other nodes -----------------------------------------------------------------------

FAR, NODE = b"f" * 28, b"n" * 28


def test_the_gcs_is_asked_once_and_its_answer_goes_to_all() -> None:
    made = book()
    assert made.watch_elsewhere(A, FAR, NODE) and not made.watch_elsewhere(B, FAR, NODE)
    made.check_invariants()
    died = Died(FAR, -1, -1, -1, {"text": "x"})
    assert told(made.told(died)) == {A: died, B: died}
    assert made.told(died) == []
    made.check_invariants()
    assert made.watch_elsewhere(A, FAR, NODE)  # it is asked for again: the GCS answers again


def test_a_watcher_of_far_and_near_that_dies() -> None:
    made = book()
    made.watch(A, B)
    made.watch_elsewhere(A, FAR, NODE)
    made.watch_elsewhere(C, FAR, NODE)
    made.died(A, {})
    made.check_invariants()
    assert told(made.told(Died(FAR, -1, -1, -1, {}))).keys() == {C}
    made.died(C, {})
    made.check_invariants()


def test_what_other_nodes_are_told() -> None:
    made = book()
    assert made.ask(A) is None
    made.died(A, {"text": "x"})
    answer, stranger = made.ask(A), made.ask(FAR)
    assert answer is not None and answer.cause == {"text": "x"}
    assert stranger is not None and stranger.cause["unknown"]
