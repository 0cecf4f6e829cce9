"""Manifest of the LoRA trainer."""

from gristmill.ports.manifest import Manifest

_PIP = "pip install 'gristmill[train]'"

MANIFEST = Manifest(
    name="lora",
    kind="trainers",
    summary="LoRA adapter on the top layers of a chat model; the lower layers are computed once.",
    implementation="gristmill.plugins.trainers.lora.trainer:LoraTrainer",
    requires=dict.fromkeys(
        ("torch", "transformers", "peft", "safetensors", "gguf", "tokenizers", "jinja2"), _PIP
    ),
    capabilities={"tasks": ["chat"]},
)
