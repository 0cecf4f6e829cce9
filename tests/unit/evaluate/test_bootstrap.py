"""Bootstrap intervals: right on a known distribution, paired, repeatable."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gristmill.stages.evaluate.bootstrap import difference, mean_with_interval


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """An interval that is too narrow would let noise pass a gate."""
    random = np.random.default_rng(1)
    n_trials, truth = 300, 0.8
    covered = 0
    for _ in range(n_trials):
        metric = mean_with_interval("accuracy", (random.random(400) < truth).astype(float).tolist())
        covered += metric.low <= truth <= metric.high
    # 95 % of 300 with a binomial standard error of 1.3 %: three of them either side
    assert 0.91 <= covered / n_trials <= 0.985


def test_the_width_is_that_of_the_normal_approximation() -> None:
    """Resampling the wrong axis or number would widen or narrow every interval."""
    scores = np.random.default_rng(2).normal(5.0, 2.0, size=2000).tolist()
    metric = mean_with_interval("score", scores)
    expected = 2 * 1.96 * 2.0 / math.sqrt(2000)
    assert metric.high - metric.low == pytest.approx(expected, rel=0.1)
    assert metric.low < metric.value < metric.high
    assert metric.n == 2000


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    """Comparing unpaired would call a sure improvement uncertain."""
    random = np.random.default_rng(3)
    hard = random.random(500)
    other = (hard < 0.7).astype(float)
    better = (hard < 0.75).astype(float)
    paired = difference("accuracy", better.tolist(), other.tolist())
    alone = mean_with_interval("accuracy", better.tolist())
    assert paired.low > 0
    assert paired.high - paired.low < alone.high - alone.low
    assert paired.value == pytest.approx(better.mean() - other.mean())


def test_the_same_scores_give_the_same_interval() -> None:
    """A gate near its limit would pass on one day and refuse on the next."""
    scores = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert mean_with_interval("a", scores) == mean_with_interval("a", scores)


def test_blocks_do_not_change_the_number_of_resamples() -> None:
    """A long test set is resampled in blocks; a block left out would narrow its interval."""
    scores = (np.random.default_rng(4).random(60_000) < 0.5).astype(float).tolist()
    metric = mean_with_interval("accuracy", scores, resamples=200)
    assert metric.high - metric.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(60_000), rel=0.25)


def test_a_score_that_is_no_number_poisons_the_metric() -> None:
    """A NaN left out in silence would let a broken metric pass its gate."""
    metric = mean_with_interval("accuracy", [1.0, math.nan])
    assert math.isnan(metric.value)
    assert math.isnan(metric.low)


def test_unequal_examples_are_refused() -> None:
    """Two systems scored on different rows would be compared as if paired."""
    with pytest.raises(ValueError, match="zip"):
        difference("accuracy", [1.0], [1.0, 0.0])
