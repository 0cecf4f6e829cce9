"""Runs an operation: in this process when the home is free, else through the server's control socket."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gristmill.app import operations
from gristmill.app.operations.base import Operation, Progress
from gristmill.app.platform import Platform
from gristmill.app.settings import default_home, load
from gristmill.cli.show import ProgressView, show
from gristmill.core.errors import Conflict, GristmillError, Unavailable, from_body
from gristmill.server.logging import configure
from gristmill.store.lock import HomeLock

_LOCK_PATIENCE_S = 10.0


def invoke(operation: Operation, values: dict[str, Any], *, home: Path | None, as_json: bool) -> None:
    """Run, show the result on stdout, and leave with the error's exit code if there is one."""
    configure("warning", "console")
    folder = (home or default_home()).resolve()
    fail_clearly(lambda: _run_and_show(operation, values, folder, as_json), as_json=as_json)


def fail_clearly(action: Callable[[], None], *, as_json: bool) -> None:
    """Do `action`; any error becomes a message on stderr and an exit code, never a traceback."""
    try:
        action()
    except GristmillError as error:
        if as_json:
            click.echo(json.dumps(error.body(), default=str))
        click.secho(f"Error: {error.message}", err=True, fg="red")
        if error.hint:
            click.echo(error.hint, err=True)
        raise click.exceptions.Exit(error.exit_code) from None
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        click.secho(f"Error: {error.strerror or error}{where}.", err=True, fg="red")
        raise click.exceptions.Exit(1) from None
    except KeyboardInterrupt:
        click.echo("Interrupted; what was finished is kept.", err=True)
        raise click.exceptions.Exit(130) from None
    except Exception as error:  # noqa: BLE001 - the surface: a defect of ours is kept in a file, never shown raw
        with tempfile.NamedTemporaryFile("w", prefix="gristmill-", suffix=".log", delete=False) as report:
            traceback.print_exc(file=report)
        click.secho(f"Error: something unexpected failed ({type(error).__name__}).", err=True, fg="red")
        click.echo(f"Please report it with the details in {report.name}.", err=True)
        raise click.exceptions.Exit(1) from None


def _run_and_show(operation: Operation, values: dict[str, Any], home: Path, as_json: bool) -> None:
    with ProgressView(sys.stderr) as view:
        result = call(operation.noun, operation.verb, values, home, view.update)
    show(result, operation, as_json=as_json)


def call(noun: str, verb: str, values: dict[str, Any], home: Path, emit: Callable[[Progress], None]) -> Any:
    """Run an operation on a home, wherever the home's lock is held."""
    if noun == "restore" or _is_free(home):
        return _run_here(noun, verb, values, home, emit)
    return _run_there(noun, verb, values, home, emit)


def _run_here(
    noun: str, verb: str, values: dict[str, Any], home: Path, emit: Callable[[Progress], None]
) -> Any:
    if noun == "restore":
        from gristmill.app.backup import restore

        return restore(Path(values["archive"]), home)
    settings = load(home, {})
    with Platform(home, settings) as platform:
        return operations.run(platform, noun, verb, values, emit)


def _run_there(
    noun: str, verb: str, values: dict[str, Any], home: Path, emit: Callable[[Progress], None]
) -> Any:
    import httpx

    transport = httpx.HTTPTransport(uds=str(home / "control.sock"))
    # An operation may be silent for long while it trains; a server that dies closes the socket.
    patient = httpx.Timeout(None)
    try:
        with (
            httpx.Client(transport=transport, base_url="http://localhost", timeout=patient) as client,
            client.stream("POST", f"/manage/{noun}/{verb or 'run'}", json=values) as response,
        ):
            for line in response.iter_lines():
                message = json.loads(line)
                if "error" in message:
                    raise from_body(message)
                if "result" in message:
                    return message["result"]
                emit(Progress(**message["progress"]))
    except httpx.HTTPError as error:
        raise Unavailable(f"The server of {home} stopped answering: {error}.") from None
    raise Unavailable(f"The server of {home} ended the answer early.", hint="See its log.")


def _is_free(home: Path) -> bool:
    """Whether this process may open the home; waits a little for another command to end."""
    if not (home / "lock").exists():
        return True
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while time.monotonic() < deadline:
        lock = HomeLock(home / "lock")
        if lock.try_acquire():
            lock.release()
            return True
        if _is_listening(home / "control.sock"):
            return False
        time.sleep(0.1)
    raise Conflict(f"Another Gristmill command is using the home {home}.", hint="Wait for it, or use --home.")


def _is_listening(path: Path) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
