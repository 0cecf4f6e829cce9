"""The layout of API keys."""

from __future__ import annotations

import hashlib

import pytest

from gristmill.core.clock import SystemClock
from gristmill.stages.access import keys


def test_a_minted_key_splits_into_what_was_stored() -> None:
    """Broken: a customer's fresh key does not authenticate."""
    for _ in range(200):
        minted = keys.mint(SystemClock())
        parts = keys.split(minted.text.encode())
        assert parts is not None
        public_id, secret = parts
        assert public_id == minted.public_id
        assert hashlib.sha256(secret).hexdigest() == minted.secret_sha256


def test_a_key_with_any_character_changed_is_refused_cheaply() -> None:
    """Broken: a typing slip costs a look-up, and tells whether the public id exists."""
    text = keys.mint(SystemClock()).text.encode()
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] = ord("x") if changed[place] != ord("x") else ord("y")
        assert keys.split(bytes(changed)) is None, place


@pytest.mark.parametrize("text", [b"", b"gm-", b"sk-abc", b"gm--", b"gm-\xff-\xff", b"gm-" + b"a" * 10_000])
def test_a_malformed_key_is_refused(text: bytes) -> None:
    """Broken: garbage in a header raises instead of answering 401."""
    assert keys.split(text) is None


def test_the_secret_is_not_in_a_repr() -> None:
    """Broken: a key that is logged by accident gives the secret away."""
    minted = keys.mint(SystemClock())
    assert minted.text not in repr(minted)
    assert minted.secret_sha256 not in repr(minted)
