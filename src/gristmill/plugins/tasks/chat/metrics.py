"""Scores of answers: facts recalled, and likeness to a reference.

Source of the token F1: Rajpurkar et al. 2016, "SQuAD" (arXiv:1606.05250), section 6.1; here over words as
Unicode has them, each Chinese character being a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORDS = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")
_BLANKS = re.compile(r"\s+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def has_facts(text: str, facts: Sequence[str]) -> bool:
    """Whether `text` contains every fact, whatever its case, blanks and thousands separators.

    A number must stand alone: "13 zones" is not in "113 zones", nor "$143" in "$1430".
    """
    plain = normal(text)
    return all(_pattern(normal(fact)).search(plain) is not None for fact in facts)


def normal(text: str) -> str:
    """Lower case, single blanks, no thousands separators."""
    return _BLANKS.sub(" ", _THOUSANDS.sub("", text.casefold())).strip()


def token_f1(reference: str, given: str) -> float:
    """Harmonic mean of precision and recall of `given`'s words against the reference's, in [0, 1]."""
    wanted, found = _WORDS.findall(reference.casefold()), _WORDS.findall(given.casefold())
    if not wanted or not found:
        return float(wanted == found)
    common = sum((Counter(wanted) & Counter(found)).values())
    return 2 * common / (len(wanted) + len(found))


def _pattern(fact: str) -> re.Pattern[str]:
    before = r"(?<!\d)(?<!\d[.,])" if fact[:1].isdigit() else ""
    after = r"(?!\d)(?![.,]\d)" if fact[-1:].isdigit() else ""
    return re.compile(before + re.escape(fact) + after)
