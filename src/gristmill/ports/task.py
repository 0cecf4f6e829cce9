"""The task port: what a model does, told as data, so that server, gates and meter treat all tasks alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from gristmill.core.dataset import Field, Row
from gristmill.core.op import Op


class Exchange(msgspec.Struct, frozen=True):
    """What renders an answer: the public model name, request id, creation time (s since 1970) and options."""

    model: str
    request_id: str
    created: int
    options: dict[str, Any] = {}


class Endpoint(msgspec.Struct, frozen=True):
    """One HTTP route of a task, as data; `server/` and the gateway do the rest.

    Attributes:
        path: e.g. "/v1/classify". method is always POST.
        request: msgspec Struct with `forbid_unknown_fields=True`; has `model: str`; may have `stream: bool`.
        to_op: request → Op; raises UsageError(param=…) for values it cannot serve.
        from_results: (exchange, results, usage, finish_reason) → JSON-able answer body.
        from_chunk: (exchange, text, index of the chunk) → JSON-able event; None when it cannot stream.
        last_chunks: (exchange, usage, finish_reason) → closing events before `[DONE]`.
        meters: meters this endpoint may charge.
        supported: hint listing what is supported, for the error on an unknown field.
    """

    path: str
    request: type[msgspec.Struct]
    to_op: Callable[[Any], Op]
    from_results: Callable[[Exchange, list[Any], dict[str, int], str], dict[str, Any]]
    meters: tuple[str, ...]
    from_chunk: Callable[[Exchange, str, int], dict[str, Any]] | None = None
    last_chunks: Callable[[Exchange, dict[str, int], str], list[dict[str, Any]]] | None = None
    supported: str = ""


class Task(Protocol):
    """A task plug-in.

    Attributes:
        op: kind of Op its models run. fields: schema of its rows. endpoints: its routes.
        primary_metric: the metric named first in tables and used for gates by default.
    """

    op: str
    fields: tuple[Field, ...]
    endpoints: tuple[Endpoint, ...]
    primary_metric: str

    def parse_row(self, raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
        """Check one raw row and return it in normal form.

        Args:
            raw: the row as read.
            columns: task field → column name in the file.

        Raises:
            RowError: field and reason.
        """
        ...

    def texts(self, row: Row) -> list[str]:
        """All free text of a row, in order (for masking and duplicate search)."""
        ...

    def with_texts(self, row: Row, texts: Sequence[str]) -> Row:
        """The same row with its texts replaced, in the order of `texts()`."""
        ...

    def check(self, train: Sequence[Row], test: Sequence[Row]) -> None:
        """Refuse data that cannot teach this task (empty, one class, label only in test): UsageError."""
        ...

    def eval_op(self, row: Row) -> Op:
        """The Op that asks a model for this test row's answer."""
        ...

    def scores(self, rows: Sequence[Row], outputs: Sequence[Any]) -> dict[str, list[float]]:
        """Per metric one score an example, whose mean is the metric's value.

        Args:
            rows: n test rows.
            outputs: n engine results (an element of `Done.results`).
        """
        ...

    def agreement(self, expected: Any, given: Any) -> float:
        """How far a served answer agrees with the trained model's, in [0, 1] (parity)."""
        ...

    def baseline(self, train: Sequence[Row], test: Sequence[Row]) -> list[Any] | None:
        """Outputs of a simple method learnt from `train`, for each test row; None when there is none."""
        ...

    def shown(self, row: Row, output: Any) -> dict[str, str]:
        """An example for the card: {"input", "expected", "given"}."""
        ...
