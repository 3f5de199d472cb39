"""The reaper: stands in for the zygote where workers are spawned, to clear up if the node is killed.

The node writes lines to its standard input: first the session's folder, then ``+<pid>`` for each worker
that it has started (the leader of its own session) and ``-<pid>`` when it has reaped it. The end of the input
is the end of the node: whatever is left of those sessions is killed, then segments and folder go.

Run by node.launcher. Invariant: until the end of its input it does nothing at all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from minray.node import cleanup
from minray.store.remains import remove_session


def follow(lines: Iterable[str]) -> tuple[str, list[int]]:
    """The folder, and the workers that are left when the lines end."""
    folder = ""
    alive: dict[int, None] = {}
    for i, line in enumerate(lines):
        text = line.rstrip("\n")
        if i == 0:
            folder = text
        elif text.startswith("+"):
            alive[int(text[1:])] = None
        elif text.startswith("-"):
            alive.pop(int(text[1:]), None)
    return folder, list(alive)


def main() -> None:
    """The process."""
    folder, alive = follow(sys.stdin)
    for pid in alive:
        cleanup.kill_session(pid)
    if folder:
        remove_session(folder)


if __name__ == "__main__":
    main()
