"""What a step of training reads: cached states of the frozen layers, or token ids when nothing is frozen.

Invariant: cached and uncached give the same logits up to float16 rounding of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gristmill.kit.buckets import padded, sorted_batches

if TYPE_CHECKING:
    from gristmill.kit.encoder import Classifier
    from gristmill.kit.layer_cache import LayerCache

Rows = NDArray[np.int64]
_CACHE_BATCH_TOKENS = 4096
_FLUSH_EVERY = 50


class Compute(msgspec.Struct, frozen=True):
    """Where and how matrix products run."""

    device: torch.device
    is_half: bool

    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16 matrix products, if chosen; everything else stays float32."""
        chosen: AbstractContextManager[object] = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.is_half
        )
        return chosen


def choose_compute(device: str, precision: str) -> Compute:
    """Take the best device there is for "auto", and bfloat16 where it is native.

    Plain emulation of bfloat16 would be slower than float32, so the processor's own instructions decide.
    """
    if device == "auto":
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    if precision != "auto":
        return Compute(torch.device(device), precision == "bfloat16")
    if device == "cuda":
        return Compute(torch.device(device), torch.cuda.is_bf16_supported())
    checks = [
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return Compute(
        torch.device(device), device == "cpu" and any(check() for check in checks if check is not None)
    )


class Features:
    """Logits of a classifier for numbered rows.

    Args:
        classifier: on its device. ids: token ids of every row. pad: id that fills.
        n_frozen: layers that are not trained, from below; −1 when the embeddings are trained as well.
        cache: hidden states after the frozen layers, or None to compute them anew each time.
    """

    def __init__(
        self,
        classifier: Classifier,
        ids: list[list[int]],
        pad: int,
        n_frozen: int,
        compute: Compute,
        cache: LayerCache | None = None,
    ) -> None:
        self.ids, self.lengths = ids, np.array([len(row) for row in ids], dtype=np.int64)
        self._classifier, self._pad, self._n_frozen = classifier, pad, n_frozen
        self._compute, self._cache = compute, cache

    def logits(self, rows: Rows) -> Tensor:
        """Logits (rows, labels) float32, in the classifier's present mode."""
        model, device = self._classifier, self._compute.device
        with self._compute.autocast():
            if self._n_frozen < 0:
                ids, mask = self._padded(rows)
                out: Tensor = model(ids, mask)
                return out
            if self._cache is None:
                ids, mask = self._padded(rows)
                hidden = self._frozen(ids, mask)
            else:
                values, bits = self._cache.read(rows)
                hidden, mask = torch.from_numpy(values).to(device), torch.from_numpy(bits).to(device)
            return model.classify(model.encoder.upper(hidden, mask, self._n_frozen), mask)

    def pooled(self, rows: Rows) -> Tensor:
        """Mean-pooled last hidden states (rows, width) of the encoder as it is, without gradient."""
        from gristmill.kit.encoder import mean_pool

        encoder = self._classifier.encoder.eval()
        parts: list[tuple[Rows, Tensor]] = []
        for batch in sorted_batches(self.lengths[rows], _CACHE_BATCH_TOKENS):
            ids, mask = self._padded(rows[batch])
            with torch.no_grad(), self._compute.autocast():
                parts.append((batch, mean_pool(encoder(ids, mask), mask).cpu()))
        out = torch.empty(len(rows), encoder.width)
        for batch, values in parts:
            out[torch.from_numpy(batch)] = values
        return out

    def predict(self, rows: Rows) -> Tensor:
        """Logits (rows, labels) without gradient or dropout, on the CPU."""
        self._classifier.eval()
        out = torch.empty(len(rows), self._classifier.head.out_features)
        for batch in sorted_batches(self.lengths[rows], _CACHE_BATCH_TOKENS):
            with torch.no_grad():
                out[torch.from_numpy(batch)] = self.logits(rows[batch]).cpu()
        return out

    def predict_whole(self, rows: Rows) -> Tensor:
        """Logits (rows, labels) of the whole model from token ids in float32: what an export has to equal."""
        model = self._classifier.eval()
        out = torch.empty(len(rows), model.head.out_features)
        for batch in sorted_batches(self.lengths[rows], _CACHE_BATCH_TOKENS):
            ids, mask = self._padded(rows[batch])
            with torch.no_grad():
                out[torch.from_numpy(batch)] = model(ids, mask).cpu()
        return out

    @property
    def is_cached(self) -> bool:
        """Whether frozen layers are read from a cache."""
        return self._cache is not None

    def fill_cache(self, tell: Callable[[int, int], bool]) -> bool:
        """Compute what the cache lacks; `tell(done, total)` says whether to go on. True when it is whole."""
        assert self._cache is not None
        plan = sorted_batches(self.lengths, _CACHE_BATCH_TOKENS)
        while self._cache.n_batches < len(plan):
            if not tell(self._cache.n_batches, len(plan)):
                self._cache.flush()
                return False
            batch = plan[self._cache.n_batches]
            with self._compute.autocast():
                hidden = self._frozen(*self._padded(batch))
            self._cache.write(batch, hidden.float().cpu().numpy())
            if self._cache.n_batches % _FLUSH_EVERY == 0:
                self._cache.flush()
        self._cache.flush()
        tell(len(plan), len(plan))
        return True

    def _frozen(self, ids: Tensor, mask: Tensor) -> Tensor:
        encoder = self._classifier.encoder
        was_training = encoder.training
        encoder.eval()
        with torch.no_grad():
            hidden = encoder.lower(ids, mask, self._n_frozen)
        encoder.train(was_training)
        return hidden

    def _padded(self, rows: Rows) -> tuple[Tensor, Tensor]:
        ids, mask = padded([self.ids[row] for row in rows], self._pad)
        return torch.from_numpy(ids).to(self._compute.device), torch.from_numpy(mask).to(self._compute.device)
