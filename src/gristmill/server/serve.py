"""`gristmill serve`: one process, one port, and the home's control socket beside it.

Invariant: the port and the socket are bound before anything is started, so a second server on either ends at
once; a stop drains requests, ends engines and leaves the home ready for the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp

from gristmill.app import operators
from gristmill.app.platform import Platform
from gristmill.app.settings import Settings
from gristmill.core.errors import Unavailable, UsageError
from gristmill.server import logging
from gristmill.server.compose import compose
from gristmill.server.live import Live

_BACKLOG = 2048
_GRACEFUL_S = 20
_GOODBYE_S = 0.5
_KEEP_ALIVE_S = 75
log = structlog.get_logger("gristmill.server")


def run(platform: Platform) -> None:
    """Serve a home until SIGINT or SIGTERM.

    Raises:
        UsageError: TLS files that cannot be read; another address before a credential exists.
        Unavailable: the port is in use.
    """
    settings = platform.settings
    logging.configure(settings.log_level, settings.log_format)
    _check_address(platform)
    _check_tls(settings)
    with _tcp(settings) as port, _control(platform.home / "control.sock") as control:
        _show_first_credential(platform)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(platform, port, control))


async def _serve(platform: Platform, port: socket.socket, control: socket.socket) -> None:
    live = Live(platform)
    public, trusted = compose(live)
    servers = [
        (_server(public, platform.settings), port),
        (_server(trusted, None), control),
    ]
    await live.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _stop, [server for server, _ in servers])
    _announce(platform, port)
    try:
        await asyncio.gather(*(server.serve(sockets=[bound]) for server, bound in servers))
    finally:
        await live.stop()
        log.info("stopped")


class _Server(uvicorn.Server):
    """Leaves signals to `_serve`, which has two servers to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, and cut connections on which nothing is open."""
        cutting = asyncio.create_task(self._cut_idle())
        try:
            await super().shutdown(sockets)
        finally:
            cutting.cancel()

    async def _cut_idle(self) -> None:
        """A TLS client that is idle need not answer our goodbye; without this a stop would wait for it."""
        while True:
            await asyncio.sleep(_GOODBYE_S)
            for connection in list(self.server_state.connections):
                cycle: Any = getattr(connection, "cycle", None)
                transport: Any = getattr(connection, "transport", None)
                is_idle = cycle is None or cycle.response_complete
                if is_idle and transport is not None and not transport.get_write_buffer_size():
                    transport.abort()


def _server(app: ASGIApp, settings: Settings | None) -> _Server:
    has_tls = settings is not None and settings.tls_cert is not None
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACEFUL_S,
        ssl_certfile=str(settings.tls_cert) if settings is not None and has_tls else None,
        ssl_keyfile=str(settings.tls_key) if settings is not None and has_tls else None,
    )
    return _Server(config)


def _stop(servers: list[_Server]) -> None:
    """First time: finish what is open; second time: at once."""
    for server in servers:
        server.force_exit = server.should_exit
        server.should_exit = True


def _check_address(platform: Platform) -> None:
    host = platform.settings.host
    if not is_loopback(host) and not operators.exists(platform.db):
        raise UsageError(
            f"{host} can be reached from outside, and this home has no operator credential yet.",
            hint="Start once on 127.0.0.1; the credential is shown then.",
            param="host",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_tls(settings: Settings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise UsageError("TLS needs both tls_cert and tls_key.", param="tls_cert")
    if settings.tls_cert is None or settings.tls_key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"The certificate {settings.tls_cert} and key {settings.tls_key} cannot be used: {error}.",
            hint="Both are PEM files that belong together.",
            param="tls_cert",
        ) from None


@contextlib.contextmanager
def _tcp(settings: Settings) -> Iterator[socket.socket]:
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except socket.gaierror as error:
        raise UsageError(f"The host {host!r} is unknown: {error.strerror}.", param="host") from None
    with bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
            bound.listen(_BACKLOG)
        except OSError as error:
            raise _not_bound(error, host, port) from None
        bound.setblocking(False)
        yield bound


def _not_bound(error: OSError, host: str, port: int) -> Unavailable:
    if error.errno == errno.EADDRINUSE:
        return Unavailable(
            f"Port {port} of {host} is in use.",
            hint=f"Stop what uses it, or choose another: --port {port + 1}",
        )
    return Unavailable(
        f"Cannot listen on {host} port {port}: {error.strerror}.", hint="Choose another --port."
    )


@contextlib.contextmanager
def _control(path: Path) -> Iterator[socket.socket]:
    """The control socket, 0600; an old one is stale, since this process holds the home's lock."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        before = os.umask(0o177)
        try:
            bound.bind(str(path))
        except OSError as error:
            raise UsageError(
                f"The control socket {path} cannot be made: {error}.",
                hint="Use a shorter --home.",
                param="home",
            ) from None
        finally:
            os.umask(before)
        bound.listen(_BACKLOG)
        bound.setblocking(False)
        try:
            yield bound
        finally:
            path.unlink(missing_ok=True)


def _show_first_credential(platform: Platform) -> None:
    secret = operators.ensure_first(platform.db, platform.clock)
    if secret is not None:
        sys.stderr.write(f"\nOperator credential (shown once, keep it safe): {secret}\n\n")
        sys.stderr.flush()


def _announce(platform: Platform, port: socket.socket) -> None:
    settings = platform.settings
    scheme = "https" if settings.tls_cert is not None else "http"
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{scheme}://{name}:{port.getsockname()[1]}"
    sys.stderr.write(f"Gristmill serves {platform.home} on {url} (stop with Ctrl-C)\n")
    sys.stderr.flush()
    log.info("listening", url=url)
