"""Backup and restore of a whole home as one archive.

Invariant: databases are copied through SQLite's backup API, so an archive is consistent while a server runs;
an archive is restored into a folder that does not exist yet, whole or not at all.
"""

from __future__ import annotations

import shutil
import sqlite3
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from gristmill.app.platform import Platform
from gristmill.core.errors import Conflict, UsageError
from gristmill.core.progress import Emit, Progress

_DATABASES = ("ledger.db", "jobs.db")
_KEPT = ("settings.toml", "secret.key", "blobs", "artifacts", "bases", "data", "runs")


def backup(platform: Platform, archive: Path, emit: Emit) -> dict[str, Any]:
    """Write `archive`; returns its path and size.

    Raises:
        Conflict: the file exists already.
    """
    if archive.exists():
        raise Conflict(f"{archive} exists already.", hint="Name another file.", param="archive")
    partial = archive.with_name(archive.name + ".partial")
    with tempfile.TemporaryDirectory() as scratch:
        for name in _DATABASES:
            if (platform.home / name).exists():
                _copy_database(platform.home / name, Path(scratch) / name)
        partial.touch(mode=0o600)
        with tarfile.open(partial, "w:gz", compresslevel=1) as tar:
            for done, name in enumerate((*_DATABASES, *_KEPT), 1):
                folder = Path(scratch) if name in _DATABASES else platform.home
                if (folder / name).exists():
                    tar.add(folder / name, name)
                emit(Progress("backup", done, len(_DATABASES) + len(_KEPT), name))
    partial.replace(archive)
    return {"id": archive.name, "path": str(archive), "bytes": archive.stat().st_size}


def restore(archive: Path, home: Path) -> dict[str, Any]:
    """Unpack `archive` as the new home.

    Raises:
        Conflict: the home holds something. UsageError: not an archive of a home.
    """
    if home.exists() and any(home.iterdir()):
        raise Conflict(f"The folder {home} is not empty.", hint="Name a new one with --home.", param="home")
    partial = home.with_name(home.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(partial, filter="data")
    except (tarfile.TarError, EOFError, FileNotFoundError, OSError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UsageError(f"{archive.name} is not a readable archive: {error}.", param="archive") from None
    if not (partial / "ledger.db").exists() or not (partial / "secret.key").exists():
        shutil.rmtree(partial, ignore_errors=True)
        raise UsageError(f"{archive.name} is not an archive of a home.", param="archive")
    if home.exists():
        home.rmdir()
    partial.chmod(0o700)
    (partial / "secret.key").chmod(0o600)
    partial.rename(home)
    return {"id": home.name, "home": str(home)}


def _copy_database(source: Path, target: Path) -> None:
    with sqlite3.connect(f"file:{source}?mode=ro", uri=True) as reading, sqlite3.connect(target) as writing:
        reading.backup(writing)
