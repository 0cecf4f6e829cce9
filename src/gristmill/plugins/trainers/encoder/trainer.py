"""The encoder trainer behind its port: tokenise, cache frozen layers, train, export.

Source of the recipe: frozen lower layers computed once and length buckets; on film reviews (10,000 rows of 27
tokens, MiniLM-L6, two cores) most time goes into the trained layers, not into the frozen ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gristmill.core.dataset import Row
from gristmill.core.errors import UsageError
from gristmill.core.op import Op
from gristmill.core.run import TrainJob
from gristmill.kit.encoder_session import Texts, classification, softmax
from gristmill.plugins.trainers.encoder.base import base_digest, read_base
from gristmill.plugins.trainers.encoder.settings import Settings, read_settings, resolved
from gristmill.ports.trainer import Attempt, Estimate, Trained

if TYPE_CHECKING:
    from gristmill.kit.encoder import Classifier
    from gristmill.plugins.trainers.encoder.features import Compute, Features

_COMPARED = 1000
_MAX_BASE_ROWS = 5000


class EncoderTrainer:
    """See `ports.trainer.Trainer`."""

    def check(self, hyper: dict[str, Any]) -> dict[str, Any]:
        """See the port."""
        settings: dict[str, Any] = msgspec.to_builtins(read_settings(hyper))
        return settings

    def estimate(self, job: TrainJob, rows: Sequence[Row]) -> Estimate:
        """See the port."""
        from gristmill.plugins.trainers.encoder.estimate import estimate_training

        return estimate_training(job, rows)

    def train(self, job: TrainJob, parts: dict[str, list[Row]], attempt: Attempt) -> Trained:
        """See the port."""
        return _Training(job, parts, attempt).run()

    def adopt(self, task: str, base: str, base_path: Path, artifact_dir: Path) -> None:
        """See the port: "embed" from any encoder, "classify" from a sequence classifier, or an ONNX file."""
        from gristmill.plugins.trainers.encoder.adopt import adopt

        adopt(task, base, base_path, artifact_dir)


class _Training:
    """One training job from rows to sealed artefact."""

    def __init__(self, job: TrainJob, parts: dict[str, list[Row]], attempt: Attempt) -> None:
        if job.task != "classify":
            raise UsageError(
                f"The encoder trainer cannot train the task {job.task!r}.",
                hint="It trains classify; an embedder enters with: gristmill release import.",
                param="product.task",
            )
        self._job, self._attempt = job, attempt
        self._folder = Path(job.base_path)
        self._base = read_base(self._folder)
        self._train, self._validation = parts["train"], parts.get("validation", [])
        self._test = parts.get("test", [])
        self._labels = sorted({row["label"] for row in self._train})
        self._settings: Settings = resolved(read_settings(job.hyper), len(self._train), len(self._labels))
        self._validation = [row for row in self._validation if row["label"] in set(self._labels)]
        self._max_tokens = min(self._settings.max_tokens, self._base.max_tokens)
        self._texts = Texts(self._folder / "tokenizer.json", self._max_tokens, self._base.pad)

    def run(self) -> Trained:
        import torch

        from gristmill.kit.encoder import Classifier, load_encoder, set_dropout
        from gristmill.plugins.trainers.encoder.features import choose_compute
        from gristmill.plugins.trainers.encoder.loop import Loop

        attempt, settings = self._attempt, self._settings
        _use_cores(settings.threads)
        torch.manual_seed(self._job.seed)
        compute = choose_compute(self._job.device, settings.precision)
        encoder = load_encoder(self._folder)
        classifier = Classifier(encoder, len(self._labels), settings.head_dropout)
        set_dropout(encoder, settings.dropout)
        n_frozen = _freeze(classifier, settings)
        classifier.to(compute.device)
        features = self._features(classifier, n_frozen, compute)
        classes = self._classes()
        loop = Loop(classifier, features, classes, len(self._train), settings, self._job.seed)
        latest = attempt.latest()
        if latest is not None:
            loop.load(latest[1])
        reason = attempt.stopped_reason()
        if n_frozen >= 0 and features.is_cached and loop.state.step < loop.total_steps and reason is None:
            features.fill_cache(self._tell_cache)
            reason = attempt.stopped_reason()
        if reason is None:
            reason = loop.run(attempt)
        return self._finish(classifier, features, compute, loop.state, loop.epochs_done, reason)

    def _finish(
        self,
        classifier: Classifier,
        features: Features,
        compute: Compute,
        state: Any,
        epochs: float,
        reason: str | None,
    ) -> Trained:
        from gristmill.plugins.trainers.encoder.export import write_artifact

        attempt = self._attempt
        attempt.progress("export", 0, 3, {})
        n_train, n_rows = len(self._train), len(features.ids)
        order = np.random.default_rng((self._job.seed, 5)).permutation(n_train)
        replay = self._replay(classifier, features, np.sort(order[: self._settings.replay]))
        attempt.progress("export", 1, 3, {})
        held_out = np.arange(n_train, n_rows) if n_rows - n_train >= 100 else np.sort(order)
        compared = held_out[:_COMPARED]
        facts = write_artifact(
            classifier,
            Path(self._job.artifact_dir),
            task="classify",
            base=self._job.base,
            base_path=self._folder,
            facts={
                "labels": self._labels,
                "max_tokens": self._max_tokens,
                "pad": self._base.pad,
                "output": "logits",
                "method": self._settings.method,
                "seed": self._job.seed,
            },
            rows=[features.ids[row] for row in compared],
            classes=self._classes().numpy()[compared],
        )
        attempt.progress("export", 2, 3, {})
        base_outputs = self._base_outputs(compute)
        attempt.progress("export", 3, 3, {})
        metrics = {"loss": state.losses[-1] if state.losses else state.loss_sum / max(1, state.loss_steps)}
        if state.accuracies:
            metrics |= {"validation_accuracy": state.best, "best_epoch": float(state.best_epoch)}
        metrics |= {f"int8_{name}": value for name, value in facts["quantisation"].items()}
        return Trained(
            steps=state.step,
            epochs=round(epochs, 3),
            metrics=metrics,
            trained_tokens=state.trained_tokens,
            stopped_reason=reason,
            device=str(compute.device),
            replay=replay,
            base_outputs=base_outputs,
        )

    def _features(self, classifier: Classifier, n_frozen: int, compute: Compute) -> Features:
        from gristmill.kit.layer_cache import LayerCache, cache_key, has_room
        from gristmill.plugins.trainers.encoder.features import Features

        ids = self._texts.encode([row["text"] for row in [*self._train, *self._validation]])
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        work = Path(self._job.work_dir)
        work.mkdir(parents=True, exist_ok=True)
        cache = None
        if n_frozen >= 0:
            key = cache_key(base_digest(self._folder), n_frozen, ids)
            folder, width = work / f"layers-{key[:16]}", self._base.width
            if folder.is_dir() or has_room(work, int(lengths.sum()), width):
                cache = LayerCache(folder, key, lengths, width)
        return Features(classifier, ids, self._base.pad, n_frozen, compute, cache)

    def _classes(self) -> Any:
        import torch

        number = {label: index for index, label in enumerate(self._labels)}
        return torch.tensor([number[row["label"]] for row in [*self._train, *self._validation]])

    def _replay(self, classifier: Classifier, features: Features, rows: Any) -> list[tuple[Any, Any]]:
        logits = features.predict_whole(rows)
        probs = softmax(logits.numpy())
        return [
            (Op(kind="classify", inputs=(self._train[row]["text"],)), classification(self._labels, values))
            for row, values in zip(rows, probs, strict=True)
        ]

    def _base_outputs(self, compute: Compute) -> list[Any] | None:
        """The untrained base as nearest class centroid, on the test rows."""
        from gristmill.kit.encoder import Classifier, load_encoder
        from gristmill.plugins.trainers.encoder.centroids import centroid_probs, sample_rows
        from gristmill.plugins.trainers.encoder.features import Features

        if not self._test or len(self._test) > _MAX_BASE_ROWS:
            return None
        classes = self._classes()[: len(self._train)]
        known = sample_rows(classes.numpy(), self._job.seed)
        texts = [self._train[row]["text"] for row in known] + [row["text"] for row in self._test]
        plain = Classifier(load_encoder(self._folder), len(self._labels), 0.0).to(compute.device)
        features = Features(plain, self._texts.encode(texts), self._base.pad, -1, compute)
        pooled = features.pooled(np.arange(len(texts), dtype=np.int64))
        probs = centroid_probs(pooled[: len(known)], classes[known], pooled[len(known) :])
        return [classification(self._labels, row) for row in probs]

    def _tell_cache(self, done: int, total: int) -> bool:
        self._attempt.progress("cache", done, total, {})
        return self._attempt.stopped_reason() is None


def _freeze(classifier: Classifier, settings: Settings) -> int:
    """Mark what is trained; returns how many layers are frozen, −1 when the embeddings are trained too."""
    if settings.method == "full":
        return -1
    n_layers = classifier.encoder.n_layers
    if settings.method == "top-layers" and settings.top_layers > n_layers:
        raise UsageError(
            f"top_layers is {settings.top_layers}, but the base has {n_layers} layers.", param="top_layers"
        )
    n_frozen = n_layers if settings.method == "head" else n_layers - settings.top_layers
    classifier.encoder.requires_grad_(False)
    for block in classifier.encoder.blocks[n_frozen:]:
        block.requires_grad_(True)
    return n_frozen


def _use_cores(threads: int) -> None:
    import torch

    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    torch.set_num_threads(threads or cores)
