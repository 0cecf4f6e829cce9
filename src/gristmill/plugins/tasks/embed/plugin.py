"""Manifest of the embed task; imports nothing heavy."""

from __future__ import annotations

from gristmill.ports.manifest import Manifest

MANIFEST = Manifest(
    name="embed",
    kind="tasks",
    summary="Turn a text into a vector of length one for search and clustering.",
    implementation="gristmill.plugins.tasks.embed.task:Embed",
    capabilities={"trainer": "encoder", "engine": "onnx"},
)
