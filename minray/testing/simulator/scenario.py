"""Stories as short texts: a failing seed is shrunk to the few events that it takes, and kept in a file.

    # a comment
    nodes=2 cpus=1 drivers=1 little_lineage=0 rest=7      the setting
    act d1 8277                                           an event: what, who, its dice
    deliver d1 n1 12                                      the next message from d1 to n1 arrives
    lose n2 5
    rest                                                  links heal, everybody lets go, nothing may be left

``play`` lets a story happen again; an event that cannot happen (because others were left out) is skipped. ``shrink``
is delta debugging (Zeller and Hildebrandt, *Simplifying and Isolating Failure-Inducing Input*, 2002): leave out ever
smaller parts of the story as long as it still ends in the same complaint.

Used by tests/sim and, for a seed that fails, from the command line:

    python -m minray.testing.simulator.scenario SEED KILLS STEPS > tests/sim/scenarios/name.txt
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from minray.testing.simulator.ledger import SimulationError
from minray.testing.simulator.run import FULL_CHECK, Event, Setting, Simulation, quietly, run

REST = "rest"
PLAYS = 2000  # of stories, per shrinking


class Story(NamedTuple):
    """A setting and what happens in it; ``rest``: whether everybody lets go in the end."""

    setting: Setting
    events: tuple[Event, ...]
    rest: bool = True

    def text(self, comment: str = "") -> str:
        """As it is kept in a file."""
        lines = [f"# {line}".rstrip() for line in comment.splitlines()]
        lines.append(" ".join(f"{name}={value}" for name, value in self.setting._asdict().items()))
        lines += [str(event) for event in self.events]
        return "\n".join([*lines, *([REST] if self.rest else [])]) + "\n"

    @classmethod
    def parse(cls, text: str) -> Story:
        """The inverse of ``text``. ValueError for what is no story."""
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        rest = lines[-1] == REST
        numbers = dict(part.split("=") for part in lines[0].split())
        setting = Setting(**{name: int(value) for name, value in numbers.items()})
        return cls(setting, tuple(_event(line) for line in lines[1 : len(lines) - rest]), rest)


def _event(line: str) -> Event:
    kind, *names, dice = line.split()
    a, b = (*names, "", "")[:2]
    return Event(kind, a, b, int(dice))


def play(story: Story) -> Simulation:
    """Let it happen. Raises SimulationError."""
    with quietly():
        sim = Simulation(story.setting)
        try:
            for event in story.events:
                sim.apply(event)
                sim.judge.step(everything=len(sim.events) % FULL_CHECK == 0)
            if story.rest:
                sim.come_to_rest()
        except Exception as error:  # also what a machine raises: none of it may happen
            raise SimulationError.of(error, sim.setting, sim.events, f"event {len(sim.events)}") from error
    return sim


def complaint(error: SimulationError) -> str:
    """What is wrong, without who and how many."""
    return re.sub(r"\{.*\}|[0-9a-f]{8,}|\bn\d+w\d+\b|\bd\d+\b|\d+", "…", str(error).partition(": ")[2])


def shrink(story: Story, plays: int = PLAYS) -> tuple[Story, str]:
    """A story, as short as can be found, that ends in the same complaint; and what it ends in."""
    ending, failed = _fails(story)
    if ending is None or failed is None:
        raise ValueError("this story ends well: there is nothing to shrink")
    want = complaint(ending)
    story = failed
    part = len(story.events) // 2
    while part and plays > 0:
        at, before = 0, len(story.events)
        while at < len(story.events) and plays > 0:
            plays -= 1
            shorter = story._replace(events=story.events[:at] + story.events[at + part :])
            error, failed = _fails(shorter)
            if error is not None and failed is not None and complaint(error) == want:
                story, ending = failed, error
            else:
                at += part
        if part > 1 or len(story.events) == before:  # single events are tried until none can be spared
            part //= 2
    return story, str(ending).partition(": ")[2]


def _fails(story: Story) -> tuple[SimulationError | None, Story | None]:
    """What it ends in, and the story up to there."""
    try:
        play(story)
    except SimulationError as error:
        if len(error.events) <= len(story.events):
            return error, Story(story.setting, tuple(error.events), rest=False)
        return error, story
    return None, None


def story_of(seed: int, *, kills: int, steps: int) -> Story | None:
    """What happens in a seed that fails; None if it does not."""
    try:
        run(seed, kills=kills, steps=steps)
    except SimulationError as error:
        return Story(error.setting, tuple(error.events))
    return None


def main(arguments: Sequence[str]) -> None:
    """See the file's head."""
    seed, kills, steps = (int(argument) for argument in arguments)
    story = story_of(seed, kills=kills, steps=steps)
    if story is None:
        raise SystemExit(f"seed {seed} ends well")
    shorter, ending = shrink(story)
    what = f"seed {seed}, kills {kills}: {len(story.events)} events shrunk to {len(shorter.events)}"
    print(shorter.text(f"{what}. It ended in:\n{ending}"), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
