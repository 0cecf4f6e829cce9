"""Structured logs on stderr: JSON lines for machines, readable lines for a terminal.

Invariant: a log line holds ids, names and figures, never a prompt, key or personal data: an exception is
written as its type and frames (file, line, function), and its message only when it is one of ours.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from gristmill.core.errors import GristmillError

_OWN_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.access")  # it may have set up its own before
_QUIET = ("uvicorn.access", "httpx", "httpcore", "alembic", "python_multipart", "multipart")


def configure(level: str, style: str, stream: TextIO | None = None) -> None:
    """Set up structlog and route the standard library's loggers through it.

    Args:
        level: "debug", "info", "warning" or "error".
        style: "json", "console" or "auto" (console on a terminal).
        stream: where lines go; stderr when not given.
    """
    out = stream or sys.stderr
    as_json = style == "json" or (style == "auto" and not out.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        frames_only,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("gristmill").setLevel(level.upper())
    for name in _OWN_HANDLERS:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_named_logger,
        cache_logger_on_first_use=False,
    )


def frames_only(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace exception info by type, frames and, for our own errors alone, the message."""
    info = event.pop("exc_info", None)
    error = _exception(info)
    if error is None:
        return event
    event["error"] = type(error).__name__
    if isinstance(error, GristmillError | OSError):
        event["reason"] = str(error)
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    event["frames"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    cause = error.__cause__ or error.__context__
    if cause is not None:
        event["cause"] = type(cause).__name__
    return event


def _exception(info: Any) -> BaseException | None:
    if isinstance(info, BaseException):
        return info
    if isinstance(info, tuple):
        return info[1] if isinstance(info[1], BaseException) else None
    return sys.exc_info()[1] if info else None


def _named_logger(*args: Any) -> logging.Logger:
    name = str(args[0]) if args else "gristmill"
    logger = logging.getLogger(name if name.startswith("gristmill") else "gristmill")
    return logger
