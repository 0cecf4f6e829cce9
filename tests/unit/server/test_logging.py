"""What a log line may hold."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from gristmill.core.errors import NotFound
from gristmill.server.logging import configure


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Logging to a buffer as JSON lines; as it was afterwards."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure("info", "json", stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_an_unforeseen_exception_is_logged_without_its_message(lines: io.StringIO) -> None:
    """A prompt or key inside an exception's text would reach the log."""
    try:
        raise ValueError("the prompt: my card is 4111 1111 1111 1111")
    except ValueError as error:
        structlog.get_logger("gristmill.x").error("request_failed", exc_info=error)
        logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=error)
    first, second = (json.loads(line) for line in lines.getvalue().splitlines())
    assert "4111" not in lines.getvalue()
    assert first["error"] == second["error"] == "ValueError"
    assert any("test_logging.py" in frame for frame in first["frames"])


def test_our_own_errors_keep_their_message(lines: io.StringIO) -> None:
    """An operator could not tell from the log what was refused."""
    try:
        raise NotFound("There is no run 'run_x'.")
    except NotFound:
        structlog.get_logger("gristmill.x").exception("failed")
    assert json.loads(lines.getvalue())["reason"] == "There is no run 'run_x'."


def test_bound_ids_are_on_the_line(lines: io.StringIO) -> None:
    """Lines of one request could not be joined."""
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        structlog.get_logger("gristmill.x").info("said", n=1)
    line = json.loads(lines.getvalue())
    assert (line["request_id"], line["event"], line["level"], line["n"]) == ("req_1", "said", "info", 1)
