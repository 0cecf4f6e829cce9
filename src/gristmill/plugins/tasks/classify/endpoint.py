"""POST /v1/classify as data.

Source of the wire format: vLLM documentation, "Classification API" (`probs` is a list); the order of `probs`
is that of the sorted labels, which `labels` names.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gristmill.core.errors import UsageError
from gristmill.core.op import Op
from gristmill.ports.task import Endpoint, Exchange

MAX_INPUTS = 2048
MAX_CHARACTERS = 100_000
METERS = ("input_tokens", "items", "requests")


class ClassifyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a classify request: the public model name and one text or several."""

    model: str
    input: str | list[str]


def to_op(request: ClassifyRequest) -> Op:
    """The Op of a request.

    Raises:
        UsageError: no text, an empty one, too many, or one too long; `param` names which.
    """
    inputs = (request.input,) if isinstance(request.input, str) else tuple(request.input)
    if not inputs:
        raise UsageError("input holds no text.", hint="Send a text or a list of texts.", param="input")
    if len(inputs) > MAX_INPUTS:
        raise UsageError(
            f"input holds {len(inputs)} texts; at most {MAX_INPUTS} go in one request.", param="input"
        )
    for index, text in enumerate(inputs):
        where = "input" if isinstance(request.input, str) else f"input[{index}]"
        if not text.strip():
            raise UsageError(f"{where} is empty.", param=where)
        if len(text) > MAX_CHARACTERS:
            raise UsageError(
                f"{where} has {len(text)} characters; the limit is {MAX_CHARACTERS}.", param=where
            )
    return Op(kind="classify", inputs=inputs)


def from_results(
    exchange: Exchange, results: list[Any], usage: dict[str, int], finish_reason: str
) -> dict[str, Any]:
    """The answer body of a classify request."""
    labels = sorted(results[0]["probs"]) if results else []
    n_tokens = usage.get("input_tokens", 0)
    return {
        "object": "list",
        "data": [
            {
                "index": index,
                "label": result["label"],
                "probs": [result["probs"][label] for label in labels],
                "num_classes": len(labels),
            }
            for index, result in enumerate(results)
        ],
        "labels": labels,
        "model": exchange.model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


CLASSIFY = Endpoint(
    path="/v1/classify",
    request=ClassifyRequest,
    to_op=to_op,
    from_results=from_results,
    meters=METERS,
    supported="Supported fields: model, input (a text or a list of texts).",
)
