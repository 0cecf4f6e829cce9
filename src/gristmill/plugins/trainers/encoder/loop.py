"""The training loop: AdamW, warm-up and linear decay, the best epoch kept, checkpoints and exact resuming.

Invariant: order of data and randomness depend on (seed, epoch, step) alone, so a run that was killed and
resumed computes what an unbroken one does. A checkpoint is safetensors and JSON, no pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from gristmill.kit.buckets import shuffled_batches
from gristmill.plugins.trainers.encoder.features import Features, Rows
from gristmill.plugins.trainers.encoder.settings import Settings
from gristmill.ports.trainer import Attempt

if TYPE_CHECKING:
    from gristmill.kit.encoder import Classifier

_CHECKPOINT_EVERY_S = 25.0


class State(msgspec.Struct):
    """Where the loop is; `best` is the validation accuracy of the kept weights (−1 before the first)."""

    step: int = 0
    trained_tokens: int = 0
    best: float = -1.0
    best_epoch: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    losses: list[float] = []
    accuracies: list[float] = []


class Loop:
    """Trains the parameters of `classifier` that require a gradient.

    Args:
        classifier: the model. features: its input rows, training rows first. classes: class of every row.
        n_train: how many rows are for training; the rest are for validation.
    """

    def __init__(
        self,
        classifier: Classifier,
        features: Features,
        classes: Tensor,
        n_train: int,
        settings: Settings,
        seed: int,
    ) -> None:
        self._model, self._features, self._classes = classifier, features, classes
        self._settings, self._seed, self._n_train = settings, seed, n_train
        self._parameters = {n: p for n, p in classifier.named_parameters() if p.requires_grad}
        self._best: dict[str, Tensor] = {}
        self.state = State()
        groups = parameter_groups(classifier, settings)
        self._peaks = [float(group["lr"]) for group in groups]
        self._optimizer = torch.optim.AdamW(groups)
        self.plan = [self._epoch_plan(epoch) for epoch in range(settings.epochs)]
        self.ends = np.cumsum([len(batches) for batches in self.plan]).tolist()
        self.total_steps = int(self.ends[-1])

    def run(self, attempt: Attempt) -> str | None:
        """Train to the end or until the attempt says stop (its reason is returned); the best weights stay."""
        saved_at = attempt.train_s()
        reason = None
        while self.state.step < self.total_steps:
            reason = attempt.stopped_reason()
            if reason is not None:
                attempt.save(self.state.step, self.save)
                break
            loss = self._step()
            is_epoch_end = self.state.step in self.ends
            if is_epoch_end:
                self._end_epoch()
            attempt.progress("train", self.state.step, self.total_steps, self._metrics(loss))
            if is_epoch_end or attempt.train_s() - saved_at > _CHECKPOINT_EVERY_S:
                attempt.save(self.state.step, self.save)
                saved_at = attempt.train_s()
        if reason is not None and self.state.step not in self.ends and self.state.step > 0:
            self._keep_if_best(epoch=len(self.state.losses) + 1)
        self._restore_best()
        return reason

    @property
    def epochs_done(self) -> float:
        """Epochs, with the fraction of a broken one."""
        whole = sum(end <= self.state.step for end in self.ends)
        if whole == len(self.ends):
            return float(whole)
        start = self.ends[whole - 1] if whole else 0
        return float(whole + (self.state.step - start) / len(self.plan[whole]))

    def save(self, folder: Path) -> None:
        """Write weights, the optimiser's moments, the best weights and the state into a folder."""
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"now.{name}"] = parameter.detach()
            for key in ("exp_avg", "exp_avg_sq"):
                if key in self._optimizer.state[parameter]:
                    tensors[f"{key}.{name}"] = self._optimizer.state[parameter][key]
        tensors |= {f"best.{name}": value for name, value in self._best.items()}
        save_file(
            {name: value.cpu().contiguous() for name, value in tensors.items()}, folder / "loop.safetensors"
        )
        (folder / "loop.json").write_bytes(msgspec.json.encode(self.state))

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote."""
        from safetensors.torch import load_file

        tensors = load_file(folder / "loop.safetensors")
        self.state = msgspec.json.decode((folder / "loop.json").read_bytes(), type=State)
        self._best = {name[5:]: value for name, value in tensors.items() if name.startswith("best.")}
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"now.{name}"])
                if f"exp_avg.{name}" in tensors:
                    moments = {
                        key: tensors[f"{key}.{name}"].to(parameter.device)
                        for key in ("exp_avg", "exp_avg_sq")
                    }
                    self._optimizer.state[parameter] = {
                        "step": torch.tensor(float(self.state.step)),
                        **moments,
                    }

    def _step(self) -> float:
        settings, state = self._settings, self.state
        epoch = sum(end <= state.step for end in self.ends)
        rows = self.plan[epoch][state.step - (self.ends[epoch - 1] if epoch else 0)]
        torch.manual_seed(self._seed * 1_000_003 + state.step)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * schedule(state.step, self.total_steps, settings.warmup)
        self._model.train()
        target = self._classes[torch.from_numpy(rows)]
        logits = self._features.logits(rows)
        loss = nn.functional.cross_entropy(
            logits, target.to(logits.device), label_smoothing=settings.label_smoothing
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters.values(), settings.clip)
        self._optimizer.step()
        value = float(loss.detach())
        state.step += 1
        state.trained_tokens += int(self._features.lengths[rows].sum())
        state.loss_sum += value
        state.loss_steps += 1
        return value

    def _end_epoch(self) -> None:
        state = self.state
        state.losses.append(state.loss_sum / state.loss_steps)
        state.loss_sum, state.loss_steps = 0.0, 0
        self._keep_if_best(epoch=len(state.losses))

    def _keep_if_best(self, epoch: int) -> None:
        rows = np.arange(self._n_train, len(self._classes), dtype=np.int64)
        if not len(rows):
            return
        given = self._features.predict(rows).argmax(-1)
        accuracy = float((given == self._classes[torch.from_numpy(rows)]).float().mean())
        self.state.accuracies.append(accuracy)
        if accuracy >= self.state.best:
            self.state.best, self.state.best_epoch = accuracy, epoch
            self._best = {name: value.detach().clone() for name, value in self._parameters.items()}

    def _restore_best(self) -> None:
        with torch.no_grad():
            for name, value in self._best.items():
                self._parameters[name].copy_(value)

    def _metrics(self, loss: float) -> dict[str, float]:
        metrics = {"loss": loss, "epoch": self.epochs_done}
        return (
            metrics | {"validation_accuracy": self.state.accuracies[-1]} if self.state.accuracies else metrics
        )

    def _epoch_plan(self, epoch: int) -> list[Rows]:
        settings = self._settings
        lengths = self._features.lengths[: self._n_train]
        return shuffled_batches(
            lengths, settings.batch_size, settings.batch_tokens, seed=self._seed, epoch=epoch
        )


def schedule(step: int, total: int, warmup: float) -> float:
    """Factor on the peak learning rate: linear up over `warmup` of the steps, then linear down to 0."""
    rising = max(1.0, warmup * total)
    return min(1.0, (step + 1) / rising) * min(1.0, (total - step) / max(1.0, total - rising))


def parameter_groups(classifier: Classifier, settings: Settings) -> list[dict[str, Any]]:
    """AdamW groups: head and layers by depth, biases and norms without decay; what is frozen is left out."""
    depth_of = {
        id(parameter): depth
        for depth, block in enumerate(reversed(classifier.encoder.blocks))
        for parameter in block.parameters()
    }
    head = {id(parameter) for parameter in classifier.head.parameters()}
    lowest = classifier.encoder.n_layers
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in classifier.parameters():
        if not parameter.requires_grad:
            continue
        depth = depth_of.get(id(parameter), lowest)
        is_head = id(parameter) in head
        rate = (
            settings.head_learning_rate if is_head else settings.learning_rate * settings.layer_decay**depth
        )
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        found.setdefault((rate, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in found.items()]
