"""The two routes: what is refused, and bodies as the official client reads them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gristmill.core.errors import UsageError
from gristmill.core.op import Op
from gristmill.plugins.tasks.chat.endpoints import ENDPOINTS
from gristmill.ports.task import Exchange

CHAT, PLAIN = ENDPOINTS
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
USAGE = {"input_tokens": 3, "output_tokens": 5}


def _op(**fields: Any) -> Op:
    return CHAT.to_op(msgspec.json.decode(json.dumps(BODY | fields).encode(), type=CHAT.request))


@pytest.mark.parametrize(
    "name",
    [
        "lora",
        "id_slot",
        "cache_prompt",
        "grammar",
        "tools",
        "logit_bias",
        "top_k",
        "json_schema",
        "n_predict",
    ],
)
def test_the_engine_s_own_fields_are_refused_by_name(name: str) -> None:
    """Broken: a client reaches llama.cpp's fields, and with them another customer's adapter."""
    with pytest.raises(msgspec.ValidationError, match=name):
        _op(**{name: []})
    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.json.decode(json.dumps({"model": "m", "prompt": "x", name: 1}).encode(), type=PLAIN.request)


def test_an_op_holds_what_was_asked_and_openai_s_defaults() -> None:
    """Broken: settings are lost or defaults differ from OpenAI's."""
    op = _op()
    assert op.inputs == ([{"role": "user", "content": "hi"}],)
    assert (op.options["max_tokens"], op.options["temperature"], op.options["top_p"]) == (256, 1.0, 1.0)
    assert "seed" not in op.options
    assert not op.stream
    op = _op(max_completion_tokens=9, max_tokens=5, stop="x", seed=-3, stream=True, temperature=0)
    assert (op.options["max_tokens"], op.options["stop"], op.options["seed"]) == (9, ["x"], -3)
    assert op.stream
    assert _op(stop=None, n=1, user="u", response_format={"type": "text"}, stream=False).options["stop"] == []


def test_text_parts_are_joined_and_others_refused() -> None:
    """Broken: a picture is silently left out of a paid request."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert _op(messages=[{"role": "user", "content": parts}]).inputs[0][0]["content"] == "ab"
    with pytest.raises(UsageError, match="image_url") as error:
        _op(messages=[{"role": "user", "content": [*parts, {"type": "image_url"}]}])
    assert error.value.param == "messages[0].content[2]"


def test_an_answer_can_be_sent_back() -> None:
    """Broken: `messages.append(answer.choices[0].message)` is refused."""
    body = CHAT.from_results(Exchange("m", "req_1", 1), [{"text": "yes"}], USAGE, "stop")
    message = ChatCompletion.model_validate(body).choices[0].message.to_dict()
    full = ChatCompletion.model_validate(body).choices[0].message.model_dump()
    for said in (message, full):
        assert _op(messages=[*BODY["messages"], said]).inputs[0][1] == {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_wrong_values_name_their_field(fields: dict[str, Any], param: str) -> None:
    """Broken: a wrong value is served as something else."""
    with pytest.raises(UsageError) as error:
        _op(**fields)
    assert error.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "name": "bo"}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
        {"max_tokens": "many"},
    ],
)
def test_wrong_shapes_are_refused(fields: dict[str, Any]) -> None:
    """Broken: a feature that does not exist is accepted and not honoured."""
    with pytest.raises(msgspec.ValidationError):
        _op(**fields)


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled"])
def test_bodies_as_the_official_client_reads_them(reason: str) -> None:
    """Broken: the openai client raises on our answers, or they show the engine."""
    exchange = Exchange("ft:x", "req_abc", 1_700_000_000)
    body = CHAT.from_results(exchange, [{"text": "yes"}], USAGE, reason)
    chat = ChatCompletion.model_validate(body, strict=True)
    assert (chat.id, chat.model, chat.created) == ("chatcmpl-abc", "ft:x", 1_700_000_000)
    assert chat.usage is not None
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.total_tokens) == (3, 5, 8)
    plain = Completion.model_validate(
        PLAIN.from_results(exchange, [{"text": "yes"}], USAGE, reason), strict=True
    )
    assert plain.choices[0].text == "yes"
    assert plain.choices[0].finish_reason == ("length" if reason == "length" else "stop")


@pytest.mark.parametrize("is_usage_asked", [False, True])
def test_events_as_the_official_client_reads_them(is_usage_asked: bool) -> None:
    """Broken: a stream lacks its role, its end or the usage that was asked for."""
    exchange = Exchange("m", "req_1", 1, {"include_usage": is_usage_asked})
    assert CHAT.from_chunk is not None
    assert CHAT.last_chunks is not None
    raw = [CHAT.from_chunk(exchange, text, i) for i, text in enumerate(["a", "", "b"])]
    raw += CHAT.last_chunks(exchange, USAGE, "length")
    events = [ChatCompletionChunk.model_validate(event, strict=True) for event in raw]
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == "ab"
    finished = [event for event in events if event.choices and event.choices[0].finish_reason]
    assert [event.choices[0].finish_reason for event in finished] == ["length"]
    usages = [event.usage for event in events if event.usage is not None]
    assert [usage.completion_tokens for usage in usages] == ([5] if is_usage_asked else [])
    assert (events[-1].choices == []) is is_usage_asked
    assert len({event.id for event in events}) == 1


def test_completion_events() -> None:
    """Broken: a streamed completion cannot be read."""
    exchange = Exchange("m", "req_1", 1)
    assert PLAIN.from_chunk is not None
    assert PLAIN.last_chunks is not None
    raw = [PLAIN.from_chunk(exchange, "a", 0), *PLAIN.last_chunks(exchange, USAGE, "stop")]
    assert [event["choices"][0]["finish_reason"] for event in raw] == [None, "stop"]
    # OpenAI's own stream has null before the end too, which the client's type does not admit: it constructs.
    assert Completion.construct(**raw[0]).choices[0].text == "a"
    assert Completion.model_validate(raw[1], strict=True).object == "text_completion"


def test_a_plain_prompt() -> None:
    """Broken: a completion's prompt is lost, or an empty one reaches the engine."""
    request = msgspec.json.decode(b'{"model": "m", "prompt": "x", "max_tokens": 4}', type=PLAIN.request)
    assert PLAIN.to_op(request).inputs == ("x",)
    with pytest.raises(UsageError):
        PLAIN.to_op(msgspec.structs.replace(request, prompt=""))
