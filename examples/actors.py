"""Actors: a bank account that many tasks share, an actor found by its name, a pool of actors.

    python examples/actors.py
"""

from __future__ import annotations

from typing import Any

import minray as ray
from minray.util import ActorPool


@ray.remote
class Account:
    """Its balance is changed by one call at a time, whoever calls."""

    def __init__(self, balance: int = 0) -> None:
        self.balance = balance

    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    def withdraw(self, amount: int) -> int:
        if amount > self.balance:
            raise ValueError(f"there are only {self.balance}")
        self.balance -= amount
        return self.balance


@ray.remote
def pay_in(account: Any, times: int) -> None:
    for _ in range(times):
        ray.get(account.deposit.remote(1))


@ray.remote(num_cpus=0)
class Squarer:
    def square(self, number: int) -> int:
        return number * number


def main() -> None:
    ray.init()

    # A handle can be passed around; the calls of all callers meet in one process.
    account = Account.options(name="savings").remote(balance=100)
    ray.get([pay_in.remote(account, 25) for _ in range(4)])
    print("balance:", ray.get(account.deposit.remote(0)))

    # An error of the actor arrives as what it is.
    try:
        ray.get(account.withdraw.remote(10_000))
    except ValueError as error:
        print("refused:", str(error).splitlines()[-1])

    # Whoever knows the name finds it.
    print("after withdrawing 50:", ray.get(ray.get_actor("savings").withdraw.remote(50)))

    # A pool hands work to whichever actor is free.
    pool = ActorPool([Squarer.remote() for _ in range(2)])
    print("squares:", list(pool.map(lambda actor, n: actor.square.remote(n), range(8))))


if __name__ == "__main__":
    main()
