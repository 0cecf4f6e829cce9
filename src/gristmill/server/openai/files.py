"""`/v1/files`: upload, list, retrieve, content, delete. Source: OpenAI API reference, "Files"."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from gristmill.app.files import FileRecord, Files
from gristmill.core.errors import UsageError
from gristmill.server.openai.caller import WhoCalls, page, refuse_unknown, unix_s

MAX_LISTED = 10_000
ENVELOPE_BYTES = 64 * 1024
"""What the multipart form may add to the file itself."""


class _InMemory(MultiPartParser):
    """Never spools a customer's plain bytes to disk."""

    spool_max_size = 2**62


def router(files: Files, caller_of: WhoCalls) -> APIRouter:
    """The routes over `files`."""
    routes = APIRouter(prefix="/v1/files", tags=["files"])

    @routes.post("")
    async def create(request: Request) -> dict[str, Any]:
        """Upload a training file (multipart: `file`, `purpose`)."""
        caller = caller_of(request)
        upload, purpose = _parts(await _form(request))
        try:
            content = await upload.read()
        finally:
            await upload.close()
        record = await run_in_threadpool(
            files.upload, caller.customer, upload.filename or "", purpose, content
        )
        return shown(record)

    @routes.get("")
    def listed(
        request: Request,
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> dict[str, Any]:
        """The caller's files, the newest first."""
        caller = caller_of(request)
        refuse_unknown(request, "purpose", "limit", "order", "after")
        found, has_more = files.listed(
            caller.customer, purpose=purpose, after=after, limit=limit, is_ascending=order == "asc"
        )
        return page([shown(record) for record in found], has_more)

    @routes.get("/{file_id}")
    def retrieve(request: Request, file_id: str) -> dict[str, Any]:
        """One file's description."""
        return shown(files.get(caller_of(request).customer, file_id))

    @routes.get("/{file_id}/content")
    def content(request: Request, file_id: str) -> Response:
        """A file's bytes as uploaded."""
        body = files.content(caller_of(request).customer, file_id)
        return Response(
            body, headers={"content-type": "application/octet-stream", "content-disposition": "attachment"}
        )

    @routes.delete("/{file_id}")
    def delete(request: Request, file_id: str) -> dict[str, Any]:
        """Delete a file."""
        files.delete(caller_of(request).customer, file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return routes


def shown(record: FileRecord) -> dict[str, Any]:
    """A file as OpenAI's clients know it."""
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.bytes,
        "created_at": unix_s(record.created_at),
        "expires_at": None,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": record.status,
        "status_details": None,
    }


async def _form(request: Request) -> FormData:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UsageError("A file is uploaded as multipart/form-data.", param="file")
    try:
        return await _InMemory(request.headers, request.stream(), max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError):
        raise UsageError("The multipart form cannot be read.", param="file") from None


def _parts(form: FormData) -> tuple[UploadFile, str]:
    for name in form:
        if name not in ("file", "purpose"):
            raise UsageError(f"There is no field {name!r}.", hint="Known: file, purpose.", param=name)
    upload, purpose = form.get("file"), form.get("purpose")
    if not isinstance(upload, UploadFile):
        raise UsageError("The form has no file.", param="file")
    if not isinstance(purpose, str):
        raise UsageError("The form has no purpose.", hint="Use 'fine-tune'.", param="purpose")
    return upload, purpose
