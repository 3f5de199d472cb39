"""Clocks never go back."""

from __future__ import annotations

import pytest

from minray._base.clock import Clock, ManualClock, SystemClock


def test_manual_clock_stands_until_told() -> None:
    clock = ManualClock(10.0)
    assert clock.monotonic() == clock.monotonic() == 10.0
    assert clock.advance(2.5) == clock.monotonic() == 12.5
    assert clock.advance_to(20.0) == clock.monotonic() == 20.0


def test_manual_clock_never_goes_back() -> None:
    clock = ManualClock(10.0)
    with pytest.raises(ValueError, match="never goes back"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="never goes back"):
        clock.advance_to(9)


def test_system_clock() -> None:
    clock: Clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()
