"""The lora trainer on a tiny model: the same loss resumed as unbroken, caps, artefact, settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gristmill.core.artifact import file_sha256, load_verified
from gristmill.core.errors import Missing, UnknownField, UsageError
from gristmill.core.op import EngineSpec, ServedModel
from gristmill.core.run import TrainJob
from gristmill.kit.chat import ChatFormat
from gristmill.kit.chat_model import HiddenCache, SplitModel
from gristmill.kit.chat_pack import Dialogue, pack, shared_length, split, trim
from gristmill.plugins.engines.llamacpp.engine import LlamaCppEngine
from gristmill.plugins.trainers.lora.adapter import AdaptedModel
from gristmill.plugins.trainers.lora.settings import Settings
from gristmill.plugins.trainers.lora.trainer import LoraTrainer
from gristmill.testing.engine_suite import Harness

HYPER: dict[str, Any] = {
    "rank": 4,
    "top_layers": 2,
    "epochs": 6,
    "batch_size": 4,
    "replay": 4,
    "dropout": 0.1,
}


def _rows() -> list[dict[str, Any]]:
    def row(index: int) -> dict[str, Any]:
        asked = [{"role": "system", "content": "Help."}, {"role": "user", "content": f"item {index}?"}]
        return {"messages": [*asked, {"role": "assistant", "content": "the inn " * (1 + index % 3)}]}

    return [row(index) for index in range(10)]


@pytest.fixture
def make_job(tiny_base: Path, tmp_path: Path) -> Callable[..., TrainJob]:
    """A job in folders of its own."""

    def make(name: str, **hyper: Any) -> TrainJob:
        folder = tmp_path / name
        return TrainJob(
            run="run_1",
            fence=1,
            task="chat",
            trainer="lora",
            base="tiny",
            base_path=str(tiny_base),
            parts={},
            hyper=HYPER | hyper,
            seed=3,
            device="cpu",
            max_seconds=0,
            work_dir=str(folder / "work"),
            artifact_dir=str(folder / "artifact"),
        )

    return make


def test_resuming_gives_the_unbroken_curve(
    make_job: Callable[..., TrainJob], make_attempt: Callable[..., Any]
) -> None:
    """Broken: a run that was killed ends as another model than one that was not."""
    whole = make_attempt("whole")
    LoraTrainer().train(make_job("whole"), {"train": _rows()}, whole)
    first = make_attempt("broken", stop_at=7)
    stopped = LoraTrainer().train(make_job("broken"), {"train": _rows()}, first)
    assert (stopped.stopped_reason, stopped.steps, stopped.replay) == ("cancelled", 7, [])
    assert not (Path(make_job("broken").artifact_dir) / "artifact.json").exists()
    second = make_attempt("broken")
    finished = LoraTrainer().train(make_job("broken"), {"train": _rows()}, second)
    assert min(second.losses) == 8
    assert first.losses | second.losses == pytest.approx(whole.losses, abs=1e-6)
    assert (finished.steps, finished.epochs) == (18, 6)
    digests = [
        load_verified(Path(make_job(name).artifact_dir)).files["adapter.gguf"] for name in ("whole", "broken")
    ]
    assert digests[0] == digests[1]


def test_it_learns_and_the_artefact_serves_what_was_learnt(
    make_job: Callable[..., TrainJob], make_attempt: Callable[..., Any], tiny_base: Path
) -> None:
    """Broken: the loss does not fall, or the engine answers otherwise than the trained model."""
    job = make_job("learn", epochs=20, learning_rate=1e-2, top_layers="all", rank=8)
    attempt = make_attempt("learn")
    trained = LoraTrainer().train(job, {"train": _rows(), "validation": _rows()[:2]}, attempt)
    assert trained.metrics["loss"] < attempt.losses[1] / 4
    assert trained.metrics["validation_loss"] < attempt.losses[1]
    assert attempt.stages[-1] == "export"
    artifact = load_verified(Path(job.artifact_dir))
    assert (artifact.kind, artifact.base, artifact.engine) == ("adapter", "tiny", "llamacpp")
    assert artifact.base_digest == file_sha256(tiny_base / "base.gguf")
    served = ServedModel("rel_1", job.artifact_dir, artifact.digest, str(tiny_base))
    harness = Harness(LlamaCppEngine(), EngineSpec("llamacpp", (served,), {"threads": 1, "context": 256}))
    try:
        assert len(trained.replay) == 4
        for op, output in trained.replay:
            assert harness.run(op).results == [output]
            assert "the inn" in output["text"]
    finally:
        harness.engine.close()


def test_a_cap_still_exports(make_job: Callable[..., TrainJob], make_attempt: Callable[..., Any]) -> None:
    """Broken: a run that hits its cap on minutes leaves nothing for what it cost."""
    job = make_job("capped")
    trained = LoraTrainer().train(
        job, {"train": _rows()}, make_attempt("capped", stop_at=3, reason="max_minutes")
    )
    assert (trained.stopped_reason, trained.steps) == ("max_minutes", 3)
    assert load_verified(Path(job.artifact_dir)).kind == "adapter"


def test_checkpoints_hold_no_pickle(
    make_job: Callable[..., TrainJob], make_attempt: Callable[..., Any]
) -> None:
    """Broken: a checkpoint from elsewhere runs code when it is loaded."""
    attempt = make_attempt("files")
    LoraTrainer().train(make_job("files", epochs=1), {"train": _rows()}, attempt)
    _, folder = attempt.latest()
    assert {path.name for path in folder.iterdir()} == {"state.safetensors", "state.json"}


def test_the_two_parts_are_the_whole_and_packing_changes_nothing(tiny_base: Path, tmp_path: Path) -> None:
    """Broken: cached lower layers or packed dialogues give other logits than the model itself."""
    import torch

    chat = ChatFormat.load(tiny_base)
    dialogues = [trim(chat.dialogue(row["messages"]), 100) for row in _rows()[:3]]
    adapted = AdaptedModel(tiny_base, Settings(rank=4, top_layers=2), 5)
    model = SplitModel(adapted.model, adapted.bottom, "cpu")
    cache = HiddenCache(model, dialogues, tmp_path, "key")
    cache.build(lambda done, total: None)
    packed = pack(dialogues)
    assert shared_length(dialogues) > 10
    with torch.no_grad():
        given = model.upper(cache.hidden([0, 1, 2], packed), packed)
        wanted = [
            adapted.model(torch.tensor([dialogue.ids])).logits[0, [t - 1 for t in dialogue.targets]]
            for dialogue in dialogues
        ]
    assert torch.allclose(given, torch.cat(wanted), atol=1e-4)
    assert list(packed.labels) == [d.ids[t] for d in dialogues for t in d.targets]


def test_one_batch_of_eight_is_two_packs_of_four(tiny_base: Path, tmp_path: Path) -> None:
    """Broken: accumulating gradients over packs weighs dialogues otherwise than one pack does."""
    chat = ChatFormat.load(tiny_base)
    dialogues = [trim(chat.dialogue(row["messages"]), 100) for row in _rows()[:8]]
    lengths = sum(len(dialogue.ids) for dialogue in dialogues)
    assert [index for group in split(dialogues, lengths // 2) for index in group] == list(range(8))
    assert len(split(dialogues, lengths)) == 1
    assert split(dialogues, 1) == [[index] for index in range(8)]


def test_trimming_keeps_the_end() -> None:
    """Broken: a long dialogue loses the answer it should teach."""
    from gristmill.kit.chat import Rendered

    dialogue = trim(Rendered([1, 2, 3, 4, 5], [False, True, False, False, True]), 3)
    assert dialogue == Dialogue((3, 4, 5), (2,))


@pytest.mark.parametrize(
    ("hyper", "param"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": "big"}, "rank"),
        ({"top_layers": "some"}, "top_layers"),
        ({"projections": ["x_proj"]}, "projections"),
        ({"projections": []}, "projections"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"epochs": 1.5}, "epochs"),
    ],
)
def test_wrong_settings_are_named(hyper: dict[str, Any], param: str) -> None:
    """Broken: a wrong setting is found after the money was spent, or not at all."""
    with pytest.raises(UsageError) as error:
        LoraTrainer().check(hyper)
    assert error.value.param == param


def test_unknown_settings_suggest_the_nearest() -> None:
    """Broken: a misspelt setting is ignored."""
    with pytest.raises(UnknownField) as error:
        LoraTrainer().check({"lerning_rate": 1e-3})
    assert "learning_rate" in str(error.value.hint)
    assert LoraTrainer().check({})["rank"] == 16


def test_estimate_needs_no_weights(
    make_job: Callable[..., TrainJob], tiny_base: Path, tmp_path: Path
) -> None:
    """Broken: the price of a run is not known before it, or grows with nothing."""
    trainer = LoraTrainer()
    short, long = (trainer.estimate(make_job("x", epochs=epochs), _rows()) for epochs in (2, 200))
    assert long.trained_tokens == 100 * short.trained_tokens > 0
    assert long.train_s >= short.train_s > 0


def test_a_base_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    """Broken: a base that can be trained but never served is accepted."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="no GGUF"):
        LoraTrainer().prepare_base(tmp_path, tmp_path / "base")
    with pytest.raises(UsageError, match="no GGUF"):
        LoraTrainer().adopt("chat", "x", tmp_path, tmp_path / "artifact")


def test_an_unprepared_base_is_missing(
    make_job: Callable[..., TrainJob], make_attempt: Callable[..., Any], tmp_path: Path
) -> None:
    """Broken: training on half a base ends in a traceback."""
    import msgspec

    job = msgspec.structs.replace(make_job("x"), base_path=str(tmp_path))
    with pytest.raises(Missing):
        LoraTrainer().train(job, {"train": _rows()}, make_attempt())
