"""One training job from rows to sealed artefact; lives in the trainer child."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from gristmill.core.artifact import file_sha256, seal
from gristmill.core.dataset import Row
from gristmill.core.errors import UsageError
from gristmill.core.op import Op
from gristmill.core.run import TrainJob
from gristmill.kit.chat import ChatFormat, freeze_format
from gristmill.kit.chat_model import HiddenCache, SplitModel, pick_device
from gristmill.kit.chat_pack import Dialogue, trim
from gristmill.kit.gguf import BASE_FILE
from gristmill.kit.gguf_lora import ADAPTER_FILE, write_adapter
from gristmill.plugins.trainers.lora.adapter import AdaptedModel
from gristmill.plugins.trainers.lora.loop import Loop
from gristmill.plugins.trainers.lora.settings import Settings
from gristmill.ports.trainer import Attempt, Trained

_log = structlog.get_logger()
_REPLAY_TOKENS = 24
_REPLAY_BATCH = 24


class Session:
    """Holds what the steps of one job share."""

    def __init__(
        self, job: TrainJob, settings: Settings, base: Path, parts: dict[str, list[Row]], attempt: Attempt
    ) -> None:
        self._job, self._settings, self._base, self._attempt = job, settings, base, attempt
        self._parts = parts
        self._chat = ChatFormat.load(base)
        self._dialogues = [self._trimmed(row) for row in parts["train"]]
        self._dialogues = [dialogue for dialogue in self._dialogues if dialogue.targets]
        if not self._dialogues:
            raise UsageError("No training dialogue has an answer to learn from.", param="messages")

    def run(self) -> Trained:
        """Load, compute the lower layers, train, measure, export."""
        self._attempt.progress("load", 0, 1, {})
        adapted = AdaptedModel(self._base, self._settings, self._job.seed)
        device = pick_device(self._job.device)
        adapted.model.to(device)
        model = SplitModel(adapted.model, adapted.bottom, device)
        loop = self._loop(model, adapted, self._dialogues)
        found = self._attempt.latest()
        if found is not None:
            loop.restore(found[1])
        adapted.model.train(self._settings.dropout > 0)
        reason = loop.run(self._attempt)
        metrics = {"loss": loop.state.losses[-1]} if loop.state.losses else {}
        replay: list[tuple[Any, Any]] = []
        if reason != "cancelled":
            metrics |= self._validation(model, adapted)
            self._attempt.progress("export", 0, 2, metrics)
            replay = self._replay(adapted, device)
            self._attempt.progress("export", 1, 2, metrics)
            self._export(adapted)
            self._attempt.progress("export", 2, 2, metrics)
        return Trained(
            steps=loop.state.step,
            epochs=loop.state.step / loop.steps_an_epoch,
            metrics=metrics,
            trained_tokens=loop.state.trained_tokens,
            stopped_reason=reason,
            device=device,
            replay=replay,
        )

    def _loop(self, model: SplitModel, adapted: AdaptedModel, dialogues: list[Dialogue]) -> Loop:
        cache = HiddenCache(model, dialogues, Path(self._job.work_dir) / "cache", str(self._base))
        cache.build(lambda done, total: self._attempt.progress("lower layers", done, total, {}))
        return Loop(model, adapted.parameters, dialogues, cache, self._settings, self._job.seed)

    def _trimmed(self, row: Row) -> Dialogue:
        return trim(self._chat.dialogue(row["messages"]), self._settings.max_tokens)

    def _validation(self, model: SplitModel, adapted: AdaptedModel) -> dict[str, float]:
        """Loss on the validation part, when there is one."""
        dialogues = [self._trimmed(row) for row in self._parts.get("validation", [])]
        dialogues = [dialogue for dialogue in dialogues if dialogue.targets]
        if not dialogues:
            return {}
        adapted.model.eval()
        return {"validation_loss": self._loop(model, adapted, dialogues).loss(range(len(dialogues)))}

    def _replay(self, adapted: AdaptedModel, device: str) -> list[tuple[Any, Any]]:
        """Training prompts, evenly spread, with the trained model's own greedy answers (for parity)."""
        rows = self._parts["train"]
        count = min(self._settings.replay, len(rows))
        chosen = [rows[i * len(rows) // count] for i in range(count)]
        questions = [row["messages"][:-1] for row in chosen]
        answers: list[str] = []
        for at in range(0, len(questions), _REPLAY_BATCH):
            prompts = [self._chat.prompt(question) for question in questions[at : at + _REPLAY_BATCH]]
            answers += [self._chat.decode(ids) for ids in adapted.greedy(prompts, _REPLAY_TOKENS, device)]
        options = {"max_tokens": _REPLAY_TOKENS, "temperature": 0.0}
        return [
            (Op("generate", (question,), dict(options)), {"text": answer})
            for question, answer in zip(questions, answers, strict=True)
        ]

    def _export(self, adapted: AdaptedModel) -> None:
        folder = Path(self._job.artifact_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config = adapted.model.config
        write_adapter(
            folder / ADAPTER_FILE,
            adapted.arrays(),
            model_type=config.model_type,
            alpha=self._settings.alpha,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
        )
        freeze_format(self._base, folder)
        facts = {
            "rank": self._settings.rank,
            "alpha": self._settings.alpha,
            "top_layers": adapted.n_top,
            "max_tokens": self._settings.max_tokens,
            "format_digest": self._chat.digest,
        }
        seal(
            folder,
            task=self._job.task,
            engine="llamacpp",
            kind="adapter",
            base=self._job.base,
            base_digest=file_sha256(self._base / BASE_FILE),
            facts=facts,
        )
        _log.info("adapter_exported", layers=adapted.n_top, rank=self._settings.rank)
