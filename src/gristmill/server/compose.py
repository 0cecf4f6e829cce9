"""Joins the parts of a live server into its two applications: the port's and the control socket's."""

from __future__ import annotations

import structlog
from starlette.types import ASGIApp

from gristmill.app import operations, operators
from gristmill.app.files import Files
from gristmill.app.finetuning.jobs import Jobs
from gristmill.console import pages
from gristmill.core.errors import BrokenInvariant, Missing
from gristmill.ports import discovery
from gristmill.ports.task import Endpoint
from gristmill.server import app, health
from gristmill.server.live import Live
from gristmill.server.manage import transport
from gristmill.server.openai import files as files_routes
from gristmill.server.openai import fine_tuning, models
from gristmill.server.openai.caller import who_calls
from gristmill.server.openai.paid import PaidApp

_OWNERS_ONLY = frozenset({"backup"})  # it reads, but what it reads is the secret key
log = structlog.get_logger("gristmill.server")


def compose(live: Live) -> tuple[ASGIApp, ASGIApp]:
    """The application for the TCP port, and the one for the control socket."""
    platform = live.platform
    settings = platform.settings
    caller_of = who_calls(live.access, platform.clock)
    files = Files(platform.db, platform.blobs, platform.cipher, platform.clock, settings.max_file_bytes)
    jobs = Jobs(platform, files, live.worker.submit)
    rest = app.routed(
        [
            health.router(live.metrics, live.not_ready),
            files_routes.router(files, caller_of),
            fine_tuning.router(jobs, caller_of),
            models.router(platform.db, caller_of),
            transport.router(platform),
            pages.router(platform.db, platform.clock, live.statuses),
        ]
    )
    paid = PaidApp(live.gateway, endpoints(), platform.clock, settings.max_body_bytes)
    public = app.assemble(
        rest,
        platform.clock,
        live.metrics,
        app.Limits(settings.max_body_bytes, settings.max_file_bytes),
        host=settings.host,
        find_operator=lambda secret: operators.authenticate(platform.db, secret),
        is_read=is_read,
        paid=paid,
        paid_paths=paid.paths,
    )
    return public, app.assemble_control(rest, platform.clock, live.metrics)


def endpoints() -> list[tuple[str, Endpoint]]:
    """Every route that a task plug-in brings, with the task's name.

    Raises:
        BrokenInvariant: two tasks bring the same path.
    """
    found: dict[str, tuple[str, Endpoint]] = {}
    for name, manifest in discovery.manifests("tasks").items():
        try:
            task = discovery.load(manifest)
        except Missing as error:
            log.warning("task_not_served", task=name, reason=error.message, hint=error.hint)
            continue
        for endpoint in task.endpoints:
            if endpoint.path in found:
                raise BrokenInvariant(
                    f"The tasks {found[endpoint.path][0]} and {name} both bring {endpoint.path}."
                )
            found[endpoint.path] = (name, endpoint)
    return list(found.values())


def is_read(noun: str, verb: str) -> bool:
    """Whether an operation changes nothing and shows nothing that is the owner's alone."""
    known = operations.operations()
    found = known.get((noun, verb)) or (known.get((noun, "")) if verb == "run" else None)
    return found is not None and found.is_read and noun not in _OWNERS_ONLY
