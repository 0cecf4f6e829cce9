"""Intervals by bootstrap: how far a mean over test examples may be from the truth.

Invariant: the same scores give the same interval (seeded); paired differences resample examples.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3 (percentile interval);
Koehn, Statistical Significance Tests for Machine Translation Evaluation (2004) for the paired form.
"""

from __future__ import annotations

from collections.abc import Sequence

from gristmill.core.report import Metric

RESAMPLES = 1000
_SEED = 20260101
_BLOCK = 4_000_000  # drawn indices held in memory at once


def mean_with_interval(name: str, scores: Sequence[float], resamples: int = RESAMPLES) -> Metric:
    """The mean of per-example scores with its 95 % percentile interval.

    Args:
        name: of the metric.
        scores: one number an example, shape (n,), n ≥ 1.
        resamples: how often to draw n examples with replacement.

    Returns:
        NaN bounds when any score is not a number, so that a gate on it refuses.
    """
    import numpy as np

    values = np.asarray(scores, dtype=np.float64)  # (n,)
    n = len(values)
    random = np.random.default_rng(_SEED)
    rows = max(1, _BLOCK // n)
    means = [
        values[random.integers(0, n, size=(min(rows, resamples - start), n))].mean(axis=1)  # (rows,)
        for start in range(0, resamples, rows)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Metric(name, float(values.mean()), float(low), float(high), n)


def difference(name: str, candidate: Sequence[float], other: Sequence[float]) -> Metric:
    """The mean of candidate − other over the same examples, with its 95 % interval.

    Raises:
        ValueError: the two were not scored on the same examples.
    """
    return mean_with_interval(name, [a - b for a, b in zip(candidate, other, strict=True)])
