"""Whole clusters by their seeds: nothing is freed in use, nothing runs too often, nothing is left.

Every other seed has one machine, the others have two to four. What must hold is checked by the simulator itself
(``minray.testing.simulator``). Here are the seeds, that a seed always tells the same story, and that the stories are
not dull: everything that the simulator promises to visit, it does visit. ``MINRAY_TEST_SEEDS`` and
``MINRAY_TEST_STEPS`` say how many and how long; ``tox -e sim`` plays 10,000.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import resource_tracker
from typing import Any

import pytest

from minray.testing.simulator import Simulation, SimulationError, run
from minray.testing.simulator.network import Network, Pair

SEEDS = int(os.environ.get("MINRAY_TEST_SEEDS", "60"))
STEPS = int(os.environ.get("MINRAY_TEST_STEPS", "250"))
BLOCK = 20
KILLS = 6  # seeds take turns: nobody is killed, one, two … five are

pytestmark = pytest.mark.sim


def blocks() -> list[range]:
    return [range(first, min(first + BLOCK, SEEDS)) for first in range(0, SEEDS, BLOCK)]


def name_of(seeds: range) -> str:
    return f"{seeds.start}-{seeds.stop - 1}"


def run_all(seeds: Iterable[int], *, kills: int = KILLS, steps: int = STEPS) -> list[Simulation]:
    """Run them; a failure names its seed and how to see it again."""
    done = []
    for seed in seeds:
        try:
            done.append(run(seed, kills=seed % kills, steps=steps))
        except SimulationError as error:
            command = f"python -m minray.testing.simulator.scenario {seed} {seed % kills} {steps}"
            raise AssertionError(f"{error}\nas a short story: {command}") from error
    return done


@pytest.fixture(scope="module")
def results() -> Iterator[dict[range, Future[None]]]:
    """All blocks, on all processors: one process each, ``spawn`` so that nothing of this one leaks into them."""
    context = multiprocessing.get_context("spawn")
    tracker: Any = resource_tracker._resource_tracker  # type: ignore[attr-defined]  # its process outlives the pool
    was_there = tracker._fd is not None
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        yield {seeds: pool.submit(play_block, seeds) for seeds in blocks()}
    if not was_there:
        tracker._stop()


def play_block(seeds: range) -> None:
    """What such a process does."""
    run_all(seeds)


@pytest.mark.parametrize("seeds", blocks(), ids=name_of)
def test_short_sessions(seeds: range, results: dict[range, Future[None]]) -> None:
    results[seeds].result()


@pytest.mark.parametrize("seeds", blocks(), ids=name_of)
def test_one_long_session_of_each_block(seeds: range) -> None:
    """Five times as long, on the shortest of budgets: what builds up slowly shows here."""
    run_all(seeds[:1], kills=10, steps=1200)


# -- the same seed, the same story ---------------------------------------------------------------------


def story(seed: int, patch: pytest.MonkeyPatch) -> str:
    """A digest of all that arrives, in order, and of what is known in the end."""
    digest = hashlib.sha256()
    take = Network.take

    def note(network: Network, pair: Pair) -> Any:
        message = take(network, pair)
        digest.update(repr((pair, message)).encode())
        return message

    with patch.context() as patched:
        patched.setattr(Network, "take", note)
        sim = run(seed, kills=seed % KILLS)
    ledger = sim.ledger
    facts = (sim.steps, sim.clock.now, ledger.starts, ledger.seen, sim.network.arrived, list(sim.died_at.items()))
    digest.update(repr(facts).encode())
    return digest.hexdigest()


REPLAYED = range(6)


def test_a_seed_replays_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in REPLAYED:
        assert story(seed, monkeypatch) == story(seed, monkeypatch), f"seed {seed} tells two stories"


def test_a_seed_replays_exactly_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``hash(bytes)`` differs, and with it the order of sets."""
    stories = [story(seed, monkeypatch) for seed in REPLAYED]
    program = "import sys; sys.path[:0] = eval(sys.argv[1]); from tests.sim.test_schedules import main; main()"
    for hash_seed in ("1", "2"):
        again = subprocess.run(
            [sys.executable, "-c", program, repr(sys.path)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert again.returncode == 0, again.stderr
        assert again.stdout.split() == stories


def main() -> None:
    """What the other process does."""
    with pytest.MonkeyPatch.context() as patch:
        for seed in REPLAYED:
            print(story(seed, patch))


def test_seeds_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({story(seed, monkeypatch) for seed in REPLAYED}) == len(REPLAYED)


# -- nothing is left out -------------------------------------------------------------------------------

SEEN = """
    start, start of a later attempt, second run, start of a call, actor, actor's restart, answer INLINE, answer STORED,
    answer ERROR, answer MULTI, answer RETRY, answer ITEM, answer END, item said twice, argument kept,
    argument promised to others, interrupt, task cancelled before its start, call cancelled before its start,
    freed in the store, stored value lost, cancel, hopeless task, name taken, group, group there, death of a worker,
    death of an actor, death of a driver, machine lost, machine frozen, cut, jump, error task, error cancelled,
    error crashed, error actor_died, error actor_unavailable, error unschedulable, error owner_died,
    death of the head, end of an actor: killed, end of an actor: out_of_scope,
    end of an actor: creation_failed, end of an actor: exited, end of an actor: owner_died,
    end of an actor: job_finished, end of an actor: unschedulable, end of an actor: worker_died,
    end of an actor: node_died, death of the head within a turn, error unmade,
    spilled, restored, disk full, lost on disk, store full
"""
ARRIVED = """
    TASKS, CALLS, RESULTS, RELEASES, BORROWS, FETCH, VALUES, eof, exited, Register, Registered, Introduce,
    LeaseDemand, LeaseGrant, LeaseConfirm, LeaseReturn, LeaseRevoke, LeaseEnded, LeaseSpill, LeaseDecline,
    LeaseInfeasible, GiveBack, Steal, Ready, Blocked, Unblocked, KillWorker, ExitWorker, Cancel, StreamAck, Watch, Died,
    StartActor, CreateActor, ActorStarted, ActorEnded, ActorUpdate, StopActor, PrepareBundles, BundlesPrepared,
    CommitBundles, ReleaseBundles, NodeReport, ClusterView, NodeGone, create_actor, kill_actor,
    subscribe_actor, actor_out_of_scope, create_placement_group, wait_placement_group, remove_placement_group,
    add_node, job_end, once, ExtentRequest, ExtentGrant, ExtentRefused, Sealed, Free, Freed, Pin, Pinned, Unpin, Trim,
    Trimmed, Fenced, ObjectLost
"""


def test_the_stories_are_not_dull() -> None:
    """All that the simulator promises to visit is visited in the first seeds, and most of it often."""
    sims = run_all(range(200))
    seen: Counter[str] = sum((sim.ledger.seen for sim in sims), Counter())
    arrived: Counter[str] = sum((sim.network.arrived for sim in sims), Counter())
    missing = [what for what in _names(SEEN) if not seen[what]] + [m for m in _names(ARRIVED) if not arrived[m]]
    assert not missing


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.replace("\n", " ").split(",")]
