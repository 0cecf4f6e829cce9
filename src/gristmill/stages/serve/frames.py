"""Frames: how messages cross the socket pair between the gateway and an engine child.

A frame is a 4-byte big-endian length followed by one MessagePack document. Both sides use this module.
Invariant: a frame is either decoded whole or not at all; an oversized one ends the conversation.
Source: msgspec documentation, "Perf tips", "Line-delimited and length-prefix framing".
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from gristmill.core.op import EngineSpec, FromChild, ToChild

MAX_FRAME_BYTES = 64 << 20
"""Largest frame: six times the largest request body, and room for its answer."""

_HEADER = b"\0\0\0\0"
_ENCODER = msgspec.msgpack.Encoder()
T = TypeVar("T")


class FrameError(Exception):
    """The other side sent something that is not a frame of the expected type."""


def append_frame(buffer: bytearray, message: Any) -> None:
    """Encode `message` as one frame at the end of `buffer`.

    Raises:
        FrameError: it cannot be encoded or is over the limit; `buffer` is then unchanged.
    """
    start = len(buffer)
    buffer += _HEADER
    try:
        _ENCODER.encode_into(message, buffer, start + 4)
    except (TypeError, ValueError, OverflowError) as error:
        del buffer[start:]
        raise FrameError(f"a {type(message).__name__} cannot be encoded: {type(error).__name__}") from None
    n_bytes = len(buffer) - start - 4
    if n_bytes > MAX_FRAME_BYTES:
        del buffer[start:]
        raise FrameError(f"a {type(message).__name__} of {n_bytes} bytes is over {MAX_FRAME_BYTES}")
    buffer[start : start + 4] = n_bytes.to_bytes(4, "big")


class FrameReader(Generic[T]):
    """Cuts a byte stream into frames and decodes them; keeps what is incomplete."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decode = decoder.decode
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """Take the bytes of one read; return the messages they complete.

        Raises:
            FrameError: not MessagePack, not an expected message, or over the limit.
        """
        source: bytes | bytearray = data
        if self._rest:
            self._rest += data
            source = self._rest
        messages: list[T] = []
        at, end = 0, len(source)
        while end - at >= 4:
            stop = at + 4 + int.from_bytes(source[at : at + 4], "big")
            if stop - at - 4 > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {stop - at - 4} bytes is over {MAX_FRAME_BYTES}")
            if stop > end:
                break
            try:
                messages.append(self._decode(source[at + 4 : stop]))
            except msgspec.DecodeError as error:
                raise FrameError(f"a frame does not decode: {error}") from None
            at = stop
        if source is self._rest:
            del self._rest[:at]
        elif at < end:
            self._rest += data[at:]
        return messages


def to_child_reader() -> FrameReader[ToChild]:
    """A reader of the messages that the parent sends after the first."""
    return FrameReader(msgspec.msgpack.Decoder(ToChild))


def from_child_reader() -> FrameReader[FromChild]:
    """A reader of the messages that a child sends."""
    return FrameReader(msgspec.msgpack.Decoder(FromChild))


def decode_spec(payload: bytes) -> EngineSpec:
    """Decode the first message a child receives."""
    return msgspec.msgpack.decode(payload, type=EngineSpec)
