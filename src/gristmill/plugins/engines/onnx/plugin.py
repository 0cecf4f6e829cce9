"""Manifest of the ONNX Runtime engine; imports nothing heavy."""

from __future__ import annotations

from gristmill.ports.manifest import Manifest

_PIP = "pip install 'gristmill[serve]'"

MANIFEST = Manifest(
    name="onnx",
    kind="engines",
    summary="Classifiers and embedders in ONNX, batched by length on the CPU.",
    implementation="gristmill.plugins.engines.onnx.engine:OnnxEngine",
    requires=dict.fromkeys(("onnxruntime", "tokenizers", "numpy"), _PIP),
    capabilities={"ops": ["classify", "embed"], "adapters": False},
)
