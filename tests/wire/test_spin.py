"""SpinPolicy: the better of the two ways is used, the other is tried now and then."""

from __future__ import annotations

from collections.abc import Callable

from minray.wire.spin import EPOCH, RETRY, SpinPolicy

SPIN = 50e-6


def share_spun(policy: SpinPolicy, took: Callable[[bool], float], epochs: int) -> float:
    """Part of the waits that spun, while ``took(spinning)`` says how long waits take."""
    spun = 0
    for _ in range(epochs * EPOCH):
        spinning = policy.begin() > 0
        spun += spinning
        policy.ended(took(spinning))
    return spun / (epochs * EPOCH)


def test_without_a_time_it_never_spins() -> None:
    assert share_spun(SpinPolicy(0.0), lambda spinning: 1e-6, 100) == 0


def test_it_spins_where_that_is_faster() -> None:
    policy = SpinPolicy(SPIN)
    took = lambda spinning: 30e-6 if spinning else 90e-6  # noqa: E731
    share_spun(policy, took, 4)
    assert share_spun(policy, took, 5 * RETRY) > 0.9


def test_it_sleeps_where_that_is_faster() -> None:
    policy = SpinPolicy(SPIN)
    took = lambda spinning: 45e-6 if spinning else 24e-6  # noqa: E731
    share_spun(policy, took, 4)
    assert share_spun(policy, took, 5 * RETRY) < 0.1


def test_it_sleeps_where_there_is_no_difference() -> None:
    policy = SpinPolicy(SPIN)
    share_spun(policy, lambda spinning: 40e-6, 4)
    assert share_spun(policy, lambda spinning: 40e-6, 5 * RETRY) < 0.1


def test_it_does_not_even_try_while_waits_are_long() -> None:
    assert share_spun(SpinPolicy(SPIN), lambda spinning: 0.01, 10 * RETRY) == 0


def test_it_changes_its_mind() -> None:
    policy = SpinPolicy(SPIN)
    share_spun(policy, lambda spinning: 30e-6 if spinning else 90e-6, 2 * RETRY)
    assert policy.spinning
    share_spun(policy, lambda spinning: 0.01, 2 * RETRY)
    assert not policy.spinning
    share_spun(policy, lambda spinning: 30e-6 if spinning else 90e-6, 2 * RETRY)
    assert share_spun(policy, lambda spinning: 30e-6 if spinning else 90e-6, RETRY) > 0.8


def test_one_very_long_wait_does_not_spoil_an_epoch() -> None:
    policy = SpinPolicy(SPIN)
    number = 0

    def took(spinning: bool) -> float:
        nonlocal number
        number += 1
        if number % EPOCH == 20:
            return 3.0
        return 30e-6 if spinning else 90e-6

    share_spun(policy, took, 4)
    assert share_spun(policy, took, 5 * RETRY) > 0.9
