"""What a customer may ask of a fine-tuning job, and how it becomes a trainer's settings.

Invariant: an unknown field is refused by name; "auto" leaves a setting to the trainer.
Source: OpenAI API reference, "Create fine-tuning job".
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gristmill.core.errors import UsageError
from gristmill.core.recipe import validated

_WHOLE = {"n_epochs": "epochs", "batch_size": "batch_size"}
_RATE = "learning_rate"
MASK_ALLOW = "mask_allow"
_Auto = Literal["auto"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hyperparameters(_Part):
    """Three dials, each "auto" or a number."""

    n_epochs: _Auto | int = Field("auto", union_mode="left_to_right")
    batch_size: _Auto | int = Field("auto", union_mode="left_to_right")
    learning_rate_multiplier: _Auto | float = Field("auto", union_mode="left_to_right")

    @model_validator(mode="after")
    def _in_range(self) -> Hyperparameters:
        for name, top in (("n_epochs", 50), ("batch_size", 256), ("learning_rate_multiplier", 100)):
            value = getattr(self, name)
            if value != "auto" and not 0 < value <= top:
                raise ValueError(f"{name} is over 0 and at most {top}, or 'auto'")
        return self


class Supervised(_Part):
    """The one method there is."""

    hyperparameters: Hyperparameters | None = None


class Method(_Part):
    """How to train."""

    type: Literal["supervised"]
    supervised: Supervised | None = None


class JobRequest(_Part):
    """A job as asked for."""

    model: str = Field(min_length=1)
    training_file: str = Field(min_length=1)
    validation_file: str | None = None
    suffix: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    seed: int | None = Field(None, ge=0, lt=2**31)
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    integrations: None = None

    @property
    def mask_allow(self) -> list[str]:
        """The customer's own contacts, which masking leaves: metadata `mask_allow`, parted by commas."""
        text = (self.metadata or {}).get(MASK_ALLOW, "")
        return [part.strip() for part in text.split(",") if part.strip()]

    @property
    def dials(self) -> Hyperparameters:
        """The hyperparameters, wherever they were given."""
        if self.method is not None and self.method.supervised is not None:
            inner = self.method.supervised.hyperparameters
            if inner is not None:
                return inner
        return self.hyperparameters or Hyperparameters()


def parse(document: dict[str, Any]) -> JobRequest:
    """Check a request's body.

    Raises:
        UnknownField: a field nobody reads. UsageError: a wrong value, by field.
    """
    if document.get("integrations") == []:
        document = document | {"integrations": None}
    request = validated(JobRequest, document, "the job")
    if request.method is not None and request.hyperparameters is not None:
        raise UsageError(
            "Hyperparameters are given twice.", hint="Put them into `method`.", param="hyperparameters"
        )
    return request


def hyper_of(dials: Hyperparameters, defaults: dict[str, Any]) -> dict[str, Any]:
    """A trainer's settings from the three dials.

    Args:
        dials: as asked for.
        defaults: what the trainer uses by itself; the multiplier scales its learning rate.

    Raises:
        UsageError: the trainer has no such dial.
    """
    hyper: dict[str, Any] = {}
    for name, setting in _WHOLE.items():
        value = getattr(dials, name)
        if value != "auto":
            hyper[_known(setting, defaults, name)] = value
    if dials.learning_rate_multiplier != "auto":
        rate = defaults[_known(_RATE, defaults, "learning_rate_multiplier")]
        hyper[_RATE] = rate * dials.learning_rate_multiplier
    return hyper


def _known(setting: str, defaults: dict[str, Any], param: str) -> str:
    if setting not in defaults:
        raise UsageError(f"This base model's trainer has no {param}.", hint="Use 'auto'.", param=param)
    return setting
