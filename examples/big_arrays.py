"""Big arrays: put once, read by every task without a copy.

A large array goes to shared memory once. Tasks see the same pages, read-only; whoever wants to change
them makes a copy. What a task returns comes back the same way.

    python examples/big_arrays.py [--megabytes 200]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

import minray as ray


@ray.remote
def column_sum(table: Any, first: int, last: int) -> Any:
    return table[:, first:last].sum(axis=0)


@ray.remote
def scaled(table: Any, factor: float) -> Any:
    return table * factor  # a new array, in shared memory again


def main() -> None:
    parser = argparse.ArgumentParser(description="Share a big array among tasks.")
    parser.add_argument("--megabytes", type=int, default=200)
    arguments = parser.parse_args()
    ray.init()

    columns = 100
    rows = arguments.megabytes * 1_000_000 // 8 // columns
    table = np.arange(rows * columns, dtype=np.float64).reshape(rows, columns)
    print(f"the table: {rows:,} rows, {columns} columns, {table.nbytes / 1e6:.0f} MB")

    begin = time.perf_counter()
    ref = ray.put(table)  # once; passing ``table`` itself would store it for each task
    print(f"put: {time.perf_counter() - begin:.3f} s")

    begin = time.perf_counter()
    parts = ray.get([column_sum.remote(ref, i, i + 10) for i in range(0, columns, 10)])
    print(f"ten tasks read all of it: {time.perf_counter() - begin:.3f} s")
    print("right:", bool(np.array_equal(np.concatenate(parts), table.sum(axis=0))))

    begin = time.perf_counter()
    view = ray.get(ref)
    print(f"get: {time.perf_counter() - begin:.6f} s; writeable: {view.flags.writeable}")
    try:
        view[0, 0] = 1
    except ValueError:
        mine = view.copy()
        mine[0, 0] = 1
        print("the shared one is read-only, a copy is not")

    doubled = ray.get(scaled.remote(ref, 2.0))
    print("doubled by a task:", bool(doubled[-1, -1] == 2 * table[-1, -1]))


if __name__ == "__main__":
    main()
