"""`/v1/fine_tuning/jobs`: create, list, retrieve, cancel, events.

Source: OpenAI API reference, "Fine-tuning".
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from gristmill.app.finetuning import request as asked
from gristmill.app.finetuning.jobs import Jobs
from gristmill.core.release import Release
from gristmill.core.run import Run, RunEvent
from gristmill.server.openai.caller import WhoCalls, json_object, page, refuse_unknown, unix_s

MAX_LISTED = 100
MAX_EVENTS = 1000
_STATUS = {"refused": "failed"}
Page = Annotated[int, Query(ge=1, le=MAX_LISTED)]
EventPage = Annotated[int, Query(ge=1, le=MAX_EVENTS)]


def router(jobs: Jobs, caller_of: WhoCalls) -> APIRouter:
    """The routes over `jobs`."""
    routes = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

    @routes.post("")
    async def create(request: Request) -> dict[str, Any]:
        """Queue a fine-tuning job."""
        caller = caller_of(request)
        wanted = asked.parse(await json_object(request))
        return shown(await run_in_threadpool(jobs.create, caller, wanted), None)

    @routes.get("")
    def listed(request: Request, after: str | None = None, limit: Page = 20) -> dict[str, Any]:
        """The caller's jobs, the newest first."""
        caller = caller_of(request)
        refuse_unknown(request, "after", "limit")
        found, has_more = jobs.listed(caller, after=after, limit=limit)
        return page([shown(run, release) for run, release in found], has_more)

    @routes.get("/{job_id}")
    def retrieve(request: Request, job_id: str) -> dict[str, Any]:
        """One job."""
        return shown(*jobs.get(caller_of(request), job_id))

    @routes.post("/{job_id}/cancel")
    def cancel(request: Request, job_id: str) -> dict[str, Any]:
        """Ask a job to stop; a running one stops at its next checkpoint."""
        return shown(*jobs.cancel(caller_of(request), job_id))

    @routes.get("/{job_id}/events")
    def events(
        request: Request, job_id: str, after: str | None = None, limit: EventPage = 20
    ) -> dict[str, Any]:
        """What happened, the newest first."""
        caller = caller_of(request)
        refuse_unknown(request, "after", "limit")
        found, has_more = jobs.events(caller, job_id, after=after, limit=limit)
        return page([shown_event(event) for event in found], has_more)

    @routes.get("/{job_id}/checkpoints")
    def checkpoints(request: Request, job_id: str) -> dict[str, Any]:
        """Checkpoints are not models of their own here, so there are none to list."""
        jobs.get(caller_of(request), job_id)
        return page([], False)

    return routes


def shown(run: Run, release: Release | None) -> dict[str, Any]:
    """A run as OpenAI's clients know a job."""
    request = run.facts.get("request") or {}
    dials = asked.JobRequest.model_validate(request).dials.model_dump()
    has_ended = run.ended_at is not None
    trained = run.facts.get("trained")
    return {
        "id": run.id,
        "object": "fine_tuning.job",
        "created_at": unix_s(run.created_at),
        "error": _error(run),
        "estimated_finish": None if has_ended else _estimated_finish(run),
        "fine_tuned_model": release.public_name if release is not None and run.state == "succeeded" else None,
        "finished_at": unix_s(run.ended_at) if run.ended_at is not None else None,
        "hyperparameters": dials,
        "integrations": [],
        "metadata": request.get("metadata"),
        "method": {"type": "supervised", "supervised": {"hyperparameters": dials}},
        "model": run.base,
        "organization_id": run.customer_id,
        "result_files": [],
        "seed": run.recipe["train"]["seed"],
        "status": _STATUS.get(run.state, run.state),
        "trained_tokens": trained["trained_tokens"] if has_ended and trained else None,
        "training_file": request.get("training_file"),
        "validation_file": request.get("validation_file"),
    }


def shown_event(event: RunEvent) -> dict[str, Any]:
    """An event as OpenAI's clients know it."""
    has_figures = any(isinstance(value, int | float) for value in event.data.values())
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": unix_s(event.created_at),
        "level": event.level,
        "message": event.message,
        "type": "metrics" if has_figures else "message",
        "data": event.data,
    }


def _error(run: Run) -> dict[str, Any] | None:
    found = run.facts.get("error")
    if run.state not in ("failed", "refused") or not found:
        return None
    return {"code": found["code"], "message": found["message"], "param": found.get("param")}


def _estimated_finish(run: Run) -> int | None:
    estimate = run.facts.get("estimate")
    if not estimate or run.started_at is None:
        return None
    return unix_s(run.started_at) + int(estimate["train_s"])
