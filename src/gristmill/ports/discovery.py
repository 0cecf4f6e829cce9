"""Finding and loading plug-ins: built-ins by scanning the folder, others by entry point, one door for both.

A third party declares, in the entry-point group `gristmill.plugins`, the module that exports `MANIFEST`.
A plug-in runs with the full rights of the process that loads it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from importlib.metadata import entry_points
from typing import Any

from gristmill.core.errors import BrokenInvariant, Missing, NotFound, did_you_mean
from gristmill.ports.manifest import Kind, Manifest

_BUILT_IN = "gristmill.plugins"
ENTRY_POINT_GROUP = "gristmill.plugins"


@functools.cache
def manifests(kind: Kind) -> dict[str, Manifest]:
    """All manifests of a kind by name; imports only the light `plugin.py` files.

    Raises:
        BrokenInvariant: two plug-ins of one kind share a name.
    """
    package = importlib.import_module(f"{_BUILT_IN}.{kind}")
    modules = [f"{package.__name__}.{entry.name}.plugin" for entry in pkgutil.iter_modules(package.__path__)]
    modules += [point.value for point in entry_points(group=ENTRY_POINT_GROUP)]
    found: dict[str, Manifest] = {}
    for module in modules:
        manifest = importlib.import_module(module).MANIFEST
        if manifest.kind != kind:
            continue
        if manifest.name in found:
            raise BrokenInvariant(f"Two plug-ins are named {kind}/{manifest.name}; remove one of them.")
        found[manifest.name] = manifest
    return dict(sorted(found.items()))


def find(kind: Kind, name: str) -> Manifest:
    """The manifest of one plug-in, or NotFound with the nearest name."""
    known = manifests(kind)
    if name not in known:
        hint = did_you_mean(name, known, f"Known: {', '.join(known) or 'none'}.")
        raise NotFound(f"There is no plug-in {name!r} among {kind}.", hint=hint, param=kind)
    return known[name]


def load(manifest: Manifest) -> Any:
    """Import the implementation and return an instance of it.

    Raises:
        Missing: a required module is absent; the hint is the pip command that brings it.
    """
    for module, command in manifest.requires.items():
        if importlib.util.find_spec(module) is None:
            raise Missing(
                f"The {manifest.kind} plug-in {manifest.name} needs {module}.", hint=f"Run: {command}"
            )
    path, _, name = manifest.implementation.partition(":")
    return getattr(importlib.import_module(path), name)()
