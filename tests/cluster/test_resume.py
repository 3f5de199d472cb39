"""``minray start --head --resume``, as a user types it, with real processes."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from minray.worker.session_folder import SessionInfo
from tests.cluster.conftest import eventually

DETACHED = """
import os
import minray as ray

@ray.remote(num_cpus=0, resources={"far": 1})
class Keeper:
    def __init__(self):
        self.n = 0
    def add(self):
        self.n += 1
        return self.n, os.getpid()

ray.init("auto", namespace="n", _node_id=os.environ["NODE"])
MAKE
print(*ray.get(keeper.add.remote(), timeout=60))
"""
MAKE = DETACHED.replace("MAKE", 'keeper = Keeper.options(name="k", lifetime="detached").remote()')
FIND = DETACHED.replace("MAKE", 'keeper = ray.get_actor("k")')


def node_here(shell):
    """The record of the one that is not the head."""
    found = [SessionInfo.read(path) for path in shell.sessions()]
    (info,) = [info for info in found if info is not None and not info.is_head]
    return info


def kill_head(shell, address):
    info = shell.info(address)
    os.kill(info.daemon[0], signal.SIGKILL)
    eventually(lambda: not os.path.exists(info.folder), "its zygote clears up behind it")
    return Path(info.head_folder)


def join(shell, address):
    shell.minray("start", f"--address={address}", "--num-cpus=1", '--resources={"far": 10}')
    return node_here(shell)


def test_a_cluster_goes_on_after_its_head_was_killed(shell):
    address = shell.head()
    node = join(shell, address)
    before = shell.driver(MAKE, NODE=node.node_id).split()
    kill_head(shell, address)
    said = shell.minray("start", "--head", "--resume", "--num-cpus=2")
    assert f"This machine is again the head of a cluster at {address}" in said
    assert "2 nodes" in shell.minray("health-check")
    after = shell.driver(FIND, NODE=node.node_id).split()
    assert (before[0], after[0]) == ("1", "2") and before[1] == after[1], "the same process, with its state"
    assert "2 alive" in shell.minray("status")
    assert shell.minray("stop").count(": ended") == 2
    shell.leaves_nothing()


def test_a_new_head_never_looks_at_what_another_has_left(shell):
    address = shell.head()
    left = kill_head(shell, address)
    said = shell.minray("start", "--head", "--num-cpus=1")
    assert f"This is a new cluster. The one at {address}" in said and "--resume" in said
    assert shell.driver('import minray as ray; ray.init("auto"); print(len(ray.nodes()))') == "1\n"
    other = said.split("cluster at ")[1].split(" ")[0]
    shell.minray("stop", f"--address={other}")
    assert left.is_dir()
    text = shell.minray("start", "--head", "--resume", "--port=1", code=1)
    assert "at this address" in text and address in text and "without --resume" in text
    assert "again the head" in shell.minray("start", "--head", "--resume", f"--port={address.rpartition(':')[2]}")
    shell.minray("stop")
    shell.leaves_nothing()


def test_stop_discards_what_a_killed_head_has_left(shell):
    address = shell.head()
    left = kill_head(shell, address)
    shell.minray("stop")
    assert not left.exists()
    text = shell.minray("start", "--head", "--resume", code=1)
    assert "leaves nothing" in text and "without --resume" in text
    shell.leaves_nothing()


def test_what_cannot_be_resumed_says_so_and_is_kept(shell):
    address = shell.head()
    left = kill_head(shell, address)
    text = shell.minray("start", "--head", "--resume", code=1, MINRAY_TOKEN="another one, long enough to be one")
    assert "not that of the cluster" in text
    host, port = address.split(":")
    with socket.create_server((host, int(port))):
        assert "Address already in use" in shell.minray("start", "--head", "--resume", code=1)
    tables = left / "gcs.sqlite"
    whole, log = tables.read_bytes(), tables.with_name("gcs.sqlite-wal")
    log_of = log.read_bytes()
    log.unlink()
    tables.write_bytes(b"no database" * 500)
    text = shell.minray("start", "--head", "--resume", code=1)
    assert str(tables) in text and "damaged, or no tables of minray" in text and "without --resume" in text
    tables.write_bytes(whole)
    log.write_bytes(log_of)
    assert "again the head" in shell.minray("start", "--head", "--resume")
    assert "in use" not in shell.log(address)
    shell.minray("stop")
    shell.leaves_nothing()


def test_only_a_head_can_be_resumed(shell):
    text = shell.minray("start", "--address=127.0.0.1:1", "--resume", code=1)
    assert "--resume is for --head" in text


def test_a_head_in_the_foreground_leaves_its_tables_too(shell):
    process = shell.start("-m", "minray.cli.main", "start", "--head", "--block", "--num-cpus=1")
    eventually(lambda: (shell.root / f"latest-cluster-{os.geteuid()}").exists(), "it serves")
    address = (shell.root / f"latest-cluster-{os.geteuid()}").read_text().strip()
    left = kill_head(shell, address)
    process.communicate(timeout=60)
    assert process.returncode == 1 and left.is_dir()
    assert "again the head" in shell.minray("start", "--head", "--resume")
    shell.minray("stop")
    shell.leaves_nothing()
