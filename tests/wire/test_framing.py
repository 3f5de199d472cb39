"""FrameDecoder: every split of a stream gives the same frames; nothing beyond the bound is kept."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minray.wire.errors import ProtocolError
from minray.wire.framing import DIRECT_MIN, FrameDecoder, encode_frame


def feed_all(decoder: FrameDecoder, pieces: list[bytes]) -> list[bytes]:
    out: list[bytes] = []
    for piece in pieces:
        out += [bytes(frame) for frame in decoder.feed(piece)]
        decoder.check_invariants()
    return out


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_any_split_gives_the_same_frames(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(payload) for payload in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    decoder = FrameDecoder(100)
    assert feed_all(decoder, pieces) == payloads
    assert decoder.pending == 0


def test_byte_by_byte() -> None:
    payloads = [b"", b"a", b"bc" * 100]
    stream = b"".join(encode_frame(payload) for payload in payloads)
    assert feed_all(FrameDecoder(1000), [stream[i : i + 1] for i in range(len(stream))]) == payloads


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 1000, DIRECT_MIN, DIRECT_MIN + 3])
def test_a_large_frame_through_feed(cut: int) -> None:
    payload = bytes(range(256)) * (DIRECT_MIN // 256) + b"end"
    stream = encode_frame(payload) + encode_frame(b"next")
    decoder = FrameDecoder(1 << 20)
    assert feed_all(decoder, [stream[:cut], stream[cut:]]) == [payload, b"next"]


def test_a_large_frame_is_received_in_place() -> None:
    payload = b"x" * (3 * DIRECT_MIN)
    stream = encode_frame(payload)
    decoder = FrameDecoder(1 << 20)
    assert decoder.feed(stream[:100]) == []
    pos = 100
    frame = None
    while frame is None:
        target = decoder.direct
        assert target is not None
        count = min(len(target), 50_000)
        target[:count] = stream[pos : pos + count]
        pos += count
        frame = decoder.advance(count)
        decoder.check_invariants()
    assert bytes(frame) == payload
    assert decoder.direct is None
    assert [bytes(f) for f in decoder.feed(encode_frame(b"next"))] == [b"next"]


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_a_frame_beyond_the_bound_is_refused_before_it_is_kept(pieces: int) -> None:
    decoder = FrameDecoder(1000)
    data = struct.pack("<I", 1001) + b"x" * 10
    with pytest.raises(ProtocolError, match=r"1001 bytes; the bound is 1000"):
        feed_all(decoder, [data[:pieces], data[pieces:]])
    assert decoder.pending == 0
    with pytest.raises(ProtocolError, match="1001"):
        decoder.feed(b"")


def test_frames_before_the_bad_one_do_not_save_it() -> None:
    with pytest.raises(ProtocolError):
        FrameDecoder(10).feed(encode_frame(b"fine") + b"\xff\xff\xff\xff")


@pytest.mark.parametrize("bound", [0, -1, 1 << 32])
def test_a_senseless_bound(bound: int) -> None:
    with pytest.raises(ValueError, match=str(bound)):
        FrameDecoder(bound)
