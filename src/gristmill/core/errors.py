"""The exception tree: every error a user can meet, each with a stable code, an HTTP status and an exit code.

Invariant: a message says what happened with the value, `hint` gives the next command or the fix, and no
message ever holds a secret, a prompt or personal data.

    GristmillError
    ├── UsageError            a value from outside is wrong (400, exit 2)
    │   ├── UnknownField      a key that nobody reads
    │   ├── NotFound          no such id or name (404)
    │   ├── Conflict          the state does not allow it (409)
    │   ├── Gone              it was erased (410)
    │   └── TooLarge          a body, line or file over its limit (413)
    ├── NotAuthenticated      no valid key or credential (401)
    ├── Forbidden             a valid key that may not do this (403)
    ├── Exhausted             quota, rate or budget used up (429, exit 4)
    │   └── WalletEmpty       the prepaid balance does not cover it (402, exit 4)
    ├── GateRefused           evidence fails a gate (422, exit 3)
    ├── Missing               a package, file or model that must be brought first (424)
    ├── Unavailable           try again: overload, engine restarting (503)
    └── BrokenInvariant       a promise of ours does not hold; nothing was billed (500)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class GristmillError(Exception):
    """Base of all errors; `param` names the field at fault, `details` carries scope, limit, used, reset."""

    code: ClassVar[str] = "error"
    type: ClassVar[str] = "api_error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, hint: str | None = None, param: str | None = None, **details: Any
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.details = details

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape. Source: OpenAI API reference, "Error object"."""
        text = self.message if self.hint is None else f"{self.message} {self.hint}"
        error: dict[str, Any] = {"message": text, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | self.details}


class UsageError(GristmillError):
    """A value from outside is wrong."""

    code, type, status, exit_code = "invalid_value", "invalid_request_error", 400, 2


class UnknownField(UsageError):
    """A key nobody reads; the hint names the nearest known one."""

    code = "unknown_field"


class NotFound(UsageError):
    """No object has this id or name (for this caller)."""

    code, status = "not_found", 404


class Conflict(UsageError):
    """The object's state does not allow the action."""

    code, status = "conflict", 409


class Gone(UsageError):
    """The object existed and was erased."""

    code, status = "gone", 410


class TooLarge(UsageError):
    """A body, line or file is over its limit."""

    code, status = "too_large", 413


class NotAuthenticated(GristmillError):
    """The caller showed no valid key or credential; says no more than that."""

    code, type, status = "invalid_api_key", "authentication_error", 401


class Forbidden(GristmillError):
    """A valid key whose plan or role does not allow this."""

    code, type, status = "not_allowed", "permission_error", 403


class Exhausted(GristmillError):
    """A quota, rate or budget is used up; details: scope, limit, used, reset (ISO time)."""

    code, type, status, exit_code = "quota_exceeded", "rate_limit_error", 429, 4


class WalletEmpty(Exhausted):
    """The prepaid balance does not cover the hold."""

    code, type, status = "wallet_empty", "insufficient_funds", 402


class GateRefused(GristmillError):
    """The evidence fails a gate, so nothing is released."""

    code, type, status, exit_code = "gate_refused", "gate_error", 422, 3


class Missing(GristmillError):
    """Something must be brought first: a package, a file, a base model; the hint has the command."""

    code, type, status = "missing", "missing_dependency", 424


class Unavailable(GristmillError):
    """Not now: overloaded, restarting, or shutting down."""

    code, type, status = "unavailable", "overloaded_error", 503


class BrokenInvariant(GristmillError):
    """A promise of ours does not hold; the account is parked and nothing is billed."""

    code, type, status = "broken_invariant", "internal_error", 500


def did_you_mean(name: str, known: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """The hint for a name nobody knows: the nearest known one, else `otherwise`.

    Args:
        name: what was written.
        known: the names there are.
        otherwise: the hint when none is near.
        cutoff: how alike a name must be, in [0, 1].
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"Did you mean {near[0]!r}?" if near else otherwise


def from_body(body: dict[str, Any]) -> GristmillError:
    """Rebuild an error from its HTTP body, so that a remote CLI exits as a local one would."""
    error = dict(body["error"])
    message, param, code = error.pop("message"), error.pop("param", None), error.pop("code", "error")
    error.pop("type", None)
    cls = _by_code().get(code, GristmillError)
    return cls(message, param=param, **error)


def _by_code() -> dict[str, type[GristmillError]]:
    found: dict[str, type[GristmillError]] = {}
    todo: list[type[GristmillError]] = [GristmillError]
    while todo:
        cls = todo.pop()
        found[cls.code] = cls
        todo += cls.__subclasses__()
    return found
