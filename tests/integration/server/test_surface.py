"""The whole surface over HTTP: doors, errors, headers, health, metrics and pages."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from starlette.requests import Request

from gristmill.app import operators
from gristmill.console import pages
from gristmill.core.clock import SystemClock
from gristmill.server import app, health
from gristmill.server.edge import SECURITY_HEADERS
from gristmill.server.metrics import Metrics, Snapshot
from gristmill.store.session import Database

Serve = Callable[[Any], str]
LIMIT_BYTES = 1000


class Surface:
    """A served surface: its address, the owner's secret and what is not ready."""

    def __init__(self, url: str, secret: str, missing: list[str]) -> None:
        self.url = url
        self.secret = secret
        self.missing = missing

    def get(self, path: str, **headers: str) -> httpx.Response:
        """GET as the owner."""
        return httpx.get(self.url + path, headers={"authorization": f"Bearer {self.secret}"} | headers)


def probes() -> APIRouter:
    """Routes that fail, and one that changes something."""
    routes = APIRouter()

    @routes.get("/v1/broken")
    def broken() -> None:
        raise RuntimeError("the prompt and sk-secret are in this message")

    @routes.post("/v1/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    @routes.get("/v1/page")
    def page(limit: int) -> int:
        return limit

    @routes.post("/manage/{noun}/{verb}")
    def manage(noun: str, verb: str, request: Request) -> str:
        return f"{request.state.role} {noun} {verb}"

    return routes


@pytest.fixture
def surface(seeded: Database, serve: Serve) -> Surface:
    """The console, health and probe routes behind the doors."""
    clock, missing = SystemClock(), []
    metrics = Metrics(Snapshot(runs=lambda: {"succeeded": 1}))

    async def not_ready() -> list[str]:
        return missing

    rest = app.routed([health.router(metrics, not_ready), probes(), pages.router(seeded, clock, list)])
    secret = operators.ensure_first(seeded, clock)
    assert secret is not None
    whole = app.assemble(
        rest,
        clock,
        metrics,
        app.Limits(LIMIT_BYTES, LIMIT_BYTES),
        host="127.0.0.1",
        find_operator=lambda shown: operators.authenticate(seeded, shown),
        is_read=lambda _noun, verb: verb == "list",
    )
    return Surface(serve(whole), secret, missing)


def test_only_health_is_open(surface: Surface) -> None:
    """Anyone on the network could read the business."""
    assert httpx.get(surface.url + "/healthz").status_code == 200
    assert httpx.get(surface.url + "/readyz").status_code == 200
    for path in (
        "/",
        "/metrics",
        "/openapi.json",
        "/requests/req_01",
        "/manage/key/list",
        "/nothing",
        "/static/chain.css",
    ):
        answer = httpx.get(surface.url + path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"].startswith("Basic "), path
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_the_credential_is_shown_once_and_stored_hashed(surface: Surface, seeded: Database) -> None:
    """A stolen database would give the operator's credential away."""
    assert surface.secret.startswith("gmop-")
    assert operators.ensure_first(seeded, SystemClock()) is None
    assert surface.secret.encode() not in seeded.path.read_bytes()


def test_a_browser_opens_the_chain_with_basic(surface: Surface) -> None:
    """The operator could not open the console."""
    answer = httpx.get(surface.url + "/", auth=("anything", surface.secret))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    for link in (
        "dsv_01",
        "run_01",
        "rep_01",
        "rel_01",
        "inv_01",
        "/requests/req_11",
        "12,752",
        "Apache-2.0",
    ):
        assert link in answer.text, link
    assert "Müller &amp; Söhne &lt;b&gt;" in answer.text
    assert "<script" not in answer.text


def test_a_request_is_drilled_down_to_its_evidence(surface: Surface) -> None:
    """An invoice line could not be traced to what let the model ship."""
    answer = surface.get("/requests/req_03")
    for part in ("rel_01", "rep_01", "run_01", "dsv_01", "inv_01", "revenue:rel_01", "0.000160000 USD"):
        assert part in answer.text, part
    assert surface.get("/requests/req_none").json()["error"]["code"] == "not_found"


def test_every_answer_has_security_headers_and_a_request_id(surface: Surface) -> None:
    """A page could be framed, sniffed, or not be found in the log."""
    for path in ("/", "/healthz", "/v1/broken", "/nothing"):
        answer = surface.get(path)
        for name, value in SECURITY_HEADERS:
            if name != b"cache-control":
                assert answer.headers[name.decode()] == value.decode(), path
        assert answer.headers["x-request-id"].startswith("req_")


def test_errors_have_openai_shape_and_tell_nothing(surface: Surface, log_lines: io.StringIO) -> None:
    """A client could not read the error, or would read our insides."""
    cases = {
        ("GET", "/v1/none"): 404,
        ("DELETE", "/v1/echo"): 405,
        ("GET", "/v1/page?limit=x"): 400,
        ("GET", "/v1/broken"): 500,
    }
    for (method, path), status in cases.items():
        answer = httpx.request(method, surface.url + path)
        error = answer.json()["error"]
        assert answer.status_code == status, path
        assert set(error) >= {"message", "type", "param", "code"}, path
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text
    broken = httpx.get(surface.url + "/v1/broken")
    assert broken.json()["error"]["code"] == "internal_error"
    assert broken.headers["x-request-id"] in broken.json()["error"]["message"]
    deadline = time.monotonic() + 5  # the line is written after the answer has left
    while broken.headers["x-request-id"] not in log_lines.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert broken.headers["x-request-id"] in log_lines.getvalue()
    assert "sk-secret" not in log_lines.getvalue()


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_body_over_the_limit_is_refused(surface: Surface, is_chunked: bool) -> None:
    """One client could fill the server's memory."""
    body = b"x" * (LIMIT_BYTES + 1)
    content = iter([body[:600], body[600:]]) if is_chunked else body
    answer = httpx.post(surface.url + "/v1/echo", content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert httpx.post(surface.url + "/v1/echo", content=body[1:]).json() == LIMIT_BYTES


def test_a_foreign_host_name_is_refused(surface: Surface) -> None:
    """A rebound DNS name could read the console."""
    assert surface.get("/", host="evil.example").status_code == 400
    assert surface.get("/", host="localhost").status_code == 200


def test_changes_are_refused_from_a_browser_and_to_a_viewer(surface: Surface, seeded: Database) -> None:
    """A foreign page or a viewer could change the business."""
    change = surface.url + "/manage/key/create"
    owner = {"authorization": f"Bearer {surface.secret}"}
    _, viewer = operators.create(seeded, SystemClock(), "viewer")
    assert httpx.post(change, headers=owner).json() == "owner key create"
    assert httpx.post(change, auth=("op", surface.secret)).status_code == 403
    assert httpx.post(change, headers=owner | {"origin": "https://evil.example"}).status_code == 403
    assert httpx.post(change, headers={"authorization": f"Bearer {viewer}"}).status_code == 403
    reading = httpx.post(surface.url + "/manage/key/list", headers={"authorization": f"Bearer {viewer}"})
    assert reading.json() == "viewer key list"


def test_readiness_names_what_is_missing(surface: Surface) -> None:
    """A load balancer would send customers to a server that cannot serve."""
    surface.missing.append("deployment: reviewdesk (rel_01)")
    answer = httpx.get(surface.url + "/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"status": "not ready", "missing": ["deployment: reviewdesk (rel_01)"]}
    assert httpx.get(surface.url + "/healthz").status_code == 200


def test_metrics_count_by_route_and_keep_made_up_paths_out(surface: Surface) -> None:
    """A client could grow the server's memory by asking for ever new paths."""
    for number in range(3):
        httpx.get(f"{surface.url}/v1/made-up-{number}")
    text = surface.get("/metrics").text
    assert 'gristmill_requests_total{model="",route="unmatched",status="404"} 3.0' in text
    assert "made-up" not in text
    assert 'gristmill_runs{state="succeeded"} 1.0' in text
