"""Masking: personal data becomes pseudonyms such as `[EMAIL_1]`, consistently in a data set.

Invariant: masking twice changes nothing, and the numbers follow the order of first appearance. What stands
behind a pseudonym lives in memory only and is never stored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from gristmill.stages.data.personal import FINDERS, Span, plain

_SUSPICIOUS = re.compile(r"@|\d\D{0,3}\d\D{0,3}\d\D{0,3}\d|[0-9A-Fa-f]:[0-9A-Fa-f]*:|::[0-9A-Fa-f]")
_MAX_ROUNDS = 100


class Masker:
    """Masks one data set.

    Args:
        allow: texts that stay, such as the product's own contacts, in whatever spelling they appear.

    Attributes:
        counts: kind ("email", "phone", "card" …) → values masked so far.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._pseudonyms: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        texts = sorted({text.strip() for text in allow if text.strip()}, key=len, reverse=True)
        self._allowed = {
            (kind, span.value) for text in texts for kind, _, find in FINDERS for span in find(text)
        }
        self._literal = re.compile("|".join(map(re.escape, texts)), re.IGNORECASE) if texts else None

    def mask(self, text: str) -> str:
        """The text with its personal data replaced."""
        if not _SUSPICIOUS.search(plain(text)):
            return text
        for _ in range(_MAX_ROUNDS):  # what is replaced may lay bare what was hidden by it
            masked = self._once(text)
            if masked == text:
                break
            text = masked
        return text

    def mask_within(self, value: Any) -> Any:
        """The same list, object or text with every text inside masked."""
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, dict):
            return {key: self.mask_within(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mask_within(inner) for inner in value]
        return value

    def _once(self, text: str) -> str:
        for kind, word, find in FINDERS:
            spans = [span for span in find(plain(text)) if (kind, span.value) not in self._allowed]
            if spans:
                text = self._replace(text, kind, word, spans)
        return text

    def _replace(self, text: str, kind: str, word: str, spans: list[Span]) -> str:
        kept = [match.span() for match in self._literal.finditer(text)] if self._literal else []
        pieces, end = [], 0
        for span in sorted(spans):
            if span.start < end or any(start <= span.start and span.end <= stop for start, stop in kept):
                continue
            pieces += [text[end : span.start], self._pseudonym(kind, word, span.value)]
            self.counts[kind] += 1
            end = span.end
        return "".join(pieces) + text[end:]

    def _pseudonym(self, kind: str, word: str, value: str) -> str:
        known = self._pseudonyms.get((kind, value))
        if known is None:
            self._numbers[word] += 1
            known = self._pseudonyms[kind, value] = f"[{word}_{self._numbers[word]}]"
        return known
