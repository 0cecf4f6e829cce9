"""Models that were not trained here enter as sealed artefacts."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from gristmill.core.artifact import load_verified
from gristmill.core.errors import UsageError
from gristmill.kit.encoder_session import Session, Texts
from gristmill.plugins.trainers.encoder.trainer import EncoderTrainer


def answers(folder: Path, texts: list[str]) -> list[Any]:
    """What an artefact says to texts."""
    facts = load_verified(folder).facts
    rows = Texts(folder / "tokenizer.json", facts["max_tokens"], facts["pad"]).encode(texts)
    return Session(folder, facts, threads=1).run(rows)


def test_a_base_becomes_an_embedder(base: Path, tmp_path: Path) -> None:
    """Broken: `release import` of an encoder gives vectors that are not of length one."""
    EncoderTrainer().adopt("embed", "tiny", base, tmp_path / "out")
    vectors = answers(tmp_path / "out", ["a lovely film", "the film was dull"])
    assert [len(vector) for vector in vectors] == [32, 32]
    assert all(math.isclose(sum(v * v for v in vector), 1.0, abs_tol=1e-4) for vector in vectors)


def test_a_base_without_a_head_cannot_classify(base: Path, tmp_path: Path) -> None:
    """Broken: an untrained model is sold as a classifier."""
    with pytest.raises(UsageError) as caught:
        EncoderTrainer().adopt("classify", "tiny", base, tmp_path / "out")
    assert caught.value.param == "task"


def test_a_sequence_classifier_keeps_its_labels(base: Path, tmp_path: Path) -> None:
    """Broken: an imported classifier answers with other labels than its own."""
    from transformers import AutoConfig, BertForSequenceClassification

    config = AutoConfig.from_pretrained(base)
    config.id2label, config.label2id = {0: "no", 1: "maybe", 2: "yes"}, {"no": 0, "maybe": 1, "yes": 2}
    config.num_labels = 3
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    shutil.copy(base / "tokenizer.json", tmp_path / "model")
    EncoderTrainer().adopt("classify", "mine", tmp_path / "model", tmp_path / "out")
    result = answers(tmp_path / "out", ["a lovely film"])[0]
    assert list(result["probs"]) == ["no", "maybe", "yes"]
    assert math.isclose(sum(result["probs"].values()), 1.0, abs_tol=1e-4)


def test_a_bare_onnx_file_is_taken_with_its_tokenizer(taught: Any, tmp_path: Path) -> None:
    """Broken: a model that is ONNX already cannot be imported, or without labels is imported blindly."""
    source = Path(taught.job.artifact_dir)
    folder = tmp_path / "given"
    folder.mkdir()
    shutil.copy(source / "model.int8.onnx", folder / "mine.onnx")
    shutil.copy(source / "tokenizer.json", folder)
    with pytest.raises(UsageError, match="labels"):
        EncoderTrainer().adopt("classify", "mine", folder, tmp_path / "out")
    config = {"num_hidden_layers": 3, "hidden_size": 32, "id2label": {"0": "bad", "1": "good"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    EncoderTrainer().adopt("classify", "mine", folder / "mine.onnx", tmp_path / "out")
    assert answers(tmp_path / "out", ["a lovely superb film"]) == answers(source, ["a lovely superb film"])


def test_pickled_weights_are_refused(base: Path, tmp_path: Path) -> None:
    """Broken: a model file that can run code is loaded."""
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="safetensors"):
        EncoderTrainer().adopt("embed", "mine", folder, tmp_path / "out")
