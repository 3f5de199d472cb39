"""What the simulation remembers in order to judge: who may contain whom, what ran how often, what was lost.

Nothing here is visible to the machines under test. A broken promise raises SimulationError.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from minray.wire.messages import Address

Handle = tuple[bytes, Address]  # one reference
Location = tuple[Any, ...]  # node, and where on it


def make_id(name: str, size: int = 28) -> bytes:
    """The id of something that has a name: the same on every run."""
    return hashlib.blake2b(name.encode(), digest_size=size).digest()


class SimulationError(AssertionError):
    """An invariant is broken; the text says after which step of which seed, ``events`` and ``setting`` are how."""

    setting: Any = None
    events: Any = ()

    @classmethod
    def of(cls, error: Exception, setting: Any, events: Any, where: str) -> SimulationError:
        """What is wrong, where, and how it came to that; also for what a machine itself has raised."""
        what = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        told = cls(f"{where}: {what}{error}")
        told.setting, told.events = setting, list(events)
        return told


class ActorFacts:
    """What is known of one actor from its creation."""

    def __init__(self, actor_id: bytes, handle_id: bytes, options: dict[str, Any], owner: Address) -> None:
        self.actor_id = actor_id
        self.handle_id = handle_id  # the hidden object that counts its handles
        self.options = options
        self.owner = owner
        self.created = False  # the GCS knows it
        self.released = False  # nobody has a handle that counts
        self.kills: list[bool] = []  # kill() was called, and may it not restart
        self.exits = False  # it has called exit_actor()
        self.over: dict[int, float] = {}  # incarnation → when somebody was told that it is over
        self.broken: set[int] = set()  # incarnations that died by themselves, or with their machine
        self.last_started: dict[tuple[int, bytes], int] = {}  # (incarnation, caller) → number of its call

    def restarts(self) -> int:
        """How often it may have been started anew so far, if its max_restarts had no end."""
        return len(self.broken) + self.kills.count(False)


class GroupFacts:
    """What is known of one placement group from its creation."""

    def __init__(self, group_id: bytes, job_id: bytes, bundles: list[dict[str, int]]) -> None:
        self.group_id = group_id
        self.job_id = job_id
        self.bundles = bundles
        self.created = False  # the GCS knows it
        self.removed = False  # somebody has asked for its end (and may have died before that was said)
        self.let_go = False  # its driver has, at rest


class Ledger:
    """Facts about objects, tasks and calls."""

    def __init__(self) -> None:
        self.contents: dict[bytes, set[bytes]] = {}  # object → what any version of its value contains
        self.tainted: set[bytes] = set()  # a process died with these in its hands: they may be freed early
        self.starts: dict[tuple[bytes, int], int] = {}  # (owner, seq) → how often it started
        self.attempts: set[tuple[bytes, int, int]] = set()  # (owner, seq, attempt) that started
        self.limits: dict[tuple[bytes, int], int] = {}  # how often it may start; -1: without end
        self.actors: dict[bytes, ActorFacts] = {}  # by hidden object
        self._by_id: dict[bytes, ActorFacts] = {}  # the same by actor_id
        self.roles: dict[bytes, tuple[ActorFacts, int]] = {}  # worker → the incarnation that it is, or was
        self.call_numbers: dict[tuple[bytes, int], int] = {}  # (caller, seq) → order among its calls
        self.unordered: set[tuple[bytes, int]] = set()  # calls that raised and were made again
        self.makings: dict[bytes, set[int]] = {}  # objects in a real store → bytes of each time that they were written
        self.copies: dict[bytes, dict[Location, None]] = {}  # stored objects → copies that their owner knows of
        self.groups: dict[bytes, GroupFacts] = {}  # placement groups
        self.lost_grants: Counter[tuple[bytes, bytes]] = Counter()  # (object, taker): told to the owner at most
        self.answered: set[tuple[bytes, int]] = set()  # calls and tasks (owner, seq)
        self.sent: Counter[tuple[bytes, int]] = Counter()  # (caller, seq) → how often the call was sent
        self.failed_starts = 0  # workers that were killed before their nodes had heard of them
        self.seen: Counter[str] = Counter()  # what happened how often: for tests that nothing is left out
        self._locations = 0

    # -- objects -----------------------------------------------------------------------------------

    def may_contain(self, outer: bytes, inner: bytes) -> bool:
        """Whether no ring would arise: rings of objects are never freed, here as in Ray."""
        stack, seen = [inner], {inner}
        while stack:
            one = stack.pop()
            if one == outer:
                return False
            for other in self.contents.get(one, ()):
                if other not in seen:
                    seen.add(other)
                    stack.append(other)
        return True

    def allowed(self, outer: bytes, handles: Iterable[Handle]) -> list[Handle]:
        """Those of the references that ``outer`` may contain, each once; noted as its contents."""
        chosen = [h for h in dict.fromkeys(handles) if self.may_contain(outer, h[0])]
        self.contents.setdefault(outer, set()).update(h[0] for h in chosen)
        return chosen

    def taint(self, item: Any) -> None:
        """Every object id in a lost message, or in a dead process."""
        stack = [item]
        while stack:
            one = stack.pop()
            if type(one) in (tuple, list, set):
                stack.extend(one)
            elif type(one) is dict:
                stack.extend(one)
                stack.extend(one.values())
            elif type(one) is bytes and len(one) == 28 and one not in self.tainted:
                self.tainted.add(one)
                stack.extend(self.contents.get(one, ()))

    def lost(self, taker: bytes, item: Any) -> None:
        """A dead process has not sent this, although it may have told the owners what is granted in it."""
        stack = [item]
        while stack:
            one = stack.pop()
            if type(one) is dict:
                stack.extend(one.values())
            elif type(one) in (tuple, list):
                if len(one) == 3 and one[2] is True and type(one[0]) is bytes:
                    self.lost_grants[(one[0], taker)] += 1
                else:
                    stack.extend(one)

    # -- actors ------------------------------------------------------------------------------------

    def new_actor(self, facts: ActorFacts) -> None:
        """Somebody is about to ask for it."""
        self.actors[facts.handle_id] = self._by_id[facts.actor_id] = facts

    def actor(self, actor_id: bytes) -> ActorFacts | None:
        """The facts of an actor."""
        return self._by_id.get(actor_id)

    def broken(self, actor_id: bytes, incarnation: int) -> None:
        """This incarnation had a reason to end that nobody has ordered."""
        self._by_id[actor_id].broken.add(incarnation)

    def sent_calls(self, caller: bytes, specs: list[tuple[Any, ...]]) -> None:
        """Calls are on their way, or as good as."""
        for spec in specs:
            name = (caller, spec[0])
            self.sent[name] += 1
            if name in self.answered:  # its result was lost, and is made again
                self.unordered.add(name)

    # -- the store ---------------------------------------------------------------------------------

    def location(self, node_id: bytes) -> Location:
        """Where a large value was written."""
        self._locations += 1
        return (node_id, self._locations)

    def made(self, object_id: bytes, size: int) -> None:
        """It is written: for the first time, or by a task that runs once more."""
        self.makings.setdefault(object_id, set()).add(size)

    def heard_of(self, object_id: bytes, location: Location) -> None:
        """The owner of a stored object has its location."""
        self.copies.setdefault(object_id, {})[location] = None

    def freed(self, object_id: bytes, node_id: bytes) -> None:
        """Its owner has freed what is on that node: all copies there go, as in store.extents."""
        self.seen["freed in the store"] += 1
        self._drop_copies(object_id, node_id)

    def machine_lost(self, node_id: bytes) -> None:
        """All that lay there is gone."""
        for object_id in list(self.copies):
            self.seen["stored value lost"] += self._drop_copies(object_id, node_id)

    def _drop_copies(self, object_id: bytes, node_id: bytes) -> int:
        copies = self.copies.get(object_id, {})
        there = [one for one in copies if one[0] == node_id]
        for location in there:
            del copies[location]
        if not copies:
            self.copies.pop(object_id, None)
        return len(there)

    # -- tasks and calls -----------------------------------------------------------------------------

    def submitted(self, owner: bytes, seq: int, retries: int) -> None:
        """A task or call, and how often it may be repeated."""
        self.limits[(owner, seq)] = -1 if retries < 0 else retries + 1

    def numbered(self, caller: bytes, seq: int) -> None:
        """A call of an actor: later calls of this caller have larger numbers."""
        self.call_numbers[(caller, seq)] = len(self.call_numbers)

    def started(self, owner: bytes, seq: int, attempt: int) -> None:
        """It starts: may it?"""
        name = (owner, seq)
        self.attempts.add((owner, seq, attempt))
        self.seen["start"] += 1
        self.seen["start of a later attempt"] += attempt > 0
        count = self.starts[name] = self.starts.get(name, 0) + 1
        self.seen["second run"] += count > 1
        limit = self.limits[name]
        if 0 <= limit < count:
            raise SimulationError(f"task {seq} starts for the {count}. time, {limit} allowed")

    def call_started(
        self, actor: ActorFacts, incarnation: int, caller: bytes, seq: int, attempt: int
    ) -> None:
        """A call starts: calls of one caller do so in order."""
        self.started(caller, seq, attempt)
        self.seen["start of a call"] += 1
        if actor.options["concurrency"] > 1 or (caller, seq) in self.unordered:
            return
        number, key = self.call_numbers[(caller, seq)], (incarnation, caller)
        last = actor.last_started.get(key, -1)
        if number <= last:
            raise SimulationError(f"call {seq} starts after a later call of the same caller")
        actor.last_started[key] = number
