"""The chat task: rows, scores, baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.core.dataset import RowError
from gristmill.core.errors import UsageError
from gristmill.plugins.tasks.chat.metrics import has_facts, token_f1
from gristmill.plugins.tasks.chat.task import ChatTask
from gristmill.ports.discovery import find

TASK = ChatTask()
ASK = {"role": "user", "content": "q?"}
ANSWER = {"role": "assistant", "content": "13 zones."}
RECIPE = Path(__file__).parents[3] / "recipes" / "assistant"


def _parse(raw: dict[str, Any]) -> dict[str, Any]:
    return TASK.parse_row(raw, {})


def test_a_good_row_keeps_messages_and_facts() -> None:
    """Broken: what teaches or tests is lost on the way."""
    raw = {"messages": [ASK, ANSWER | {"weight": 1}], "facts": ["13 zones"], "id": 7}
    assert _parse(raw) == {"messages": [ASK, ANSWER | {"weight": 1}], "facts": ["13 zones"]}
    named = {"chat": json.dumps([ASK, ANSWER])}
    assert TASK.parse_row(named, {"messages": "chat"}) == {"messages": [ASK, ANSWER]}


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({}, "messages"),
        ({"messages": "not json"}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [ANSWER]}, "messages"),
        ({"messages": [ANSWER, ASK]}, "messages"),
        ({"messages": [ASK, "x"]}, "messages[1]"),
        ({"messages": [{"role": "tool", "content": "x"}, ANSWER]}, "messages[0].role"),
        ({"messages": [{"content": "x"}, ANSWER]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]}, "messages[0].content"),
        ({"messages": [ASK | {"name": "bo"}, ANSWER]}, "messages[0].name"),
        ({"messages": [ASK, {"role": "assistant", "content": " "}]}, "messages[1].content"),
        ({"messages": [ASK | {"weight": 1}, ANSWER]}, "messages[0].weight"),
        ({"messages": [ASK, ANSWER | {"weight": 2}]}, "messages[1].weight"),
        ({"messages": [ASK, ANSWER | {"weight": 0}]}, "messages"),
        ({"messages": [ASK, ANSWER], "facts": "x"}, "facts"),
        ({"messages": [ASK, ANSWER], "facts": []}, "facts"),
        ({"messages": [ASK, ANSWER], "facts": ["a", 3]}, "facts[1]"),
        ({"messages": [ASK, ANSWER], "tools": [{}]}, "tools"),
    ],
)
def test_a_bad_row_names_its_field(raw: dict[str, Any], field: str) -> None:
    """Broken: a bad row is dropped silently, or trains nonsense."""
    with pytest.raises(RowError) as error:
        _parse(raw)
    assert error.value.field == field


def test_texts_are_masked_alike_in_messages_and_facts() -> None:
    """Broken: masking makes the reference and its facts disagree."""
    row = _parse({"messages": [ASK, ANSWER], "facts": ["13 zones"]})
    assert TASK.texts(row) == ["q?", "13 zones.", "13 zones"]
    masked = TASK.with_texts(row, ["a", "b", "c"])
    assert [m["content"] for m in masked["messages"]] == ["a", "b"]
    assert masked["facts"] == ["c"]
    assert TASK.texts(row)[0] == "q?"


@pytest.mark.parametrize(
    ("text", "facts", "is_right"),
    [
        ("It has 13 Zones.", ["13 zones"], True),
        ("It has 113 zones.", ["13 zones"], False),
        ("It has 2.13 zones.", ["13 zones"], False),
        ("It costs $143.", ["$143"], True),
        ("It costs $1430.", ["$143"], False),
        ("It costs $143.50", ["$143"], False),
        ("That is 1,250 litres", ["1250 litres"], True),
        ("from  6 am\nto 2 pm", ["6 am", "2 pm"], True),
        ("from 6 am", ["6 am", "2 pm"], False),
        ("Press Drop", ["drop"], True),
        ("call 303-555-0142.", ["303-555-0142"], True),
        ("", ["x"], False),
    ],
)
def test_facts(text: str, facts: list[str], is_right: bool) -> None:
    """Broken: a wrong number counts as right, or a right answer as wrong."""
    assert has_facts(text, facts) is is_right


@given(st.text(), st.text())
def test_f1_is_a_likeness(one: str, other: str) -> None:
    """Broken: likeness leaves [0, 1], depends on order, or a text is unlike itself."""
    assert 0 <= token_f1(one, other) <= 1
    assert token_f1(one, other) == pytest.approx(token_f1(other, one))
    assert token_f1(one, one) == 1


def test_scores_and_agreement() -> None:
    """Broken: rows without facts are counted as forgotten facts."""
    rows = [{"messages": [ASK, ANSWER], "facts": ["13 zones"]}, {"messages": [ASK, ANSWER]}]
    scores = TASK.scores(rows, [{"text": "It has 13 zones"}, {"text": "none"}])
    assert scores["fact_recall"] == [1.0]
    assert scores["answer_f1"][1] == 0
    assert next(iter(scores)) == TASK.primary_metric
    assert "fact_recall" not in TASK.scores(rows[1:], [{"text": ""}])
    assert TASK.agreement({"text": "a b "}, {"text": "a b"}) == 1
    assert 0 < TASK.agreement({"text": "a b"}, {"text": "b c"}) < 1


def test_no_data_is_refused() -> None:
    """Broken: an empty part fails deep inside the trainer."""
    row = {"messages": [ASK, ANSWER]}
    for train, test in (([], [row]), ([row], [])):
        with pytest.raises(UsageError):
            TASK.check(train, test)
    TASK.check([row], [row])


def test_the_recipe_s_rows_and_their_baseline() -> None:
    """Broken: the shipped data does not parse, or the baseline does not answer."""
    train, test = (
        [_parse(json.loads(line)) for line in (RECIPE / f"{part}.jsonl").open()] for part in ("train", "test")
    )
    outputs = TASK.baseline(train, test)
    assert outputs is not None
    recall = TASK.scores(test, outputs)["fact_recall"]
    assert len(recall) == len(test)
    assert 0.3 < sum(recall) / len(recall) < 1
    assert TASK.scores(test, [{"text": row["messages"][-1]["content"]} for row in test])["fact_recall"] == [
        1
    ] * len(test)
    op = TASK.eval_op(test[0])
    assert (op.kind, op.options["temperature"]) == ("generate", 0.0)
    assert op.inputs[0][-1]["role"] == "user"


def test_a_one_word_vocabulary() -> None:
    """Broken: questions without words break the baseline."""
    row = {"messages": [{"role": "user", "content": "?"}, ANSWER]}
    assert TASK.baseline([row], [row]) == [{"text": "13 zones."}]


def test_manifests_name_each_other() -> None:
    """Broken: a chat product has no trainer or engine."""
    manifest = find("tasks", "chat")
    assert find("trainers", manifest.capabilities["trainer"]).capabilities["tasks"] == ["chat"]
    assert TASK.op in find("engines", manifest.capabilities["engine"]).capabilities["ops"]
