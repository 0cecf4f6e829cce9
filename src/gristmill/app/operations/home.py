"""Operations on the home and the machine: doctor, backup."""

from __future__ import annotations

import importlib.util
import os
import platform as machine
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from gristmill.app import backup as archives
from gristmill.app.operations.base import Emit, Params, operation
from gristmill.app.platform import Platform
from gristmill.core.errors import Missing
from gristmill.ports import discovery
from gristmill.ports.manifest import Kind
from gristmill.stages.registry import bases

_KINDS: tuple[Kind, ...] = ("tasks", "engines", "trainers", "pricing")
_MIN_FREE_BYTES = 5 * 2**30


@operation("doctor", "", is_read=True)
def doctor(platform: Platform, _params: Params, _emit: Emit) -> dict[str, Any]:
    """Check this machine and this home: Python, disk, plug-ins, base models."""
    disk = shutil.disk_usage(platform.home)
    checks = [
        _check(
            "python", sys.version_info >= (3, 11), machine.python_version(), "Install Python 3.11 or newer."
        ),
        _check("cores", True, str(os.cpu_count()), ""),
        _check(
            "disk",
            disk.free >= _MIN_FREE_BYTES,
            f"{disk.free / 2**30:.1f} GiB free",
            "Free some space: a base model and its runs take about 2 GiB.",
        ),
        _check("home", True, str(platform.home), ""),
    ]
    for kind in _KINDS:
        for manifest in discovery.manifests(kind).values():
            absent = [m for m in manifest.requires if importlib.util.find_spec(m) is None]
            command = manifest.requires[absent[0]] if absent else ""
            checks.append(
                _check(
                    f"{kind}/{manifest.name}",
                    not absent,
                    manifest.summary,
                    f"Run: {command}" if absent else "",
                )
            )
    for known in bases.catalogue():
        try:
            bases.resolve(known.name)
            checks.append(_check(f"base/{known.name}", True, known.licence, ""))
        except Missing as error:
            checks.append(_check(f"base/{known.name}", False, error.message, error.hint or ""))
    return {"is_ready": all(check["ok"] for check in checks), "checks": checks}


def _check(name: str, is_ok: bool, found: str, fix: str) -> dict[str, Any]:
    return {"name": name, "ok": is_ok, "found": found, "fix": "" if is_ok else fix}


class Backup(Params):
    """Parameters of `backup`."""

    positional: ClassVar[tuple[str, ...]] = ("archive",)
    archive: Path = Field(description="File to write (.tar.gz); it holds the home's secret key, so guard it.")


@operation("backup", "", Backup)
def backup(platform: Platform, params: Backup, emit: Emit) -> dict[str, Any]:
    """Write one archive of the home, consistent while the server runs."""
    return archives.backup(platform, params.archive, emit)


class Restore(Params):
    """Parameters of `restore`."""

    positional: ClassVar[tuple[str, ...]] = ("archive",)
    archive: Path = Field(description="Archive made by `gristmill backup`.")


@operation("restore", "", Restore)
def restore(platform: Platform, params: Restore, _emit: Emit) -> dict[str, Any]:
    """Make a home from an archive; the home named by --home must not exist yet."""
    return archives.restore(params.archive, platform.home)
