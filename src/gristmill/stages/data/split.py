"""The split: which part each row belongs to, by a hash of its group (or of its text when there is none).

Invariant: all rows of one key are in one part; the parts depend on the set of rows and the seed, never on the
order of the rows. A key does not leave the training part when it holds the last row of a class there.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence

from gristmill.core.errors import UsageError


def cut(
    keys: Sequence[str],
    classes: Sequence[Hashable],
    *,
    fraction: float,
    seed: int,
    part: str,
    n_least: int = 1,
) -> list[bool]:
    """Choose the rows that leave for `part`.

    Args:
        keys: n keys; rows of one key stay together.
        classes: n values (labels) that the rest must keep.
        fraction: of the keys, in [0, 1); 0 chooses none.
        seed: of the choice.
        part: its name, which makes test and validation independent.
        n_least: keys chosen at least, as far as one key remains.

    Returns:
        n flags. None is set when there are fewer than two keys.
    """
    members: dict[str, Counter[Hashable]] = {}
    for key, value in zip(keys, classes, strict=True):
        members.setdefault(key, Counter())[value] += 1
    wanted = min(max(n_least, round(fraction * len(members))), len(members) - 1)
    if fraction <= 0 or wanted <= 0:
        return [False] * len(keys)
    ranked = sorted(members, key=lambda key: _rank(key, seed, part))
    left = Counter(classes)
    chosen: set[str] = set()
    for key in ranked:
        if len(chosen) == wanted:
            break
        if all(left[value] > count for value, count in members[key].items()):
            left.subtract(members[key])
            chosen.add(key)
    spare = (key for key in ranked if key not in chosen)
    while len(chosen) < wanted:  # every key holds a last row: the size of the part decides
        chosen.add(next(spare))
    return [key in chosen for key in keys]


def cut_test(keys: Sequence[str], classes: Sequence[Hashable], *, fraction: float, seed: int) -> list[bool]:
    """The rows that leave for the test part.

    Raises:
        UsageError: one key only, so that a test part would leave nothing to train on.
    """
    if fraction > 0 and len(set(keys)) < 2:
        raise UsageError(
            "The data cannot be split: all rows have the same group or text.",
            hint="Give data with two groups or more, drop `group`, or declare a test part.",
            param="group",
        )
    return cut(keys, classes, fraction=fraction, seed=seed, part="test")


def cut_validation(
    keys: Sequence[str], classes: Sequence[Hashable], *, fraction: float, seed: int
) -> list[bool]:
    """The rows of the training part that leave for validation; none when there is one key only."""
    return cut(keys, classes, fraction=fraction, seed=seed, part="validation")


def _rank(key: str, seed: int, part: str) -> tuple[bytes, str]:
    text = f"{part}\x1f{seed}\x1f{key}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).digest(), key
