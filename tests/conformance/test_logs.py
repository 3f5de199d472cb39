"""What workers print arrives in the driver, marked, and nothing of it is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from .target import IS_RAY, TARGET, minray_only, needs_processes, not_local, ray

INIT = None

ROOT = Path(__file__).parents[2]


def run(program, *, timeout=50):
    """Run ``program`` as a script in a process of its own, with ``ray`` initialised.

    ``tell(…)`` prints in one piece, so that no worker's line comes between. ``settle()`` waits until the lines
    have come: Ray polls its log files, minray's shutdown brings the rest.
    """
    prelude = (
        "import os, sys, time\n"
        f"import {ray.__name__} as ray\n"
        "ray.init(num_cpus=2, include_dashboard=False)\n"
        "def tell(*words): sys.stdout.write(' '.join(map(str, words)) + '\\n')\n"
        f"def settle(): time.sleep({1.0 if IS_RAY else 0})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MINRAY_TEST_TARGET": TARGET}
    done = subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return re.sub(r"\x1b\[\d+m", "", done.stdout), re.sub(r"\x1b\[\d+m", "", done.stderr)


@needs_processes
def test_prints_arrive_with_name_and_pid():
    out, err = run(
        """
        @ray.remote
        def speak():
            print("from a task")
            print("to stderr", file=sys.stderr)
            return os.getpid()

        @ray.remote
        class Speaker:
            def speak(self):
                print("from an actor")
                return os.getpid()

            def __repr__(self):
                return "Speaker<7>"

        tell("task", ray.get(speak.remote()))
        speaker = Speaker.remote()
        tell("actor", ray.get(speaker.speak.remote()))
        settle()
        ray.shutdown()
        """
    )
    task = re.search(r"^task (\d+)$", out, re.MULTILINE)[1]
    actor = re.search(r"^actor (\d+)$", out, re.MULTILINE)[1]
    assert f"(speak pid={task}) from a task" in out
    assert f"(speak pid={task}) to stderr" in err
    assert f"(Speaker<7> pid={actor}) from an actor" in out or f"(Speaker pid={actor}) from an actor" in out


@needs_processes
def test_no_line_is_lost_or_merged():
    out, _ = run(
        """
        @ray.remote
        def speak(name):
            for i in range(500):
                print(f"{name}:{i}")

        ray.get([speak.remote(name) for name in ("a", "b")])
        settle()
        ray.shutdown()
        """
    )
    for name in ("a", "b"):
        numbers = re.findall(rf"^\(speak pid=\d+\) {name}:(\d+)$", out, re.MULTILINE)
        assert [int(number) for number in numbers] == list(range(500))


@needs_processes
@not_local("nothing travels there")
@minray_only("lines of the last moment may be lost there")
def test_no_line_is_lost_when_the_driver_ends_at_once():
    out, _ = run(
        """
        @ray.remote
        def speak():
            for i in range(300):
                print("line", i)

        ray.get(speak.remote())
        """
    )
    assert len(re.findall(r"\) line \d+$", out, re.MULTILINE)) == 300


@needs_processes
def test_log_to_driver_false_is_silent():
    out, _ = run(
        """
        ray.shutdown()
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

        @ray.remote
        def speak():
            print("nobody hears this")

        ray.get(speak.remote())
        settle()
        print("end")
        ray.shutdown()
        """
    )
    assert "nobody hears this" not in out
    assert "end" in out
