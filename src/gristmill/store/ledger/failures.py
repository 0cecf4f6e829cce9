"""The driver's exceptions as ours: the last place where sqlite3's errors are seen."""

from __future__ import annotations

import sqlite3

import structlog

from gristmill.core.errors import BrokenInvariant, Conflict, GristmillError, Unavailable, UsageError

_log = structlog.get_logger(__name__)


def as_error(error: Exception) -> GristmillError:
    """Map what a command raised to the exception its caller gets."""
    if isinstance(error, GristmillError):
        return error
    if isinstance(error, sqlite3.IntegrityError):
        if "idempotency." in str(error):
            return Conflict(
                "Another request with this Idempotency-Key was answered first.",
                hint="Send it again to get that answer.",
                param="Idempotency-Key",
            )
        return BrokenInvariant(f"The ledger refused a row: {error}.")
    if isinstance(error, sqlite3.OperationalError):
        return unavailable(error)
    if isinstance(error, OverflowError):
        return UsageError(f"An amount or quantity does not fit the ledger: {error}.")
    _log.error("ledger_command_failed", error=repr(error), exc_info=error)
    return BrokenInvariant(f"The ledger could not carry out a command ({type(error).__name__}).")


def unavailable(error: BaseException) -> Unavailable:
    """A database that cannot be used now, with the fix its text points at."""
    text = str(error)
    if "full" in text or "disk I/O" in text:
        hint = "Free space on the disk of the home folder; nothing was lost, and it goes on by itself."
    elif "locked" in text or "busy" in text:
        hint = "Another process is writing to ledger.db; end it, or try again."
    elif "readonly" in text or "unable to open" in text:
        hint = "Check that the home folder is writable."
    else:
        hint = "Try again."
    return Unavailable(f"The ledger cannot be written: {text}.", hint=hint)
