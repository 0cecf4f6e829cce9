"""The layer cache: hidden states of frozen layers, computed once and kept in a memory-mapped file.

Layout: real tokens only, row after row with no padding, float16, `(tokens, hidden)`; `cache.json` beside it
names the key and how many batches of the writing plan are in.
Invariant: a cache whose key differs (other base, layers, texts or length) is never read; a resume goes on
where the last flush ended. float16 keeps 11 bits, three more than the bfloat16 arithmetic that reads it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

_LIMIT = float(np.finfo(np.float16).max)
_ROOM = 0.5
"""Share of the free disk a cache may take; beyond it the layers are computed anew for every batch."""


class _Meta(msgspec.Struct):
    key: str
    n_batches: int


def cache_key(base: str, n_layers: int, rows: Iterable[Iterable[int]]) -> str:
    """SHA-256 over the base's digest, the number of frozen layers and all token ids."""
    digest = hashlib.sha256(f"{base}\n{n_layers}\n".encode())
    for row in rows:
        digest.update(np.asarray(list(row), dtype=np.int32).tobytes() + b"\n")
    return digest.hexdigest()


def has_room(folder: Path, n_tokens: int, width: int) -> bool:
    """Whether a cache of `n_tokens` × `width` float16 values may be written under `folder`."""
    return n_tokens * width * 2 < shutil.disk_usage(folder).free * _ROOM


class LayerCache:
    """Hidden states by row; see the module.

    Args:
        folder: where the file lives (made if absent). key: from `cache_key`.
        lengths: tokens of each row. width: size of a hidden state.
    """

    def __init__(self, folder: Path, key: str, lengths: Rows, width: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._meta_path = folder / "cache.json"
        self._key = key
        self._lengths = lengths
        self._starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        self._width = width
        path = folder / "hidden.f16"
        shape = (int(self._starts[-1]), width)
        self.n_batches = self._known(path, shape[0] * width * 2)
        mode: Literal["r+", "w+"] = "r+" if self.n_batches else "w+"
        self._values = np.memmap(path, dtype=np.float16, mode=mode, shape=shape)

    def write(self, rows: Rows, hidden: NDArray[np.float32]) -> None:
        """Keep one batch of the plan.

        Args:
            rows: row numbers.
            hidden: (rows, time, width) float32, padding after each row's own tokens.
        """
        values = np.clip(hidden, -_LIMIT, _LIMIT).astype(np.float16)
        for position, row in enumerate(rows):
            start, n_tokens = self._starts[row], self._lengths[row]
            self._values[start : start + n_tokens] = values[position, :n_tokens]
        self.n_batches += 1

    def flush(self) -> None:
        """Make what was written durable, then say so in `cache.json`."""
        self._values.flush()
        fresh = self._meta_path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(_Meta(self._key, self.n_batches)))
        fresh.replace(self._meta_path)

    def read(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Hidden states (rows, longest, width) float32, zeros as padding, and the mask (rows, longest)."""
        lengths = self._lengths[rows]
        mask = np.arange(int(lengths.max())) < lengths[:, None]
        hidden = np.zeros((*mask.shape, self._width), dtype=np.float32)
        for position, row in enumerate(rows):
            start, n_tokens = self._starts[row], self._lengths[row]
            hidden[position, :n_tokens] = self._values[start : start + n_tokens]
        return hidden, mask.astype(np.int64)

    def _known(self, path: Path, n_bytes: int) -> int:
        if not self._meta_path.is_file() or not path.is_file() or path.stat().st_size != n_bytes:
            return 0
        meta = msgspec.json.decode(self._meta_path.read_bytes(), type=_Meta)
        return meta.n_batches if meta.key == self._key else 0
