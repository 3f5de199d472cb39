"""Nodes that are only played (``minray.testing.crowd``): to the head they are nodes like any others."""

from __future__ import annotations

import subprocess
import sys

from minray.testing import crowd
from tests.cluster.conftest import ask_node, eventually


def play(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", crowd.__name__, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def crowd_of(cluster):
    """name of its resource → (alive, how much of it is free), for each that was ever there."""
    found = ask_node(cluster, cluster.head_node, "nodes")
    return {name: node["Alive"] for node in found for name in node["Resources"] if name.startswith("crowd")}


def test_they_join_report_and_leave(make_cluster):
    cluster = make_cluster()
    with play(cluster.head_node.session_dir, "3", "50") as played:
        assert played.stdout.readline() == "joined\n"
        names = {"crowd0", "crowd1", "crowd2"}
        assert crowd_of(cluster) == dict.fromkeys(names, True)
        seen = set()

        def free():
            resources = ask_node(cluster, cluster.head_node, "available_resources")
            seen.update((name, resources.get(name)) for name in names)
            return len(seen) == 6

        eventually(free, "each of them takes and gives back")
        played.stdin.close()
        eventually(lambda: not any(crowd_of(cluster).values()), "they have left")
        assert played.wait(10) == 0 and played.stderr.read() == ""


def test_without_a_head(tmp_path):
    with play(str(tmp_path), "1", "0") as played:
        assert "no head of a cluster" in played.stderr.read()
    assert played.returncode == 1


def test_whom_the_head_turns_away_ends_it(make_cluster):
    cluster = make_cluster(node_timeout_s=1.0)
    with play(cluster.head_node.session_dir, "2", "0") as played:
        assert played.stdout.readline() == "joined\n"
        cluster.remove_node(cluster.head_node)
        assert "turned a node away" in played.stderr.read()
