"""The classify and embed tasks: rows, routes, scores, baseline."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import msgspec
import pytest

from gristmill.core.dataset import RowError
from gristmill.core.errors import UsageError
from gristmill.plugins.tasks.classify.endpoint import CLASSIFY, ClassifyRequest
from gristmill.plugins.tasks.classify.task import Classify
from gristmill.plugins.tasks.embed.endpoint import EMBEDDINGS, EmbedRequest
from gristmill.plugins.tasks.embed.task import Embed
from gristmill.ports.discovery import find, load
from gristmill.ports.task import Exchange
from gristmill.testing.tiny import review_rows

EXCHANGE = Exchange("ft:mini:acme:tone:1", "req_1", 0)


def test_both_tasks_are_found_and_name_their_partners() -> None:
    """Broken: a recipe cannot name the task, or the trainer and engine that serve it."""
    for name in ("classify", "embed"):
        manifest = find("tasks", name)
        assert load(manifest).op == name
        assert manifest.capabilities == {"trainer": "encoder", "engine": "onnx"}
    assert find("engines", "onnx").capabilities["ops"] == ["classify", "embed"]


def test_a_classify_request_is_answered_in_the_agreed_shape() -> None:
    """Broken: clients written against /v1/classify cannot read the answer."""
    op = CLASSIFY.to_op(msgspec.json.decode(b'{"model": "m", "input": ["a", "b"]}', type=ClassifyRequest))
    assert op.inputs == ("a", "b")
    results = [
        {"label": "good", "probs": {"good": 0.75, "bad": 0.25}},
        {"label": "bad", "probs": {"good": 0.1, "bad": 0.9}},
    ]
    body = CLASSIFY.from_results(EXCHANGE, results, {"input_tokens": 7, "items": 2}, "stop")
    assert body["object"] == "list"
    assert body["model"] == EXCHANGE.model
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert body["data"][0] == {"index": 0, "label": "good", "probs": [0.25, 0.75], "num_classes": 2}
    assert body["labels"] == ["bad", "good"]


@pytest.mark.parametrize(
    "body", [b'{"model":"m","input":"a","lora":1}', b'{"model":"m"}', b'{"model":"m","input":5}']
)
def test_a_field_of_the_engine_never_passes(body: bytes) -> None:
    """Broken: a client reaches the engine's own fields."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=ClassifyRequest)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([], "input"),
        ("", "input"),
        (["a", " "], "input[1]"),
        (["a"] * 2049, "input"),
        ("a" * 100_001, "input"),
    ],
)
def test_inputs_out_of_bounds_are_refused_by_name(given: Any, param: str) -> None:
    """Broken: an empty or huge request reaches the engine."""
    for to_op, request in (
        (CLASSIFY.to_op, ClassifyRequest("m", given)),
        (EMBEDDINGS.to_op, EmbedRequest("m", given)),
    ):
        with pytest.raises(UsageError) as caught:
            to_op(request)
        assert caught.value.param == param


def test_embeddings_come_as_floats_or_base64() -> None:
    """Broken: the official client, which asks for base64, reads other numbers than it was sent."""
    op = EMBEDDINGS.to_op(EmbedRequest("m", "a", encoding_format="base64"))
    vector = [0.6, -0.8]
    packed = EMBEDDINGS.from_results(
        Exchange("m", "r", 0, op.options), [vector], {"input_tokens": 3, "items": 1}, "stop"
    )
    read = struct.unpack("<2f", base64.b64decode(packed["data"][0]["embedding"]))
    assert read == pytest.approx(vector)
    plain = EMBEDDINGS.from_results(EXCHANGE, [vector], {"input_tokens": 3}, "stop")
    assert plain["data"][0] == {"object": "embedding", "index": 0, "embedding": vector}


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (EmbedRequest("m", [1, 2, 3]), "input[0]"),
        (EmbedRequest("m", [[1, 2]]), "input[0]"),
        (EmbedRequest("m", "a", dimensions=5), "dimensions"),
    ],
)
def test_token_arrays_and_dimensions_are_refused_by_name(request_: EmbedRequest, param: str) -> None:
    """Broken: token numbers of another model's tokenizer are embedded as if they were text."""
    with pytest.raises(UsageError) as caught:
        EMBEDDINGS.to_op(request_)
    assert caught.value.param == param


def test_rows_are_checked_field_by_field() -> None:
    """Broken: a bad row is dropped without a reason, or trains a class named "nan"."""
    task = Classify()
    assert task.parse_row({"body": " fine ", "y": 3.0}, {"text": "body", "label": "y"}) == {
        "text": "fine",
        "label": "3",
    }
    for raw, field in (
        ({"label": "x"}, "text"),
        ({"text": "", "label": "x"}, "text"),
        ({"text": "a", "label": None}, "label"),
        ({"text": "a", "label": float("nan")}, "label"),
        ({"text": "a", "label": ["x"]}, "label"),
        ({"text": 5, "label": "x"}, "text"),
    ):
        with pytest.raises(RowError) as caught:
            task.parse_row(raw, {})
        assert caught.value.field == field


def test_data_that_cannot_teach_is_refused() -> None:
    """Broken: an hour of training ends in a model that cannot know a class it is tested on."""
    task = Classify()
    rows = review_rows(4)
    task.check(rows, rows)
    with pytest.raises(UsageError):
        task.check([], rows)
    with pytest.raises(UsageError, match="one label 'good'"):
        task.check([row for row in rows if row["label"] == "good"], [])
    with pytest.raises(UsageError, match="'angry'"):
        task.check(rows, [{"text": "x", "label": "angry"}])


def test_scores_and_agreement() -> None:
    """Broken: a right answer counts as wrong, or a near tie fails the parity gate."""
    task = Classify()
    sure = {"label": "good", "probs": {"good": 0.9, "bad": 0.1}}
    tie = {"label": "bad", "probs": {"good": 0.49, "bad": 0.51}}
    scores = task.scores([{"text": "x", "label": "good"}] * 2, [sure, tie])
    assert scores["accuracy"] == [1.0, 0.0]
    assert scores["nll"] == pytest.approx([-math.log(0.9), -math.log(0.49)])
    assert task.agreement(sure, sure) == 1.0
    assert task.agreement(sure, tie) == 0.0
    assert task.agreement(tie, sure) == 1.0
    assert Embed().agreement([0.6, 0.8], [0.6, 0.8]) == pytest.approx(1.0)


def test_the_baseline_is_a_real_method() -> None:
    """Broken: a model is compared with a straw man."""
    rows = review_rows(300)
    outputs = Classify().baseline(rows[:200], rows[200:])
    assert outputs is not None
    scores = Classify().scores(rows[200:], outputs)["accuracy"]
    assert sum(scores) / len(scores) > 0.9
    assert all(math.isclose(sum(output["probs"].values()), 1.0, abs_tol=1e-9) for output in outputs)


def test_the_baseline_reads_scripts_without_spaces() -> None:
    """Broken: on Chinese text the baseline sees whole sentences as words, and any model beats it."""
    good, bad = "房间很好服务热情", "房间很小又脏又旧"
    rows = [{"text": (good if n % 2 else bad) + "啊" * (n % 5), "label": str(n % 2)} for n in range(60)]
    outputs = Classify().baseline(rows[:40], rows[40:])
    assert outputs is not None
    assert all(output["label"] == row["label"] for output, row in zip(outputs, rows[40:], strict=True))
