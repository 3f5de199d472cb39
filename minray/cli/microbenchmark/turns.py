"""Starts the peers and asks them, turn by turn: for each row ours, then theirs, then the next row.

Owns the peer processes: each leads a process group of its own, ends when its input ends, and is killed
with its group if it does not answer within the limit (the next row then gets a fresh one). Only one peer is
ever at work, and between turns no session is open: neither side pays for the other's idle daemons.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from . import boot
from .row import Row


@dataclass(frozen=True)
class Side:
    """One side of the comparison. ``root`` is put on the path if the interpreter does not find the module."""

    label: str
    module: str  # '' for the floors
    python: str = sys.executable
    root: str = ""


class PeerError(Exception):
    """A peer did not start, died, or did not answer in time; the message ends with its last words."""


class Peer:
    """A running peer process and its answers."""

    def __init__(self, side: Side, start_limit: float = 60) -> None:
        self.side = side
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            boot.command(side.python, "peer", side.module, side.root),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=os.name == "posix",
        )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.hello = self._answer(start_limit)
        except PeerError:
            self.close()
            raise

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put("")  # it has ended

    def ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        """Send one request and wait for its answer, at most ``limit`` seconds.

        :raises PeerError: it died or did not answer; the peer is gone then.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None
        return self._answer(limit)

    def _answer(self, limit: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=limit)
        except queue.Empty:
            self.kill()
            raise PeerError(f"no answer from {self.side.label} within {limit:g} s{self._tail()}") from None
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self) -> PeerError:
        status = self._process.wait()
        self.kill()
        return PeerError(f"the process of {self.side.label} ended with status {status}{self._tail()}")

    def _tail(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()[-20:]
        return ":\n    " + "\n    ".join(lines) if lines else ""

    def kill(self) -> None:
        """End the process group at once."""
        if os.name == "posix":
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # nobody is left in it
        else:
            self._process.kill()
        self._process.wait()

    def close(self, grace: float = 20) -> None:
        """Let it end by itself, then make sure."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass  # it ended first
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(grace)
        self._log.close()


class Turns:
    """Runs rows on sides, a turn each. A context manager: it ends its peers."""

    def __init__(self, sides: Iterable[Side], *, limit: float) -> None:
        self.sides = list(sides)
        self.hellos: dict[str, dict[str, Any]] = {}
        self._limit = limit
        self._peers: dict[str, Peer] = {}

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for peer in self._peers.values():
            if error is not None:
                peer.kill()  # Ctrl-C: nobody waits for the row to end
            peer.close()
        self._peers.clear()

    def start(self) -> dict[str, dict[str, Any]]:
        """Start every peer; what they say of themselves, by label."""
        for side in self.sides:
            self._peer(side)
        return self.hellos

    def run(self, row: Row, request: dict[str, Any]) -> Iterator[tuple[Side, dict[str, Any]]]:
        """One row on every side, one after the other; yields each side's answer."""
        for index, side in enumerate(self.sides):
            if index and row.ours_only:
                continue
            yield side, self._turn(side, {**request, "row": row.name})

    def _turn(self, side: Side, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._peer(side).ask(request, self._limit)
        except PeerError as error:
            peer = self._peers.pop(side.label, None)
            if peer is not None:
                peer.close()
            return {"row": request["row"], "error": str(error)}

    def _peer(self, side: Side) -> Peer:
        if side.label not in self._peers:
            peer = Peer(side)
            self._peers[side.label] = peer
            self.hellos[side.label] = peer.hello
        return self._peers[side.label]
