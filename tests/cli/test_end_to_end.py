"""The benchmark as a user starts it, on minray's own runtime, in small: one row of each kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def measure(rows: str) -> dict[str, float]:
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
    return {line["metric"]: line["ours"]["value"] for line in json.loads(done.stdout)["rows"]}


def test_one_row_of_each_kind() -> None:
    measured = measure("tasks_sync,actor_async,put_gigabytes,get_10k_refs,startup,many")
    expected = {"tasks_sync", "actor_async", "put_gigabytes", "get_10k_refs", "shutdown", "many_bytes"}
    assert expected <= set(measured)
    assert all(value >= 0 for value in measured.values())


def test_rows_about_several_nodes() -> None:
    measured = measure("far_tasks,transfer,join,heartbeats")
    assert set(measured) == {
        "far_sync", "far_async", "transfer", "transfer_first", "transfer_raw", "transfer_share", "join", "heartbeats",
        "heartbeats_busy",
    }  # fmt: skip
    assert all(measured[name] > 0 for name in measured if not name.startswith("heartbeats"))
