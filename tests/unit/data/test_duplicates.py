"""Duplicates: the exact and the near, and that the first of several stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gristmill.stages.data.duplicates import exact, near, normalised, text_hash

LONG = "The battery lasted two days on our trip to the coast and charged again within an hour, which is fine."


def test_spelling_of_blanks_and_case_does_not_hide_a_copy() -> None:
    """The same sentence with another blank or width would count twice and leak into the test part."""
    assert normalised(["Great  movie\n"]) == normalised(["great movie"]) == normalised(["ＧＲＥＡＴ movie"])
    assert normalised(["a", "b"]) != normalised(["a b"])


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=30))
def test_one_of_each_stays(texts: list[str]) -> None:
    """A text would be lost altogether, or stay twice."""
    flags = exact([text_hash(text) for text in texts])
    assert [text for text, flag in zip(texts, flags, strict=True) if not flag] == list(dict.fromkeys(texts))


def test_near_copies_leave_and_others_stay() -> None:
    """A typo would make a copy count as new evidence; a different sentence must not be lost."""
    texts = [
        LONG,
        LONG.replace("coast", "coasts"),
        LONG.replace("two days", "two hours at most"),
        "short",
        "shirt",
    ]
    assert near(texts, 0.9) == ([False, True, False, False, False], [False] * 5)


def test_a_near_copy_of_a_test_row_is_a_leak() -> None:
    """A model would be tested on a sentence that it has seen with one letter changed."""
    assert near([LONG.replace("coast", "coasts"), "other"], 0.9, [LONG]) == ([False, False], [True, False])


def test_similarity_one_searches_nothing() -> None:
    """A recipe that wants no near-duplicate search must get none."""
    assert near([LONG, LONG + "."], 1.0) == ([False, False], [False, False])


@given(st.lists(st.text(max_size=30), max_size=12), st.sampled_from([0.5, 0.8, 0.9]))
def test_same_input_same_answer(texts: list[str], similarity: float) -> None:
    """A version could not be made again from its own record."""
    assert near(texts, similarity) == near(texts, similarity)
