"""A third-party task: texts written backwards, with a route and an Op kind of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gristmill.core.dataset import Field, Row, RowError
from gristmill.core.errors import UsageError
from gristmill.core.op import Op
from gristmill.ports.manifest import Manifest
from gristmill.ports.task import Endpoint, Exchange

MANIFEST = Manifest(
    name="mirror",
    kind="tasks",
    summary="Write a text backwards.",
    implementation="mirror_task:Mirror",
    capabilities={"trainer": "mirror", "engine": "mirror"},
)


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/reverse`."""

    model: str
    input: str
    stream: bool = False
    max_tokens: int = 1000


def to_op(request: Request) -> Op:
    """The Op of a request."""
    if not request.input.strip():
        raise UsageError("input is empty.", param="input")
    return Op("mirror", (request.input,), {"max_tokens": request.max_tokens}, stream=request.stream)


def answer(exchange: Exchange, results: list[Any], usage: dict[str, int], reason: str) -> dict[str, Any]:
    """The answer in one piece."""
    return {"model": exchange.model, "output": results[0]["text"], "finish_reason": reason, "usage": usage}


def chunk(exchange: Exchange, text: str, index: int) -> dict[str, Any]:
    """One streamed event."""
    return {"index": index, "output": text}


def last(exchange: Exchange, usage: dict[str, int], reason: str) -> list[dict[str, Any]]:
    """The closing event."""
    return [{"finish_reason": reason, "usage": usage}]


class Mirror:
    """See `ports.task.Task`."""

    op = "mirror"
    fields = (Field("text", "a text"), Field("answer", "the text backwards"))
    primary_metric = "exact"
    endpoints = (
        Endpoint(
            path="/v1/reverse",
            request=Request,
            to_op=to_op,
            from_results=answer,
            meters=("letters", "output_tokens"),
            from_chunk=chunk,
            last_chunks=last,
            supported="Supported: model, input, stream, max_tokens.",
        ),
    )

    def parse_row(self, raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
        """See the port."""
        row = {field.name: raw.get(columns.get(field.name, field.name)) for field in self.fields}
        for name, value in row.items():
            if not isinstance(value, str) or not value:
                raise RowError(name, "is not a text")
        return row

    def texts(self, row: Row) -> list[str]:
        """See the port."""
        return [row["text"], row["answer"]]

    def with_texts(self, row: Row, texts: Sequence[str]) -> Row:
        """See the port."""
        return row | {"text": texts[0], "answer": texts[1]}

    def check(self, train: Sequence[Row], test: Sequence[Row]) -> None:
        """See the port."""
        if not train:
            raise UsageError("There is no row to learn from.", param="data")

    def eval_op(self, row: Row) -> Op:
        """See the port."""
        return Op("mirror", (row["text"],))

    def scores(self, rows: Sequence[Row], outputs: Sequence[Any]) -> dict[str, list[float]]:
        """See the port."""
        pairs = zip(rows, outputs, strict=True)
        return {"exact": [float(row["answer"] == output["text"]) for row, output in pairs]}

    def agreement(self, expected: Any, given: Any) -> float:
        """See the port."""
        return float(expected["text"] == given["text"])

    def baseline(self, train: Sequence[Row], test: Sequence[Row]) -> list[Any] | None:
        """The text as it is."""
        return [{"text": row["text"]} for row in test]

    def shown(self, row: Row, output: Any) -> dict[str, str]:
        """See the port."""
        return {"input": row["text"], "expected": row["answer"], "given": output["text"]}
