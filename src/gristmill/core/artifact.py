"""The artefact: a folder of weights and everything that must not drift from them, under one digest.

Invariant: `artifact.json` lists every other file with its SHA-256; the digest is the SHA-256 of its canonical
JSON, so tokenizer, template, labels and weights freeze together and a changed byte is refused at load.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from gristmill.core.errors import BrokenInvariant, UsageError

MANIFEST_NAME = "artifact.json"
_REFUSED = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".ckpt"}


class Artifact(msgspec.Struct, frozen=True):
    """The manifest in `artifact.json`.

    Attributes:
        task: task name. engine: engine plug-in that runs it. kind: "model" or "adapter".
        base: name of the base model; base_digest: digest of its file when `kind` is "adapter".
        files: file name → SHA-256 (hex).
        facts: recorded facts of training and export (labels, max_tokens, template hash, scale …).
    """

    task: str
    engine: str
    kind: str
    base: str
    files: dict[str, str]
    base_digest: str | None = None
    facts: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical manifest, in hex."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def seal(
    folder: Path,
    *,
    task: str,
    engine: str,
    kind: str,
    base: str,
    base_digest: str | None = None,
    facts: dict[str, Any] | None = None,
) -> Artifact:
    """Hash every file of `folder` (not recursive) and write its `artifact.json`.

    Raises:
        UsageError: a file has a pickle format; weights are safetensors, GGUF or ONNX.
    """
    files: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.name == MANIFEST_NAME or path.is_dir():
            continue
        if path.suffix in _REFUSED:
            raise UsageError(
                f"{path.name} may hold a pickle, which can run code when loaded.",
                hint="Convert the weights to safetensors, GGUF or ONNX.",
                param="path",
            )
        files[path.name] = file_sha256(path)
    artifact = Artifact(
        task=task,
        engine=engine,
        kind=kind,
        base=base,
        base_digest=base_digest,
        files=files,
        facts=facts or {},
    )
    (folder / MANIFEST_NAME).write_bytes(msgspec.json.encode(artifact, order="deterministic"))
    return artifact


def load_verified(folder: Path, digest: str | None = None) -> Artifact:
    """Read `artifact.json` and check every file's hash, and the digest when given.

    Raises:
        BrokenInvariant: a file is absent or differs from what was sealed.
    """
    artifact = msgspec.json.decode((folder / MANIFEST_NAME).read_bytes(), type=Artifact)
    for name, expected in artifact.files.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != expected:
            raise BrokenInvariant(
                f"{name} of the {artifact.task} artefact changed after it was sealed.",
                hint="Restore it from a backup, or roll back: gristmill release rollback.",
            )
    if digest is not None and artifact.digest != digest:
        raise BrokenInvariant("The artefact's manifest changed after it was registered.")
    return artifact
