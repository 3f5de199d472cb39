"""The first program: four tasks run beside each other, their results come back in order.

    python examples/hello.py
"""

from __future__ import annotations

import os

import minray as ray


@ray.remote
def greet(name: str) -> str:
    return f"hello {name}, from process {os.getpid()}"


if __name__ == "__main__":
    ray.init()
    refs = [greet.remote(name) for name in ("Ada", "Grace", "Barbara", "Katherine")]
    for line in ray.get(refs):
        print(line)
