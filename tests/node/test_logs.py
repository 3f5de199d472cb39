"""Workers' output: lines, names, credit, tails. Pipes of this process stand for workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minray._base.log_marker import marker
from minray.node.logs import MAX_LINE, TAIL, LogHub
from minray.wire.messages import LogLines

from .support import JOB, OTHER_JOB

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="named pipes")


class FakeReactor:
    """Readers that are called when the test says so."""

    def __init__(self) -> None:
        self.readers: dict[int, Callable[[int], None]] = {}

    def add_reader(self, fd: int, callback: Callable[[int], None]) -> None:
        assert fd not in self.readers
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        self.readers.pop(fd, None)

    def turn(self) -> None:
        for fd, callback in list(self.readers.items()):
            callback(fd)


class Bench:
    def __init__(self, folder: Path, credit: int = 1000) -> None:
        self.reactor = FakeReactor()
        self.sent: list[tuple[bytes, LogLines]] = []
        self.accepting = True
        self.folder = folder
        self.hub = LogHub(
            self.reactor,  # type: ignore[arg-type]
            pipe_dir=str(folder),
            log_dir=str(folder),
            deliver=self.deliver,
            credit=credit,
        )
        self.writers: dict[int, tuple[int, int]] = {}

    def deliver(self, job_id: bytes, message: LogLines) -> bool:
        if self.accepting:
            self.sent.append((job_id, message))
        return self.accepting

    def worker(self, number: int, job_id: bytes = JOB) -> None:
        out, err = self.hub.open(number, bytes([number]) * 28, job_id)
        fds = tuple(os.open(path, os.O_WRONLY | os.O_NONBLOCK) for path in (out, err))
        self.writers[number] = (fds[0], fds[1])
        self.hub.started(number, 1000 + number)
        assert not os.path.exists(out) and not os.path.exists(err)

    def write(self, number: int, data: bytes, *, err: bool = False) -> None:
        os.write(self.writers[number][err], data)

    def lines(self) -> list[str]:
        taken = [line for _, message in self.sent for line in message.lines]
        self.sent.clear()
        return taken

    def close(self) -> None:
        self.hub.close_all()
        assert self.reactor.readers == {}
        for fds in self.writers.values():
            for fd in fds:
                os.close(fd)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_lines_arrive_with_pid_name_and_stream(bench: Bench) -> None:
    bench.worker(1)
    bench.write(1, b"one\ntwo\nhal")
    bench.write(1, b"oops\n", err=True)
    bench.reactor.turn()
    bench.write(1, b"f\n")
    bench.reactor.turn()
    assert bench.sent == [
        (JOB, LogLines(1001, "worker", False, ["one", "two"])),
        (JOB, LogLines(1001, "worker", True, ["oops"])),
        (JOB, LogLines(1001, "worker", False, ["half"])),
    ]


def test_a_marker_in_the_pipe_names_exactly_what_follows(bench: Bench) -> None:
    bench.worker(1)
    bench.write(1, marker("f") + b"of f\nno newline" + marker("g") + b"of g\n" + marker("h"))
    bench.hub.rename(1, "beside")
    bench.reactor.turn()
    bench.write(1, b"of h\n")
    bench.reactor.turn()
    assert [(m.name, m.lines) for _, m in bench.sent] == [
        ("f", ["of f", "no newline"]),
        ("g", ["of g"]),
        ("h", ["of h"]),
    ]
    assert bench.hub.name(1) == "beside"
    (path,) = bench.folder.glob("*.out")
    assert path.read_text() == "of f\nno newlineof g\nof h\n", "the file is as the user wrote it"


def test_a_name_said_beside_the_pipe_is_believed(bench: Bench) -> None:
    bench.worker(1)
    bench.hub.rename(1, "f")
    bench.write(1, b"x\n")
    bench.reactor.turn()
    assert bench.sent[0][1].name == "f"


def test_what_is_left_at_the_end_is_passed_on_and_the_tail_returned(bench: Bench) -> None:
    bench.worker(1)
    bench.write(1, b"".join(b"%d\n" % i for i in range(30)) + b"last words")
    tail = bench.hub.close(1)
    assert bench.lines()[-1] == "last words"
    assert len(tail) == TAIL
    assert tail[-2:] == ["29", "last words"]
    assert bench.hub.close(1) == []


def test_without_credit_the_pipe_is_left_alone_until_lines_are_acknowledged(tmp_path: Path) -> None:
    bench = Bench(tmp_path, credit=10)
    bench.worker(1)
    bench.worker(2, OTHER_JOB)
    bench.write(1, b"0123456789\n")
    bench.reactor.turn()
    assert bench.lines() == ["0123456789"]
    bench.write(1, b"later\n")
    bench.write(2, b"another job\n")
    bench.reactor.turn()
    assert bench.lines() == ["another job"], "its driver is not the slow one"
    bench.hub.check_invariants()
    bench.hub.ack(JOB, 11)
    bench.reactor.turn()
    assert bench.lines() == ["later"]
    bench.close()


def test_a_full_pipe_makes_the_worker_wait_and_loses_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, credit=1)
    bench.worker(1)
    written = 0
    with pytest.raises(BlockingIOError):
        while True:
            bench.write(1, b"%07d\n" % written)
            written += 1
            if written % 1000 == 0:
                bench.reactor.turn()
    got: list[str] = []
    while len(got) < written:
        lines = bench.lines()
        got += lines
        bench.hub.ack(JOB, sum(map(len, lines)) + len(lines))
        bench.reactor.turn()
    assert got == [f"{i:07d}" for i in range(written)]
    bench.close()


def test_when_the_driver_is_gone_pipes_are_still_emptied(tmp_path: Path) -> None:
    bench = Bench(tmp_path, credit=1)
    bench.worker(1)
    bench.write(1, b"a line\n")
    bench.reactor.turn()
    assert bench.reactor.readers == {}
    bench.accepting = False
    bench.hub.driver_gone(JOB)
    bench.write(1, b"to the file only\n")
    bench.reactor.turn()
    bench.reactor.turn()
    assert len(bench.reactor.readers) == 2
    (path,) = tmp_path.glob("*.out")
    assert path.read_text() == "a line\nto the file only\n"
    bench.close()


def test_flush_passes_on_what_has_been_printed_whatever_the_credit(tmp_path: Path) -> None:
    bench = Bench(tmp_path, credit=1)
    bench.worker(1)
    bench.write(1, b"one\n")
    bench.reactor.turn()
    bench.write(1, b"two\n")
    bench.reactor.turn()
    bench.hub.flush(JOB)
    assert bench.lines() == ["one", "two"]
    bench.close()


def test_endless_lines_are_cut_and_bad_text_survives(bench: Bench) -> None:
    bench.worker(1)
    for _ in range(3):
        bench.write(1, b"x" * (MAX_LINE // 2))
        bench.reactor.turn()
    assert [len(line) for line in bench.lines()] == [3 * (MAX_LINE // 2)]
    bench.hub.ack(JOB, 10 * MAX_LINE)
    bench.write(1, b"\xff\xfe and\r\n")
    bench.reactor.turn()
    assert bench.lines() == ["\ufffd\ufffd and\r"]


def test_long_files_are_begun_anew(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minray.node.logs.MAX_FILE", 10)
    bench.worker(1)
    for text in (b"first, long\n", b"second\n"):
        bench.write(1, text)
        bench.reactor.turn()
    assert sorted(p.name.split(".", 1)[1] for p in tmp_path.glob("worker*")) == ["out", "out.old"]
