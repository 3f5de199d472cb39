"""Stories as texts: they are played as they are written, they shrink, and those that once ended badly end well now.

A file in ``scenarios/`` is what the simulator found once, shrunk; its first lines say what it shows and what it ended
in. If it names a planted bug (``# planted: name``), it must still end badly with that bug.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minray.testing.simulator import Event, Setting, SimulationError, Story, play, shrink, story_of

from . import bugs_of_processes, bugs_of_restarts, bugs_of_services
from .planting import BUGS, KILLS, STEPS, find

pytestmark = pytest.mark.sim

FOLDER = Path(__file__).parent / "scenarios"
FILES = sorted(FOLDER.glob("*.txt"))
PLANTED = [path for path in FILES if "# planted: " in path.read_text()]
assert bugs_of_processes and bugs_of_restarts and bugs_of_services  # they fill BUGS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_once_ended_badly_ends_well(path: Path) -> None:
    play(Story.parse(path.read_text())._replace(rest=True))


@pytest.mark.parametrize("path", PLANTED, ids=lambda path: path.stem)
def test_it_still_shows_its_bug(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text()
    name = re.search(r"^# planted: (\w+)$", text, re.MULTILINE)
    assert name is not None, "there is no bug of that name"
    planted = BUGS[name[1]]
    planted.plant(monkeypatch)
    with pytest.raises(SimulationError, match=planted.says):
        play(Story.parse(text))


def test_there_are_scenarios() -> None:
    assert FILES and PLANTED
    assert all(path.read_text().startswith("# ") for path in FILES), "a scenario says what it shows"


def test_a_story_is_read_as_it_is_written() -> None:
    events = (Event("act", "d1", "", 7), Event("deliver", "d1", "n1", 8), Event("heal", "", "", 9))
    story = Story(Setting(2, 1, 1, 0, 5), events, rest=False)
    text = story.text("two lines\nof comment")
    assert text == (
        "# two lines\n# of comment\nnodes=2 cpus=1 drivers=1 little_lineage=0 rest=5 apart=0 actors=0 memory=0\n"
        "act d1 7\ndeliver d1 n1 8\nheal 9\n"
    )
    assert Story.parse(text) == story
    assert Story.parse(story._replace(rest=True).text()).rest


def test_a_failing_seed_becomes_a_short_story(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = BUGS["the_owner_forgets_its_borrowers"]
    planted.plant(monkeypatch)
    seed = find(planted)
    story = story_of(seed, kills=seed % KILLS, steps=STEPS)
    assert story is not None
    shorter, ending = shrink(story, plays=300)
    assert re.search(planted.says, ending)
    assert len(shorter.events) < len(story.events) / 2
    with pytest.raises(SimulationError, match=planted.says):
        play(Story.parse(shorter.text()))
    monkeypatch.undo()
    play(shorter)


def test_a_story_that_ends_well_cannot_be_shrunk() -> None:
    with pytest.raises(ValueError, match="ends well"):
        shrink(Story(Setting(), ()))
