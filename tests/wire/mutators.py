"""Random messages, damaged bytes, random splits and random programs for the unpickler: all by a seed."""

from __future__ import annotations

from random import Random
from typing import Any

from minray.wire.codec import encode

# Numbers at which lengths go wrong, and the beginnings of protocols.
EDGES = [
    *((1 << bits).to_bytes(4, "little") for bits in (0, 7, 8, 15, 16, 24, 31)),
    *((1 << bits).to_bytes(8, "little") for bits in (32, 33, 63)),
    b"\xff" * 4, b"\xff" * 8, b"\x00" * 4, b"\xfe\xff\xff\x7f", b"\x80\x05", b"\x80\x05\x95", b"\x93minray\n",
    b"\x16\x03\x01", b"GET / HTTP/1.1\r\n", b"SSH-2.0-", b"cos\nsystem\n(S'true'\ntR.",
]  # fmt: skip
# What a TLS client says first.
CLIENT_HELLO = bytes.fromhex(
    "16030100dc010000d803033cc6c468d61a5474ac1c1b8ea360e5e9f45fbc46d9ea9fafe711c2074ba939cb201bf701bc79491511"
    "12b1785a3722b499d98875762f8f9b3c2be32515daaca54a000813021303130100ff01000087000b000403000102000a00160014"
    "001d0017001e0019001801000101010201030104002300000016000000170000000d001e001c040305030603080708080809080a"
    "080b080408050806040105010601002b0003020304002d00020101003300260024001d002089088ee40843902fc27b9e169b2628"
    "dc9abfd824382cc29611f8c507b2a5033b"
)
# Every instruction of every protocol.
_CODES = [*range(0x80, 0x99), *b"(.012FIJKLMNPQRSTUVXabcdeghijloprstu]}G)BC"]
OPCODES = [bytes([code]) for code in _CODES]


def atom(rng: Random) -> Any:
    """A value without parts."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice((None, True, False, (), 0, b"", ""))
    if kind <= 3:
        return rng.randrange(-(1 << rng.choice((3, 8, 16, 31, 33, 63, 70, 2000))), 1 << rng.choice((3, 8, 16, 31, 63)))
    if kind == 4:
        return rng.random() * 10 ** rng.randrange(-9, 30)
    if kind <= 6:
        return rng.randbytes(rng.choice((1, 4, 28, 28, 200, 300)))
    return "".join(rng.choices("aZ0 .:/é€😀", k=rng.choice((1, 5, 12, 70, 300))))


def key(rng: Random) -> Any:
    """What may be a key."""
    found = atom(rng)
    while type(found) is int and abs(found) >> 63:
        found = atom(rng)
    return (found, rng.randrange(5)) if rng.random() < 0.1 else found


def value(rng: Random, levels: int = 4) -> Any:
    """A value that a message may have."""
    if levels == 0 or rng.random() < 0.5:
        return atom(rng)
    kind = rng.randrange(6)
    if kind == 0:
        return {key(rng): value(rng, levels - 1) for _ in range(rng.randrange(5))}
    if kind == 1:
        return rng.choice((set, frozenset))(key(rng) for _ in range(rng.randrange(4)))
    parts = [value(rng, levels - 1) for _ in range(rng.randrange(5))]
    if parts and rng.random() < 0.2:
        parts += [parts[0]] * rng.randrange(20)  # memoized
    return parts if kind == 2 else tuple(parts)


def message(rng: Random) -> tuple[Any, ...]:
    """A message, like ours or any other."""
    kind = rng.randrange(4)
    if kind == 0:
        address = (rng.randbytes(28), rng.randbytes(28), "unix:/tmp/minray-0/s_x/w1 tcp:10.0.0.7:40123")
        return (5, [(rng.randbytes(28), address) for _ in range(rng.randrange(40))])
    if kind == 1:
        return (3, [(i, 0, 0, rng.randbytes(rng.randrange(60)), 12345, None) for i in range(rng.randrange(70))])
    return (rng.randrange(120), *(value(rng) for _ in range(rng.randrange(6))))


def program(rng: Random) -> bytes:
    """Instructions for the unpickler, more or less at random."""
    parts = [b"\x80\x05"] if rng.random() < 0.9 else []
    whole = encode(message(rng))
    for _ in range(rng.randrange(30)):
        kind = rng.randrange(6)
        if kind <= 2:
            parts.append(rng.choice(OPCODES))
        elif kind == 3:
            parts.append(rng.choice((b"K\x01", b"\x8c\x01a", b"]", b"}", b")", b"\x8f", b"\x94", b"h\x00", b"(", b"N")))
        elif kind == 4:
            parts.append(rng.choice(EDGES))
        else:
            at = rng.randrange(len(whole))
            parts.append(whole[at : at + rng.randrange(12)])
    if rng.random() < 0.05:
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(OPCODES) * rng.randrange(2000))
    return b"".join(parts) + rng.choice((b"\x85.", b".", b"", b"t.", b"K\x01s\x85."))


def damage(rng: Random, data: bytes) -> bytes:
    """``data`` with one to four changes; sometimes with none that matters."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        at = rng.randrange(len(made) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 40))
        kind = rng.randrange(9)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(made):
            made[at] = rng.randrange(256)
        elif kind == 2:
            del made[at : at + size]
        elif kind == 3:
            made[at:at] = rng.randbytes(size)
        elif kind == 4:
            made[at:at] = made[at : at + size] * rng.choice((1, 1, 2, 50))
        elif kind == 5:
            edge = rng.choice(EDGES)
            made[at : at + rng.choice((0, len(edge)))] = edge
        elif kind == 6:
            made[at : at + 1] = rng.choice(OPCODES)
        elif kind == 7:
            del made[at:]
        else:
            other = rng.randrange(len(made) + 1)
            made[at : at + size], made[other : other + size] = made[other : other + size], made[at : at + size]
    return bytes(made)


def pieces(rng: Random, data: bytes) -> list[bytes]:
    """``data`` as it may arrive: whole, byte by byte, or cut anywhere."""
    kind = rng.randrange(4)
    if kind == 0 or len(data) < 2:
        return [data]
    if kind == 1 and len(data) < 200:
        return [data[i : i + 1] for i in range(len(data))]
    cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(1, 5)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
