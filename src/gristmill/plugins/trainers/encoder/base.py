"""What a Hugging Face folder says of itself without its weights: length, padding, size, digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from gristmill.core.artifact import file_sha256
from gristmill.core.errors import UsageError

_LONGEST = 512
_NO_LIMIT = 1_000_000
_OFFSET_TYPES = {"roberta", "xlm-roberta", "camembert", "mpnet"}


class BaseFacts(msgspec.Struct, frozen=True):
    """Sizes of an encoder: layers, width, inner width of a layer, pad id, longest row of ids."""

    n_layers: int
    width: int
    inner: int
    pad: int
    max_tokens: int
    labels: list[str]


def read_base(folder: Path) -> BaseFacts:
    """Read config.json, and the length the model was made for where it says so.

    Raises:
        UsageError: config.json is absent or is not an encoder's.
    """
    config = _json(folder / "config.json")
    n_layers = config.get("num_hidden_layers", config.get("n_layers"))
    width = config.get("hidden_size", config.get("dim"))
    if not isinstance(n_layers, int) or not isinstance(width, int):
        raise UsageError(
            f"The base model in {folder.name} does not look like an encoder.",
            hint="It must be a Hugging Face folder: config.json, model.safetensors, tokenizer.json.",
            param="base.model",
        )
    inner = config.get("intermediate_size", config.get("hidden_dim", 4 * width))
    positions = int(config.get("max_position_embeddings", _LONGEST))
    if config.get("model_type") in _OFFSET_TYPES:
        positions -= 2  # RoBERTa counts positions from the padding id on
    named = config.get("id2label") or {}
    return BaseFacts(
        n_layers=n_layers,
        width=width,
        inner=int(inner),
        pad=int(config.get("pad_token_id") or 0),
        max_tokens=min(positions, _meant_length(folder)),
        labels=[str(named[key]) for key in sorted(named, key=int)],
    )


def base_digest(folder: Path) -> str:
    """SHA-256 over the weights, for keys of what is computed from them."""
    return "".join(file_sha256(path) for path in sorted(folder.glob("*.safetensors")))


def _meant_length(folder: Path) -> int:
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        value = _json(folder / name).get(key) if (folder / name).is_file() else None
        if isinstance(value, int) and 0 < value < _NO_LIMIT:
            return value
    return _LONGEST


def _json(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(
            f"The base model in {path.parent.name} has no readable {path.name}.", param="base.model"
        ) from None
    return document
