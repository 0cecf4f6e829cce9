"""TLS, the two doors (operator and customer), the Host check, and secrets that never reach a log or an error.

All of it on one server with a self-signed certificate that logs everything it can (`log_level` debug).
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gristmill.core.clock import SystemClock
from gristmill.testing.server import Buyer, ServerProcess, serving

pytestmark = pytest.mark.slow

PATH = "/v1/reverse"
MARK = "xyzzymark"
"""In every text that is sent: a prompt, a row, a file; what comes back is looked for as well."""


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = SystemClock().now()
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mirror: Any) -> Iterator[ServerProcess]:
    """A server behind TLS with the throw-away product."""
    folder = tmp_path_factory.mktemp("trust")
    cert, key = certificate(folder)
    flags = ["--tls-cert", str(cert), "--tls-key", str(key), "--log-level", "debug", "--log-format", "json"]
    settings = {"customer_bases": str(mirror.base), "max_body_bytes": "20000"}
    home = folder / "home"
    with serving(home, plugins=[mirror.plugins], flags=flags, settings=settings, certificate=cert) as server:
        server.manage("launch", recipe=str(mirror.recipe("mirror", steps=1, step_s=0)))
        yield server


@pytest.fixture(scope="module")
def acme(server: ServerProcess) -> Buyer:
    """A customer on the internal plan."""
    return server.buyer("Acme")


def test_the_official_client_speaks_tls_with_a_self_signed_certificate(
    server: ServerProcess, acme: Buyer
) -> None:
    """Keys and prompts would cross the network in clear, or the server would refuse its own certificate."""
    assert server.base_url.startswith("https://")
    assert [model.id for model in server.openai(acme.secret).models.list()] == ["mirror"]
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"{server.base_url}/healthz")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.base_url}/healthz".replace("https", "http"))


OPERATORS = [("GET", "/"), ("GET", "/metrics"), ("POST", "/manage/customer/list"), ("GET", "/openapi.json")]
CUSTOMERS = [("POST", PATH), ("GET", "/v1/models"), ("GET", "/v1/files"), ("GET", "/v1/fine_tuning/jobs")]


def test_each_door_refuses_the_others_key(server: ServerProcess, acme: Buyer) -> None:
    """A customer could read the books, or an operator's credential be pasted into customers' scripts."""
    with server.http() as client:
        for paths, secret in ((OPERATORS, acme.secret), (CUSTOMERS, server.credential)):
            for method, path in paths:
                headers = {"authorization": f"Bearer {secret}"}
                for sent in (headers, {}):
                    answer = client.request(method, path, headers=sent)
                    assert (answer.status_code, path) == (401, path)
                    assert answer.json()["error"]["code"] == "invalid_api_key"
        for path in ("/healthz", "/readyz"):
            assert client.get(path).status_code == 200
    with server.operator() as client:
        for method, path in OPERATORS:
            assert (client.request(method, path).status_code, path) == (200, path)


def test_another_host_name_and_forged_requests_are_refused(server: ServerProcess) -> None:
    """A web page could reach the operator's pages in the operator's own browser (DNS rebinding, CSRF)."""
    password = base64.b64encode(f"op:{server.credential}".encode()).decode()
    with server.operator() as client:
        for method, path in OPERATORS:
            answer = client.request(method, path, headers={"host": "evil.example"})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "host")
        forged = client.post("/manage/customer/list", headers={"origin": "https://evil.example"})
        assert (forged.status_code, forged.json()["error"]["code"]) == (403, "not_allowed")
        page = client.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
    with server.http(headers={"authorization": f"Basic {password}"}) as client:
        assert client.get("/").status_code == 200
        assert client.post("/manage/customer/create", json={"name": "Forged"}).status_code == 403


def ask_in_all_ways(server: ServerProcess, acme: Buyer, mirror: Any) -> Iterator[httpx.Response]:
    """Requests with the mark, good and bad; gives the answers that are errors."""
    text = f"{MARK} says hello"
    good = server.post(acme.secret, PATH, {"model": "mirror", "input": text}, idempotency_key="once")
    assert good.json()["output"] == text[::-1]
    streamed = server.post(acme.secret, PATH, {"model": "mirror", "input": text, "stream": True})
    assert streamed.text.endswith("data: [DONE]\n\n")
    bodies: list[Any] = [
        {"model": "mirror", "input": [text]},
        {"model": "mirror", "input": text, "lora": text},
        {"model": "mirror", "input": text, "max_tokens": text},
        {"model": "mirror", "input": f"break {text}"},
        {"model": "none", "input": text},
        {"input": text},
        f'{{"input": "{text}'.encode(),
        text.encode() + b"\xff",
        {"model": "mirror", "input": text * 2000},
    ]
    for body in bodies:
        yield server.post(acme.secret, PATH, body)
    # The answer to this one names the model that was asked for; the log must not.
    assert server.post(acme.secret, PATH, {"model": acme.secret, "input": text}).status_code == 404
    yield server.post(
        acme.secret, PATH, {"model": "mirror", "input": f"other {text}"}, idempotency_key="once"
    )
    chat = {"model": "mirror", "messages": [{"role": "user", "content": text}]}
    yield server.post(acme.secret, "/v1/chat/completions", chat)
    yield server.post(acme.secret, "/v1/chat/completions", chat | {"messages": [{"content": text}]})
    yield server.post(acme.secret + "x", PATH, {"model": "mirror", "input": text})
    with server.http() as client:
        for path in (f"/v1/models?key={acme.secret}", "/metrics", f"/requests/{acme.secret}"):
            yield client.get(path, headers={"authorization": f"Basic {acme.secret}"})
        yield client.post(f"/v1/nothing?api_key={acme.secret}", content=text.encode())
    for raw in (f'{{"answer": "{text}"}}\n', f"{text}\n", f'{{"text": 7, "answer": "{text}"}}\n'):
        client = server.openai(acme.secret)
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.create(file=("rows.jsonl", raw.encode()), purpose="fine-tune")
        yield httpx.Response(400, content=caught.value.response.content)
    with server.operator() as client:
        yield client.post("/manage/customer/create", json={"nam": text, "key": acme.secret})
        yield client.post("/manage/key/revoke", json={"key": "key_none"})
        recipe = mirror.recipe("broken", steps=1, breaks=True)
        yield client.post("/manage/launch/run", json={"recipe": str(recipe)}, timeout=120)


def test_secrets_and_prompts_reach_no_log_and_no_error(
    server: ServerProcess, acme: Buyer, mirror: Any
) -> None:
    """Whoever reads the log, or a client's error reports, would read prompts and could use the keys."""
    mirror.rows[:] = [{name: f"{MARK} {text}" for name, text in row.items()} for row in mirror.rows]
    bodies = [answer.text for answer in ask_in_all_ways(server, acme, mirror)]
    assert all('"error"' in body for body in bodies), bodies
    log = server.log_text()
    levels = {json.loads(line)["level"] for line in log.splitlines() if line.startswith("{")}
    assert "info" in levels, "the log is as talkative as it can be"
    assert len(re.findall('"event": ?"paid_request"', log)) >= 12, "requests are logged"
    shown = f"Operator credential (shown once, keep it safe): {server.credential}"
    assert log.count(shown) == 1
    secret = acme.secret.split("-")[2]
    for name, hidden in (
        ("the key", acme.secret),
        ("the key's secret", secret),
        ("the credential", server.credential),
        ("a prompt", MARK),
        ("an answer", MARK[::-1]),
    ):
        for line in log.replace(shown, "").splitlines():
            assert hidden not in line, f"{name} is in the log: {line}"
        for body in bodies:
            assert hidden not in body, f"{name} is in an error: {body}"
    assert "Traceback" not in log
    stored = server.rows(
        "SELECT secret_sha256 AS secret FROM api_key UNION SELECT secret_sha256 FROM operator"
    )
    assert all(re.fullmatch("[0-9a-f]{64}", row["secret"]) for row in stored)
