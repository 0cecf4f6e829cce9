"""Manifest of the encoder trainer; imports nothing heavy."""

from __future__ import annotations

from gristmill.ports.manifest import Manifest

_PIP = "pip install 'gristmill[train]'"

MANIFEST = Manifest(
    name="encoder",
    kind="trainers",
    summary="Text classifier on a BERT-like base; frozen lower layers are computed once.",
    implementation="gristmill.plugins.trainers.encoder.trainer:EncoderTrainer",
    requires=dict.fromkeys(
        ("torch", "transformers", "safetensors", "tokenizers", "onnx", "onnxruntime"), _PIP
    ),
    capabilities={"tasks": ["classify", "embed"]},
)
