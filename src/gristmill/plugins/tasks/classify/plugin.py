"""Manifest of the classify task; imports nothing heavy."""

from __future__ import annotations

from gristmill.ports.manifest import Manifest

MANIFEST = Manifest(
    name="classify",
    kind="tasks",
    summary="Give a text one of the labels it was taught, with a probability for each.",
    implementation="gristmill.plugins.tasks.classify.task:Classify",
    capabilities={"trainer": "encoder", "engine": "onnx"},
)
