"""Several hosts, as far as the network can tell: nodes that are cut off without a word, and come back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.conftest import eventually
from tests.cluster.hosts import Lan, why_not, why_not_slow
from tests.cluster.lan_nodes import Hosts
from tests.e2e.support import Driver

HEAD = """
ray.init(address=started.info.gcs.removeprefix("tcp:"))

@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Where:
    def node(self):
        return ray.get_runtime_context().get_node_id()

    def ask(self, other):
        return ray.get(other.node.remote())

def alive():
    return sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])

while len(alive()) < 3:
    time.sleep(0.01)
one = Where.options(resources={"w": 1}).remote()
two = Where.options(resources={"w": 1}).remote()
places = ray.get([one.node.remote(), two.node.remote()], timeout=30)
assert len(set(places)) == 2
assert ray.get(one.ask.remote(two), timeout=30) == places[1]
assert ray.get(two.ask.remote(one), timeout=30) == places[0]
address = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
say("ready")
last = None
while True:
    now = (*alive(), *(address[ray.get(actor.node.remote(), timeout=60)] for actor in (one, two)))
    if now != last:
        say("now", *now)
        last = now
    say("turn")
    time.sleep(0.05)
"""

TRANSFER = """
import numpy as np
ray.init(address=started.info.gcs.removeprefix("tcp:"))
SIZE = {size}

def make(seed):
    return np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)

@ray.remote(num_cpus=0, resources={{"w": 1}})
class Host:
    def make(self, seed):
        return make(seed)

    def total(self, *arrays):
        return [int(array.sum()) for array in arrays]

    def address(self):
        return ray.util.get_node_ip_address()

while sum(node["Alive"] for node in ray.nodes()) < 3:
    time.sleep(0.01)
others = [node["NodeID"] for node in ray.nodes() if "w" in node["Resources"]]
there = [ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(other, soft=False) for other in others]
one, two = [Host.options(scheduling_strategy=place).remote() for place in there]
say("ready", *ray.get([one.address.remote(), two.address.remote()]))
while not os.path.exists("go"):
    time.sleep(0.01)
x, y, z = one.make.remote(1), two.make.remote(2), ray.put(make(3))
sums = [int(make(seed).sum()) for seed in (1, 2, 3)]
there = [two.total.remote(x, y, z), one.total.remote(x, y, z)]
turns = 0
while len(ray.wait(there, num_returns=2, timeout=0.05)[0]) < 2:
    assert ray.get(one.address.remote(), timeout=60)
    turns += 1
assert ray.get(there) == [sums, sums]
assert [int(a.sum()) for a in ray.get([x, y])] == sums[:2]
say("alive", sum(node["Alive"] for node in ray.nodes()))
"""

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it works")


class Pair(Hosts):
    """Hosts with HEAD's program."""

    def now(self) -> list[str]:
        """Addresses of the living nodes, and those of the two actors' nodes."""
        return self.head.said("now")[-1].split()

    def turns(self) -> int:
        return len(self.head.said("turn"))


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan() as made:
        yield made


@pytest.fixture
def hosts(lan: Lan, drive: Callable[..., Driver]) -> Callable[..., Pair]:
    def make(**settings: float) -> Pair:
        made = Pair(lan, drive, HEAD, heartbeat_s=0.2, node_timeout_s=2.0, **settings)
        eventually(lambda: made.head.said("now"), "the driver looks around")
        return made

    return make


@pytest.mark.slow
def test_a_cut_link_and_its_return(hosts: Callable[..., Pair]) -> None:
    made = hosts(gcs_reconnect_s=60.0)
    lan = made.lan
    assert sorted(made.now()) == sorted([*lan.addresses, lan.addresses[1], lan.addresses[2]])
    lan.cut(1)
    rest = [lan.addresses[0], lan.addresses[2], lan.addresses[2], lan.addresses[2]]
    eventually(lambda: made.now() == rest, "the head notices, and its actor is elsewhere", limit=30.0)
    assert not made.nodes[0].said("ended")  # it looks for its head
    lan.join(1)
    said = made.nodes[0].await_word("ended")
    assert "counts it as dead" in said and ("not reported" in said or "connection" in said)
    made.nodes[0].succeeds()
    made.nodes[0].leaves_nothing()
    turns = made.turns()
    eventually(lambda: made.turns() > turns + 3, "the others go on")
    assert made.now() == rest


@pytest.mark.slow
def test_a_link_that_stays_cut(hosts: Callable[..., Pair]) -> None:
    made = hosts(gcs_reconnect_s=1.0)
    made.lan.cut(2)
    said = made.nodes[1].await_word("ended")
    assert "no connection to the head" in said
    made.nodes[1].succeeds()
    made.nodes[1].leaves_nothing()
    eventually(lambda: made.lan.addresses[2] not in made.now(), "the others know", limit=30.0)


@pytest.mark.slow
def test_a_link_that_is_cut_for_a_moment(hosts: Callable[..., Pair]) -> None:
    made = hosts(gcs_reconnect_s=1.0)
    before = made.now()
    made.lan.cut(1)
    time.sleep(0.5)  # that is the moment
    made.lan.join(1)
    turns = made.turns()
    eventually(lambda: made.turns() > turns + 10, "all go on")
    assert made.now() == before and not any(node.said("ended") for node in made.nodes)


def transfer(
    lan: Lan, drive: Callable[..., Driver], size: int, before: Callable[[], None] = lambda: None, **settings: float
) -> None:
    """Both ways between the two other hosts, and from and to the first; calls go on meanwhile."""
    made = Hosts(lan, drive, TRANSFER.format(size=size), heartbeat_s=0.2, **settings)
    places = made.head.await_word("ready").split()
    assert sorted(places) == sorted(lan.addresses[1:])
    before()
    (made.head.folder / "go").touch()
    assert made.head.await_word("alive") == "3"
    made.head.succeeds()


@pytest.mark.slow
def test_objects_travel_between_all_hosts(lan: Lan, drive: Callable[..., Driver]) -> None:
    transfer(lan, drive, 20_000_000, node_timeout_s=2.0)


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not_slow()), reason=why_not_slow() or "it works")
def test_a_slow_link(lan: Lan, drive: Callable[..., Driver]) -> None:
    """Reports and calls get through beside an object that takes seconds."""
    transfer(lan, drive, 4_000_000, lambda: lan.slow(1, "20mbit"), node_timeout_s=4.0)
