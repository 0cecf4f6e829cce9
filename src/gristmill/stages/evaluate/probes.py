"""Probes: a few fixed Ops by kind, to see that an imported model answers and how fast.

They judge no quality; a kind that is not listed is loaded and not asked.
"""

from __future__ import annotations

from gristmill.core.op import Op

_TEXTS = ("Where is my order?", "The screen went dark after a week.", "Thank you, that solved it!", "你好")


def probes(kind: str) -> list[Op]:
    """The probe Ops of a kind, each with one input."""
    if kind in ("classify", "embed"):
        return [Op(kind, (text,)) for text in _TEXTS]
    if kind == "generate":
        options = {"max_tokens": 8, "temperature": 0.0}
        return [Op(kind, ([{"role": "user", "content": text}],), options) for text in _TEXTS]
    return []
