"""Read a GGUF file's metadata and tensor table in a fraction of a second, and its tensors when asked.

Invariant: nothing is taken from a file whose table points outside it.
Source: GGUF specification, ggml docs/gguf.md (version 2 and 3, little-endian).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gristmill.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _ALIGNMENT = 8, 9, 32


class Tensor(msgspec.Struct, frozen=True):
    """One row of the tensor table: name, shape (rows first), ggml type, first byte and length in the file."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    n_bytes: int


class GgufFile:
    """A GGUF file: `metadata` by key, `tensors` by name; `load` reads one tensor."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            UsageError: not a GGUF file, or a damaged one.
        """
        self.path = path
        with path.open("rb") as handle:
            try:
                self._bytes = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
                self._at = 4
                if self._bytes[:4] != b"GGUF" or self._number("I") not in (2, 3):
                    raise ValueError
                self.metadata, self.tensors = self._header()
            except (ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError, MemoryError):
                raise UsageError(
                    f"{path.name} is not a GGUF file that can be read.",
                    hint="Download it again.",
                    param="base",
                ) from None

    @property
    def architecture(self) -> str:
        """E.g. "llama"."""
        return str(self.metadata.get("general.architecture", "unknown"))

    def load(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor as float32, dequantised, of its shape."""
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        kind = GGMLQuantizationType(tensor.ggml_type)
        raw = np.frombuffer(self._bytes, np.uint8, tensor.n_bytes, tensor.offset)
        if kind == GGMLQuantizationType.F32:
            flat = raw.view(np.float32)
        elif kind == GGMLQuantizationType.F16:
            flat = raw.view(np.float16).astype(np.float32)
        else:
            flat = dequantize(raw, kind)
        return np.asarray(flat, np.float32).reshape(tensor.shape)

    def _header(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        n_tensors, n_keys = self._number("Q"), self._number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._string()
            metadata[key] = self._value(self._number("I"))
        table = [self._entry() for _ in range(n_tensors)]
        step = int(metadata.get("general.alignment", _ALIGNMENT))
        start = -(-self._at // step) * step
        return metadata, {tensor.name: tensor for tensor in _placed(table, start, len(self._bytes))}

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        shape = tuple(self._number("Q") for _ in range(self._number("I")))
        return name, shape[::-1], self._number("I"), self._number("Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_FORMATS[kind])
        inner, count = self._number("I"), self._number("Q")
        if inner in _FORMATS:
            form = f"<{count}{_FORMATS[inner]}"
            values = struct.unpack_from(form, self._bytes, self._at)
            self._at += struct.calcsize(form)
            return list(values)
        return [self._value(inner) for _ in range(count)]

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self._bytes, self._at)
        self._at += struct.calcsize("<" + form)
        return value

    def _string(self) -> str:
        length = self._number("Q")
        if self._at + length > len(self._bytes):
            raise ValueError
        text = self._bytes[self._at : self._at + length].decode("utf-8")
        self._at += length
        return text


def _placed(table: list[tuple[str, tuple[int, ...], int, int]], start: int, end: int) -> Iterator[Tensor]:
    from math import prod

    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for name, shape, ggml_type, offset in table:
        block_items, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(ggml_type)]
        n_bytes = prod(shape) // block_items * block_bytes
        if start + offset + n_bytes > end:
            raise ValueError
        yield Tensor(name, shape, ggml_type, start + offset, n_bytes)
