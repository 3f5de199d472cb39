"""The text of a death certificate.

When a process dies, its node says what it knows: a dict of built-in values under the keys of
``wire.messages.Died.cause``. The errors that carry it (``WorkerCrashedError``, ``ActorDiedError``) print
this text below their message. Every key is optional.

Invariant: never raises, whatever is in the dict: it is read while another failure is being told.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

# cause key → (label in the text)
_SHORT = (("text", "Cause"), ("task", "Running"), ("pid", "Process"), ("node", "Node"))
_MAX_LOG_LINES = 20


def certificate_text(cause: Mapping[str, Any]) -> str:
    """What is known about a death, one fact a line; "" if nothing is."""
    lines = [f"  {label}: {cause[key]}" for key, label in _SHORT if cause.get(key)]
    end = _how_it_ended(cause)
    if end:
        lines.append(f"  Ended by: {end}")
    peak = cause.get("peak_rss")
    if isinstance(peak, (int, float)) and peak > 0:
        lines.append(f"  Peak memory: {peak / 1024**2:.1f} MiB")
    if cause.get("oom"):
        lines.append("  The system was probably out of memory: use less per task, or run fewer at once.")
    lines += _block("Last lines of its output", cause.get("log_tail"))
    lines += _block("Stack at the end", cause.get("stack"))
    return "\n".join(lines)


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _how_it_ended(cause: Mapping[str, Any]) -> str:
    number = cause.get("signal")
    if isinstance(number, int) and number:
        return f"{signal_name(number)} ({number})"
    code = cause.get("exit_code")
    return f"exit code {code}" if code is not None else ""


def _block(title: str, body: Any) -> list[str]:
    if not body:
        return []
    rows = body.splitlines() if isinstance(body, str) else [str(line) for line in body]
    shown = rows if isinstance(body, str) else rows[-_MAX_LOG_LINES:]
    return [f"  {title}:", *(f"    {row}" for row in shown)]
