"""``log_once``: say something the first time only.

Owns one set of keys per process. Callers write ``if log_once("key"): logger.warning(…)``. A key stays
for the life of the process: it is meant for a handful of call sites, not for values.
"""

from __future__ import annotations

import threading

_seen: set[str] = set()
_lock = threading.Lock()


def log_once(key: str) -> bool:
    """True on the first call with ``key`` in this process, False on every later one. Thread-safe."""
    with _lock:
        if key in _seen:
            return False
        _seen.add(key)
        return True
