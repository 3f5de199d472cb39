"""The loads of ``test_soak`` on three hosts, while cables are pulled and plugged in again.

A cut that is short is forgiven: TCP repeats what was lost. A host that was cut off for so long that it counts as
dead finds that out when it is back, ends, and is started again; meanwhile its work was done elsewhere.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.chaos.test_soak import SECONDS, SEED, TIMEOUT_S
from tests.cluster.hosts import COUNT, Lan, why_not
from tests.cluster.lan_nodes import Hosts
from tests.e2e.support import Driver

PROGRAM = """
import random, threading
from tests.chaos import loads
ray.init(address=started.info.gcs.removeprefix("tcp:"))
while sum(node["Alive"] for node in ray.nodes()) < 3:
    time.sleep(0.01)
say("ready")
end = time.monotonic() + {seconds}
def work(number):
    chance = random.Random(f"{seed}/{{number}}")
    while time.monotonic() < end:
        load = chance.choice(loads.LOADS)
        load(chance)
        say("did", load.__name__)
threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
failed = []
threading.excepthook = lambda args: (failed.append(args), sys.__excepthook__(*args[:3]))
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ray.shutdown()
assert not failed
say("done")
"""


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan() as made:
        yield made


@pytest.fixture
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def start(program: str, **options: object) -> Driver:
        drivers.append(Driver(tmp_path_factory.mktemp("d"), program, **options))  # type: ignore[arg-type]
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.end()


@pytest.mark.chaos
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it works")
@pytest.mark.timeout(SECONDS + 400)
def test_links_that_are_cut(lan: Lan, drive: Callable[..., Driver]) -> None:
    settings = {"heartbeat_s": 0.3, "node_timeout_s": TIMEOUT_S, "gcs_reconnect_s": 30.0}
    made = Hosts(lan, drive, PROGRAM.format(seconds=SECONDS, seed=SEED), **settings)
    chance = random.Random(SEED)
    done: Counter[str] = Counter()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and made.head.process.poll() is None:
        time.sleep(chance.uniform(0.5, 2.0))
        host = chance.randrange(1, COUNT)
        long = chance.random() < 0.3
        lan.cut(host)
        time.sleep(2 * TIMEOUT_S if long else chance.uniform(0.05, TIMEOUT_S / 4))
        lan.join(host)
        done["long cuts" if long else "short cuts"] += 1
        if long:
            node = made.nodes[host - 1]
            said = node.await_word("ended")
            if made.head.process.poll() is not None:
                break  # the time was over while it was cut off
            assert "counts it as dead" in said or "nobody has answered" in said  # it may not have joined before
            node.succeeds()
            node.leaves_nothing()
            made.nodes[host - 1] = made.start_node(host)
    made.head.await_word("done", limit=400)
    made.head.succeeds()
    work = Counter(made.head.said("did"))
    print(f"seed {SEED}, {SECONDS:g} s: {dict(done)}; {dict(work)}", file=sys.stderr)
    assert sum(work.values()) > 0
