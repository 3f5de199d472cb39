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
