"""Quantities of resources: units, sets, the logical instances of GPUs.

Users write floats (``num_cpus=0.5``); everywhere inside, and on the wire, a quantity is an int in units of
1/10000, so that sums are exact. ``to_units`` and ``from_units`` convert. ``ResourceSet`` is an immutable
value with the arithmetic that schedulers need. ``ResourceInstances`` hands out *which* GPU a request gets:
whole ones for whole numbers, a share of one for a fraction. What the machine has is found in ``machine.py``.

Invariants: a ResourceSet never holds zeros; only the resources named to ``subtract`` may go negative (the
node's CPU balance while a worker unblocks); shares of an instance never sum above what it has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from minray._base.machine import detect_totals as detect_totals

UNIT = 10_000
PRECISION = 0.0001
MOST = 10**14  # in units still fits into 64 bits; bytes of memory are counted, too
CPU, GPU, MEMORY, STORE_MEMORY = "CPU", "GPU", "memory", "object_store_memory"
# Written by keywords of their own, so not allowed in resources={…}.
_KEYWORDS = {CPU: "num_cpus", GPU: "num_gpus", MEMORY: "memory", STORE_MEMORY: "object_store_memory"}


def quantity_to_units(name: str, quantity: Any) -> int:
    """One quantity in units.

    Raises:
        TypeError: not a number.
        ValueError: negative, not finite, beyond ``MOST``, or finer than 0.0001.
    """
    if not isinstance(quantity, (int, float)):
        try:  # numpy's scalars are numbers too
            quantity = quantity.item()
        except AttributeError:
            pass
        if not isinstance(quantity, (int, float)):
            raise TypeError(f"the quantity of resource {name} must be a number, got {quantity!r}")
    if not math.isfinite(quantity):
        raise ValueError(f"the quantity of resource {name} must be finite, got {quantity!r}")
    if quantity < 0:
        raise ValueError(f"the quantity of resource {name} cannot be negative, got {quantity!r}")
    if quantity > MOST:
        raise ValueError(f"the quantity of resource {name} can be at most {MOST}, got {quantity!r}")
    if isinstance(quantity, int):
        return quantity * UNIT
    units = round(quantity * UNIT)
    if units == 0 and quantity > 0:
        raise ValueError(
            f"the precision of the fractional quantity of resource {name} cannot go beyond {PRECISION}, "
            f"got {quantity!r}"
        )
    return units


def to_units(quantities: Mapping[str, float], *, custom: bool = False) -> dict[str, int]:
    """Quantities in units, without those that are zero.

    Args:
        quantities: name → amount.
        custom: they come from a ``resources=`` argument, where CPU, GPU and memory have no place.
    """
    units: dict[str, int] = {}
    for name, quantity in quantities.items():
        if not (isinstance(name, str) and name):
            raise TypeError(f"resource names must be non-empty strings, got {name!r}")
        if custom and name in _KEYWORDS:
            raise ValueError(
                f"resources={{{name!r}: {quantity!r}}}: use the keyword {_KEYWORDS[name]}= for {name}, "
                "not resources="
            )
        amount = quantity_to_units(name, quantity)
        if amount:
            units[name] = amount
    return units


def from_units(units: Mapping[str, int]) -> dict[str, float]:
    """What users see: floats, in the order given."""
    return {name: amount / UNIT for name, amount in units.items()}


def describe(units: Mapping[str, int]) -> str:
    """For messages: ``CPU: 1, GPU: 0.5``; bytes of memory with a binary unit."""
    if not units:
        return "nothing"
    return ", ".join(f"{name}: {_amount(name, units[name])}" for name in sorted(units))


def _amount(name: str, units: int) -> str:
    value = units / UNIT
    if name in (MEMORY, STORE_MEMORY):
        for factor, suffix in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
            if value >= factor:
                return f"{value / factor:.2f} {suffix}"
        return f"{value:g} bytes"
    return f"{value:.4f}".rstrip("0").rstrip(".")


class ResourceSet:
    """An immutable amount of each of some resources, in units. Absent means zero."""

    __slots__ = ("_units",)

    def __init__(self, units: Mapping[str, int] | None = None) -> None:
        self._units = {name: amount for name, amount in (units or {}).items() if amount}

    @classmethod
    def of(cls, quantities: Mapping[str, float]) -> ResourceSet:
        """From what users write."""
        return cls(to_units(quantities))

    @property
    def units(self) -> Mapping[str, int]:
        """Name → units; not to be changed."""
        return self._units

    def to_dict(self) -> dict[str, int]:
        """A copy for the wire."""
        return dict(self._units)

    def to_floats(self) -> dict[str, float]:
        """What users see."""
        return from_units(self._units)

    def get(self, name: str) -> int:
        """Units of one resource."""
        return self._units.get(name, 0)

    def fits(self, request: Mapping[str, int]) -> bool:
        """Whether ``request`` can be taken out of this."""
        have = self._units
        return all(have.get(name, 0) >= amount for name, amount in request.items() if amount > 0)

    def lacking(self, request: Mapping[str, int]) -> dict[str, int]:
        """By how much each resource falls short of ``request``; empty if it fits."""
        have = self._units
        return {n: a - have.get(n, 0) for n, a in request.items() if a > 0 and have.get(n, 0) < a}

    def subtract(self, request: Mapping[str, int], *, may_go_negative: Collection[str] = ()) -> ResourceSet:
        """This without ``request``. ValueError if anything but ``may_go_negative`` would fall below 0."""
        left = dict(self._units)
        for name, amount in request.items():
            rest = left.get(name, 0) - amount
            if rest < 0 and name not in may_go_negative:
                raise ValueError(
                    f"cannot take {describe(request)} out of {describe(self._units)}: {name} is short"
                )
            left[name] = rest
        return ResourceSet(left)

    def add(self, request: Mapping[str, int]) -> ResourceSet:
        """This and ``request`` together."""
        total = dict(self._units)
        for name, amount in request.items():
            total[name] = total.get(name, 0) + amount
        return ResourceSet(total)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResourceSet) and other._units == self._units

    def __hash__(self) -> int:
        return hash(frozenset(self._units.items()))

    def __bool__(self) -> bool:
        return bool(self._units)

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __repr__(self) -> str:
        return f"ResourceSet({describe(self._units)})"


class ResourceInstances:
    """Which of a resource's numbered instances (GPUs) are taken, and by how much.

    A request of one or more is made of whole free instances; a smaller one is a share of a single
    instance, the fullest that still has room, so that whole ones stay free for those who need them.
    """

    __slots__ = ("_capacity", "_free", "name")

    def __init__(self, name: str, total: int) -> None:
        """``total`` units; a remainder below one instance makes a last, smaller instance."""
        self.name = name
        self._capacity = dict.fromkeys(range(total // UNIT), UNIT)
        if total % UNIT:
            self._capacity[total // UNIT] = total % UNIT
        self._free = dict(self._capacity)

    def __len__(self) -> int:
        return len(self._capacity)

    @property
    def free_units(self) -> tuple[int, ...]:
        """What is free of each instance."""
        return tuple(self._free.values())

    def extend(self, shares: Iterable[tuple[int, int]]) -> None:
        """These shares of these instances, too, may be handed out here (a bundle's, taken elsewhere)."""
        for i, amount in shares:
            self._capacity[i] = self._capacity.get(i, 0) + amount
            self._free[i] = self._free.get(i, 0) + amount

    def allocate(self, units: int) -> list[tuple[int, int]] | None:
        """``[(instance, units), …]`` for a request, or None if nothing suits now."""
        if units <= 0:
            return []
        if units >= UNIT:
            if units % UNIT:
                return None
            whole = [i for i, free in self._free.items() if free == UNIT][: units // UNIT]
            if len(whole) * UNIT < units:
                return None
            taken = [(i, UNIT) for i in whole]
        else:
            room = [(free, i) for i, free in self._free.items() if free >= units]
            if not room:
                return None
            taken = [(min(room)[1], units)]
        for i, amount in taken:
            self._free[i] -= amount
        return taken

    def can_allocate(self, units: int) -> bool:
        """Whether ``allocate`` would succeed now."""
        if units <= 0:
            return True
        if units >= UNIT:
            return units % UNIT == 0 and sum(free == UNIT for free in self._free.values()) * UNIT >= units
        return any(free >= units for free in self._free.values())

    def could_ever_allocate(self, units: int) -> bool:
        """Whether ``allocate`` would succeed if everything were free."""
        if units <= 0:
            return True
        if units >= UNIT:
            return units % UNIT == 0 and sum(c == UNIT for c in self._capacity.values()) * UNIT >= units
        return any(capacity >= units for capacity in self._capacity.values())

    def release(self, taken: list[tuple[int, int]]) -> None:
        """Give back what ``allocate`` returned."""
        for i, amount in taken:
            if self._free[i] + amount > self._capacity[i]:
                raise ValueError(f"{self.name} instance {i}: {amount} units given back that were not taken")
            self._free[i] += amount

    def check_invariants(self) -> None:
        """Every instance is between empty and full."""
        assert self._free.keys() == self._capacity.keys(), self
        for i, free in self._free.items():
            assert 0 <= free <= self._capacity[i], self

    def __repr__(self) -> str:
        free, capacity = list(self._free.values()), list(self._capacity.values())
        return f"ResourceInstances({self.name}, free {free} of {capacity})"
