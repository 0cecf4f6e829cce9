"""The trainer's settings and their check."""

from __future__ import annotations

import difflib
from typing import Any, Literal, get_args

import msgspec

from gristmill.core.errors import UnknownField, UsageError

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `[train.hyper]` may say.

    Attributes:
        rank: of the adapter's matrices. alpha: the adapter counts alpha / rank.
        top_layers: how many layers, from the top, get an adapter; "all" for every layer.
        projections: which matrices of a layer get one.
        epochs: passes over the training part. batch_size: dialogues a step.
        learning_rate: at its peak. warmup: fraction of the steps until it; then it falls linearly to 0.
        weight_decay: of AdamW. dropout: on the adapter's input. clip: greatest norm of a gradient.
        max_tokens: longer dialogues lose their beginning.
        replay: training prompts answered by the trained model for the parity gate (0 to 40).
    """

    rank: int = 16
    alpha: float = 32.0
    top_layers: int | Literal["all"] = 10
    projections: tuple[Projection, ...] = PROJECTIONS
    epochs: int = 5
    batch_size: int = 8
    learning_rate: float = 4e-3
    warmup: float = 0.1
    weight_decay: float = 0.0
    dropout: float = 0.0
    clip: float = 1.0
    max_tokens: int = 512
    replay: int = 24


_LIMITS: dict[str, tuple[float, float]] = {
    "rank": (1, 512),
    "alpha": (1e-3, 4096),
    "top_layers": (1, 1000),
    "epochs": (1, 1000),
    "batch_size": (1, 1024),
    "learning_rate": (1e-8, 1.0),
    "warmup": (0.0, 0.9),
    "weight_decay": (0.0, 1.0),
    "dropout": (0.0, 0.9),
    "clip": (1e-6, 1e6),
    "max_tokens": (8, 65536),
    "replay": (0, 40),
}


def read_settings(hyper: dict[str, Any]) -> Settings:
    """Check `hyper` and fill defaults.

    Raises:
        UnknownField: a key nobody reads. UsageError: a wrong value; `param` is the field.
    """
    for name in hyper:
        if name not in Settings.__struct_fields__:
            near = difflib.get_close_matches(name, Settings.__struct_fields__, n=1)
            hint = (
                f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(Settings.__struct_fields__)}."
            )
            raise UnknownField(f"The lora trainer has no setting {name!r}.", hint=hint, param=name)
    for name, value in hyper.items():
        _check(name, value)
    return msgspec.convert(hyper, Settings)


def _check(name: str, value: Any) -> None:
    try:
        msgspec.convert({name: value}, Settings)
    except msgspec.ValidationError as error:
        raise UsageError(f"{name} is wrong: {error}.", param=name) from None
    if name in _LIMITS and not isinstance(value, str):
        low, high = _LIMITS[name]
        if not low <= value <= high:
            raise UsageError(f"{name} is {value}; it must be from {low:g} to {high:g}.", param=name)
    if name == "projections" and not value:
        raise UsageError("projections is empty.", hint=f"Known: {', '.join(PROJECTIONS)}.", param=name)
