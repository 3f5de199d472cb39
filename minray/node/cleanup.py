"""The end of a session's processes, for whoever survives: node, zygote or reaper.

Rules that keep strangers safe: a worker is signalled by its parent only, and before it is reaped (its pid and
its group's number cannot be used again until then); who is not its parent goes by the *session* of the
processes, which is the number of the zygote (or of a spawned worker), and only moments after that one's end,
so that the number cannot have been given out again. A user's own ``setsid`` children are theirs.

Called by node.service, node.zygote, node.reaper. Everything here is idempotent and never raises for what is
gone already.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection

ROUNDS = 20  # looks at a session's processes before giving up on one that cannot die


def end_group(leader: int, number: int = int(getattr(signal, "SIGKILL", signal.SIGTERM))) -> None:
    """Signal the process group of a child that was not reaped yet."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(leader, number)
        else:
            os.kill(leader, number)
    except (ProcessLookupError, PermissionError):  # nobody but the zombie is left in it
        pass


def pids() -> list[int]:
    """Every process that can be seen."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except FileNotFoundError:
        import psutil

        return list(psutil.pids())


def of_session(session: int) -> list[int]:
    """The living processes of a session (in the sense of setsid), zombies included."""
    if not hasattr(os, "getsid"):
        return []
    found = []
    for pid in pids():
        try:
            if os.getsid(pid) == session:
                found.append(pid)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def kill_session(session: int, spare: Collection[int] = ()) -> list[int]:
    """SIGKILL every process of a session but ``spare``; returns those that were hit."""
    hit: set[int] = set()
    for _ in range(ROUNDS):
        left = [pid for pid in of_session(session) if pid not in spare and not _is_zombie(pid)]
        if not left:
            break
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                hit.add(pid)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(0.005)  # let them die; a fork in progress shows up in the next round
    return sorted(hit)


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            data = file.read(1024)
    except OSError:
        return not os.path.exists("/proc/self/stat")
    return data[data.rindex(b")") + 2 :][:1] in (b"Z", b"X")
