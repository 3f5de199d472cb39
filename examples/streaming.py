"""Streams: results that are used while the task that makes them is still running.

A generator task yields one object per item, and its caller iterates over their references: each can be
handed on to the next task at once. Backpressure keeps a quick producer from filling memory.

    python examples/streaming.py
"""

from __future__ import annotations

from collections.abc import Iterator

import minray as ray


@ray.remote(num_cpus=0, _generator_backpressure_num_objects=8)  # it mostly waits
def odd_numbers(count: int) -> Iterator[int]:
    """Runs at most eight items ahead of whoever reads them."""
    for number in range(count):
        yield 2 * number + 1


@ray.remote
def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


@ray.remote
def breaks(after: int) -> Iterator[int]:
    for number in range(after):
        yield 10 * number
    raise RuntimeError("the source ran dry")


def main() -> None:
    ray.init()

    # The first item is here before the last one exists.
    stream = odd_numbers.remote(1000)
    print("first:", ray.get(next(stream)), "second:", ray.get(next(stream)))
    print("the others sum up to", sum(ray.get(ref) for ref in stream))

    # A pipeline: each item goes to a task of its own while the next one is made.
    tested = [is_prime.remote(ref) for ref in odd_numbers.remote(50)]
    print(sum(ray.get(tested)), "of the odd numbers below 100 are prime")

    # An error comes in its place in the stream; what was yielded before it stays good.
    got: list[int] = []
    try:
        got.extend(ray.get(ref) for ref in breaks.remote(3))
    except RuntimeError as error:
        print("after", got, "came:", str(error).splitlines()[-1])


if __name__ == "__main__":
    main()
