"""The training loop: batches, loss on the assistant's tokens, checkpoints, and resuming exactly.

Invariant: order of data and randomness depend on (seed, epoch, step) alone, so a run that was killed and
resumed from a checkpoint computes what an unbroken one does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gristmill.kit.chat_model import HiddenCache, SplitModel
from gristmill.kit.chat_pack import Dialogue, Pack, pack, split
from gristmill.plugins.trainers.lora.settings import Settings
from gristmill.ports.trainer import Attempt

if TYPE_CHECKING:
    import torch

_CHECKPOINT_EVERY_S = 25.0
_PACK_TOKENS = 1024


class State(msgspec.Struct):
    """Where the loop is: steps done, tokens trained, and the loss of the running epoch."""

    step: int = 0
    trained_tokens: int = 0
    epoch_loss: float = 0.0
    epoch_steps: int = 0
    losses: list[float] = []


class Loop:
    """Trains `parameters` of the top of `model` on `dialogues`."""

    def __init__(
        self,
        model: SplitModel,
        parameters: dict[str, torch.nn.Parameter],
        dialogues: Sequence[Dialogue],
        cache: HiddenCache,
        settings: Settings,
        seed: int,
    ) -> None:
        import torch

        self._model, self._parameters, self._cache = model, parameters, cache
        self._dialogues, self._settings, self._seed = dialogues, settings, seed
        self._optimizer = torch.optim.AdamW(
            parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.steps_an_epoch = -(-len(dialogues) // settings.batch_size)
        self.total_steps = self.steps_an_epoch * settings.epochs
        self.state = State()

    def run(self, attempt: Attempt) -> str | None:
        """Train to the end, or until the attempt says stop; returns its reason."""
        saved_at = attempt.train_s()
        while self.state.step < self.total_steps:
            reason = attempt.stopped_reason()
            if reason is not None:
                attempt.save(self.state.step, self.save)
                return reason
            loss = self._step()
            is_epoch_end = self.state.step % self.steps_an_epoch == 0
            metrics = {"loss": loss, "epoch": self.state.step / self.steps_an_epoch}
            attempt.progress("train", self.state.step, self.total_steps, metrics)
            if is_epoch_end:
                self.state.losses.append(self.state.epoch_loss / self.state.epoch_steps)
                self.state.epoch_loss, self.state.epoch_steps = 0.0, 0
            if is_epoch_end or attempt.train_s() - saved_at > _CHECKPOINT_EVERY_S:
                attempt.save(self.state.step, self.save)
                saved_at = attempt.train_s()
        return None

    def loss(self, members: Sequence[int]) -> float:
        """Mean loss a target token over the dialogues `members`, without training."""
        import torch

        total, count = 0.0, 0
        with torch.no_grad():
            for group in self._packs(members):
                packed = pack([self._dialogues[m] for m in group])
                if packed.labels:
                    total += float(self._loss_sum(group, packed))
                    count += len(packed.labels)
        return total / max(count, 1)

    def save(self, folder: Path) -> None:
        """Write adapter, optimiser and place; no pickle."""
        import torch
        from safetensors.torch import save_file

        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
        save_file(tensors, folder / "state.safetensors")
        (folder / "state.json").write_text(json.dumps(msgspec.to_builtins(self.state)))

    def restore(self, folder: Path) -> None:
        """Take up a checkpoint of `save`."""
        import torch
        from safetensors.torch import load_file

        tensors = load_file(folder / "state.safetensors")
        for name, parameter in self._parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            kept = {
                key: tensors[f"{key}.{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}.{name}" in tensors
            }
            if kept:
                self._optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in kept.items()
                }
        self.state = msgspec.json.decode((folder / "state.json").read_bytes(), type=State)

    def _step(self) -> float:
        import torch

        settings, state = self._settings, self.state
        epoch, at = divmod(state.step, self.steps_an_epoch)
        torch.manual_seed(self._seed * 1_000_003 + state.step)
        members = self._order(epoch)[at * settings.batch_size : (at + 1) * settings.batch_size]
        groups = [(group, pack([self._dialogues[m] for m in group])) for group in self._packs(members)]
        n_targets = sum(len(packed.labels) for _, packed in groups)
        total = 0.0
        for group, packed in groups:
            if packed.labels:
                loss = self._loss_sum(group, packed) / n_targets
                loss.backward()
                total += float(loss.detach())
        for options in self._optimizer.param_groups:
            options["lr"] = settings.learning_rate * _schedule(state.step, self.total_steps, settings.warmup)
        torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), settings.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.trained_tokens += sum(len(self._dialogues[m].ids) for m in members)
        state.epoch_loss += total
        state.epoch_steps += 1
        return total

    def _loss_sum(self, group: Sequence[int], packed: Pack) -> torch.Tensor:
        import torch

        logits = self._model.upper(self._cache.hidden(group, packed), packed)
        labels = torch.tensor(packed.labels, device=logits.device)
        return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")

    def _packs(self, members: Sequence[int]) -> list[list[int]]:
        groups = split([self._dialogues[m] for m in members], _PACK_TOKENS)
        return [[members[i] for i in group] for group in groups]

    def _order(self, epoch: int) -> list[int]:
        import torch

        generator = torch.Generator().manual_seed(self._seed * 7919 + epoch)
        order: list[int] = torch.randperm(len(self._dialogues), generator=generator).tolist()
        return order


def _schedule(step: int, total: int, warmup: float) -> float:
    """Part of the peak rate at a step: up over the warm-up, then linearly down to 0 at the end."""
    rise = max(int(total * warmup), 1)
    return (step + 1) / rise if step < rise else max((total - step) / max(total - rise, 1), 0.0)
