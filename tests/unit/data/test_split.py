"""The split: no group in two parts, the same for the same rows, and small data still divided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.core.errors import UsageError
from gristmill.stages.data.split import cut, cut_test, cut_validation

KEYS = st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=80)
FRACTIONS = st.floats(min_value=0.01, max_value=0.95)


@given(KEYS, FRACTIONS, st.integers(0, 9))
def test_no_key_is_on_both_sides(keys: list[str], fraction: float, seed: int) -> None:
    """A group in both parts would let a model be tested on what it learnt."""
    flags = cut(keys, [0] * len(keys), fraction=fraction, seed=seed, part="test")
    inside = {key for key, flag in zip(keys, flags, strict=True) if flag}
    outside = {key for key, flag in zip(keys, flags, strict=True) if not flag}
    assert not inside & outside
    if len(set(keys)) >= 2:
        assert inside
        assert outside


@given(st.data(), st.lists(st.tuples(st.text(max_size=4), st.sampled_from("ab")), min_size=2, max_size=60))
def test_order_of_rows_does_not_matter(data: st.DataObject, rows: list[tuple[str, str]]) -> None:
    """A shuffled file would otherwise move rows from training to test and spoil every comparison."""
    shuffled = data.draw(st.permutations(rows))

    def chosen(given_rows: list[tuple[str, str]]) -> set[str]:
        keys, classes = [key for key, _ in given_rows], [value for _, value in given_rows]
        flags = cut(keys, classes, fraction=0.3, seed=7, part="test")
        return {key for key, flag in zip(keys, flags, strict=True) if flag}

    assert chosen(rows) == chosen(shuffled)


@given(st.lists(st.sampled_from("abcde"), min_size=12, max_size=60), st.integers(0, 5))
def test_a_class_keeps_a_row_for_training(classes: list[str], seed: int) -> None:
    """A class with one row would by chance be found in test only, and the data refused."""
    keys = [str(number) for number in range(len(classes))]
    flags = cut(keys, classes, fraction=0.3, seed=seed, part="test")
    assert {value for value, flag in zip(classes, flags, strict=True) if not flag} == set(classes)


def test_fraction_is_of_the_groups() -> None:
    """One group in five means one group in five, not about that many."""
    keys = [f"g{number % 50}" for number in range(1_000)]
    flags = cut_test(keys, [0] * 1_000, fraction=0.2, seed=7)
    assert len({key for key, flag in zip(keys, flags, strict=True) if flag}) == 10


def test_seed_and_part_change_the_choice() -> None:
    """Validation must not pick what test would have picked, or it is not independent of it."""
    keys = [str(number) for number in range(200)]
    choices = {
        tuple(cut(keys, keys, fraction=0.2, seed=seed, part=part))
        for seed in (1, 2)
        for part in ("test", "v")
    }
    assert len(choices) == 4


def test_one_group_is_refused() -> None:
    """A test part of everything, or of nothing, would make the report meaningless."""
    with pytest.raises(UsageError, match="same group"):
        cut_test(["a", "a"], [0, 1], fraction=0.2, seed=7)


def test_validation_is_left_out_rather_than_training() -> None:
    """With one group left, training must keep it."""
    assert cut_validation(["a", "a"], [0, 1], fraction=0.5, seed=7) == [False, False]
