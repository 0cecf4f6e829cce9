"""The classify task: rows, scores and baseline; the route is in `endpoint`.

Invariant: a label is text; the label set of a model is the sorted set of its training labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.core.dataset import Field, Row, RowError
from gristmill.core.errors import UsageError
from gristmill.core.op import Op
from gristmill.plugins.tasks.classify.endpoint import CLASSIFY

_LEAST = 1e-6
_TIE = 0.05


class Classify:
    """See `ports.task.Task`."""

    op = "classify"
    fields = (
        Field("text", "the text to classify"),
        Field("label", "the class it belongs to", is_text=False),
    )
    endpoints = (CLASSIFY,)
    primary_metric = "accuracy"

    def parse_row(self, raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
        """See the port."""
        return {
            "text": _value(raw, columns, "text", is_number_fine=False),
            "label": _value(raw, columns, "label", is_number_fine=True),
        }

    def texts(self, row: Row) -> list[str]:
        """See the port."""
        return [row["text"]]

    def with_texts(self, row: Row, texts: Sequence[str]) -> Row:
        """See the port."""
        return {**row, "text": texts[0]}

    def check(self, train: Sequence[Row], test: Sequence[Row]) -> None:
        """See the port."""
        if not train:
            raise UsageError(
                "The training part has no rows.", hint="Check the source and its rejects.", param="data"
            )
        labels = {row["label"] for row in train}
        if len(labels) == 1:
            raise UsageError(
                f"All training rows have the one label {labels.pop()!r}; a classifier needs two.",
                param="data",
            )
        unknown = sorted({row["label"] for row in test} - labels)
        if unknown:
            raise UsageError(
                f"The label {unknown[0]!r} is only in the test part, so no model can learn it"
                f"{f' (and {len(unknown) - 1} more)' if len(unknown) > 1 else ''}.",
                hint="Add training rows of it, or leave its test rows out with data.drop.",
                param="data",
            )

    def eval_op(self, row: Row) -> Op:
        """See the port."""
        return Op(kind="classify", inputs=(row["text"],))

    def scores(self, rows: Sequence[Row], outputs: Sequence[Any]) -> dict[str, list[float]]:
        """Accuracy, and `nll`: −ln of the probability given to the right label (low is well calibrated).

        Source: Good, Rational Decisions (1952), the logarithmic score.
        """
        pairs = list(zip(rows, outputs, strict=True))
        return {
            "accuracy": [float(output["label"] == row["label"]) for row, output in pairs],
            "nll": [-math.log(max(output["probs"].get(row["label"], 0.0), _LEAST)) for row, output in pairs],
        }

    def agreement(self, expected: Any, given: Any) -> float:
        """1 when the label is the same, or the two best labels are within 0.05 in `expected` and swapped.

        A near tie is no disagreement: int8 arithmetic may turn 0.502 against 0.498 over.
        """
        if expected["label"] == given["label"]:
            return 1.0
        apart = expected["probs"][expected["label"]] - expected["probs"].get(given["label"], 0.0)
        return 1.0 if apart <= _TIE else 0.0

    def baseline(self, train: Sequence[Row], test: Sequence[Row]) -> list[Any] | None:
        """TF-IDF and a linear SVM; None when scikit-learn is not installed."""
        from gristmill.plugins.tasks.classify.baseline import tfidf_outputs

        return tfidf_outputs(train, test)

    def shown(self, row: Row, output: Any) -> dict[str, str]:
        """See the port."""
        given = f"{output['label']} ({output['probs'].get(output['label'], 0.0):.2f})"
        return {"input": row["text"], "expected": row["label"], "given": given}


def _value(raw: Mapping[str, Any], columns: Mapping[str, str], field: str, *, is_number_fine: bool) -> str:
    column = columns.get(field, field)
    if column not in raw:
        raise RowError(field, f"there is no column {column!r}")
    value = raw[column]
    if is_number_fine and isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise RowError(field, "it is empty")
        value = str(int(value)) if float(value).is_integer() else str(value)
    if value is None:
        raise RowError(field, "it is empty")
    if not isinstance(value, str):
        raise RowError(field, f"it is not text but {type(value).__name__}")
    if not value.strip():
        raise RowError(field, "it is empty")
    return value.strip()
