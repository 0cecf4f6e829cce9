"""Blobs: immutable bytes named by their SHA-256, never by a user's file name.

Invariant: a blob appears whole or not at all (temporary name, fsync, rename); its name is its content's hash.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from gristmill.core.artifact import MANIFEST_NAME, Artifact, load_verified
from gristmill.core.errors import NotFound


class Blobs:
    """A folder of content-addressed files, and of artefact folders beside it."""

    def __init__(self, root: Path, artifacts: Path) -> None:
        self._root = root
        self._artifacts = artifacts
        root.mkdir(parents=True, exist_ok=True)
        artifacts.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Store bytes; returns their digest (hex)."""
        digest = hashlib.sha256(data).hexdigest()
        target = self._target(digest)
        if not target.exists():
            with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            Path(handle.name).replace(target)
        return digest

    def path(self, digest: str) -> Path:
        """Where a blob lies, for readers that need a file."""
        target = self._target(digest)
        if not target.is_file():
            raise NotFound(f"Blob {digest[:12]}… is not in this home.")
        return target

    def get(self, digest: str) -> bytes:
        """A blob's bytes."""
        return self.path(digest).read_bytes()

    def delete(self, digest: str) -> None:
        """Remove a blob; an absent one is no error."""
        self._target(digest).unlink(missing_ok=True)

    def adopt_artifact(self, folder: Path) -> Artifact:
        """Move a sealed artefact folder to its place under its digest; returns its manifest."""
        artifact = load_verified(folder)
        target = self._artifacts / artifact.digest
        if not (target / MANIFEST_NAME).is_file():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(folder, partial)
            partial.replace(target)
        return artifact

    def artifact_path(self, digest: str) -> Path:
        """The folder of an artefact."""
        folder = self._artifacts / digest
        if not (folder / MANIFEST_NAME).is_file():
            raise NotFound(f"Artefact {digest[:12]}… is not in this home.", hint="Restore it from a backup.")
        return folder

    def _target(self, digest: str) -> Path:
        folder = self._root / digest[:2]
        folder.mkdir(exist_ok=True)
        return folder / digest
