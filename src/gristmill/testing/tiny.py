"""A tiny random BERT in Hugging Face layout, and an attempt without a run folder: training in seconds.

The model knows the words it was given (WordPiece, lower case) and has learnt nothing; data whose classes
differ by their words can be taught to it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gristmill.core.dataset import Row

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_GOOD = ("lovely", "bright", "superb", "warm", "clever", "fresh", "grand", "kind")
_BAD = ("dull", "broken", "dreary", "cold", "clumsy", "stale", "petty", "rude")
_PLAIN = ("the", "film", "was", "a", "and", "story", "it", "felt", "very", "cast", "in", "end", "of", "with")


def tiny_bert(folder: Path, words: Sequence[str] = (*_GOOD, *_BAD, *_PLAIN), *, n_layers: int = 3) -> Path:
    """Write config.json, model.safetensors and tokenizer.json of a random BERT; returns the folder.

    Args:
        folder: made if absent.
        words: its vocabulary besides the special tokens.
        n_layers: of width 32, with 4 heads.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - no secret
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(
        vocab_size=max(128, len(vocabulary)),
        hidden_size=32,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        BertModel(config).save_pretrained(folder, safe_serialization=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}), encoding="utf-8")
    return folder


def review_rows(n: int, *, seed: int = 0) -> list[Row]:
    """`n` made-up reviews, label "good" or "bad", told apart by their adjectives; lengths differ."""
    import numpy as np

    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for index in range(n):
        words = [str(word) for word in rng.choice(_PLAIN, int(rng.integers(2, 14)))]
        for _ in range(2):
            words.insert(int(rng.integers(len(words) + 1)), str(rng.choice(_GOOD if index % 2 else _BAD)))
        rows.append({"text": " ".join(words), "label": "good" if index % 2 else "bad"})
    return rows


class MemoryAttempt:
    """A `ports.trainer.Attempt` for tests: checkpoints in a plain folder, progress in a list.

    Args:
        folder: where checkpoints go; a second attempt on it resumes the first.
        stop_at: number of `train` reports after which `stopped_reason` says "max_minutes"; None for never.
    """

    def __init__(self, folder: Path, stop_at: int | None = None) -> None:
        self._folder = folder
        self._stop_at = stop_at
        self._started = time.monotonic()
        self.reports: list[tuple[str, int, int, dict[str, float]]] = []

    def progress(self, stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
        """See the port."""
        self.reports.append((stage, done, total, metrics))

    def stopped_reason(self) -> str | None:
        """See the port."""
        n_steps = sum(stage == "train" for stage, *_ in self.reports)
        return "max_minutes" if self._stop_at is not None and n_steps >= self._stop_at else None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """See the port."""
        target = self._folder / f"step-{step}"
        if target.exists():
            return
        partial = self._folder / ".partial"
        partial.mkdir(parents=True)
        write(partial)
        partial.rename(target)

    def latest(self) -> tuple[int, Path] | None:
        """See the port."""
        found = [(int(path.name[5:]), path) for path in self._folder.glob("step-*")]
        return max(found) if found else None

    def train_s(self) -> float:
        """See the port."""
        return time.monotonic() - self._started

    def losses(self) -> list[float]:
        """Training loss step by step."""
        return [metrics["loss"] for stage, _, _, metrics in self.reports if stage == "train"]
