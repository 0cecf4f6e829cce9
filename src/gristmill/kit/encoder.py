"""An encoder cut at any layer: lower ones frozen, upper ones trained, mean pooling and a linear head on top.

Works on any encoder that Transformers' AutoModel loads and whose blocks are one ModuleList of
`num_hidden_layers` (BERT, DistilBERT, RoBERTa, XLM-R, MPNet, ModernBERT …), by exchanging that list and the
embeddings for the time of a pass, so masks and position handling stay the library's.
Invariant: `upper(lower(ids))` equals `forward(ids)`. Only safetensors are read; remote code is never run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gristmill.core.errors import UsageError


class _Tap(nn.Module):  # type: ignore[misc]  # mypy skips torch
    """Stands after the last lower layer and keeps its output, before any closing norm."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        self.hidden = hidden_states
        return hidden_states


class _Given(nn.Module):  # type: ignore[misc]  # mypy skips torch
    """Stands in for the embeddings: hands through the hidden states that came as `inputs_embeds`."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        given = kwargs.get("inputs_embeds")
        if given is None:
            given = next(value for value in args if isinstance(value, Tensor) and value.is_floating_point())
        return given


class Encoder(nn.Module):  # type: ignore[misc]  # mypy skips torch
    """A backbone from a Hugging Face folder, cut into lower and upper layers on demand."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        n_layers = int(backbone.config.num_hidden_layers)
        self._blocks_at = _find_blocks(backbone, n_layers)
        self.n_layers = n_layers
        self.width = int(backbone.config.hidden_size)

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers, lowest first."""
        parent, name = self._blocks_at
        return list(getattr(parent, name))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (batch, time, width) of token ids (batch, time)."""
        out: Tensor = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        return out

    def lower(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        """Output (batch, time, width) of the embeddings and the lowest `n` layers."""
        tap = _Tap()
        with self._with([*self.blocks[:n], tap]):
            self.backbone(input_ids=ids, attention_mask=mask)
        assert tap.hidden is not None
        return tap.hidden

    def upper(self, hidden: Tensor, mask: Tensor, n: int) -> Tensor:
        """Hidden states (batch, time, width) of what `lower` gave, through the layers above those `n`."""
        with self._with(self.blocks[n:], embeddings=_Given()):
            out: Tensor = self.backbone(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
        return out

    @contextmanager
    def _with(self, blocks: list[nn.Module], embeddings: nn.Module | None = None) -> Iterator[None]:
        parent, name = self._blocks_at
        whole, own = getattr(parent, name), self.backbone.embeddings
        setattr(parent, name, nn.ModuleList(blocks))
        if embeddings is not None:
            self.backbone.embeddings = embeddings
        try:
            yield
        finally:
            setattr(parent, name, whole)
            self.backbone.embeddings = own


class Classifier(nn.Module):  # type: ignore[misc]  # mypy skips torch
    """Encoder, mean pooling over real tokens, dropout and a linear head."""

    def __init__(self, encoder: Encoder, n_labels: int, head_dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(encoder.width, n_labels)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (batch, labels) of token ids (batch, time)."""
        return self.classify(self.encoder(ids, mask), mask)

    def classify(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits (batch, labels), float32, of the last hidden states (batch, time, width)."""
        pooled = mean_pool(hidden, mask)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits.float()


class Embedder(nn.Module):  # type: ignore[misc]  # mypy skips torch
    """Encoder, mean pooling and scaling to length one: what sentence encoders are trained for."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors (batch, width) of token ids (batch, time)."""
        return nn.functional.normalize(mean_pool(self.encoder(ids, mask), mask), dim=-1)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (batch, time, width) and mask (batch, time) → (batch, width) float32.

    Source: Reimers and Gurevych, Sentence-BERT (2019), section 3, MEAN strategy.
    """
    weights = mask.unsqueeze(-1).to(torch.float32)
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def load_encoder(folder: Path) -> Encoder:
    """Load a Hugging Face folder: float32, attention by PyTorch's fused kernel.

    Raises:
        UsageError: no config.json or model.safetensors, or a model that is not such an encoder.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    check_folder(folder)
    logging.disable_progress_bar()
    try:
        backbone = AutoModel.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"The base model in {folder.name} could not be loaded: {error}", param="base.model"
        ) from None
    return Encoder(backbone)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a Hugging Face model with safetensors and a tokenizer (UsageError)."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UsageError(
                f"The base model's folder {folder.name} has no {name}.",
                hint="It must be a Hugging Face folder: config.json, model.safetensors, tokenizer.json.",
                param="base.model",
            )
    if not list(folder.glob("*.safetensors")):
        raise UsageError(
            f"The base model's folder {folder.name} has no safetensors weights.",
            hint="Convert it: pickle formats are refused because they can run code when loaded.",
            param="base.model",
        )


def set_dropout(module: nn.Module, probability: float) -> None:
    """Give every dropout under `module` this probability."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = probability


def _find_blocks(backbone: nn.Module, n_layers: int) -> tuple[nn.Module, str]:
    found: list[tuple[nn.Module, str]] = []
    for parent in backbone.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == n_layers:
                found.append((parent, name))
    if len(found) != 1 or not hasattr(backbone, "embeddings"):
        raise UsageError(
            f"{type(backbone).__name__} is not an encoder whose layers can be told apart.",
            hint="Choose a BERT-like base (BERT, DistilBERT, RoBERTa, XLM-R).",
            param="base.model",
        )
    return found[0]
