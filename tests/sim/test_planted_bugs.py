"""The simulator itself under test: bugs are planted, one at a time, and it has to find each of them.

The text that it ends with must say what is wrong; and the seed that found it must pass without the bug. See
``planting`` for how bugs are written down, ``bugs_of_…`` for the bugs.
"""

from __future__ import annotations

import pytest

from . import bugs_of_processes, bugs_of_restarts, bugs_of_services
from .planting import BUGS, find, play_seed

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("name", BUGS)
def test_it_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        BUGS[name].plant(patch)
        seed = find(BUGS[name])
    play_seed(seed)


def test_bugs_are_planted_in_every_machine_that_matters() -> None:
    assert {bug.owner.__name__ for bug in BUGS.values()} >= {
        "ReferenceTable", "LeaseTable", "Bundles", "PlacementGroupTable", "ActorTable", "ActorCalls", "TaskManager",
        "GcsLine", "Lineage",
    }  # fmt: skip
    modules = {bugs_of_processes.__name__, bugs_of_restarts.__name__, bugs_of_services.__name__}
    assert {bug.make.__module__ for bug in BUGS.values()} == modules
