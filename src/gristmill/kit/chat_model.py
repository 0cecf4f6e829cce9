"""A causal language model cut in two: frozen lower layers, computed once and kept, and the top that trains.

Invariant: the two parts one after the other compute what the whole model computes.
Works for decoders of the Llama family in transformers (`model.layers`, `model.norm`, `lm_head`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gristmill.kit.chat_pack import Dialogue, Pack, attention_mask, pack, split

if TYPE_CHECKING:
    import torch

CACHE_LIMIT_BYTES = 8 << 30
_PACK_TOKENS = 1024


def pick_device(wanted: str) -> str:
    """ "auto" → cuda, mps or cpu, whichever is there; another name is taken as it is."""
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class SplitModel:
    """`model` (a `…ForCausalLM`) with its layers below `bottom` frozen."""

    def __init__(self, model: Any, bottom: int, device: str) -> None:
        import torch

        self.model = model
        self.bottom = bottom
        self.device = torch.device(device)
        self._layers = model.model.layers
        self._norm = model.model.norm

    def lower(self, ids: torch.Tensor, packed: Pack) -> torch.Tensor:
        """Hidden states that enter the top, (packed tokens, hidden), from token ids (packed tokens)."""
        import torch

        embedded = self.model.model.embed_tokens(ids[None].to(self.device))
        if self.bottom == 0:
            return torch.as_tensor(embedded[0])
        with self._only(slice(0, self.bottom), torch.nn.Identity()), torch.no_grad():
            return self._run(embedded, packed)

    def upper(self, hidden: torch.Tensor, packed: Pack) -> torch.Tensor:
        """Logits at `packed.predicts`, (targets, vocabulary), from hidden states (tokens, hidden)."""
        import torch

        with self._only(slice(self.bottom, None), self._norm):
            out = self._run(hidden[None].to(self.device), packed)
        return torch.as_tensor(self.model.lm_head(out[list(packed.predicts)]))

    def _run(self, hidden: torch.Tensor, packed: Pack) -> torch.Tensor:
        import torch

        out = self.model.model(
            inputs_embeds=hidden,
            attention_mask=attention_mask(packed, self.device),
            position_ids=torch.tensor(packed.positions, device=self.device)[None],
            use_cache=False,
        )
        return torch.as_tensor(out.last_hidden_state[0])

    @contextmanager
    def _only(self, part: slice, norm: Any) -> Iterator[None]:
        inner = self.model.model
        inner.layers, inner.norm = self._layers[part], norm
        try:
            yield
        finally:
            inner.layers, inner.norm = self._layers, self._norm


class HiddenCache:
    """Hidden states of every training token at the top's entry, in one file under the run's folder.

    Too much for `CACHE_LIMIT_BYTES`, or nothing frozen: they are computed when asked for instead.
    """

    def __init__(
        self, split_model: SplitModel, dialogues: Sequence[Dialogue], folder: Path, key: str
    ) -> None:
        self._model = split_model
        self._dialogues = dialogues
        self._starts = [0]
        for dialogue in dialogues:
            self._starts.append(self._starts[-1] + len(dialogue.ids))
        digest = hashlib.sha256(msgspec.json.encode([key, split_model.bottom, dialogues])).hexdigest()
        self._path = folder / f"hidden-{digest[:16]}.npy"
        self._states: Any = None

    def build(self, progress: Callable[[int, int], None]) -> None:
        """Compute what is not on disk yet; `progress(done, total)` in dialogues."""
        import numpy as np

        size = self._model.model.config.hidden_size
        is_worth = self._model.bottom > 0 and self._starts[-1] * size * 4 <= CACHE_LIMIT_BYTES
        if not is_worth:
            return
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_suffix(".partial")
            states = np.lib.format.open_memmap(partial, "w+", np.float32, (self._starts[-1], size))
            self._fill(states, progress)
            states.flush()
            del states
            partial.replace(self._path)
        self._states = np.load(self._path, mmap_mode="r", allow_pickle=False)

    def hidden(self, members: Sequence[int], packed: Pack) -> torch.Tensor:
        """Hidden states of a pack of the dialogues `members`, (packed tokens, hidden)."""
        import torch

        if self._states is None:
            return self._model.lower(_ids([self._dialogues[m] for m in members], packed), packed)
        rows = [self._starts[members[number]] + position for number, position in packed.sources]
        return torch.from_numpy(self._states[rows])

    def _fill(self, states: Any, progress: Callable[[int, int], None]) -> None:
        order = sorted(range(len(self._dialogues)), key=lambda i: self._dialogues[i].ids)
        ordered = [self._dialogues[i] for i in order]
        done = 0
        for group in split(ordered, _PACK_TOKENS):
            chosen = [ordered[i] for i in group]
            packed = pack(chosen)
            hidden = self._model.lower(_ids(chosen, packed), packed).float().cpu().numpy()
            shared = packed.segments.count(0)
            for number, position_row in zip(packed.sources, hidden, strict=True):
                states[self._starts[order[group[number[0]]]] + number[1]] = position_row
            for member in group[1:]:
                start = self._starts[order[member]]
                states[start : start + shared] = hidden[:shared]
            done += len(group)
            progress(done, len(ordered))


def _ids(dialogues: Sequence[Dialogue], packed: Pack) -> torch.Tensor:
    import torch

    return torch.tensor([dialogues[number].ids[position] for number, position in packed.sources])
