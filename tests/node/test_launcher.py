"""One contract, two launchers: real processes, forked from a zygote or spawned."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .processes import Bench, is_gone, read_report, wait_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX processes")


@pytest.fixture(params=["fork", "spawn"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(request.param, tmp_path)
    yield made
    made.close()


def test_a_worker_leads_its_group_and_gets_its_bootstrap(bench: Bench, tmp_path: Path) -> None:
    report = tmp_path / "report"
    bench.start(1, "sleep", report=str(report), env_vars={"MINRAY_TEST_FLAVOUR": "sweet"})
    facts = read_report(report)
    assert facts["pid"] == facts["group"] == bench.running(1)
    assert {"common", "action", "env_vars"} <= set(facts["keys"])
    assert facts["env"] == "sweet"
    assert not facts["main"], "__main__ is not the launcher's program"


def test_the_sessions_environment_reaches_workers(bench: Bench, tmp_path: Path) -> None:
    bench.start(1, "exit", report=str(tmp_path / "report"))
    assert read_report(tmp_path / "report")["env"] == "plain"
    assert bench.ended(1) == 7


def test_how_a_worker_ended_is_told(bench: Bench) -> None:
    for number, action in enumerate(("exit", "raise", "segfault", "sleep"), 1):
        bench.start(number, action)
    bench.running(4)
    bench.on_loop(lambda: bench.launcher.kill(4))
    assert [bench.ended(n) for n in (1, 2, 3, 4)] == [7, 1, -signal.SIGSEGV, -signal.SIGKILL]
    peak = bench.events.exited[1][1]
    assert 1 << 20 < peak < 1 << 34, "peak memory in bytes"
    assert bench.events.failed == {}


def test_a_workers_children_die_with_it(bench: Bench, tmp_path: Path) -> None:
    for number, then in ((1, "exit"), (2, "kill")):
        path = tmp_path / f"child{number}"
        bench.start(number, "family", child=str(path), then=then)
        child = int(wait_for(lambda path=path: path.exists() and path.read_text()))
        if then == "kill":
            bench.on_loop(lambda: bench.launcher.kill(2))
        bench.ended(number)
        wait_for(lambda child=child: is_gone(child))


def test_other_signals_can_be_sent_and_strangers_cannot_be_hit(bench: Bench, tmp_path: Path) -> None:
    bench.start(1, "ignore", report=str(tmp_path / "report"))
    read_report(tmp_path / "report")
    bench.on_loop(lambda: bench.launcher.kill(99))
    bench.on_loop(lambda: bench.launcher.kill(1, signal.SIGTERM))
    bench.on_loop(lambda: bench.launcher.kill(1))
    assert bench.ended(1) in (-signal.SIGKILL, -signal.SIGTERM)
    bench.on_loop(lambda: bench.launcher.kill(1))  # reaped: its number may be another's by now


def test_output_goes_where_the_order_says(bench: Bench, tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    out.touch()
    err.touch()
    bench.start(1, "print", stdout=str(out), stderr=str(err))
    assert bench.ended(1) == 0
    assert out.read_text().splitlines() == ["to stdout", "from a child"]
    assert err.read_text().splitlines() == ["to stderr"]


def test_closing_ends_everybody(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.start(number, "sleep")
    pids = [bench.running(n) for n in (1, 2, 3)]
    bench.on_loop(bench.launcher.close)
    wait_for(lambda: all(is_gone(pid) for pid in pids))


# -- the zygote alone ------------------------------------------------------------------------------


@pytest.fixture
def forking(tmp_path: Path) -> Iterator[Bench]:
    made = Bench("fork", tmp_path)
    yield made
    made.close()


def test_twins_draw_different_numbers_and_inherit_no_descriptors(forking: Bench, tmp_path: Path) -> None:
    reports = [tmp_path / str(n) for n in range(3)]
    for number, report in enumerate(reports):
        forking.start(number, "sleep", report=str(report))
    facts = [read_report(report) for report in reports]
    assert len({f["random"] for f in facts}) == 3
    # 0, 1, 2, and the one that listed them
    assert all(len(f["fds"]) <= 4 for f in facts), facts[0]["fds"]


def test_when_the_zygote_is_killed_its_workers_are_too(forking: Bench, tmp_path: Path) -> None:
    child = tmp_path / "child"
    forking.start(1, "family", child=str(child))
    forking.start(2, "sleep")
    pids = [forking.running(1), forking.running(2)]
    pids.append(int(wait_for(lambda: child.exists() and child.read_text())))
    assert forking.zygote is not None
    os.kill(forking.zygote.pid, signal.SIGKILL)
    wait_for(lambda: forking.events.lost)
    wait_for(lambda: all(is_gone(pid) for pid in pids))
    assert str(forking.zygote.pid) in forking.events.lost[0]


def test_when_the_node_goes_the_zygote_removes_everything(forking: Bench) -> None:
    (forking.folder / "sub").mkdir()
    (forking.folder / "sub" / "file").touch()
    forking.start(1, "sleep")
    pid = forking.running(1)
    forking.on_loop(forking.launcher.close)
    assert forking.zygote is not None
    assert forking.zygote.wait(20) == 0
    assert is_gone(pid)
    assert not forking.folder.exists()


# -- without pidfds --------------------------------------------------------------------------------


def test_ends_are_noticed_without_pidfds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    bench = Bench("spawn", tmp_path)
    try:
        bench.start(1, "exit")
        assert bench.ended(1) == 7
    finally:
        bench.close()


# -- the reaper ------------------------------------------------------------------------------------


def test_a_killed_reaper_is_replaced(tmp_path: Path) -> None:
    bench = Bench("spawn", tmp_path)
    try:
        reaper = bench.launcher._reaper  # type: ignore[attr-defined]
        os.kill(reaper.pid, signal.SIGKILL)
        wait_for(lambda: bench.launcher._reaper is not reaper)  # type: ignore[attr-defined]
        assert bench.events.lost == []
    finally:
        bench.close()
