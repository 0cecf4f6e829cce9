"""Duplicates: rows whose texts are the same, or nearly so, as those of an earlier row or of a test row.

Invariant: the first of several stays, so the result depends on nothing but the order of the rows; a near
duplicate is decided by the exact Jaccard similarity of five-character shingles, MinHash proposes candidates.
Source: Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", chapter 3 (LSH banding).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SHINGLE = 5
_N_PERMUTATIONS = 128
_SLACK = 0.08  # three deviations of a MinHash estimate at similarity 0.9
# Bounds on the work where thousands of rows share a template without being copies of each other:
_MAX_VERIFIED = 32  # candidates compared exactly, best estimate first
_MAX_BAND = 256  # rows remembered a band
_BATCH = 8_192  # shingles hashed at once, 4 MB
_SEPARATOR = "\x1e"


def normalised(texts: Iterable[str]) -> str:
    """The texts of one row in the form in which equal rows are equal: NFKC, case folded, blanks collapsed."""
    return _SEPARATOR.join(" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts)


def text_hash(text: str) -> bytes:
    """SHA-256 of a normalised text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def exact(hashes: Sequence[bytes], known: Iterable[bytes] = ()) -> list[bool]:
    """Which rows repeat an earlier one, or one of `known` (the test part)."""
    seen = set(known)
    found = []
    for value in hashes:
        found.append(value in seen)
        seen.add(value)
    return found


def near(
    texts: Sequence[str],
    similarity: float,
    fixed: Sequence[str] = (),
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[bool], list[bool]]:
    """Which rows are nearly an earlier kept row, and which are nearly one of `fixed`.

    Args:
        texts: n normalised texts.
        similarity: least Jaccard similarity in (0, 1]; at 1 nothing is searched.
        fixed: normalised texts that count as kept before the first (the test part).
        advance: told how many of the texts are done.

    Returns:
        Two lists of n: near duplicates of kept rows of `texts`, and of rows of `fixed`.
    """
    is_near, is_leak = [False] * len(texts), [False] * len(texts)
    if similarity >= 1.0:
        return is_near, is_leak
    index = _Index(similarity, len(fixed) + len(texts))
    for number, text in enumerate(fixed):
        shingles = _shingles(text)
        index.keep(number, shingles, index.signature(shingles))
    for number, text in enumerate(texts):
        if number % 256 == 0:
            advance(number, len(texts))
        shingles = _shingles(text)
        signature = index.signature(shingles)
        like = index.like(shingles, signature)
        if like is None:
            index.keep(len(fixed) + number, shingles, signature)
        elif like < len(fixed):
            is_leak[number] = True
        else:
            is_near[number] = True
    advance(len(texts), len(texts))
    return is_near, is_leak


class _Index:
    """Kept rows by MinHash bands, with their shingles for the exact decision."""

    def __init__(self, similarity: float, capacity: int) -> None:
        import numpy as np
        from datasketch import MinHash

        self._similarity = similarity
        self._width = _band_width(similarity)
        self._bands: dict[tuple[int, bytes], list[int]] = {}
        self._blank = MinHash(num_perm=_N_PERMUTATIONS, seed=1, hashfunc=int)
        self._signatures = np.zeros((capacity, _N_PERMUTATIONS), dtype=np.uint32)
        self._shingles: dict[int, NDArray[np.uint32]] = {}

    def signature(self, shingles: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """MinHash of a set of shingle hashes, (k,) uint32 → (permutations,) uint32."""
        minhash = self._blank.copy()
        for start in range(0, shingles.size, _BATCH):
            minhash.update_batch(shingles[start : start + _BATCH].tolist())
        values: NDArray[np.uint32] = minhash.hashvalues
        return values

    def keep(self, number: int, shingles: NDArray[np.uint32], signature: NDArray[np.uint32]) -> None:
        self._signatures[number] = signature
        self._shingles[number] = shingles
        for band in self._bands_of(signature):
            rows = self._bands.setdefault(band, [])
            if len(rows) < _MAX_BAND:
                rows.append(number)

    def like(self, shingles: NDArray[np.uint32], signature: NDArray[np.uint32]) -> int | None:
        """A kept row that is similar enough, or None."""
        import numpy as np

        found: set[int] = set()
        for band in self._bands_of(signature):
            found.update(self._bands.get(band, ()))
        if not found:
            return None
        numbers = np.array(sorted(found), dtype=np.int64)
        estimates = (self._signatures[numbers] == signature).mean(axis=1)  # (candidates,)
        best = np.argsort(-estimates, kind="stable")[:_MAX_VERIFIED]
        for number in numbers[best[estimates[best] >= self._similarity - _SLACK]].tolist():
            other = self._shingles[number]
            shared = np.intersect1d(shingles, other, assume_unique=True).size
            if shared >= self._similarity * (shingles.size + other.size - shared):
                return int(number)
        return None

    def _bands_of(self, signature: NDArray[np.uint32]) -> Iterator[tuple[int, bytes]]:
        for start in range(0, _N_PERMUTATIONS - self._width + 1, self._width):
            yield start, signature[start : start + self._width].tobytes()


def _band_width(similarity: float) -> int:
    """The widest band, hence the fewest candidates, that misses at most one pair in fifty at `similarity`."""
    for width in range(_N_PERMUTATIONS, 1, -1):
        if (1 - similarity**width) ** (_N_PERMUTATIONS // width) <= 0.02:
            return width
    return 1


def _shingles(text: str) -> NDArray[np.uint32]:
    """Distinct hashes of all runs of five characters (one for a shorter text), (k,) uint32, sorted."""
    import numpy as np

    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if codes.size < _SHINGLE:
        codes = np.concatenate([codes, np.zeros(_SHINGLE - codes.size, dtype=np.uint64)])
    mixed = np.zeros(codes.size - _SHINGLE + 1, dtype=np.uint64)
    for offset in range(_SHINGLE):  # a polynomial in an odd constant modulo 2**64
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + mixed.size]
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))
