"""Throw-away plug-in distributions: a third-party plug-in without pip, found through the same entry points.

Source: PyPA specifications, "Recording installed projects" and "Entry points".
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gristmill.ports.discovery import ENTRY_POINT_GROUP, manifests


def write_plugin(folder: Path, name: str, module_source: str) -> str:
    """Write a distribution into `folder`; put that folder on `sys.path` and the plug-in is found.

    Args:
        folder: becomes (or is) a folder of importable modules.
        name: of the distribution and its module.
        module_source: Python source that exports `MANIFEST`.

    Returns:
        The module's name.
    """
    module = name.replace("-", "_")
    info = folder / f"{module}-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(module_source, encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{name} = {module}\n", encoding="utf-8")
    return module


@contextmanager
def installed(folder: Path, name: str, module_source: str) -> Iterator[str]:
    """Write a plug-in and make it known to this process and the children it starts, until the block ends."""
    module = write_plugin(folder, name, module_source)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    manifests.cache_clear()
    try:
        yield module
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(module, None)
        importlib.invalidate_caches()
        manifests.cache_clear()
