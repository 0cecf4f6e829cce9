"""The baseline: the answer of the training question most alike.

Source: nearest neighbour by cosine of TF-IDF vectors (scikit-learn), words and pairs of words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gristmill.core.dataset import Row
from gristmill.plugins.tasks.chat.rows import answer, question


def nearest_answers(train: Sequence[Row], test: Sequence[Row]) -> list[Any]:
    """For each test row the answer of the nearest training question, in an engine's form."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    asked = [_asked(row) for row in train]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        known = vectorizer.fit_transform(asked)
    except ValueError:  # no word in any question
        return [{"text": answer(train[0])} for _ in test]
    likeness = vectorizer.transform([_asked(row) for row in test]) @ known.T
    return [{"text": answer(train[int(i)])} for i in likeness.toarray().argmax(axis=1)]


def _asked(row: Row) -> str:
    """The last thing the user said."""
    said = [message["content"] for message in question(row) if message["role"] == "user"]
    return said[-1] if said else ""
