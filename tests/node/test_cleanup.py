"""The end of a session's processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from minray.node import cleanup
from minray.node.reaper import follow

from .processes import is_gone, wait_for


@pytest.mark.skipif(not hasattr(os, "getsid"), reason="sessions of processes")
def test_a_session_of_processes_ends_but_for_who_has_left_it() -> None:
    code = (
        "import subprocess, sys, time\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "kids = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]\n"
        "print(*(k.pid for k in kids), flush=True)\ntime.sleep(600)"
    )
    leader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    mine, own = map(int, leader.stdout.readline().split())
    try:
        wait_for(lambda: os.getsid(own) == own)
        hit = cleanup.kill_session(leader.pid)
        assert {leader.pid, mine} <= set(hit)
        wait_for(lambda: is_gone(mine))
        assert not is_gone(own), "a user's own setsid children are theirs"
        assert cleanup.kill_session(leader.pid) == []
    finally:
        os.kill(own, 9)
        leader.wait()
        leader.stdout.close()


def test_the_reaper_knows_who_is_left() -> None:
    assert follow(["/folder\n", "+1\n", "+2\n", "-1\n", "+3\n"]) == ("/folder", [2, 3])
    assert follow([]) == ("", [])
