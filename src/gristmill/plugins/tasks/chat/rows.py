"""Rows of chat: OpenAI's fine-tuning format, checked field by field.

Source: OpenAI API reference, "Fine-tuning: chat format" (messages, roles, weight).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.core.dataset import Row, RowError

ROLES = ("system", "developer", "user", "assistant")
_UNSUPPORTED = ("tools", "functions", "parallel_tool_calls", "function_call")


def parse_row(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    """See `ports.task.Task.parse_row`."""
    for name in _UNSUPPORTED:
        if raw.get(name):
            raise RowError(name, "tool calls are not supported")
    row: Row = {"messages": _messages(_decoded(raw.get(columns.get("messages", "messages")), "messages"))}
    facts = _decoded(raw.get(columns.get("facts", "facts")), "facts")
    if facts is not None:
        row["facts"] = _facts(facts)
    return row


def texts(row: Row) -> list[str]:
    """Contents of the messages, then the facts."""
    return [message["content"] for message in row["messages"]] + list(row.get("facts") or ())


def with_texts(row: Row, replaced: Sequence[str]) -> Row:
    """The row with the texts of `texts()` replaced in order."""
    count = len(row["messages"])
    messages = [message | {"content": text} for message, text in zip(row["messages"], replaced, strict=False)]
    changed = row | {"messages": messages}
    return changed | {"facts": list(replaced[count:])} if row.get("facts") else changed


def question(row: Row) -> list[dict[str, Any]]:
    """The conversation before the last answer, as an engine takes it."""
    return [{"role": message["role"], "content": message["content"]} for message in row["messages"][:-1]]


def answer(row: Row) -> str:
    """The last message: the reference answer."""
    return str(row["messages"][-1]["content"])


def _decoded(value: Any, field: str) -> Any:
    """Columns of CSV and Parquet hold lists as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise RowError(field, "is text but not JSON") from None


def _messages(value: Any) -> list[dict[str, Any]]:
    if value is None:
        raise RowError("messages", "is missing")
    if not isinstance(value, list):
        raise RowError("messages", "must be a list of messages")
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(value)]
    if not messages or messages[-1]["role"] != "assistant":
        raise RowError("messages", "the last message must be the assistant's")
    if len(messages) < 2:
        raise RowError("messages", "nothing comes before the answer")
    if not any(m.get("weight", 1) for m in messages if m["role"] == "assistant"):
        raise RowError("messages", "every answer has weight 0, so nothing is to be learnt")
    return messages


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RowError(where, "must be an object with role and content")
    for name in value:
        if name not in ("role", "content", "weight") and value[name] is not None:
            raise RowError(f"{where}.{name}", "is not supported")
    role, content, weight = value.get("role"), value.get("content"), value.get("weight")
    if role not in ROLES:
        raise RowError(f"{where}.role", f"must be one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise RowError(f"{where}.content", "must be a string")
    if role == "assistant" and not content.strip():
        raise RowError(f"{where}.content", "an answer must not be empty")
    message: dict[str, Any] = {"role": role, "content": content}
    if weight is not None:
        if role != "assistant" or isinstance(weight, bool) or weight not in (0, 1):
            raise RowError(f"{where}.weight", "must be 0 or 1, on assistant messages only")
        message["weight"] = int(weight)
    return message


def _facts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise RowError("facts", "must be a list of strings, with one at least")
    for index, fact in enumerate(value):
        if not isinstance(fact, str) or not fact.strip():
            raise RowError(f"facts[{index}]", "must be a string that is not empty")
    return list(value)
