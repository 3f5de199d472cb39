"""What this machine has, and what is taken of it. Pure.

One book serves leases, actors and placement groups alike. Quantities are ints in 1/10000. Resources that come
in numbered instances (GPUs) are handed out by instance, so that two tasks never share a device by accident.

A bundle of a placement group is taken like any request; once the group is committed, ``open`` adds what it
holds under the group's own names (see _base.groups) to totals and balance, and ``close`` takes them out again.
The instances behind a group's GPUs are those that its bundles took, all of them under the name of "any bundle".

Called by node.leases, which owns the only instance. Invariants: ``available`` is ``totals`` minus
everything that is held; only CPUs may be negative (a blocked worker that goes on takes its CPUs back at
once, whether they are free or not); instances agree with the sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from minray._base.groups import plain_name
from minray._base.resources import CPU, GPU, ResourceInstances, describe
from minray.wire.messages import Resources

ResourceIds = dict[str, list[tuple[int, int]]]
BY_INSTANCE = (GPU,)


class ResourceBook:
    """Totals and balance of one node."""

    def __init__(self, totals: Resources, *, by_instance: Iterable[str] = BY_INSTANCE) -> None:
        self.totals: Resources = {name: amount for name, amount in totals.items() if amount > 0}
        self.available: Resources = dict(self.totals)
        self._instances = {
            name: ResourceInstances(name, self.totals[name]) for name in by_instance if name in self.totals
        }

    def feasible(self, request: Resources) -> bool:
        """Whether the idle machine could hold this."""
        for name, amount in request.items():
            if amount > self.totals.get(name, 0):
                return False
            instances = self._instances.get(name)
            if instances is not None and not instances.could_ever_allocate(amount):
                return False
        return True

    def fits(self, request: Resources) -> bool:
        """Whether it can be taken now."""
        available = self.available
        for name, amount in request.items():
            if amount > 0 and amount > available.get(name, 0):
                return False
        return all(
            name not in request or instances.can_allocate(request[name]) for name, instances in self._instances.items()
        )

    def take(self, request: Resources) -> ResourceIds:
        """Book what ``fits`` said fits; returns which instances."""
        if not self.fits(request):
            raise ValueError(f"{describe(request)} does not fit into {describe(self.available)}")
        ids: ResourceIds = {}
        for name, amount in request.items():
            self.available[name] = self.available.get(name, 0) - amount
            instances = self._instances.get(name)
            if instances is not None and amount > 0:
                taken = instances.allocate(amount)
                assert taken is not None, f"{name}: the sum fits but no instance does"
                ids[name] = taken
        return ids

    def give(self, held: Resources, ids: ResourceIds) -> None:
        """Give back what was taken."""
        for name, amount in held.items():
            self.available[name] = self.available.get(name, 0) + amount
        for name, taken in ids.items():
            self._instances[name].release(taken)

    def lend(self, cpus: Resources) -> None:
        """A holder of these CPUs (see ``cpus_of``) waits: others may have them."""
        for name, amount in cpus.items():
            self.available[name] = self.available.get(name, 0) + amount

    def retake(self, cpus: Resources) -> None:
        """It goes on; the balance may be negative for a while."""
        for name, amount in cpus.items():
            self.available[name] = self.available.get(name, 0) - amount

    # -- placement groups --------------------------------------------------------------------------

    def could_hold(self, bundles: Iterable[Resources]) -> bool:
        """Whether the idle machine could hold all of these together."""
        left = dict(self.totals)
        fresh = {name: ResourceInstances(name, self.totals.get(name, 0)) for name in self._instances}
        for bundle in bundles:
            for name, amount in bundle.items():
                left[name] = left.get(name, 0) - amount
                if left[name] < 0 or (name in fresh and fresh[name].allocate(amount) is None):
                    return False
        return True

    def covers(self, request: Resources) -> bool:
        """Whether the sums suffice; instances are not looked at."""
        return all(amount <= self.available.get(name, 0) for name, amount in request.items() if amount > 0)

    def take_all(self, bundles: Iterable[Resources]) -> list[ResourceIds] | None:
        """Book all of these, or nothing; which instances each has."""
        taken: list[tuple[Resources, ResourceIds]] = []
        for bundle in bundles:
            if not self.fits(bundle):
                for other, ids in taken:
                    self.give(other, ids)
                return None
            taken.append((bundle, self.take(bundle)))
        return [ids for _, ids in taken]

    def open(self, names: Resources, shares: Mapping[str, list[tuple[int, int]]]) -> None:
        """Offer this, too. ``shares``: the instances behind some of these names."""
        for name, amount in names.items():
            self.totals[name] = self.totals.get(name, 0) + amount
            self.available[name] = self.available.get(name, 0) + amount
        for name, some in shares.items():
            self._instances.setdefault(name, ResourceInstances(name, 0)).extend(some)

    def close(self, names: Resources) -> None:
        """Offer it no more. Nothing of it may be held."""
        for name, amount in names.items():
            if self.available.get(name, 0) != amount or self.totals.get(name, 0) != amount:
                raise ValueError(f"{name}: {self.available.get(name, 0)} of {amount} are free, it cannot be closed")
        for name in names:
            del self.totals[name], self.available[name]
            self._instances.pop(name, None)

    def check_invariants(self, held: Iterable[Resources]) -> None:
        """``held``: what every lease and actor holds at this moment."""
        expected = dict(self.totals)
        for request in held:
            for name, amount in request.items():
                expected[name] = expected.get(name, 0) - amount
        for name in expected.keys() | self.available.keys():
            balance, count = self.available.get(name, 0), expected.get(name, 0)
            assert balance == count, f"{name}: {balance} in the book, {count} by count"
            assert balance >= 0 or plain_name(name) == CPU, f"{name} is overdrawn: {balance}"
            assert balance <= self.totals.get(name, 0), f"{name}: more than there is: {balance}"
        for name, instances in self._instances.items():
            instances.check_invariants()
            assert sum(instances.free_units) == self.available[name], f"{name}: sum and instances differ"


def cpus_of(held: Resources) -> Resources:
    """The CPUs of what somebody holds, a group's included: what others may use while it waits."""
    return {name: amount for name, amount in held.items() if plain_name(name) == CPU}
