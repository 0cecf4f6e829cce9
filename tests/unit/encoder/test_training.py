"""The encoder trainer on a tiny model: learning, exact resuming, early end, wrong settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gristmill.core.artifact import load_verified
from gristmill.core.errors import UnknownField, UsageError
from gristmill.core.run import TrainJob
from gristmill.kit.encoder import Classifier, load_encoder
from gristmill.kit.encoder_session import Session, Texts
from gristmill.kit.layer_cache import LayerCache, cache_key
from gristmill.plugins.trainers.encoder.features import Features, choose_compute
from gristmill.plugins.trainers.encoder.settings import Settings, resolved
from gristmill.plugins.trainers.encoder.trainer import EncoderTrainer
from gristmill.testing.tiny import MemoryAttempt, review_rows


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the trainer may catch it."""


class Interrupted(MemoryAttempt):
    """An attempt whose process dies after a number of steps."""

    def __init__(self, folder: Path, n_steps: int) -> None:
        super().__init__(folder)
        self._n_steps = n_steps

    def progress(self, stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
        """Die once enough steps were made."""
        super().progress(stage, done, total, metrics)
        if stage == "train" and done >= self._n_steps:
            raise Killed


def test_it_learns_and_seals_what_it_learnt(taught: Any) -> None:
    """Broken: training does not learn, or the artefact lacks what serving must agree on."""
    assert taught.trained.metrics["validation_accuracy"] > 0.7  # chance is 0.5
    assert taught.trained.stopped_reason is None
    assert taught.trained.epochs == 3.0
    artifact = load_verified(Path(taught.job.artifact_dir))
    assert artifact.facts["labels"] == ["bad", "good"]
    assert artifact.facts["precision"] == "int8"
    assert set(artifact.files) == {"model.int8.onnx", "tokenizer.json"}
    assert len(taught.trained.base_outputs) == len(taught.parts["test"])


def test_the_export_answers_as_the_trained_model_did(taught: Any) -> None:
    """Broken: what is served is not what was trained (train/serve skew)."""
    folder = Path(taught.job.artifact_dir)
    facts = load_verified(folder).facts
    texts = Texts(folder / "tokenizer.json", facts["max_tokens"], facts["pad"])
    session = Session(folder, facts, threads=1)
    given = session.run(texts.encode([op.inputs[0] for op, _ in taught.trained.replay]))
    pairs = list(zip((output for _, output in taught.trained.replay), given, strict=True))
    apart = [abs(one["probs"]["good"] - other["probs"]["good"]) for one, other in pairs]
    assert sum(apart) / len(apart) < 0.02
    assert sum(one["label"] == other["label"] for one, other in pairs) >= 0.98 * len(pairs)


def test_killed_and_resumed_is_as_if_never_killed(
    taught: Any, make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    """Broken: a crash changes what a run learns, or the second attempt starts over."""
    job = make_job(tmp_path)
    with pytest.raises(Killed):
        EncoderTrainer().train(job, taught.parts, Interrupted(tmp_path / "checkpoints", 30))
    second = MemoryAttempt(tmp_path / "checkpoints")
    trained = EncoderTrainer().train(job, taught.parts, second)
    whole = taught.attempt.losses()
    assert 0 < len(second.losses()) < len(whole)
    assert second.losses() == pytest.approx(whole[-len(second.losses()) :], rel=1e-5)
    assert trained.trained_tokens == taught.trained.trained_tokens
    assert trained.metrics["validation_accuracy"] == taught.trained.metrics["validation_accuracy"]
    assert not any(stage == "cache" and done < total for stage, done, total, _ in second.reports)


def test_a_cap_ends_it_with_an_artefact(
    make_job: Callable[..., TrainJob], parts: dict[str, Any], tmp_path: Path
) -> None:
    """Broken: a run that reaches its cap on time or money leaves nothing to show for it."""
    attempt = MemoryAttempt(tmp_path / "checkpoints", stop_at=5)
    trained = EncoderTrainer().train(make_job(tmp_path), parts, attempt)
    assert trained.stopped_reason == "max_minutes"
    assert trained.steps == 5
    assert 0 < trained.epochs < 1
    latest = attempt.latest()
    assert latest is not None
    assert latest[0] == 5
    assert {path.name for path in latest[1].iterdir()} == {"loop.safetensors", "loop.json"}
    load_verified(tmp_path / "artifact")


@pytest.mark.parametrize("method", ["head", "full"])
def test_the_other_methods_learn_too(
    method: str, make_job: Callable[..., TrainJob], parts: dict[str, Any], tmp_path: Path
) -> None:
    """Broken: `head` or `full` cannot be trained."""
    job = make_job(tmp_path, method=method, epochs=6)
    trained = EncoderTrainer().train(job, parts, MemoryAttempt(tmp_path / "checkpoints"))
    assert trained.metrics["validation_accuracy"] > 0.7


def test_cached_layers_give_the_same_logits(base: Path, tmp_path: Path) -> None:
    """Broken: the cache of frozen layers changes what the upper layers see."""
    torch.manual_seed(0)
    classifier = Classifier(load_encoder(base), 2, 0.0).eval()
    ids = Texts(base / "tokenizer.json", 64, 0).encode([row["text"] for row in review_rows(50)])
    lengths = np.array([len(row) for row in ids])
    compute = choose_compute("cpu", "float32")
    cache = LayerCache(tmp_path, cache_key("x", 2, ids), lengths, classifier.encoder.width)
    cached = Features(classifier, ids, 0, 2, compute, cache)
    assert cached.fill_cache(lambda done, total: True)
    plain = Features(classifier, ids, 0, 2, compute)
    rows = np.arange(50)
    assert torch.allclose(cached.predict(rows), plain.predict(rows), atol=2e-3)
    assert torch.allclose(plain.predict(rows), plain.predict_whole(rows), atol=1e-5)


def test_a_half_written_cache_is_continued_and_a_foreign_one_ignored(base: Path, tmp_path: Path) -> None:
    """Broken: a restart computes everything again, or trains on another model's hidden states."""
    classifier = Classifier(load_encoder(base), 2, 0.0).eval()
    ids = [[2, 5 + number % 30, 3] for number in range(6000)]
    lengths = np.array([len(row) for row in ids])
    key = cache_key("x", 1, ids)
    cache = LayerCache(tmp_path, key, lengths, 32)
    features = Features(classifier, ids, 0, 1, choose_compute("cpu", "float32"), cache)
    assert not features.fill_cache(lambda done, total: done < 2)
    assert LayerCache(tmp_path, key, lengths, 32).n_batches == 2
    assert LayerCache(tmp_path, cache_key("y", 1, ids), lengths, 32).n_batches == 0


@pytest.mark.parametrize(
    ("hyper", "field"),
    [
        ({"epoch": 3}, "epoch"),
        ({"epochs": -1}, "epochs"),
        ({"epochs": "three"}, "epochs"),
        ({"method": "lora"}, "method"),
        ({"learning_rate": 7.0}, "learning_rate"),
        ({"warmup": -0.1}, "warmup"),
        ({"top_layers": True}, "top_layers"),
    ],
)
def test_wrong_settings_are_refused_by_name(hyper: dict[str, Any], field: str) -> None:
    """Broken: a misspelt or impossible setting is silently dropped, or fails after an hour."""
    with pytest.raises(UsageError) as caught:
        EncoderTrainer().check(hyper)
    assert caught.value.param == field
    if field == "epoch":
        assert isinstance(caught.value, UnknownField)
        assert "epochs" in (caught.value.hint or "")


def test_few_rows_a_class_get_more_epochs() -> None:
    """Broken: small data is under-trained, or large data costs twice the time for nothing."""
    chosen = [resolved(Settings(), *size).epochs for size in ((9000, 2), (3000, 2), (10_000, 77), (200, 10))]
    assert chosen == [1, 2, 4, 6]
    assert resolved(Settings(epochs=9), 9000, 2).epochs == 9


def test_more_top_layers_than_there_are_is_refused(
    make_job: Callable[..., TrainJob], parts: dict[str, Any], tmp_path: Path
) -> None:
    """Broken: a setting the base cannot meet ends in a traceback."""
    with pytest.raises(UsageError) as caught:
        EncoderTrainer().train(make_job(tmp_path, top_layers=9), parts, MemoryAttempt(tmp_path))
    assert caught.value.param == "top_layers"


def test_the_estimate_counts_tokens_exactly_enough(
    make_job: Callable[..., TrainJob], parts: dict[str, Any], tmp_path: Path, taught: Any
) -> None:
    """Broken: cost is announced for another amount of work than is done."""
    estimate = EncoderTrainer().estimate(make_job(tmp_path), parts["train"])
    assert estimate.trained_tokens == pytest.approx(taught.trained.trained_tokens, rel=0.05)
    assert estimate.train_s > 0
    longer = EncoderTrainer().estimate(make_job(tmp_path, epochs=300), parts["train"])
    assert longer.train_s > estimate.train_s
