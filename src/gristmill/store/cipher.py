"""Encryption at rest: AES-256-GCM under a key file outside the database.

Invariant: each sealed value has a fresh 96-bit nonce and is bound to its context (customer and id), so a blob
moved to another customer's row does not open. Source: NIST SP 800-38D; `cryptography` AESGCM.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gristmill.core.clock import Clock
from gristmill.core.errors import BrokenInvariant

_NONCE_BYTES = 12


class Cipher:
    """Seals and opens bytes; its key never appears in a repr or a log."""

    def __init__(self, key: bytes, clock: Clock) -> None:
        self._aead = AESGCM(key)
        self._clock = clock

    def seal(self, plain: bytes, context: str) -> bytes:
        """Encrypt `plain`, bound to `context` (for example "file/cust_…/file_…")."""
        nonce = self._clock.token(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """Decrypt what `seal` made for the same context.

        Raises:
            BrokenInvariant: altered, moved from elsewhere, or sealed under another key.
        """
        try:
            return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context.encode())
        except InvalidTag:
            raise BrokenInvariant(
                "An encrypted value does not open with this home's key.",
                hint="Restore secret.key from the same backup as the database.",
            ) from None


def read_or_create_key(path: Path, clock: Clock) -> bytes:
    """The 32-byte key in `path`, created (0600) when absent."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(clock.token(32))
    return path.read_bytes()
