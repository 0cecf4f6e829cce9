"""Manifest of the chat task."""

from gristmill.ports.manifest import Manifest

MANIFEST = Manifest(
    name="chat",
    kind="tasks",
    summary="Answer a conversation; learns from OpenAI's chat format.",
    implementation="gristmill.plugins.tasks.chat.task:ChatTask",
    capabilities={"trainer": "lora", "engine": "llamacpp"},
)
