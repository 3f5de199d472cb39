"""Who has only the README; and what surprises those who go on from there."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from tests.cluster.shell import LIMIT_S
from tests.e2e.support import ROOT, eventually, session_dir_prefix
from tests.wire.support import free_range

EXAMPLES = ["examples/actors.py", "examples/streaming.py", "examples/word_count.py --limit 20 --no-serial"]
CHANGES = ("process", "MB", "parallel:", "counting")  # lines that say how it went, not what came out


def commands(mark: str) -> list[str]:
    """The lines of the README's block behind that mark, as they are."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(f"<!-- command: {mark} -->")[1]
    return [line for line in text.split("```")[1].splitlines()[1:] if line.strip()]


class Terminal:
    """A user's shell in a fresh clone, where ``minray`` and ``python`` are those that were installed."""

    def __init__(self, shell) -> None:
        self.shell = shell
        tools = shell.root / "token-tools"  # (a name that ``leaves_nothing`` knows)
        tools.mkdir()
        for name, words in (("python", ""), ("minray", " -m minray.cli.main")):
            tool = tools / name
            tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{words} "$@"\n')
            tool.chmod(0o755)
        self.env = {**shell.env, "PATH": f"{tools}:{os.environ['PATH']}"}

    def type(self, line: str, **env: str) -> str:
        """What it shows."""
        done = subprocess.run(
            ["sh", "-c", line], capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT, env={**self.env, **env},
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        self.shell.prefixes |= {session_dir_prefix(path) for path in self.shell.sessions()}
        assert done.returncode == 0, f"$ {line}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def answers(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if not any(word in line for word in CHANGES)]


def test_who_follows_the_readme_gets_the_same_answers(shell):
    terminal = Terminal(shell)
    head, join, program, status, stop = commands("cluster")
    examples = [program, *(f"python {example}" for example in EXAMPLES)]
    alone = [answers(terminal.type(line)) for line in examples]
    said = terminal.type(head)
    (printed,) = [line.strip() for line in said.splitlines() if "minray start --address=" in line]
    address = printed.rpartition("--address=")[2]
    assert join.count("HOST:PORT") == 1
    terminal.type(join.replace("HOST:PORT", address))
    assert [answers(terminal.type(line)) for line in examples] == alone and all(alone)
    assert "2 alive" in terminal.type(status)
    terminal.type(printed)  # the line that the head has printed does the same
    assert "3 alive" in terminal.type(status)
    assert terminal.type(stop).count(": ended") == 3
    shell.leaves_nothing()


def test_a_head_that_is_started_again_at_its_port_is_another_cluster(shell):
    """What ran on its nodes is not known to the new one: they end, and come as new ones."""
    token = f"--token-file={shell.token()}"
    address = shell.head(token)
    port = address.rpartition(":")[2]
    join = ["start", f"--address={address}", token, "--num-cpus=1", '--resources={"b": 1}']
    shell.minray(*join)
    program = """
import minray as ray
ray.init(namespace="n")

@ray.remote(resources={"b": 1})
class Keeper:
    def __init__(self):
        self.count = 0
    def add(self):
        self.count += 1
        return self.count

keeper = Keeper.options(name="keeper", lifetime="detached", get_if_exists=True).remote()
print(ray.get(keeper.add.remote(), timeout=30))
"""
    assert [shell.driver(program) for _ in range(2)] == ["1\n", "2\n"]
    info = shell.info(address)
    os.kill(info.daemon[0], signal.SIGKILL)
    eventually(lambda: not os.path.exists(info.folder), "the head's zygote clears up")
    (node,) = shell.sessions()
    assert shell.head(token, f"--port={port}") == address
    eventually(lambda: not os.path.exists(node), "the old node ends, and nothing is left of it")
    shell.minray(*join)
    assert "2 alive" in shell.minray("status")
    assert shell.driver(program) == "1\n"
    assert shell.minray("stop").count(": ended") == 2
    shell.leaves_nothing()


def test_a_firewall_may_know_every_port(shell):
    low = free_range(24)
    ports = [f"--port={low}", f"--min-worker-port={low + 2}", f"--max-worker-port={low + 23}"]
    address = shell.head(*ports)
    assert address == f"127.0.0.1:{low}"
    shell.minray("start", f"--address={address}", "--num-cpus=1", f"--port={low + 1}", *ports[1:])
    program = """
import json
import psutil
import minray as ray

@ray.remote
def ports():
    here = psutil.Process()
    connections = getattr(here, "net_connections", None) or here.connections  # the name before psutil 6
    return [c.laddr.port for c in connections("tcp") if c.status == psutil.CONN_LISTEN]

ray.init()
nodes = [node["NodeID"] for node in ray.nodes()]
affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
there = [ports.options(scheduling_strategy=affinity(node, soft=False)).remote() for node in nodes]
print(json.dumps([[port for found in ray.get(there) for port in found], ports._function()]))
"""
    workers, driver = json.loads(shell.driver(program))
    assert len(set(workers)) == 2 and len(driver) == 1 and driver[0] not in workers
    assert all(low + 2 <= port <= low + 23 for port in workers + driver)
    shell.minray("stop")
    shell.leaves_nothing()


def test_many_nodes_start_at_the_same_time(shell):
    """As a script or a batch system does it. Each sweeps up after dead sessions, and none is one."""
    address = shell.head()
    words = ["-m", "minray.cli.main", "start", f"--address={address}", "--num-cpus=1"]
    starting = [shell.start(*words) for _ in range(5)]
    said = [process.communicate(timeout=LIMIT_S) for process in starting]
    assert [process.returncode for process in starting] == [0] * 5, said
    assert "6 alive" in shell.minray("status")
    assert shell.minray("stop").count(": ended") == 6
    shell.leaves_nothing()


@pytest.mark.parametrize("words", [["--min-worker-port=5000"], ["--min-worker-port=5000", "--max-worker-port=4000"]])
def test_half_a_range_of_ports(shell, words):
    text = shell.minray("start", "--head", *words, code=1)
    assert "--max-worker-port" in text or "5000-4000" in text
    shell.leaves_nothing()


@pytest.mark.parametrize("label", ["ray.io/node-id=me", "ray.io/mine=1"])
def test_labels_that_are_not_the_users(shell, label):
    text = shell.minray("start", "--head", f"--labels={label}", code=1)
    assert label.split("=")[0] in text and "ray.io/ are minray's own" in text
    shell.leaves_nothing()


def test_what_is_small_is_shown_as_it_is(shell):
    shell.head("--object-store-memory=20M", "--labels=lab.example/rack=a")
    status = shell.minray("status")
    assert "0.0/20.0M" in status and "lab.example/rack=a" in status
    shell.minray("stop")


def test_how_full_the_store_is(shell):
    shell.head("--object-store-memory=100M")
    program = """
import subprocess, sys
import minray as ray
ray.init()
total = ray.cluster_resources()["object_store_memory"]
assert ray.available_resources()["object_store_memory"] == total
ref = ray.put(bytes(30_000_000))
assert 0 < ray.available_resources()["object_store_memory"] <= total - 30_000_000
command = [sys.executable, "-m", "minray.cli.main", "status"]
while " 0.0/100.0M" in subprocess.run(command, capture_output=True, text=True).stdout:
    pass
print("shown")
"""
    assert shell.driver(program) == "shown\n"
    shell.minray("stop")
    shell.leaves_nothing()


def script(mark: str) -> str:
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    return text.split(f"<!-- script: {mark} -->")[1].split("```sh\n")[1].split("```")[0]


def test_the_script_for_slurm(shell):
    """With a stand-in for srun that runs a step on this machine, once per node."""
    terminal = Terminal(shell)
    home = shell.root / "token-home"
    home.mkdir()
    (home / "minray.token").write_text("0123456789abcdef" * 4)
    (home / "minray.token").chmod(0o600)
    (home / "program.py").write_text(
        """
import time
import minray as ray
ray.init()
while len(ray.nodes()) < 3:
    time.sleep(0.01)
print("CPUs:", int(ray.cluster_resources()["CPU"]))
"""
    )
    srun = home / "srun"
    srun.write_text(
        """#!/bin/sh
[ "$1" = --nodes=2 ] && [ "${2%=*}" = --exclude ] || exit 9
shift 2
"$@" & "$@" & wait
"""
    )
    srun.chmod(0o755)
    text = script("slurm").replace("46379", str(free_range(1)))
    path = f"{home}:{terminal.env['PATH']}"
    slurm = {"SLURM_JOB_ID": shell.mark, "SLURM_NNODES": "3", "SLURM_CPUS_PER_TASK": "2"}
    folder = f"/tmp/minray-{shell.mark}"
    try:
        shown = terminal.type(f"cd {home}\n{text}", HOME=str(home), PATH=path, **slurm)
        assert "CPUs: 6" in shown and shown.count("has joined") == 2
        assert os.listdir(folder) == []
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    eventually(lambda: not [line for line in shell.left() if line.startswith("process")], "all steps have ended")
