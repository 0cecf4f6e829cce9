"""Settings of one home: flag > GRISTMILL_* > `settings.toml` in the home > default.

This is the only reader of the environment.

Invariant: an unknown name, in the file or in the environment, is refused with the nearest known one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gristmill.core.errors import UnknownField, UsageError, did_you_mean
from gristmill.core.recipe import validated

PREFIX = "GRISTMILL_"
_ELSEWHERE = {"GRISTMILL_HOME"}  # names the home itself


class Settings(BaseModel):
    """Everything an operator may set; each name is documented in docs/reference/settings.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    tls_cert: Path | None = Field(None, description="Certificate chain (PEM); with tls_key turns TLS on.")
    tls_key: Path | None = Field(None, description="Private key (PEM) of tls_cert.")
    seller: str = Field("Gristmill operator", description="The company name printed on invoices.")
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="Currency of costs and of new plans.")
    hourly_rate: Decimal = Field(
        Decimal("0.10"), ge=0, description="What an hour of this machine costs, in `currency`."
    )
    threads: int = Field(0, ge=0, description="Threads an engine may use; 0 means all cores.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to train.")
    max_body_bytes: int = Field(10 * 2**20, gt=0, description="Largest request body, but for files.")
    max_file_bytes: int = Field(512 * 2**20, gt=0, description="Largest uploaded file.")
    customer_bases: list[str] = Field(
        ["all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"], description="Base models customers may fine-tune."
    )
    customer_max_minutes: float = Field(60, gt=0, description="Cap on a customer's fine-tuning run.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="JSON lines, or readable lines; auto: readable on a terminal."
    )


def load(home: Path, flags: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Settings:
    """Join the four levels into settings.

    Raises:
        UnknownField: a name nobody reads. UsageError: a wrong value, naming the setting.
    """
    source = os.environ if environment is None else environment
    values: dict[str, Any] = _from_file(home / "settings.toml")
    for name, value in source.items():
        if name.startswith(PREFIX) and name not in _ELSEWHERE:
            values[_known(name.removeprefix(PREFIX).lower(), name)] = _split(name, value)
    values |= {name: value for name, value in flags.items() if value is not None}
    return validated(Settings, values, "settings")


def default_home(environment: Mapping[str, str] | None = None) -> Path:
    """The home folder when no flag names one: GRISTMILL_HOME, else `~/.gristmill`."""
    source = os.environ if environment is None else environment
    named = source.get("GRISTMILL_HOME")
    return Path(named) if named else Path.home() / ".gristmill"


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} is not valid TOML: {error}.") from None
    return {_known(name, f"{name} in settings.toml"): value for name, value in values.items()}


def _known(name: str, shown: str) -> str:
    if name not in Settings.model_fields:
        hint = did_you_mean(name, Settings.model_fields, "See docs/reference/settings.md.")
        raise UnknownField(f"There is no setting {shown}.", hint=hint, param=name)
    return name


def _split(name: str, value: str) -> Any:
    return [part.strip() for part in value.split(",")] if name == "GRISTMILL_CUSTOMER_BASES" else value
