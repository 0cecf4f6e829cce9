"""The encoder trainer's settings and their check."""

from __future__ import annotations

import difflib
from typing import Any, Literal

import msgspec

from gristmill.core.errors import UnknownField, UsageError


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `[train.hyper]` may say.

    Attributes:
        method: "head" trains the head alone, "top-layers" the upper layers too, "full" everything.
        top_layers: how many layers, from the top, "top-layers" trains; the others are computed once.
        epochs: passes over the training part; 0 chooses by the rows a class has (see `resolved`).
        max_tokens: longer texts are cut, in training and in serving alike.
        batch_size: rows a step. batch_tokens: padded tokens a step at most (rows go first).
        learning_rate: of the layers at its peak. head_learning_rate: of the head.
        layer_decay: factor on the learning rate for each layer further down.
        warmup: fraction of the steps until the peak; then it falls linearly to 0.
        weight_decay: of AdamW, on matrices only. clip: greatest norm of a gradient.
        dropout: inside trained layers. head_dropout: before the head. label_smoothing: of the loss.
        precision: of matrix products; "auto" takes bfloat16 where the machine computes it natively.
        threads: of the processor; 0 for all cores.
        replay: training texts answered by the trained model for the parity gate (0 to 200).
    """

    method: Literal["head", "top-layers", "full"] = "top-layers"
    top_layers: int = 3
    epochs: int = 0
    max_tokens: int = 64
    batch_size: int = 32
    batch_tokens: int = 4096
    learning_rate: float = 4e-4
    head_learning_rate: float = 1e-3
    layer_decay: float = 0.9
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    dropout: float = 0.0
    head_dropout: float = 0.1
    label_smoothing: float = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 0
    replay: int = 200


_DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 2e-4},
    "head": {"head_learning_rate": 1e-2},
}
_HEAD_EPOCHS = 5
_EPOCHS = ((3000, 1), (1000, 2), (400, 3), (60, 4))
_MOST_EPOCHS = 6

_LIMITS: dict[str, tuple[float, float]] = {
    "top_layers": (1, 1000),
    "epochs": (0, 1000),
    "max_tokens": (4, 8192),
    "batch_size": (1, 4096),
    "batch_tokens": (16, 1 << 20),
    "learning_rate": (1e-8, 1.0),
    "head_learning_rate": (1e-8, 1.0),
    "layer_decay": (0.01, 1.0),
    "warmup": (0.0, 0.9),
    "weight_decay": (0.0, 1.0),
    "clip": (1e-6, 1e6),
    "dropout": (0.0, 0.9),
    "head_dropout": (0.0, 0.9),
    "label_smoothing": (0.0, 0.5),
    "threads": (0, 1024),
    "replay": (0, 200),
}


def read_settings(hyper: dict[str, Any]) -> Settings:
    """Check `hyper` and fill defaults; "full" and "head" have learning rates of their own.

    Raises:
        UnknownField: a key nobody reads. UsageError: a wrong value; `param` is the field.
    """
    known = Settings.__struct_fields__
    for name, value in hyper.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise UnknownField(f"The encoder trainer has no setting {name!r}.", hint=hint, param=name)
        _check(name, value)
    hyper = _DEFAULTS.get(hyper.get("method", ""), {}) | hyper
    return msgspec.convert(hyper, Settings)


def resolved(settings: Settings, n_rows: int, n_labels: int) -> Settings:
    """The settings with `epochs` chosen: the fewer rows a class has, the more passes they can bear.

    Film reviews (5,000 rows a class) gain nothing from a second epoch, 400 of them gain four points from six.
    """
    if settings.epochs:
        return settings
    rows_a_class = n_rows / max(1, n_labels)
    epochs = next((epochs for least, epochs in _EPOCHS if rows_a_class >= least), _MOST_EPOCHS)
    times = _HEAD_EPOCHS if settings.method == "head" else 1
    return msgspec.structs.replace(settings, epochs=epochs * times)


def _check(name: str, value: Any) -> None:
    try:
        msgspec.convert({name: value}, Settings)
    except msgspec.ValidationError as error:
        reason = str(error).split(" - at")[0]
        raise UsageError(f"{name} is {value!r}: {reason}.", param=name) from None
    if name in _LIMITS:
        low, high = _LIMITS[name]
        if not low <= value <= high:
            raise UsageError(f"{name} is {value!r}; it goes from {low:g} to {high:g}.", param=name)
