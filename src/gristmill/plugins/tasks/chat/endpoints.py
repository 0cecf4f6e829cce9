"""The two routes and the bodies and events of their answers.

Invariant: nothing of the engine shows: ids, model name and time come from the exchange.
Source: OpenAI API reference, "The chat completion object", "… chunk object", "The completion object".
"""

from __future__ import annotations

from typing import Any

from gristmill.plugins.tasks.chat.requests import (
    SUPPORTED,
    ChatRequest,
    CompletionRequest,
    chat_op,
    completion_op,
)
from gristmill.ports.task import Endpoint, Exchange

_METERS = ("input_tokens", "output_tokens", "requests")


def _usage(usage: dict[str, int]) -> dict[str, int]:
    prompt, completion = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _reason(finish_reason: str) -> str:
    """OpenAI knows no "cancelled"; whoever cancelled does not read it."""
    return "length" if finish_reason == "length" else "stop"


def _head(exchange: Exchange, prefix: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{exchange.request_id.removeprefix('req_')}",
        "object": kind,
        "created": exchange.created,
        "model": exchange.model,
    }


def _event(head: dict[str, Any], exchange: Exchange, choice: dict[str, Any]) -> dict[str, Any]:
    event = head | {"choices": [choice]}
    return event | {"usage": None} if exchange.options.get("include_usage") else event


def chat_results(
    exchange: Exchange, results: list[Any], usage: dict[str, int], finish_reason: str
) -> dict[str, Any]:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": results[0]["text"], "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(finish_reason)}
    return _head(exchange, "chatcmpl", "chat.completion") | {"choices": [choice], "usage": _usage(usage)}


def chat_chunk(exchange: Exchange, text: str, index: int) -> dict[str, Any]:
    """A streamed event of a chat completion; the first names the role."""
    delta = {"role": "assistant", "content": text} if index == 0 else {"content": text}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return _event(_head(exchange, "chatcmpl", "chat.completion.chunk"), exchange, choice)


def chat_last(exchange: Exchange, usage: dict[str, int], finish_reason: str) -> list[dict[str, Any]]:
    """The closing events of a streamed chat completion."""
    head = _head(exchange, "chatcmpl", "chat.completion.chunk")
    choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": _reason(finish_reason)}
    return _closing(head, exchange, choice, usage)


def completion_results(
    exchange: Exchange, results: list[Any], usage: dict[str, int], finish_reason: str
) -> dict[str, Any]:
    """The body of a completion."""
    choice = {
        "index": 0,
        "text": results[0]["text"],
        "logprobs": None,
        "finish_reason": _reason(finish_reason),
    }
    return _head(exchange, "cmpl", "text_completion") | {"choices": [choice], "usage": _usage(usage)}


def completion_chunk(exchange: Exchange, text: str, index: int) -> dict[str, Any]:
    """A streamed event of a completion."""
    # OpenAI's own stream has null here; the official client's type admits any string or null.
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
    return _event(_head(exchange, "cmpl", "text_completion"), exchange, choice)


def completion_last(exchange: Exchange, usage: dict[str, int], finish_reason: str) -> list[dict[str, Any]]:
    """The closing events of a streamed completion."""
    choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": _reason(finish_reason)}
    return _closing(_head(exchange, "cmpl", "text_completion"), exchange, choice, usage)


def _closing(
    head: dict[str, Any], exchange: Exchange, choice: dict[str, Any], usage: dict[str, int]
) -> list[dict[str, Any]]:
    events = [_event(head, exchange, choice)]
    if exchange.options.get("include_usage"):
        events.append(head | {"choices": [], "usage": _usage(usage)})
    return events


ENDPOINTS = (
    Endpoint(
        path="/v1/chat/completions",
        request=ChatRequest,
        to_op=chat_op,
        from_results=chat_results,
        meters=_METERS,
        from_chunk=chat_chunk,
        last_chunks=chat_last,
        supported=SUPPORTED,
    ),
    Endpoint(
        path="/v1/completions",
        request=CompletionRequest,
        to_op=completion_op,
        from_results=completion_results,
        meters=_METERS,
        from_chunk=completion_chunk,
        last_chunks=completion_last,
        supported=SUPPORTED,
    ),
)
