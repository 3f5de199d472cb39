"""The entry module of the tests' zygotes and spawned workers: does what its bootstrap says."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from typing import Any, NoReturn

from minray.wire.codec import decode


def _report(bootstrap: dict[str, Any]) -> None:
    facts = {
        "pid": os.getpid(),
        "group": os.getpgid(0) if hasattr(os, "getpgid") else 0,
        "random": random.random(),
        "fds": sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else [],
        "env": os.environ.get("MINRAY_TEST_FLAVOUR", ""),
        "keys": sorted(bootstrap),
        "main": hasattr(sys.modules["__main__"], "main"),
    }
    with open(bootstrap["report"] + ".new", "w", encoding="utf-8") as file:
        file.write(repr(facts))
    os.replace(bootstrap["report"] + ".new", bootstrap["report"])


def run(bootstrap: dict[str, Any]) -> NoReturn:
    """Be a worker of the tests."""
    action = bootstrap["action"]
    if "report" in bootstrap:
        _report(bootstrap)
    if action == "print":
        print("to stdout", flush=True)
        print("to stderr", file=sys.stderr)
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        sys.exit(0)
    if action == "exit":
        os._exit(7)
    if action == "raise":
        raise RuntimeError("the worker's main has failed")
    if action == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if action == "family":  # leaves a child in its group when it ends
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(bootstrap["child"], "w", encoding="utf-8") as file:
            file.write(str(child.pid))
        if bootstrap.get("then") == "exit":
            os._exit(0)
    if action == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(select, "poll"):
        select.poll().poll(600_000)
    time.sleep(600)
    raise AssertionError("unreachable")


def main() -> NoReturn:
    """As ``minray.worker.main.main``."""
    run(decode(sys.stdin.buffer.read())[0])
