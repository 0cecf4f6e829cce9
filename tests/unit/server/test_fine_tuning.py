"""Fine-tuning requests and how jobs look to OpenAI's client."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from gristmill.app.finetuning.request import hyper_of, parse
from gristmill.core.errors import UnknownField, UsageError
from gristmill.core.run import Run, RunEvent
from gristmill.server.openai.fine_tuning import shown, shown_event

ASKED = {"model": "SmolLM2-135M-Instruct", "training_file": "file_1"}
DEFAULTS = {"epochs": 3, "batch_size": 8, "learning_rate": 0.002}


def run(state: str, **facts: Any) -> Run:
    """A run as a job of the API makes it."""
    request = parse(ASKED | {"seed": 5, "suffix": "help"}).model_dump(mode="json")
    return Run(
        id="run_1",
        product="ft-1",
        task="chat",
        state=state,
        dataset_version_id="dsv_1",
        base="SmolLM2-135M-Instruct",
        customer_id="cust_1",
        recipe={"train": {"seed": 5}},
        recipe_digest="r",
        facts={"request": request} | facts,
        fence=1,
        is_cancel_asked=False,
        release_id=None,
        created_at="2026-11-20T10:00:00+00:00",
        started_at=None if state == "queued" else "2026-11-20T10:00:01+00:00",
        ended_at=None if state in ("queued", "running") else "2026-11-20T10:01:00+00:00",
    )


def test_auto_leaves_everything_to_the_trainer() -> None:
    """A job without settings would not train as the recipe's defaults do."""
    assert hyper_of(parse(ASKED).dials, DEFAULTS) == {}


@pytest.mark.parametrize("place", ["hyperparameters", "method"])
def test_the_dials_reach_the_trainer_by_its_own_names(place: str) -> None:
    """A customer's settings would be ignored."""
    dials = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    given = (
        dials
        if place == "hyperparameters"
        else {"type": "supervised", "supervised": {"hyperparameters": dials}}
    )
    hyper = hyper_of(parse(ASKED | {place: given}).dials, DEFAULTS)
    assert hyper == {"epochs": 2, "batch_size": 4, "learning_rate": 0.001}


def test_a_dial_the_trainer_lacks_is_refused() -> None:
    """A setting would be dropped in silence."""
    with pytest.raises(UsageError, match="n_epochs"):
        hyper_of(parse(ASKED | {"hyperparameters": {"n_epochs": 2}}).dials, {"rounds": 1})


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"lora": "x"}, "lora"),
        ({"hyperparameters": {"n_epoch": 1}}, "hyperparameters.n_epoch"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
    ],
)
def test_unknown_fields_are_refused_by_name(extra: dict[str, Any], named: str) -> None:
    """A misspelt setting would be believed to count."""
    with pytest.raises(UnknownField) as caught:
        parse(ASKED | extra)
    assert caught.value.param == named


@pytest.mark.parametrize(
    "extra",
    [
        {"method": {"type": "dpo"}},
        {"suffix": "Not A Slug"},
        {"suffix": "a:b"},
        {"seed": -1},
        {"hyperparameters": {"n_epochs": 0}},
        {"hyperparameters": {"n_epochs": "many"}},
        {"hyperparameters": {"learning_rate_multiplier": float("nan")}},
        {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
        {"training_file": 5},
    ],
)
def test_wrong_values_are_refused(extra: dict[str, Any]) -> None:
    """A job would fail later, or its model name would be forged."""
    with pytest.raises(UsageError):
        parse(ASKED | extra)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("queued", "queued"),
        ("running", "running"),
        ("succeeded", "succeeded"),
        ("refused", "failed"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
    ],
)
def test_jobs_are_what_the_official_client_expects(state: str, status: str) -> None:
    """The official client could not read a job in one of its states."""
    error = {"code": "gate_refused", "message": "Refused by its gates: parity.", "hint": None, "param": None}
    document = shown(run(state, error=error if state == "refused" else None), None)
    job = FineTuningJob.model_validate(document, strict=True)
    assert job.status == status
    assert set(document) == set(FineTuningJob.model_fields)
    assert (job.error.code if job.error else None) == ("gate_refused" if state == "refused" else None)
    assert job.seed == 5


def test_events_are_what_the_official_client_expects() -> None:
    """The official client could not follow a job."""
    event = RunEvent("evt_1", "run_1", "info", "train 10 %", {"loss": 1.5}, "2026-11-20T10:00:00+00:00")
    document = shown_event(event)
    assert FineTuningJobEvent.model_validate(document, strict=True).type == "metrics"
    assert set(document) == set(FineTuningJobEvent.model_fields)
