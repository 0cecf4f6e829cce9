"""What an engine child serves: one base file, its releases, each with its own chat format and adapter.

Invariant: every file was hashed against its artefact before it is opened, and an adapter is used only on the
very base it was trained on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gristmill.core.artifact import Artifact, file_sha256, load_verified
from gristmill.core.errors import BrokenInvariant, Missing, UsageError
from gristmill.core.op import ServedModel
from gristmill.kit.chat import ChatFormat
from gristmill.kit.gguf import BASE_FILE
from gristmill.kit.gguf_lora import ADAPTER_FILE


class Release(msgspec.Struct, frozen=True):
    """One release: its artefact's digest, its chat format, and its place in `adapters` (None: the base)."""

    digest: str
    chat: ChatFormat
    adapter: int | None


class Loaded(msgspec.Struct, frozen=True):
    """The base file, the adapters' files in llama.cpp's order, and the releases by id."""

    base: Path
    adapters: tuple[Path, ...]
    releases: dict[str, Release]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `[serve.options]` may say.

    Attributes:
        threads: of llama.cpp; by default half the cores, since its threads wait for one another at every
            layer and one that lost its core (to the gateway, or to a neighbour) stops them all.
        slots: requests generated at once. queue: requests that may wait for a slot.
        context: tokens of one request, input and output.
    """

    threads: int = max(1, (os.cpu_count() or 2) // 2)
    slots: int = 8
    context: int = 2048
    queue: int = 256


_LIMITS = {"threads": (1, 256), "slots": (1, 256), "context": (64, 1 << 20), "queue": (1, 100_000)}


def read_options(options: dict[str, object]) -> Options:
    """Check the options.

    Raises:
        UsageError: an unknown name or a value out of range; `param` is the name.
    """
    for name, value in options.items():
        if name not in _LIMITS:
            raise UsageError(
                f"The llamacpp engine has no option {name!r}.",
                hint=f"Known: {', '.join(_LIMITS)}.",
                param=name,
            )
        low, high = _LIMITS[name]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UsageError(
                f"{name} is {value!r}; it must be a whole number from {low} to {high}.", param=name
            )
    return msgspec.convert(options, Options)


def load_models(models: Sequence[ServedModel]) -> Loaded:
    """Verify all artefacts and bring them together.

    Raises:
        BrokenInvariant: a file changed. Missing: a base is absent. UsageError: not all on one base.
    """
    hashes: dict[Path, str] = {}
    bases: dict[str, Path] = {}
    adapters: list[Path] = []
    releases: dict[str, Release] = {}
    for model in models:
        folder = Path(model.path)
        artifact = load_verified(folder, model.digest)
        base, digest = _base_of(model, artifact, hashes)
        bases.setdefault(digest, base)
        index = None
        if artifact.kind == "adapter":
            index = len(adapters)
            adapters.append(folder / ADAPTER_FILE)
        releases[model.release] = Release(artifact.digest, ChatFormat.load(folder), index)
    if len(bases) != 1:
        raise UsageError(f"One llamacpp engine serves one base model; it was given {len(bases)}.")
    return Loaded(next(iter(bases.values())), tuple(adapters), releases)


def _base_of(model: ServedModel, artifact: Artifact, hashes: dict[Path, str]) -> tuple[Path, str]:
    if artifact.kind != "adapter":
        return Path(model.path) / BASE_FILE, artifact.files[BASE_FILE]
    base = Path(model.base_path or "")
    base = base / BASE_FILE if base.is_dir() else base
    if model.base_path is None or not base.is_file():
        raise Missing(f"The base model {artifact.base} of this adapter is not in the home.", param="base")
    if base not in hashes:
        hashes[base] = file_sha256(base)
    if hashes[base] != artifact.base_digest:
        raise BrokenInvariant(
            f"The base model {artifact.base} is not the file this adapter was trained on.",
            hint="Restore it from a backup, or train again.",
        )
    return base, hashes[base]
