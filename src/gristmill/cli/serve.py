"""`gristmill serve`: the one command that holds a home and answers on one port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gristmill.cli.invoke import fail_clearly


def command(summary: str) -> click.Command:
    """The click command; the server is imported when it runs."""

    @click.command("serve", help=summary + ".")
    @click.option("--home", type=click.Path(path_type=Path), help="Folder that holds everything.")
    @click.option("--host", help="Address to listen on [default: 127.0.0.1].")
    @click.option("--port", type=int, help="Port to listen on; 0 takes a free one [default: 8080].")
    @click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain (PEM).")
    @click.option("--tls-key", type=click.Path(path_type=Path), help="Private key (PEM).")
    @click.option("--threads", type=int, help="Threads an engine may use [default: all cores].")
    @click.option(
        "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least level logged."
    )
    @click.option("--log-format", type=click.Choice(["auto", "json", "console"]), help="How log lines look.")
    def serve(home: Path | None, **flags: Any) -> None:
        def start() -> None:
            from gristmill.app.platform import Platform
            from gristmill.app.settings import default_home, load
            from gristmill.server.serve import run

            folder = (home or default_home()).resolve()
            settings = load(folder, flags)
            with Platform(folder, settings) as platform:
                run(platform)

        fail_clearly(start, as_json=False)

    return serve
