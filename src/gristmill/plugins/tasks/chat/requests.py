"""What a client may send, and nothing else: unknown fields are refused by name.

Source: OpenAI API reference, "Create chat completion" and "Create completion" (the fields named here).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from gristmill.core.errors import UnknownField, UsageError
from gristmill.core.op import Op

DEFAULT_MAX_TOKENS = 256
_MOST_STOPS = 4
SUPPORTED = (
    "Supported: model, messages (or prompt), max_tokens, max_completion_tokens, temperature, top_p, stop, "
    "seed, stream, stream_options, presence_penalty, frequency_penalty, n, user, response_format."
)


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`include_usage`: send the usage as a last event; `include_obfuscation` has no effect."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message; the fields that must be null are those an answer of ours may be sent back with."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Text is the only form of answer."""

    type: Literal["text"]


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields that both routes share."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    n: int | None = None
    user: str | None = None


class ChatRequest(Sampling, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(Sampling, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/completions`."""

    prompt: str


def chat_op(request: ChatRequest) -> Op:
    """The Op of a chat request.

    Raises:
        UsageError: a value that cannot be served; `param` is the field.
    """
    if not request.messages:
        raise UsageError("messages is empty.", param="messages")
    messages = [
        {"role": message.role, "content": _content(message.content, f"messages[{index}].content")}
        for index, message in enumerate(request.messages)
    ]
    limit = request.max_completion_tokens
    name = "max_completion_tokens" if limit is not None else "max_tokens"
    return _op(messages, request, request.max_tokens if limit is None else limit, name)


def completion_op(request: CompletionRequest) -> Op:
    """The Op of a completion request.

    Raises:
        UsageError: a value that cannot be served; `param` is the field.
    """
    if not request.prompt:
        raise UsageError("prompt is empty.", param="prompt")
    return _op(request.prompt, request, request.max_tokens, "max_tokens")


def _op(item: Any, request: Sampling, limit: int | None, limit_name: str) -> Op:
    if request.n not in (None, 1):
        raise UsageError(f"n is {request.n}; one answer a request is supported.", param="n")
    if request.stream_options is not None and not request.stream:
        raise UsageError("stream_options is for streamed answers.", param="stream_options")
    options: dict[str, Any] = {
        "max_tokens": DEFAULT_MAX_TOKENS if limit is None else _within(limit_name, limit, 1, 1 << 20),
        "temperature": _within("temperature", request.temperature, 0, 2, 1.0),
        "top_p": _within("top_p", request.top_p, 0, 1, 1.0),
        "stop": _stops(request.stop),
        "presence_penalty": _within("presence_penalty", request.presence_penalty, -2, 2, 0.0),
        "frequency_penalty": _within("frequency_penalty", request.frequency_penalty, -2, 2, 0.0),
        "include_usage": bool(request.stream_options and request.stream_options.include_usage),
    }
    if request.seed is not None:
        options["seed"] = _within("seed", request.seed, -(1 << 63), (1 << 63) - 1)
    return Op("generate", (item,), options, stream=bool(request.stream))


def _within(name: str, value: Any, low: float, high: float, default: Any = None) -> Any:
    if value is None:
        return default
    if not low <= value <= high:
        raise UsageError(f"{name} is {value}; it must be from {low} to {high}.", param=name)
    return value


def _stops(stop: str | Sequence[str] | None) -> list[str]:
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if len(stops) > _MOST_STOPS or not all(stops):
        raise UsageError(f"stop must be one to {_MOST_STOPS} strings that are not empty.", param="stop")
    return stops


def _content(content: str | list[dict[str, Any]], where: str) -> str:
    """A message's text; parts of type text are joined, others are refused by name."""
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type")
        if kind != "text":
            raise UsageError(
                f"A content part of type {kind!r} is not supported; only text.", param=f"{where}[{index}]"
            )
        for name in part:
            if name not in ("type", "text"):
                raise UnknownField(
                    f"A content part has an unknown field {name!r}.", param=f"{where}[{index}].{name}"
                )
        if not isinstance(part.get("text"), str):
            raise UsageError("A content part of type text needs its text.", param=f"{where}[{index}].text")
        texts.append(part["text"])
    return "".join(texts)
