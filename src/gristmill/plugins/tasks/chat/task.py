"""The chat task: rows, scores, baseline and routes; see `ports.task.Task`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.core.dataset import Field, Row
from gristmill.core.errors import UsageError
from gristmill.core.op import Op
from gristmill.plugins.tasks.chat import rows as chat_rows
from gristmill.plugins.tasks.chat.baseline import nearest_answers
from gristmill.plugins.tasks.chat.endpoints import ENDPOINTS
from gristmill.plugins.tasks.chat.metrics import has_facts, token_f1

_LEAST_TOKENS, _MOST_TOKENS = 24, 256


class ChatTask:
    """See `ports.task.Task`."""

    op = "generate"
    fields = (
        Field("messages", "the conversation, OpenAI's chat format; the last message is the answer to learn"),
        Field("facts", "strings that a right answer contains, all of them", is_required=False),
    )
    endpoints = ENDPOINTS
    primary_metric = "fact_recall"

    def parse_row(self, raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
        """See `ports.task.Task`."""
        return chat_rows.parse_row(raw, columns)

    def texts(self, row: Row) -> list[str]:
        """See `ports.task.Task`."""
        return chat_rows.texts(row)

    def with_texts(self, row: Row, texts: Sequence[str]) -> Row:
        """See `ports.task.Task`."""
        return chat_rows.with_texts(row, texts)

    def check(self, train: Sequence[Row], test: Sequence[Row]) -> None:
        """See `ports.task.Task`."""
        if not train:
            raise UsageError("There is no dialogue to train on.", param="data")
        if not test:
            raise UsageError(
                "There is no dialogue to test on.",
                hint="Declare a test part, or add dialogues.",
                param="data",
            )

    def eval_op(self, row: Row) -> Op:
        """See `ports.task.Task`; greedy, with room for a third more than the reference answer is long."""
        guess = len(chat_rows.answer(row)) // 3  # an English token has four characters, about
        limit = max(_LEAST_TOKENS, min(guess, _MOST_TOKENS))
        return Op("generate", (chat_rows.question(row),), {"max_tokens": limit, "temperature": 0.0})

    def scores(self, rows: Sequence[Row], outputs: Sequence[Any]) -> dict[str, list[float]]:
        """See `ports.task.Task`; `fact_recall` has one score for each row that names facts."""
        given = [str(output["text"]) for output in outputs]
        found = {
            "answer_f1": [token_f1(chat_rows.answer(r), text) for r, text in zip(rows, given, strict=True)]
        }
        recalled = [
            float(has_facts(text, row["facts"]))
            for row, text in zip(rows, given, strict=True)
            if row.get("facts")
        ]
        return {"fact_recall": recalled} | found if recalled else found

    def agreement(self, expected: Any, given: Any) -> float:
        """See `ports.task.Task`: 1 for the same text, else the token F1."""
        first, second = str(expected["text"]).strip(), str(given["text"]).strip()
        return 1.0 if first == second else token_f1(first, second)

    def baseline(self, train: Sequence[Row], test: Sequence[Row]) -> list[Any] | None:
        """See `ports.task.Task`: the answer of the nearest training question."""
        return nearest_answers(train, test)

    def shown(self, row: Row, output: Any) -> dict[str, str]:
        """See `ports.task.Task`."""
        said = [message["content"] for message in chat_rows.question(row)]
        return {"input": said[-1], "expected": chat_rows.answer(row), "given": str(output["text"])}
