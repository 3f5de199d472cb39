"""The head is killed at any point of a random history, as often as the seed likes: nothing is lost or doubled."""

from __future__ import annotations

import os

import pytest

from tests.gcs.restarts import Sim

SEEDS = int(os.environ.get("MINRAY_TEST_SEEDS", "25"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whenever_the_head_is_killed_all_goes_on(seed: int) -> None:
    sim = Sim(seed)
    for _ in range(300):
        sim.step()
    sim.settle()
    sim.check_rest()
    sim.kill_head()
    sim.settle()
    sim.check_rest()
    assert sim.kills
