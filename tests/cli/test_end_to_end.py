"""The benchmark as a user starts it, on minray's own runtime, in small: one row of each kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_one_row_of_each_kind() -> None:
    rows = "tasks_sync,actor_async,put_gigabytes,get_10k_refs,startup,many"
    size = ["--seconds", "0.1", "--scale", "0.01", "--num-cpus", "2", "--limit", "60"]
    words = ["--rows", rows, *size, "--json", "--no-floors"]
    done = subprocess.run(
        [sys.executable, "-m", "minray.cli.main", "microbenchmark", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    measured = {line["metric"]: line["ours"]["value"] for line in json.loads(done.stdout)["rows"]}
    expected = {"tasks_sync", "actor_async", "put_gigabytes", "get_10k_refs", "shutdown", "many_bytes"}
    assert expected <= set(measured)
    assert all(value >= 0 for value in measured.values())
