"""What simulated user code does with placement groups, and where it wants things to run. A part of ``user.Frame``.

A group is made and mostly waited for; tasks and actors are put into it, into one bundle or any; it is removed while
things run there. Where there are several nodes, what is not in a group may be spread, bound to a node, or to labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from minray._base.groups import GroupTarget, shape_of
from minray.testing.simulator.ledger import GroupFacts, make_id
from minray.testing.simulator.process import CPU
from minray.wire.messages import Reply

if TYPE_CHECKING:
    from minray.testing.simulator.process import Process

Steps = Iterator[None]
STRATEGIES = ("PACK", "PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class GroupActions:
    """Groups, affinities, labels."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.sim = process.sim
        self.rng = process.sim.rng

    def until(self, done: Callable[[], bool]) -> Steps:
        """See user.Frame."""
        raise NotImplementedError

    def group(self) -> Steps:
        """A new group of one to three bundles; mostly wait for it."""
        rng, process, ledger = self.rng, self.process, self.sim.ledger
        bundles = [{"CPU": rng.choice((CPU, CPU, CPU // 2))} for _ in range(rng.randint(1, 3))]
        group_id = make_id(f"{process} {len(ledger.groups)}", 14) + process.job_id
        spec = {
            "group_id": group_id,
            "job_id": process.job_id,
            "creator_actor": None,
            "name": "",
            "namespace": "space",
            "lifetime": None,
            "strategy": rng.choice(STRATEGIES),
            "bundles": bundles,
            "selectors": [],
            "soft_target": None,
        }
        facts = ledger.groups[group_id] = GroupFacts(group_id, process.job_id, bundles)
        ledger.seen["group"] += 1

        def made(reply: Reply) -> None:
            facts.created = reply.ok

        process.ask_gcs("create_placement_group", spec, then=made)
        if rng.random() < 0.6:
            answers: list[Reply] = []
            process.ask_gcs("wait_placement_group", group_id, then=answers.append)
            yield from self._patiently(lambda: bool(answers))
            ledger.seen["group there"] += bool(answers) and answers[0].ok
        yield

    def _patiently(self, done: Callable[[], bool]) -> Steps:
        """Until ``done()``, or the dice have it that the timeout is over."""
        tries = self.rng.randint(1, 60)
        while not done() and tries:
            tries -= 1
            yield

    def remove_group(self) -> Steps:
        """The end of some group, whatever runs there."""
        living = self._my_groups()
        if living:
            facts = self.rng.choice(living)
            facts.removed = True
            self.process.ask_gcs("remove_placement_group", facts.group_id)
        yield

    def _my_groups(self) -> list[GroupFacts]:
        groups = self.sim.ledger.groups.values()
        return [g for g in groups if g.created and not g.removed and g.job_id == self.process.job_id]

    def _where(self, resources: dict[str, int]) -> tuple[dict[str, int], Any]:
        """Resources and strategy of a task: perhaps in a group, perhaps bound to a node."""
        rng = self.rng
        groups = self._my_groups()
        if groups and rng.random() < 0.4:
            return self._target(rng.choice(groups)).rename(resources), None
        if len(self.sim.machines) == 1 or rng.random() < 0.5:
            return resources, None
        node_id = rng.choice(list(self.sim.machines))
        zone = {"zone": ("in", (rng.choice("ab"),))}
        return resources, rng.choice(
            ["SPREAD", ("affinity", node_id, True), ("affinity", node_id, False), ("labels", zone, {})]
        )

    def _target(self, group: GroupFacts) -> GroupTarget:
        index = self.rng.choice((-1, self.rng.randrange(len(group.bundles))))
        return GroupTarget(group.group_id, index, False, tuple(shape_of(bundle) for bundle in group.bundles))

    def _place(self, spec: dict[str, Any]) -> None:
        """The same for an actor."""
        rng, groups = self.rng, self._my_groups()
        if groups and rng.random() < 0.4:
            target = self._target(rng.choice(groups))
            spec["placement_group"] = target.to_wire()
            for what in ("placement_resources", "lifetime_resources"):
                spec[what] = target.rename(spec[what])
        elif rng.random() < 0.5:
            _, spec["strategy"] = self._where({})
