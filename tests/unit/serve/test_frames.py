"""Framing: any split of the byte stream gives the same messages; garbage and giants are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.core.op import Cancel, Chunk, Done, FromChild, Go, Op, Open
from gristmill.stages.serve import frames


@given(st.lists(st.text(max_size=40), max_size=12), st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_any_split_gives_the_same_messages(texts: list[str], sizes: list[int]) -> None:
    """Broken: a message that arrives in pieces is lost, doubled or mixed with its neighbour."""
    sent: list[FromChild] = [Chunk(index, text, 1) for index, text in enumerate(texts)]
    sent.append(Done(99, [{"label": "a", "probs": {"a": 1.0}}], {"items": 1}, 0.5, "stop", "d"))
    buffer = bytearray()
    for message in sent:
        frames.append_frame(buffer, message)
    reader = frames.from_child_reader()
    received: list[FromChild] = []
    at, turn = 0, 0
    while at < len(buffer):
        size = sizes[turn % len(sizes)]
        received += reader.feed(bytes(buffer[at : at + size]))
        at, turn = at + size, turn + 1
    assert received == sent


def test_to_child_messages_keep_their_types() -> None:
    """Broken: a go is taken for a cancel, or an Op loses a field on its way."""
    op = Op("generate", ([{"role": "user", "content": "你好"}],), {"max_tokens": 3}, True)
    buffer = bytearray()
    for message in (Open(1, "rel_1", op), Go(1, 3), Cancel(1)):
        frames.append_frame(buffer, message)
    assert frames.to_child_reader().feed(bytes(buffer)) == [Open(1, "rel_1", op), Go(1, 3), Cancel(1)]


@pytest.mark.parametrize("data", [b"\0\0\0\x01\xc1", b"\0\0\0\x02{}", b"\xff\xff\xff\xff", b"\0\0\0\x01\x01"])
def test_garbage_is_refused(data: bytes) -> None:
    """Broken: an engine library that writes into the socket is believed, or makes the server buy 4 GB."""
    with pytest.raises(frames.FrameError):
        frames.from_child_reader().feed(data)


def test_what_cannot_be_sent_leaves_the_buffer_whole() -> None:
    """Broken: one unencodable answer corrupts every answer after it."""
    buffer = bytearray()
    frames.append_frame(buffer, Cancel(1))
    before = bytes(buffer)
    for message in (Done(1, [object()], {}, 0.0, "stop", "d"), Chunk(1, "x" * (65 << 20), 1)):
        with pytest.raises(frames.FrameError):
            frames.append_frame(buffer, message)
        assert bytes(buffer) == before
