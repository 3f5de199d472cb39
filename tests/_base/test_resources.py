"""Units, sets and instances of resources."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minray._base.resources import (
    UNIT,
    ResourceInstances,
    ResourceSet,
    describe,
    from_units,
    quantity_to_units,
    to_units,
)


def test_units_are_exact() -> None:
    assert to_units({"CPU": 1, "GPU": 0.5, "x": 0.0001, "none": 0, "also none": 0.0}) == {
        "CPU": 10_000,
        "GPU": 5_000,
        "x": 1,
    }
    assert sum(quantity_to_units("x", 0.1) for _ in range(10)) == UNIT
    assert from_units({"CPU": 15_000}) == {"CPU": 1.5}


@given(st.integers(0, 10**9))
def test_units_and_back(units: int) -> None:
    assert to_units(from_units({"x": units})).get("x", 0) == units


@pytest.mark.parametrize("quantity", [np.float64(0.5), np.float32(0.5)])
def test_numpy_scalars_are_numbers(quantity: float) -> None:
    assert quantity_to_units("x", quantity) == 5_000
    assert quantity_to_units("x", np.int64(2)) == 20_000


@pytest.mark.parametrize(
    ("quantity", "error", "text"),
    [
        (-1, ValueError, "cannot be negative, got -1"),
        (-0.5, ValueError, "cannot be negative"),
        (math.nan, ValueError, "finite, got nan"),
        (math.inf, ValueError, "finite"),
        (1e30, ValueError, "at most 100000000000000, got 1e\\+30"),
        (10**15, ValueError, "at most"),
        (0.00001, ValueError, "cannot go beyond 0.0001"),
        ("1", TypeError, "must be a number, got '1'"),
        (None, TypeError, "must be a number"),
    ],
)
def test_bad_quantities(quantity: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as raised:
        to_units({"widget": quantity})  # type: ignore[dict-item]
    assert "widget" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "keyword"), [("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory")]
)
def test_resources_with_keywords_of_their_own(name: str, keyword: str) -> None:
    with pytest.raises(ValueError, match=f"keyword {keyword}="):
        to_units({name: 1}, custom=True)
    assert to_units({name: 1}) == {name: UNIT}


def test_names_are_strings() -> None:
    with pytest.raises(TypeError, match="non-empty strings, got 1"):
        to_units({1: 1})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="non-empty strings"):
        to_units({"": 1})


def test_describe() -> None:
    units = to_units({"GPU": 0.5, "CPU": 2, "memory": 3 * 1024**3, "object_store_memory": 512})
    assert describe(units) == "CPU: 2, GPU: 0.5, memory: 3.00 GiB, object_store_memory: 512 bytes"
    assert describe({"x": 1}) == "x: 0.0001"
    assert describe({}) == "nothing"


class TestResourceSet:
    def test_arithmetic_makes_new_sets(self) -> None:
        have = ResourceSet.of({"CPU": 2, "x": 1})
        left = have.subtract({"CPU": UNIT, "x": UNIT})
        assert left.to_dict() == {"CPU": UNIT}
        assert left.add({"x": UNIT, "CPU": UNIT}) == have == ResourceSet.of({"x": 1, "CPU": 2})
        assert hash(left.add({"x": UNIT, "CPU": UNIT})) == hash(have)
        assert have.to_floats() == {"CPU": 2.0, "x": 1.0}

    def test_fits_and_lacking(self) -> None:
        have = ResourceSet.of({"CPU": 1})
        assert have.fits({})
        assert have.fits({"CPU": UNIT, "GPU": 0})
        assert not have.fits({"CPU": UNIT + 1})
        assert not have.fits({"GPU": 1})
        assert have.lacking({"CPU": 3 * UNIT, "GPU": 1}) == {"CPU": 2 * UNIT, "GPU": 1}
        assert have.lacking({"CPU": 1}) == {}

    def test_a_negative_balance_only_where_allowed(self) -> None:
        have = ResourceSet.of({"CPU": 1, "GPU": 1})
        with pytest.raises(ValueError, match="CPU is short"):
            have.subtract({"CPU": 2 * UNIT})
        owing = have.subtract({"CPU": 2 * UNIT}, may_go_negative=("CPU",))
        assert owing.get("CPU") == -UNIT
        assert not owing.fits({"CPU": 1})
        assert owing.fits({"GPU": 1, "CPU": 0})
        assert owing.add({"CPU": 2 * UNIT}) == have
        with pytest.raises(ValueError, match="GPU is short"):
            have.subtract({"GPU": 2 * UNIT}, may_go_negative=("CPU",))

    def test_zeros_are_not_kept(self) -> None:
        assert not ResourceSet({"CPU": 0})
        assert list(ResourceSet({"CPU": 0, "x": 1})) == ["x"]
        assert repr(ResourceSet.of({"CPU": 1})) == "ResourceSet(CPU: 1)"


class TestResourceInstances:
    def test_whole_requests_get_whole_instances(self) -> None:
        gpus = ResourceInstances("GPU", 3 * UNIT)
        assert len(gpus) == 3
        assert gpus.allocate(2 * UNIT) == [(0, UNIT), (1, UNIT)]
        assert gpus.allocate(2 * UNIT) is None
        assert gpus.allocate(UNIT) == [(2, UNIT)]
        gpus.release([(1, UNIT)])
        assert gpus.allocate(UNIT) == [(1, UNIT)]

    def test_fractions_share_the_fullest_instance(self) -> None:
        gpus = ResourceInstances("GPU", 2 * UNIT)
        assert gpus.allocate(3_000) == [(0, 3_000)]
        assert gpus.allocate(3_000) == [(0, 3_000)]
        assert gpus.allocate(UNIT) == [(1, UNIT)]
        assert gpus.allocate(5_000) is None
        assert gpus.allocate(4_000) == [(0, 4_000)]
        assert gpus.free_units == (0, 0)

    def test_a_fraction_above_one_is_never_satisfied(self) -> None:
        gpus = ResourceInstances("GPU", 2 * UNIT)
        assert gpus.allocate(15_000) is None
        assert not gpus.could_ever_allocate(15_000)

    def test_a_total_with_a_fraction(self) -> None:
        gpus = ResourceInstances("GPU", 15_000)
        assert len(gpus) == 2
        assert gpus.could_ever_allocate(UNIT)
        assert not gpus.could_ever_allocate(2 * UNIT)
        assert gpus.allocate(5_000) == [(1, 5_000)]

    def test_nothing_is_always_there(self) -> None:
        empty = ResourceInstances("GPU", 0)
        assert empty.allocate(0) == []
        assert empty.can_allocate(0)
        assert empty.could_ever_allocate(0)
        assert empty.allocate(1) is None

    def test_giving_back_too_much(self) -> None:
        gpus = ResourceInstances("GPU", UNIT)
        with pytest.raises(ValueError, match="GPU instance 0: 1 units given back"):
            gpus.release([(0, 1)])
        assert "GPU" in repr(gpus)

    @given(
        st.integers(0, 5 * UNIT),
        st.lists(st.one_of(st.integers(1, UNIT), st.sampled_from([UNIT, 2 * UNIT]), st.none())),
    )
    def test_shares_never_sum_above_an_instance(self, total: int, steps: list[int | None]) -> None:
        gpus = ResourceInstances("GPU", total)
        before = gpus.free_units
        held: list[list[tuple[int, int]]] = []
        for units in steps:
            if units is None:
                if held:
                    gpus.release(held.pop(0))
            else:
                possible = gpus.can_allocate(units)
                taken = gpus.allocate(units)
                assert (taken is not None) == possible
                if taken is not None:
                    assert sum(amount for _, amount in taken) == units
                    assert gpus.could_ever_allocate(units)
                    held.append(taken)
            gpus.check_invariants()
        for taken in held:
            gpus.release(taken)
        assert gpus.free_units == before
