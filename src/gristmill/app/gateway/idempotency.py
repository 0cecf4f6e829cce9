"""Idempotency-Key: the same request sent again gets the same answer and is charged once.

Invariant: scope is (customer, route, key); two requests of one scope never run at the same time, a different
body is refused, and the ledger's record, written with the charge, is the only authority for "seen before".
Source: IETF draft-ietf-httpapi-idempotency-key-header-07.
"""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

import msgspec

from gristmill.core.account import Caller
from gristmill.core.errors import Conflict, Gone, UsageError
from gristmill.core.usage import Answer
from gristmill.store.cipher import Cipher
from gristmill.store.ledger.reads import StoredAnswer

MAX_ANSWER_BYTES = 2**20
_KEY = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,254}")
_HEADER = "Idempotency-Key"


class Answers(Protocol):
    """What is needed of the ledger writer."""

    def find_answer(self, customer_id: str, route: str, key: str) -> StoredAnswer | None:
        """The stored answer of a key."""
        ...


class Replay(msgspec.Struct, frozen=True):
    """An answer to send again: HTTP status, plain bytes, and whether they are server-sent events."""

    status: int
    content: bytes
    is_stream: bool


class Claim:
    """The right to answer one key for the first time; `release` it when the request is over."""

    __slots__ = ("_cipher", "_claims", "body_sha256", "scope")

    def __init__(
        self,
        scope: tuple[str, str, str],
        body_sha256: str,
        claims: dict[tuple[str, str, str], Claim],
        cipher: Cipher,
    ) -> None:
        self.scope = scope
        self.body_sha256 = body_sha256
        self._claims = claims
        self._cipher = cipher

    def answer(self, status: int, content: bytes, *, is_stream: bool) -> Answer:
        """The record to settle with: encrypted; one over `MAX_ANSWER_BYTES` keeps no content (then 410)."""
        kept = self._cipher.seal(content, _context(self.scope)) if len(content) <= MAX_ANSWER_BYTES else b""
        return Answer(*self.scope, self.body_sha256, status, kept, is_stream)

    def release(self) -> None:
        """The request is over, however it ended."""
        self._claims.pop(self.scope, None)


class Idempotency:
    """Keys in flight in this gateway, and those answered before."""

    def __init__(self, ledger: Answers, cipher: Cipher) -> None:
        self._ledger = ledger
        self._cipher = cipher
        self._claims: dict[tuple[str, str, str], Claim] = {}

    def begin(self, caller: Caller, route: str, header: bytes, body: bytes) -> Claim | Replay:
        """Claim a key, or find its answer.

        Raises:
            UsageError: not 1 to 255 printable ASCII characters. Gone: the answer was erased or too large.
            Conflict: in flight, or used before with another body.
        """
        key = header.decode("latin-1")
        if _KEY.fullmatch(key) is None:
            raise UsageError(f"{_HEADER} must be 1 to 255 printable ASCII characters.", param=_HEADER)
        scope = (caller.customer.id, route, key)
        body_sha256 = hashlib.sha256(body).hexdigest()
        ongoing = self._claims.get(scope)
        if ongoing is not None:
            _check_same(ongoing.body_sha256, body_sha256)
            raise Conflict(
                f"A request with this {_HEADER} is being answered.", hint="Try again soon.", param=_HEADER
            )
        found = self._ledger.find_answer(*scope)
        if found is not None:
            return self._replay(found, scope, body_sha256)
        claim = self._claims[scope] = Claim(scope, body_sha256, self._claims, self._cipher)
        return claim

    def _replay(self, found: StoredAnswer, scope: tuple[str, str, str], body_sha256: str) -> Replay:
        _check_same(found.body_sha256, body_sha256)
        if not found.content:
            why = "was erased" if found.content is None else "was too large to keep"
            raise Gone(f"The answer to this {_HEADER} {why}.", hint="Use a new key.", param=_HEADER)
        return Replay(found.status, self._cipher.open(found.content, _context(scope)), found.is_stream)


def _check_same(stored: str, sent: str) -> None:
    if stored != sent:
        raise Conflict(
            f"This {_HEADER} was used with another body.",
            hint="Use a new key for a new request.",
            param=_HEADER,
            scope="idempotency",
        )


def _context(scope: tuple[str, str, str]) -> str:
    return "answer/" + "/".join(scope)
