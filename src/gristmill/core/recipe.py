"""The recipe: one product as a file, `gristmill.toml`: data, task, base, training, gates, serving, plans.

Invariant: unknown keys are refused with the nearest known name; the digest of the normalised recipe goes into
the run, so a run can be repeated from its own record.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gristmill.core.errors import UnknownField, UsageError, did_you_mean

M = TypeVar("M", bound=BaseModel)
_SLUG = r"^[a-z0-9][a-z0-9-]{0,39}$"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Product(_Section):
    """What is sold: its name (also its public model name), task and one-line description."""

    name: str = Field(pattern=_SLUG)
    task: str
    description: str = ""


class Source(_Section):
    """Where rows come from: exactly one of a path, a Hugging Face hub id, or a package's data file.

    A path is relative to the recipe's folder and stays inside it (or inside the home's data folder).
    """

    path: str | None = None
    hub: str | None = None
    hub_split: str = "train"
    package: str | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        if sum(value is not None for value in (self.path, self.hub, self.package)) != 1:
            raise ValueError("name exactly one of path, hub, package")
        if (self.package is None) != (self.file is None):
            raise ValueError("package and file go together")
        return self


class Data(_Section):
    """Rows, how to read them and how to split them.

    Attributes: `columns` maps a task's field to the file's column; `drop` leaves out rows whose column has
    one of the values; `group` keeps rows of one value in one part; `test` is a declared part that is never
    changed, `test_fraction` cuts one by group otherwise; `allow` lists texts that masking must leave (the
    product's own contacts).
    """

    source: Source
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    columns: dict[str, str] = {}
    drop: dict[str, list[str]] = {}
    group: str | None = None
    test: Source | None = None
    test_fraction: float = Field(default=0.2, ge=0.0, lt=1.0)
    validation_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    licence: str = "unknown"
    mask: bool = True
    allow: list[str] = []
    near_duplicate_similarity: float = Field(default=0.9, gt=0.0, le=1.0)


class Base(_Section):
    """The pretrained model: a name known to `gristmill doctor`, a hub id, or a folder.

    A relative `path` starts from the recipe's folder.
    """

    model: str
    path: str | None = None


class Train(_Section):
    """How to train; `hyper` is checked by the trainer plug-in. Caps of 0 mean none."""

    trainer: str | None = None
    hyper: dict[str, Any] = {}
    seed: int = 7
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    max_minutes: float = Field(default=60.0, ge=0)
    max_cost: Decimal = Field(default=Decimal(0), ge=0)


class GateSpec(_Section):
    """A limit on one metric; see `core.report.Gate`."""

    metric: str
    against: Literal["baseline", "base", "production"] | None = None
    min: float | None = None
    max: float | None = None
    min_low: float | None = None

    @model_validator(mode="after")
    def _has_limit(self) -> GateSpec:
        if self.min is None and self.max is None and self.min_low is None:
            raise ValueError("give min, max or min_low")
        return self


class Serve(_Section):
    """How to serve: the engine (the task's own by default), its options, the alias that a launch moves."""

    engine: str | None = None
    options: dict[str, Any] = {}
    alias: str = Field(default="production", pattern=_SLUG)


class PriceSpec(_Section):
    """How a meter becomes money; `params` go to the pricing plug-in, decimals as text."""

    meter: str
    pricing: str
    params: dict[str, Any]
    model: str = "*"


class PlanSpec(_Section):
    """A plan to sell. `fee` is per calendar month, in currency units; quota: meter → hard limit a period."""

    name: str = Field(pattern=_SLUG)
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    billing: Literal["prepaid", "invoice", "internal"] = "invoice"
    fee: Decimal = Field(default=Decimal(0), ge=0)
    prices: list[PriceSpec] = []
    models: list[str] = ["*"]
    requests_per_minute: int | None = Field(default=None, gt=0)
    tokens_per_minute: int | None = Field(default=None, gt=0)
    quota: dict[str, int] = {}


class Recipe(_Section):
    """A whole recipe; see each section."""

    product: Product
    data: Data
    base: Base
    train: Train = Train()
    gates: list[GateSpec] = []
    serve: Serve = Serve()
    plans: list[PlanSpec] = []

    @property
    def digest(self) -> str:
        """SHA-256 of the normalised recipe, hex."""
        document = self.model_dump(mode="json")
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def parse(document: dict[str, Any]) -> Recipe:
    """Check a recipe document.

    Raises:
        UnknownField: a key nobody reads, with the nearest known name. UsageError: a wrong value, by field.
    """
    return validated(Recipe, document, "the recipe")


def validated(model: type[M], document: Any, what: str) -> M:
    """Validate a document into `model`, turning one of pydantic's complaints into one of our errors.

    An unknown key goes before everything else: a misspelt key is why its right name is missing.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            name = str(first["loc"][-1])
            hint = did_you_mean(name, _names_near(model, first["loc"]), "Remove it.")
            raise UnknownField(f"{what} has an unknown key {where!r}.", hint=hint, param=where) from None
        raise UsageError(f"{what}: {where or 'document'}: {first['msg']}.", param=where or None) from None


def read(path: Path) -> Recipe:
    """Read `gristmill.toml` (or the folder that holds one).

    Raises:
        UsageError: absent, not TOML, or wrong content.
    """
    file = path / "gristmill.toml" if path.is_dir() else path
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"There is no recipe at {file}.", hint="Name a gristmill.toml or its folder."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file.name} is not valid TOML: {error}.") from None
    recipe = parse(document)
    if recipe.base.path is None:
        return recipe
    # A server reads the recipe too, and works in another folder than the command that names it.
    base = recipe.base.model_copy(update={"path": str(file.parent.resolve() / recipe.base.path)})
    return recipe.model_copy(update={"base": base})


def _names_near(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    current: Any = model
    for part in location[:-1]:
        if isinstance(part, int) or current is None:
            continue
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        current = next(
            (a for a in _candidates(annotation) if isinstance(a, type) and issubclass(a, BaseModel)), None
        )
    return list(current.model_fields) if current is not None else []


def _candidates(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    return [annotation, *(inner for argument in arguments for inner in _candidates(argument))]
