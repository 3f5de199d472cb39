"""A fixture around each test module that fails if anything is left behind when the module is done.

What counts: processes that descend from this one, threads, descriptors, shared memory segments and session folders
of this user that were not there before. What is left gets five seconds to go (the promise of USERS.md);
nothing sleeps when nothing is left.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

PATIENCE_S = 5.0
PREFIX = "mrt-"  # of the folders that test runs make for their sessions


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-leak-check", action="store_true", help="do not look for leftovers")


def _processes() -> dict[tuple[int, float], str]:
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            found[(process.pid, process.create_time())] = " ".join(process.cmdline())[:200]
        except psutil.NoSuchProcess:
            continue
    return found


def _threads() -> dict[int, str]:
    return {t.ident or 0: t.name for t in threading.enumerate() if t.is_alive()}


def _descriptors() -> dict[str, str]:
    """By number and target: a number that is used again for something else is a new descriptor."""
    found = {}
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if not target.startswith(("/dev/pts", "/dev/null", str(tempfile.gettempdir()) + "/pytest")):
            found[f"{fd} {target}"] = target
    return found


def _segments() -> dict[str, str]:
    """Those of a session whose folder is there are that session's business (it may be somebody else's)."""
    folder = Path("/dev/shm")
    temp = Path(tempfile.gettempdir())
    roots = [*temp.glob("minray-*"), *temp.glob(PREFIX + "*"), _root()]
    prefixes = tuple(path.name[2:] for root in roots for path in root.glob("s_*"))
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    return {name: f"/dev/shm/{name}" for name in names if not prefixes or not name.startswith(prefixes)}


def _root() -> Path:
    return Path(os.environ.get("MINRAY_TEMP_DIR") or tempfile.gettempdir())


def _sessions() -> dict[str, str]:
    return {path.name: str(path) for pattern in ("s_*", ".new-*") for path in _root().glob(pattern)}


KINDS = {
    "process": _processes,
    "thread": _threads,
    "descriptor": _descriptors,
    "segment": _segments,
    "session folder": _sessions,
}


def leftovers(before: dict[str, dict]) -> list[str]:
    """What is there now and was not there before, described."""
    return [
        f"{kind}: {key} {text}"
        for kind, look in KINDS.items()
        for key, text in look().items()
        if key not in before[kind]
    ]


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """See the module's text."""
    if request.config.getoption("--no-leak-check") or os.environ.get("MINRAY_TEST_TARGET") == "ray":
        yield
        return
    before = {kind: look() for kind, look in KINDS.items()}
    yield
    deadline = time.monotonic() + PATIENCE_S
    while left := leftovers(before):
        if time.monotonic() > deadline:
            pytest.fail(f"{request.node.nodeid} left behind:\n" + "\n".join(left), pytrace=False)
        gc.collect()
        time.sleep(0.02)  # only while something is left


