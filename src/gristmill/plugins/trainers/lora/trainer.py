"""The trainer: prepare a base, estimate, train, export; each step in a module of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from gristmill.core.artifact import seal
from gristmill.core.dataset import Row
from gristmill.core.errors import Missing, UsageError
from gristmill.core.run import TrainJob
from gristmill.kit.chat import ChatFormat, freeze_format
from gristmill.kit.chat_model import pick_device
from gristmill.kit.chat_pack import pack, trim
from gristmill.kit.gguf import (
    ARCHITECTURES,
    BASE_FILE,
    WEIGHTS_FILE,
    convert_gguf,
    freeze_gguf_format,
    is_gguf,
    link_or_copy,
)
from gristmill.plugins.trainers.lora.settings import Settings, read_settings
from gristmill.ports.trainer import Attempt, Estimate, Trained

_GGUF_HINT = "Give the model as a GGUF file: it is served as it is, and its weights are taken for training."
# Part of a core's measured matrix speed that a whole training step reached (2 cores, 135 M parameters).
_EFFICIENCY = 0.6
_LOAD_S = 8.0


class LoraTrainer:
    """See `ports.trainer.Trainer`."""

    def check(self, hyper: dict[str, Any]) -> dict[str, Any]:
        """See `ports.trainer.Trainer`."""
        return dict(msgspec.to_builtins(read_settings(hyper)))

    def prepare_base(self, source: Path, folder: Path) -> None:
        """Make `folder` a base that trains and serves, from a GGUF file (or a folder that holds one).

        Raises:
            UsageError: no GGUF there, or not of a chat model. llama.cpp serves GGUF only, and turning other
                weights into GGUF is not done here.
        """
        convert_gguf(_find_gguf(source), folder)

    def estimate(self, job: TrainJob, rows: Sequence[Row]) -> Estimate:
        """See `ports.trainer.Trainer`."""
        settings = read_settings(job.hyper)
        base = _base_folder(job)
        chat = ChatFormat.load(base)
        config = msgspec.json.decode((base / "config.json").read_bytes())
        dialogues = [trim(chat.dialogue(row["messages"]), settings.max_tokens) for row in rows]
        n_tokens = sum(len(dialogue.ids) for dialogue in dialogues)
        n_targets = sum(len(dialogue.targets) for dialogue in dialogues)
        batches = (
            dialogues[i : i + settings.batch_size] for i in range(0, len(dialogues), settings.batch_size)
        )
        n_packed = sum(len(pack(batch).sources) for batch in batches)
        lower, top, head = _sizes(config, settings)
        once = 2 * n_packed * lower
        epoch = 4 * n_packed * top + 4 * n_targets * head  # forward, and backward to the inputs only
        per_s = _flops_per_s(pick_device(job.device)) * _EFFICIENCY
        seconds = _LOAD_S + (once + settings.epochs * epoch) / per_s
        basis = f"{n_tokens} tokens × {settings.epochs} epochs at {per_s / 1e9:.0f} GFLOP/s measured now"
        return Estimate(round(seconds, 1), n_tokens * settings.epochs, basis)

    def train(self, job: TrainJob, parts: dict[str, list[Row]], attempt: Attempt) -> Trained:
        """See `ports.trainer.Trainer`."""
        from gristmill.plugins.trainers.lora.session import Session

        session = Session(job, read_settings(job.hyper), _base_folder(job), parts, attempt)
        return session.run()

    def adopt(self, task: str, base: str, base_path: Path, artifact_dir: Path) -> None:
        """See `ports.trainer.Trainer`; `base_path` is a GGUF file, or a folder that holds one."""
        artifact_dir.mkdir(parents=True, exist_ok=True)
        source = _find_gguf(base_path)
        if (base_path / WEIGHTS_FILE).is_file() and (base_path / BASE_FILE).is_file():
            freeze_format(base_path, artifact_dir)
        else:
            freeze_gguf_format(source, artifact_dir)
        (artifact_dir / "tokenizer_config.json").unlink(missing_ok=True)
        link_or_copy(source, artifact_dir / BASE_FILE)
        chat = ChatFormat.load(artifact_dir)
        facts = {"format_digest": chat.digest, "adopted": True}
        seal(artifact_dir, task=task, engine="llamacpp", kind="model", base=base, facts=facts)


def _find_gguf(source: Path) -> Path:
    if is_gguf(source):
        return source
    if source.is_dir():
        found = [path for path in sorted(source.glob("*.gguf")) if is_gguf(path)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(
                f"{source} holds {len(found)} GGUF files.", hint="Name one of them.", param="base"
            )
    raise UsageError(f"{source.name} holds no GGUF file.", hint=_GGUF_HINT, param="base")


def _base_folder(job: TrainJob) -> Path:
    folder = Path(job.base_path)
    for name in (BASE_FILE, WEIGHTS_FILE, "config.json"):
        if not (folder / name).is_file():
            raise Missing(f"The base model {job.base} has no {name}.", hint=_GGUF_HINT, param="base")
    model_type = msgspec.json.decode((folder / "config.json").read_bytes()).get("model_type")
    if model_type not in ARCHITECTURES:
        raise UsageError(
            f"The base model {job.base} is of type {model_type!r}.", hint=_GGUF_HINT, param="base"
        )
    return folder


def _sizes(config: dict[str, Any], settings: Settings) -> tuple[int, int, int]:
    """Parameters of the frozen lower layers, of the top layers, and of the output layer."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    key_value = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * config["intermediate_size"]
    n_top = layers if settings.top_layers == "all" else min(int(settings.top_layers), layers)
    return layer * (layers - n_top), layer * n_top, hidden * config["vocab_size"]


def _flops_per_s(device: str) -> float:
    """The device's speed in 32-bit matrix products of a step's size, measured for a fifth of a second."""
    import torch

    a, b = torch.ones(256, 576, device=device), torch.ones(576, 1536, device=device)
    float((a @ b)[0, 0])  # wait for the device
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        float((a @ b)[0, 0])
        rounds += 1
    return rounds * 2 * 256 * 576 * 1536 / (time.perf_counter() - started)
