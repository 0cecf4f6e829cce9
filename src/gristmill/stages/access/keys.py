"""API keys: `gm-<public id>-<secret><checksum>`, of which only the secret's SHA-256 is ever stored.

Invariant: a malformed key is refused by its checksum before anything is looked up; the secret is 32 random
bytes, so a plain SHA-256 is enough (there is nothing to guess). Source: the key layout of tensorzero's auth.
"""

from __future__ import annotations

import hashlib
import re
import zlib

import msgspec

from gristmill.core.clock import Clock

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PUBLIC_BYTES, _PUBLIC_CHARS = 9, 13
_SECRET_BYTES, _SECRET_CHARS = 32, 43
_CHECK_CHARS = 6
_SHAPE = re.compile(
    rb"gm-([0-9A-Za-z]{%d})-([0-9A-Za-z]{%d})([0-9A-Za-z]{%d})" % (_PUBLIC_CHARS, _SECRET_CHARS, _CHECK_CHARS)
)


class KeyRecord(msgspec.Struct, frozen=True):
    """A key as listed: never the secret. `revoked_at` is None while it works."""

    id: str
    customer_id: str
    name: str
    public_id: str
    created_at: str
    revoked_at: str | None = None


class Minted(msgspec.Struct, frozen=True):
    """A fresh key: its parts, and `text`, which is shown to a person exactly once."""

    public_id: str
    secret_sha256: str
    text: str

    def __repr__(self) -> str:
        return f"Minted(public_id={self.public_id!r})"


def mint(clock: Clock) -> Minted:
    """Make a new key from the clock's random source."""
    public = _base62(int.from_bytes(clock.token(_PUBLIC_BYTES)), _PUBLIC_CHARS)
    secret = _base62(int.from_bytes(clock.token(_SECRET_BYTES)), _SECRET_CHARS)
    body = f"{public}-{secret}"
    return Minted(public, hash_secret(secret.encode()).hex(), f"gm-{body}{_checksum(body.encode())}")


def split(key: bytes) -> tuple[str, bytes] | None:
    """The public id and secret of a well-formed key; None when shape or checksum is wrong."""
    match = _SHAPE.fullmatch(key)
    if match is None:
        return None
    public, secret, check = match.groups()
    if _checksum(public + b"-" + secret).encode() != check:
        return None
    return public.decode(), secret


def hash_secret(secret: bytes) -> bytes:
    """SHA-256 of a secret, 32 bytes."""
    return hashlib.sha256(secret).digest()


def _checksum(body: bytes) -> str:
    return _base62(zlib.crc32(body), _CHECK_CHARS)


def _base62(value: int, width: int) -> str:
    digits = []
    for _ in range(width):
        value, digit = divmod(value, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
