"""The commands of a cluster as a user types them, with real processes: from the first start to the last stop."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from minray.worker.addresses import here_towards
from tests.cluster.conftest import eventually
from tests.cluster.shell import LIMIT_S, SQUARES

# --- the three commands -----------------------------------------------------------------------------------


def test_from_the_first_start_to_the_last_stop(shell):
    said = shell.minray("start", "--head", "--num-cpus=2")
    (join,) = [line.strip() for line in said.splitlines() if "start --address=" in line]
    token, rest = join.split(" ", 1)
    joined = shell.minray(*rest.split()[1:], "--num-cpus=3", "--labels=rack=a", **dict([token.split("=", 1)]))
    assert "has joined" in joined
    address = rest.rpartition("=")[2]
    status = shell.minray("status")
    assert f"Cluster at {address}: 2 alive" in status
    assert "0/2" in status and "0/3" in status and "0/5" in status and "rack=a" in status
    assert "Nothing waits." in status
    assert "2 nodes" in shell.minray("health-check")

    here, alone = (shell.driver(SQUARES.replace("ADDRESS", said)) for said in ('address="auto"', 'address="local"'))
    assert here == alone and "[0, 1, 4, 9" in here

    stopped = shell.minray("stop")
    assert stopped.count(": ended") == 2 and stopped.index("node ") < stopped.index("head ")
    shell.leaves_nothing()
    assert "No cluster of yours" in shell.minray("stop")
    assert "minray start --head" in shell.minray("status", code=1)


def test_the_tasks_of_a_driver_run_on_both_nodes_and_what_waits_is_shown(shell):
    address = shell.head()
    shell.minray("start", f"--address={address}", "--num-cpus=2")
    program = f"""
import subprocess, sys, time
import minray as ray
ray.init(address="{address}")

@ray.remote
class Spot:
    def __init__(self):
        self.found = set()
    def here(self, node):
        self.found.add(node)
        return len(self.found)
    def count(self):
        return len(self.found)

@ray.remote
def meet(spot):  # nobody returns before somebody on the other node has come
    ray.get(spot.here.remote(ray.get_runtime_context().get_node_id()))
    while ray.get(spot.count.remote()) < 2:
        time.sleep(0.01)

@ray.remote(resources={{"anvil": 1}})
def lift():
    return "lifted"

spot = Spot.options(num_cpus=0).remote()
ray.get([meet.remote(spot) for _ in range(4)])
lifted = lift.remote()
while True:
    text = subprocess.run([sys.executable, "-m", "minray.cli.main", "status"], capture_output=True, text=True).stdout
    if "anvil 1 (the most that one has: 0)" in text:
        break
subprocess.run([sys.executable, "-m", "minray.cli.main", "start", "--address={address}", '--resources={{"anvil": 1}}'])
print(ray.get(lifted))
"""
    assert "lifted" in shell.driver(program)
    assert shell.minray("stop").count(": ended") == 3
    shell.leaves_nothing()


def test_two_clusters_side_by_side(shell):
    first = shell.head("--node-name=first")
    second = shell.head("--node-name=second")
    ask = 'import minray as ray; ray.init(ADDRESS); print(ray.nodes()[0]["NodeName"], len(ray.nodes()))'
    assert shell.driver(ask.replace("ADDRESS", 'address="auto"')) == "second 1\n"
    assert shell.driver(ask.replace("ADDRESS", f'address="{first}"')) == "first 1\n"
    assert shell.driver(ask.replace("ADDRESS", ""), MINRAY_ADDRESS=first) == "first 1\n"
    stopped = shell.minray("stop")
    assert f"cluster at {second}" in stopped and f"minray stop --address={first}" in stopped
    assert "first (head)" in shell.minray("status")  # the only one that is left
    shell.minray("stop", f"--address={first}")
    shell.leaves_nothing()


def test_several_clusters_and_no_latest_one(shell):
    first, second = shell.head(), shell.head()
    shell.head()
    shell.minray("stop")
    text = shell.minray("stop", code=1)
    assert first in text and second in text and "--address=" in text
    for address in (first, second):
        shell.minray("stop", "--force", f"--address={address}")
    shell.leaves_nothing()


# --- init ---------------------------------------------------------------------------------------------------


def test_init_without_an_address(shell):
    count = "import minray as ray; ray.init(ADDRESS); print(ray.nodes()[0]['NodeName'])"
    shell.head("--node-name=latest")
    assert shell.driver(count.replace("ADDRESS", "")) == "latest\n"
    assert shell.driver(count.replace("ADDRESS", '"local", _node_name="own"')) == "own\n"
    assert shell.driver(count.replace("ADDRESS", '_node_name="own"'), MINRAY_ADDRESS="local") == "own\n"
    text = shell.run(
        "-c", count.replace("ADDRESS", "num_cpus=1"), code=1
    )  # fmt: skip
    assert "ValueError" in text and "num_cpus" in text and 'init(address="local"' in text
    shell.minray("stop", "--force")
    assert shell.driver(count.replace("ADDRESS", '_node_name="own"')) == "own\n"
    shell.leaves_nothing()


def test_a_latest_cluster_that_has_died_is_no_cluster(shell):
    address = shell.head()
    info = shell.info(address)
    os.kill(info.daemon[0], signal.SIGKILL)
    eventually(lambda: not shell.sessions(), "its zygote clears up")
    assert "1" in shell.driver("import minray as ray; ray.init(num_cpus=1); print(len(ray.nodes()))")
    text = shell.run("-c", 'import minray as ray; ray.init(address="auto")', code=1)
    assert "ConnectionError" in text and address in text and "minray start --head" in text
    assert "No node of yours" in shell.minray("stop")
    assert "No cluster of yours" in shell.minray("stop")
    shell.leaves_nothing()


def test_a_driver_needs_a_node_of_its_own_machine(shell):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        text = shell.run("-c", f'import minray as ray; ray.init(address="{address}")', code=1)
    assert "ConnectionError" in text and f"minray start --address={address}" in text and "MINRAY_TOKEN_FILE" in text
    text = shell.run("-c", 'import minray as ray; ray.init(address="nonsense")', code=1)
    assert "ValueError" in text and "'nonsense'" in text


def test_a_cluster_that_hangs_is_told_from_one_that_answers(shell):
    address = shell.head()
    life = shell.info(address).daemon
    os.kill(life[0], signal.SIGSTOP)
    assert address in shell.minray("health-check", code=1)
    text = shell.run("-c", 'import minray as ray; ray.init(address="auto")', code=1)
    assert "ConnectionError" in text and "minray stop" in text
    assert "SIGKILL" in shell.minray("stop", "--grace-period=0")
    shell.leaves_nothing()


# --- networks, and staying ----------------------------------------------------------------------------------


def lan() -> str:
    try:
        here = here_towards("192.0.2.1:9")
    except ConnectionError:
        return ""
    return "" if here.startswith("127.") else here


@pytest.mark.skipif(not lan(), reason="this machine has no address in a network")
def test_only_an_address_that_was_named_is_listened_at(shell):
    address = shell.head(f"--host={lan()}")
    assert address.startswith(f"{lan()}:")
    for words in ((), ("--host=auto",), (f"--host={lan()}",)):  # a node can be reached where its head is
        assert f" at {lan()}:" in shell.minray("start", f"--address={address}", *words)
    assert "leave --host out" in shell.minray("start", f"--address={address}", "--host=127.0.0.1", code=1)
    assert shell.driver(SQUARES.replace("ADDRESS", 'address="auto"')).startswith("[0, 1, 4")
    shell.minray("stop")
    shell.leaves_nothing()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_block_stays_and_its_end_is_the_nodes(shell, number):
    process = shell.start("-m", "minray.cli.main", "start", "--head", "--num-cpus=1", "--block")
    eventually(lambda: (shell.root / f"latest-cluster-{os.geteuid()}").exists(), "it has started")
    eventually(lambda: "Ctrl-C" in (process.stdout.readline() or "x Ctrl-C"), "it has said so")
    assert process.poll() is None and "1 node" in shell.minray("health-check")
    process.send_signal(number)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    eventually(lambda: not shell.sessions(), "its folder is gone")
    if number == signal.SIGKILL:
        shell.minray("stop")  # nobody was left to say that it is not the latest cluster any more
    shell.leaves_nothing()


@pytest.mark.parametrize("accident", [False, True])
def test_a_supervisor_sees_whether_a_node_ended_as_it_should(shell, accident):
    """Slurm, systemd or a container looks at the exit status: 0 if the head has ended the cluster, 1 if it was lost."""
    address = shell.head()
    head = shell.info(address).daemon[0]
    node = ["start", f"--address={address}", "--num-cpus=1", "--block"]
    process = shell.start("-m", "minray.cli.main", *node, MINRAY_GCS_RECONNECT_S="0.3")
    eventually(lambda: "Ctrl-C" in (process.stdout.readline() or "x Ctrl-C"), "it has joined")
    if accident:
        os.kill(head, signal.SIGKILL)
    else:
        os.kill(head, signal.SIGTERM)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == accident
    assert ("no connection to the head" if accident else "the head of the cluster has ended") in err
    eventually(lambda: not shell.sessions(), "all folders of sessions are gone")
    if accident:
        assert "can be started again" in shell.minray("status", code=1)
        shell.minray("stop")  # or not
    shell.leaves_nothing()


def test_block_ends_with_the_node(shell):
    process = shell.start("-m", "minray.cli.main", "start", "--head", "--num-cpus=1", "--block")
    eventually(lambda: "Ctrl-C" in (process.stdout.readline() or "x Ctrl-C"), "it has started")
    assert ": ended" in shell.minray("stop")
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0 and "exit code 0" in err
    shell.leaves_nothing()
