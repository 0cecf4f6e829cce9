"""Manifest of the llama.cpp engine."""

from gristmill.ports.manifest import Manifest

_PIP = "pip install 'gristmill[serve]'"

MANIFEST = Manifest(
    name="llamacpp",
    kind="engines",
    summary="llama.cpp in process: one shared base, an adapter for each release, continuous batching.",
    implementation="gristmill.plugins.engines.llamacpp.engine:LlamaCppEngine",
    requires=dict.fromkeys(("xllamacpp", "tokenizers", "jinja2"), _PIP),
    capabilities={"ops": ["generate"], "adapters": True},
)
