"""The manifest: what a plug-in says of itself before anything heavy is imported."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Kind = Literal["tasks", "engines", "trainers", "pricing"]


class Manifest(msgspec.Struct, frozen=True):
    """A plug-in's description; `plugin.py` exports one as `MANIFEST`.

    Attributes:
        name: unique within its kind. kind: the folder under `plugins/`.
        summary: one line. implementation: "module:Class", imported only by `load`.
        requires: importable module → the pip command that brings it.
        capabilities: tasks: {"trainer": name, "engine": name}; engines: {"ops": [...], "adapters": bool};
            trainers: {"tasks": [...]}; pricing: {}.
    """

    name: str
    kind: Kind
    summary: str
    implementation: str
    requires: dict[str, str] = {}
    capabilities: dict[str, Any] = {}
