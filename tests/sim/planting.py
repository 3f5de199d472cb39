"""Bugs to be planted in the real machines, one at a time: how they are written down, and how they are found.

A bug is a method of a machine, replaced by one that forgets something. ``says`` is what the simulator must complain
of, so that nothing is found by accident.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minray.testing.simulator import SimulationError, run

Replacement = Callable[..., Any]
KILLS = 6  # seeds take turns: nobody is killed, one, two … five are
STEPS = 250
SEEDS = 400  # within so many the simulator has to find each of them


@dataclass(frozen=True)
class Bug:
    """``make(original)`` is the wrong method."""

    owner: type
    method: str
    make: Callable[[Replacement], Replacement]
    says: str

    def plant(self, patch: Any) -> None:
        """Let the machine have it."""
        patch.setattr(self.owner, self.method, self.make(getattr(self.owner, self.method)))


BUGS: dict[str, Bug] = {}


def bug(owner: type, method: str, says: str) -> Callable[[Any], Any]:
    """Register what makes the wrong method out of the right one."""

    def register(make: Callable[[Replacement], Replacement]) -> Callable[[Replacement], Replacement]:
        BUGS[make.__name__] = Bug(owner, method, make, says)
        return make

    return register


def play_seed(seed: int) -> None:
    """As the tests of whole sessions do."""
    run(seed, kills=seed % KILLS, steps=STEPS)


def find(planted: Bug, seeds: range = range(SEEDS)) -> int:
    """The first seed that finds the bug. AssertionError if none does, or for another reason."""
    for seed in seeds:
        try:
            play_seed(seed)
        except SimulationError as error:
            assert re.search(planted.says, str(error)), f"found, but for another reason: {error}"
            return seed
    raise AssertionError(f"nothing is found in seeds {seeds.start} to {seeds.stop - 1}")
