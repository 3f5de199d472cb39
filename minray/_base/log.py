"""Logging for processes that must start fast: the ``logging`` package is loaded by the first record.

``from minray._base import log`` and ``log.warning("… %s", x)``, like a logger's methods. Everything goes to
the logger ``minray``; without a handler of the program's own, warnings and errors reach standard error, which
in daemons is their log file. Nobody who never fails pays for logging (3 ms).
"""

from __future__ import annotations

import sys
from typing import Any


def _log(level: str, text: str, args: tuple[Any, ...]) -> None:
    import logging

    getattr(logging.getLogger("minray"), level)(text, *args)


def info(text: str, *args: Any) -> None:
    """For a program that has set logging up; nobody else would see it."""
    if "logging" in sys.modules:
        _log("info", text, args)


def warning(text: str, *args: Any) -> None:
    """Something is not as it should be, and work goes on."""
    _log("warning", text, args)


def error(text: str, *args: Any) -> None:
    """Something has failed."""
    _log("error", text, args)


def exception(text: str, *args: Any) -> None:
    """Something has failed with the exception that is being handled."""
    _log("exception", text, args)


class LogBudget:
    """So many lines at once, then one per period: a flood must not fill the disk. Pure."""

    __slots__ = ("_credit", "_seen", "_untold")

    LINES = 5.0
    PERIOD_S = 10.0

    def __init__(self) -> None:
        self._credit = self.LINES
        self._seen = 0.0
        self._untold = 0

    def take(self, now: float) -> int | None:
        """None: no line now. Else how many there were without one since the last line."""
        if self._seen:
            self._credit = min(self.LINES, self._credit + (now - self._seen) / self.PERIOD_S)
        self._seen = now
        if self._credit < 1.0:
            self._untold += 1
            return None
        self._credit -= 1.0
        untold, self._untold = self._untold, 0
        return untold
