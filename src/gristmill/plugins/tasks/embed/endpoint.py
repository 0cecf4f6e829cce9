"""POST /v1/embeddings as data.

Source of the wire format: OpenAI API reference, "Embeddings"; the official client asks for base64 unless told
otherwise: little-endian float32.
"""

from __future__ import annotations

import base64
import struct
from typing import Any, Literal

import msgspec

from gristmill.core.errors import UsageError
from gristmill.core.op import Op
from gristmill.ports.task import Endpoint, Exchange

MAX_INPUTS = 2048
MAX_CHARACTERS = 100_000
METERS = ("input_tokens", "items", "requests")


class EmbedRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of an embeddings request; `user` is accepted for compatibility and not used."""

    model: str
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


def to_op(request: EmbedRequest) -> Op:
    """The Op of a request.

    Raises:
        UsageError: token arrays, no text, an empty one, too many, too long, or `dimensions`.
    """
    if request.dimensions is not None:
        raise UsageError(
            "dimensions is not supported: a model's vectors have one size.",
            hint="Leave it out.",
            param="dimensions",
        )
    inputs = (request.input,) if isinstance(request.input, str) else tuple(request.input)
    if not inputs:
        raise UsageError("input holds no text.", hint="Send a text or a list of texts.", param="input")
    if len(inputs) > MAX_INPUTS:
        raise UsageError(
            f"input holds {len(inputs)} texts; at most {MAX_INPUTS} go in one request.", param="input"
        )
    for index, text in enumerate(inputs):
        where = "input" if isinstance(request.input, str) else f"input[{index}]"
        if not isinstance(text, str):
            raise UsageError(
                "input holds token numbers, which are not supported.", hint="Send texts.", param=where
            )
        if not text.strip():
            raise UsageError(f"{where} is empty.", param=where)
        if len(text) > MAX_CHARACTERS:
            raise UsageError(
                f"{where} has {len(text)} characters; the limit is {MAX_CHARACTERS}.", param=where
            )
    return Op(kind="embed", inputs=inputs, options={"encoding_format": request.encoding_format})


def from_results(
    exchange: Exchange, results: list[Any], usage: dict[str, int], finish_reason: str
) -> dict[str, Any]:
    """The answer body of an embeddings request."""
    is_packed = exchange.options.get("encoding_format") == "base64"
    n_tokens = usage.get("input_tokens", 0)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if is_packed else vector}
            for index, vector in enumerate(results)
        ],
        "model": exchange.model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


EMBEDDINGS = Endpoint(
    path="/v1/embeddings",
    request=EmbedRequest,
    to_op=to_op,
    from_results=from_results,
    meters=METERS,
    supported="Supported fields: model, input (a text or a list of texts), encoding_format, user.",
)
