"""What may be unpickled: everything that our encoder writes, nothing that costs more than its length."""

from __future__ import annotations

import pickle
import resource
import subprocess
import sys
import tracemalloc
from random import Random
from typing import Any

import pytest

from minray.wire import guard
from minray.wire.codec import decode, decode_foreign, encode
from minray.wire.errors import ProtocolError
from tests.wire.mutators import message

BEGIN = b"\x80\x05"


def u4(number: int) -> bytes:
    return number.to_bytes(4, "little")


def nested(levels: int) -> tuple[Any, ...]:
    value: tuple[Any, ...] = ()
    for _ in range(levels):
        value = (value,)
    return value


def test_what_our_encoder_writes_passes_both_ways() -> None:
    for seed in range(2000):
        sent = message(Random(seed))
        data = encode(sent)
        assert guard._Walk(data).run() == len(data), seed
        assert decode_foreign(data) == sent, seed


SHARED = (b"node", b"worker", "tcp:10.0.0.1:7")
MESSAGES: list[tuple[Any, ...]] = [
    (1, 77, [(i, 0, b"f" * 28, b"payload" * (i % 90), None) for i in range(64)], None),
    (3, [(i, 0, 0, b"v" * i, 2**33 + i, [SHARED]) for i in range(400)]),
    (5, [(b"%028d" % i, SHARED) for i in range(20_000)]),  # many memoized things
    (90, {"CPU": 40000, "memory": 2**40}, {}, {"a": {"b": [1.5, -7, None, True]}}, {1, 2}, frozenset("ab")),
    (2, "x" * 70_000, b"y" * 70_000, bytearray(b"z" * 70_000), 2**70, -(2**3000), "é" * 300),
    (7, {("a", i): {i} for i in range(300)}),
    nested(guard.MAX_DEPTH - 1),
]


@pytest.mark.parametrize("sent", MESSAGES, ids=range(len(MESSAGES)))
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_large_and_deep_ones_pass(sent: tuple[Any, ...], kind: type) -> None:
    assert decode_foreign(kind(encode(sent))) == sent


def wide(levels: int) -> bytes:
    """A tuple with 2 ** levels ways to its heart, in 4 bytes a level."""
    return BEGIN + b")" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(levels))


def same_hash(i: int) -> bytes:
    """A key whose hash is 0, and a value."""
    return b"\x8a\x10" + (i * (2**61 - 1)).to_bytes(16, "little") + b"K\x01"


HOSTILE = {
    "a memo of gigabytes": BEGIN + b"Nr" + u4(0x0FFFFFFF) + b"\x85.",
    "a memo of gigabytes, in digits": BEGIN + b"Np268435455\n\x85.",
    "bytes that are not there": BEGIN + b"B" + u4(0xFFFFFFFF) + b"\x85.",
    "more bytes than there is memory": BEGIN + b"\x8e" + b"\xff" * 7 + b"\x00\x85.",
    "an array of bytes that are not there": BEGIN + b"\x96" + u4(0xFFFFFFFF) + u4(0) + b"\x85.",
    "text that is not there": BEGIN + b"X" + u4(0x7FFFFFFF) + b"\x85.",
    "a key nested so deep that hashing it overruns the stack": BEGIN + b"})" + b"\x85" * 300_000 + b"K\x01s\x85.",
    "the same as a member": BEGIN + b"\x8f()" + b"\x85" * 300_000 + b"\x90\x85.",
    "the same in a frozen set": BEGIN + b"()" + b"\x85" * 300_000 + b"\x91\x85.",
    "the same among others": BEGIN + b"}(K\x01K\x02)" + b"\x85" * 300_000 + b"K\x01u\x85.",
    "a key whose hash takes for ever": wide(60).replace(BEGIN, BEGIN + b"}") + b"K\x01s\x85.",
    "a member whose hash takes for ever": wide(60).replace(BEGIN, BEGIN + b"\x8f(") + b"\x90\x85.",
    "keys with the same hash": BEGIN + b"}(" + b"".join(same_hash(i) for i in range(1, 50_000)) + b"u\x85.",
    "a long key, hashed often": BEGIN + b"}(K\x01" + b"K\x01" * 5000 + b"t\x94K\x01s\x85.",
    "more levels than minray writes": encode((bytes(guard.PLAIN_MAX), nested(guard.MAX_DEPTH + 1))),
    "levels of lists": BEGIN + b"})" + b"]" * 200 + b"a" * 199 + b"s\x85.",
    "another protocol": pickle.dumps((1,), 2),
    "a function": pickle.dumps((len,), 5),
    "nothing": b"",
    "an end too soon": encode((1, 2))[:-1],
    "more after the end": encode((1, 2)) + b".",
    "no mark, and hashing": BEGIN + b"}K\x01u\x85.",
}
# Short ones that hash nothing are left to the unpickler.
BROKEN = {
    "a memoized thing that is none": BEGIN + b"h\x05\x85.",
    "an empty stack": BEGIN + b"\x94.",
    "no mark": BEGIN + b"K\x01t.",
    "no tuple": BEGIN + b"K\x01.",
    "a list that is none": BEGIN + b"(K\x01(K\x02et.",
}
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from minray.wire.codec import decode_foreign
from minray.wire.errors import ProtocolError
from tests.wire.mutators import message
from tests.wire.test_guard import BROKEN, HOSTILE
for name, data in {**HOSTILE, **BROKEN}.items():
    try:
        print(name, decode_foreign(data))
    except ProtocolError:
        pass
"""


def test_hostile_programs_are_refused() -> None:
    """In a process of its own, which they would kill."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]


@pytest.mark.parametrize("name", HOSTILE)
def test_refusing_takes_no_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            guard.check(HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 100_000 + 80 * len(HOSTILE[name])
    finally:
        tracemalloc.stop()


def test_the_danger_is_real() -> None:
    """Without the guard, a key that is nested so deep ends the process."""
    code = "from minray.wire.codec import decode; from tests.wire.test_guard import *; decode(HOSTILE[sys.argv[1]])"
    name = "a key nested so deep that hashing it overruns the stack"
    limit = lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # noqa: E731
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, timeout=60, preexec_fn=limit)
    assert done.returncode < 0
    assert decode(encode((1,))) == (1,)
