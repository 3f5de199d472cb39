"""Whole sessions by their seeds: nothing is freed in use, nothing runs too often, nothing is left.

What must hold is checked by the simulator itself (``minray.testing.simulator``). Here are the seeds, that a seed
always tells the same story, and that the stories are not dull: everything that the simulator promises to visit,
it does visit. ``MINRAY_TEST_SEEDS`` says how many; ``tox -e sim`` runs thousands.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest

from minray.testing.simulator import Simulation, SimulationError, run
from minray.testing.simulator.network import Network, Pair

SEEDS = int(os.environ.get("MINRAY_TEST_SEEDS", "60"))
BLOCK = 20
KILLS = 4  # seeds take turns: nobody is killed, one, two, three are

pytestmark = pytest.mark.sim


def blocks() -> list[range]:
    return [range(first, min(first + BLOCK, SEEDS)) for first in range(0, SEEDS, BLOCK)]


def name_of(seeds: range) -> str:
    return f"{seeds.start}-{seeds.stop - 1}"


def run_all(seeds: Iterable[int], *, kills: int = KILLS, steps: int = 300) -> list[Simulation]:
    """Run them; a failure names its seed and how to see it again."""
    done = []
    for seed in seeds:
        try:
            done.append(run(seed, kills=seed % kills, steps=steps))
        except SimulationError as error:
            call = f"run({seed}, kills={seed % kills}, steps={steps})"
            command = f"python -c 'from minray.testing.simulator import run; {call}'"
            raise AssertionError(f"{error}\nagain: {command}") from error
    return done


@pytest.mark.parametrize("seeds", blocks(), ids=name_of)
def test_short_sessions(seeds: range) -> None:
    run_all(seeds)


@pytest.mark.parametrize("seeds", blocks(), ids=name_of)
def test_one_long_session_of_each_block(seeds: range) -> None:
    """Four times as long, on the shortest of budgets: what builds up slowly shows here."""
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
    facts = (sim.steps, sim.now, sim.ledger.starts, sim.ledger.seen, sim.network.arrived, list(sim.died_at.items()))
    digest.update(repr(facts).encode())
    return digest.hexdigest()


REPLAYED = range(12)


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
