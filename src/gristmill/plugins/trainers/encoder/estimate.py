"""Time before it is spent: arithmetic of the layers over a quick measurement of this machine.

Loads no weights and no torch. Formula: a token costs 2·(4·w² + 2·w·i) floating-point operations forward in a
layer of width w and inner width i, and twice that backward. Source: Kaplan et al., Scaling Laws for Neural
Language Models (2020), section 2.1, without the attention scores, which short texts make small.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gristmill.core.dataset import Row
from gristmill.core.run import TrainJob
from gristmill.kit.encoder_session import Texts
from gristmill.plugins.trainers.encoder.base import BaseFacts, read_base
from gristmill.plugins.trainers.encoder.settings import Settings, read_settings, resolved
from gristmill.ports.trainer import Estimate

_SAMPLE = 400
_SHARE = 0.8
"""Speed of a whole step relative to numpy's bare float32 product (measured with bfloat16 on two cores)."""
_START_S = 6.0
_GPU_FLOPS = 20e12


def estimate_training(job: TrainJob, rows: Sequence[Row]) -> Estimate:
    """Seconds and tokens of `job` on training `rows`."""
    settings = resolved(read_settings(job.hyper), len(rows), len({row["label"] for row in rows}))
    folder = Path(job.base_path)
    base = read_base(folder)
    max_tokens = min(settings.max_tokens, base.max_tokens)
    step = max(1, len(rows) // _SAMPLE)
    sample = [row["text"] for row in rows[::step]]
    encoded = Texts(folder / "tokenizer.json", max_tokens, base.pad).encode(sample) if sample else []
    mean = sum(map(len, encoded)) / len(encoded) if encoded else 0.0
    n_tokens = round(mean * len(rows))
    speed, how = _speed(job.device)
    layers = layer_passes(settings, base, len(rows))
    seconds = _START_S + layers * mean * flops_of_layer(base) / speed
    passes = layers / max(1, len(rows))
    basis = f"{n_tokens} tokens, {passes:.1f} layer passes each, {speed / 1e9:.0f} GFLOP/s {how}"
    return Estimate(train_s=round(seconds, 1), trained_tokens=n_tokens * settings.epochs, basis=basis)


def layer_passes(settings: Settings, base: BaseFacts, n_rows: int) -> float:
    """Forward passes of one layer over one row, summed over all rows; training a layer counts three."""
    trained = {"head": 0, "top-layers": min(settings.top_layers, base.n_layers), "full": base.n_layers}[
        settings.method
    ]
    frozen = base.n_layers - trained
    checking = 0.1 * trained * settings.epochs * n_rows
    return float(frozen * n_rows + 3 * trained * settings.epochs * n_rows + checking)


def flops_of_layer(base: BaseFacts) -> float:
    """Floating-point operations of one layer for one token, forward."""
    return 2.0 * (4 * base.width**2 + 2 * base.width * base.inner)


def _speed(device: str) -> tuple[float, str]:
    if device in ("cuda", "mps"):
        return _GPU_FLOPS, "assumed for a GPU"
    left = np.ones((512, 384), dtype=np.float32)
    right = np.ones((384, 1536), dtype=np.float32)
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2.0 * 512 * 384 * 1536 / best * _SHARE, "measured on this machine"
