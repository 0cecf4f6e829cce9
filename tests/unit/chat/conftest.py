"""A tiny base model, and adapters on it with random weights, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gristmill.core.artifact import file_sha256, seal
from gristmill.core.op import EngineSpec, ServedModel
from gristmill.kit.chat import freeze_format
from gristmill.kit.gguf import BASE_FILE, convert_gguf
from gristmill.kit.gguf_lora import ADAPTER_FILE, write_adapter
from gristmill.plugins.trainers.lora.adapter import AdaptedModel
from gristmill.plugins.trainers.lora.settings import Settings
from gristmill.plugins.trainers.lora.trainer import LoraTrainer
from gristmill.testing.tiny_llama import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared base folder."""
    folder = tmp_path_factory.mktemp("tiny")
    convert_gguf(write_tiny_llama(folder / "tiny.gguf"), folder / "base")
    return folder / "base"


class RandomAdapter:
    """A torch model with a random adapter, and the same adapter sealed for the engine."""

    def __init__(self, base: Path, folder: Path, seed: int) -> None:
        import torch

        self.model = AdaptedModel(base, Settings(rank=4, alpha=8, top_layers=3), seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters.values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        folder.mkdir()
        arrays = self.model.arrays()
        write_adapter(folder / ADAPTER_FILE, arrays, model_type="llama", alpha=8, heads=4, kv_heads=2)
        freeze_format(base, folder)
        digest = file_sha256(base / BASE_FILE)
        artifact = seal(
            folder, task="chat", engine="llamacpp", kind="adapter", base="tiny", base_digest=digest
        )
        self.served = ServedModel(f"rel_{seed}", str(folder), artifact.digest, str(base))


@pytest.fixture(scope="session")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RandomAdapter]:
    """Two adapters that answer differently."""
    folder = tmp_path_factory.mktemp("adapters")
    return [RandomAdapter(tiny_base, folder / str(seed), seed) for seed in (1, 2)]


@pytest.fixture(scope="session")
def base_model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """The base itself as a release."""
    from gristmill.core.artifact import load_verified

    folder = tmp_path_factory.mktemp("adopted")
    LoraTrainer().adopt("chat", "tiny", tiny_base, folder)
    return ServedModel("rel_base", str(folder), load_verified(folder).digest)


@pytest.fixture(scope="session")
def spec(adapters: list[RandomAdapter], base_model: ServedModel) -> EngineSpec:
    """Two adapters and their base on one engine."""
    models = (*(adapter.served for adapter in adapters), base_model)
    return EngineSpec("llamacpp", models, {"threads": 1, "slots": 4, "context": 256})


class FakeAttempt:
    """An attempt in memory-like simplicity: checkpoints in a folder, seconds counted by steps."""

    def __init__(self, folder: Path, stop_at: int | None = None, reason: str = "cancelled") -> None:
        self.folder, self.stop_at, self.reason = folder, stop_at, reason
        self.losses: dict[int, float] = {}
        self.stages: list[str] = []
        self.seconds = 0.0

    def progress(self, stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
        """Record the loss of each step."""
        self.stages.append(stage)
        if stage == "train":
            self.losses[done] = metrics["loss"]
            self.seconds += 20.0

    def stopped_reason(self) -> str | None:
        """Stop after `stop_at` steps."""
        is_over = self.stop_at is not None and max(self.losses, default=0) >= self.stop_at
        return self.reason if is_over else None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep every checkpoint."""
        folder = self.folder / f"{step:06d}"
        if not folder.exists():
            folder.mkdir(parents=True)
            write(folder)

    def latest(self) -> tuple[int, Path] | None:
        """The newest checkpoint."""
        found = sorted(self.folder.glob("*"))
        return (int(found[-1].name), found[-1]) if found else None

    def train_s(self) -> float:
        """Twenty seconds a step."""
        return self.seconds


@pytest.fixture
def make_attempt(tmp_path: Path) -> Callable[..., Any]:
    """Attempts that share one folder of checkpoints by name."""
    return lambda name="a", **keys: FakeAttempt(tmp_path / "checkpoints" / name, **keys)
