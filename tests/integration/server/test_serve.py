"""`gristmill serve` as a process: a customer fine-tunes and calls its own model; starts that are refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gristmill.testing.plugin_dist import write_plugin
from gristmill.testing.toy import _MANIFEST, _PLUGINS, toy_base

GRISTMILL = str(Path(sys.executable).with_name("gristmill"))
TASK = '''
"""A third-party plug-in: the toy task with a route, and a field that only its rows have."""
from typing import Any

import msgspec

from gristmill.core.dataset import Field
from gristmill.core.op import Op
from gristmill.ports.manifest import Manifest
from gristmill.ports.task import Endpoint
from gristmill.testing.toy import ToyTask

MANIFEST = Manifest(
    name="toy", kind="tasks", summary="A toy.", implementation="toy_tasks:ServedToy",
    capabilities={"trainer": "toy", "engine": "toy"},
)


class Request(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    input: list[str]


def answer(exchange: Any, results: Any, usage: Any, reason: str) -> dict[str, Any]:
    return {"object": "list", "data": results, "model": exchange.model, "usage": usage}


class ServedToy(ToyTask):
    fields = (*ToyTask.fields, Field("toy", "a mark", is_text=False))
    endpoints = (Endpoint("/v1/toy", Request, lambda r: Op("classify", tuple(r.input)), answer, ("items",)),)
'''
ROWS = [
    {"text": f"{word} film number {n} about {about}", "label": label, "toy": "yes"}
    for word, label in (("good", "fresh"), ("bad", "rotten"))
    for n, about in enumerate(
        ("ships", "trains", "love", "war", "cooking", "the moon", "ice", "sand", "tea", "cats")
    )
]


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    @property
    def secret(self) -> str:
        """The operator's credential, as it was shown."""
        found = re.search(r"gmop-\w+", self.log.read_text())
        assert found is not None
        return found[0]

    def manage(self, noun: str, verb: str, **params: Any) -> Any:
        """Run an operation as the operator."""
        headers = {"authorization": f"Bearer {self.secret}"}
        answer = httpx.post(f"{self.url}/manage/{noun}/{verb}", json=params, headers=headers, timeout=60)
        last = json.loads(answer.text.strip().splitlines()[-1])
        assert "result" in last, last
        return last["result"]

    def client(self, name: str, **params: Any) -> openai.OpenAI:
        """A new customer's client."""
        customer = self.manage("customer", "create", name=name, **params)
        key = self.manage("key", "create", customer=customer["id"])["secret"]
        return openai.OpenAI(api_key=key, base_url=self.url + "/v1", max_retries=0, timeout=60)


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with the toy plug-ins."""
    folder = tmp_path / "plugins"
    for kind, (name, capabilities) in _PLUGINS.items():
        source = (
            TASK if kind == "tasks" else _MANIFEST.format(kind=kind, name=name, capabilities=capabilities)
        )
        write_plugin(folder, f"toy-{kind}", source)
    return folder


@contextlib.contextmanager
def serving(home: Path, plugins: Path, *flags: str, base: Path | None = None) -> Iterator[Served]:
    """`gristmill serve` on a free port until the block ends; it must then stop well by itself."""
    log = home.with_suffix(".log")
    environment = os.environ | {"PYTHONPATH": str(plugins), "OMP_NUM_THREADS": "1"}
    if base is not None:
        environment["GRISTMILL_CUSTOMER_BASES"] = str(base)
    command = [GRISTMILL, "serve", "--home", str(home), "--port", "0", *flags]
    with log.open("a") as err:
        start = log.stat().st_size
        process = subprocess.Popen(command, stderr=err, env=environment, text=True)
    try:
        yield Served(process, _address(process, log, start), log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert code == 0, log.read_text()[-3000:]
        assert not (home / "control.sock").exists()


def _address(process: subprocess.Popen[str], log: Path, start: int) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r" on (https?://\S+)", log.read_text()[start:])
        if found is not None:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text()[start:]}")


def finished(client: openai.OpenAI, job_id: str) -> Any:
    """The job once it has ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.2)
    raise AssertionError("the job did not end")


def upload(client: openai.OpenAI) -> str:
    """Upload the toy rows."""
    content = "\n".join(json.dumps(row) for row in ROWS).encode()
    return client.files.create(file=("train.jsonl", content), purpose="fine-tune").id


def ask(client: openai.OpenAI, model: str) -> Any:
    """Call a toy model."""
    return client.post("/toy", body={"model": model, "input": ["good news", "bad luck"]}, cast_to=object)


@pytest.mark.slow
def test_a_customer_trains_and_calls_its_own_model(tmp_path: Path, plugins: Path) -> None:
    """Fine-tuning through the official client would not end in a served model of the customer's own."""
    home, base = tmp_path / "home", toy_base(tmp_path / "toybase")
    with serving(home, plugins, base=base) as served:
        acme, other = served.client("Acme"), served.client("Other")
        job = acme.fine_tuning.jobs.create(
            model="toybase", training_file=upload(acme), suffix="mine", seed=3, metadata={"team": "a"}
        )
        assert (job.object, job.model, job.seed, job.metadata) == (
            "fine_tuning.job",
            "toybase",
            3,
            {"team": "a"},
        )
        job = finished(acme, job.id)
        assert job.status == "succeeded", job.error
        name = job.fine_tuned_model
        assert name is not None
        assert re.fullmatch(r"ft:toybase:acme:mine:[0-9a-z]{6,8}", name), name
        assert job.trained_tokens
        answer: Any = ask(acme, name)
        assert [row["label"] for row in answer["data"]] == ["fresh", "rotten"]
        assert [model.id for model in acme.models.list()] == [name]
        assert acme.models.retrieve(name).owned_by == "acme"
        assert other.models.list().data == []
        for attempt in (
            lambda: ask(other, name),
            lambda: other.models.retrieve(name),
            lambda: other.fine_tuning.jobs.retrieve(job.id),
            lambda: other.fine_tuning.jobs.cancel(job.id),
            lambda: other.fine_tuning.jobs.list_events(job.id),
            lambda: other.fine_tuning.jobs.create(model="toybase", training_file=job.training_file),
        ):
            with pytest.raises(openai.NotFoundError):
                attempt()
        events = acme.fine_tuning.jobs.list_events(job.id, limit=3)
        assert events.has_more
        assert events.data[0].message == "The run succeeded."
        messages = [event.message for event in acme.fine_tuning.jobs.list_events(job.id, limit=3)]
        assert messages[-1].startswith(f"Run {job.id} was created")
        assert [one.id for one in acme.fine_tuning.jobs.list()] == [job.id]
        assert other.fine_tuning.jobs.list().data == []
        with pytest.raises(openai.ConflictError):
            acme.fine_tuning.jobs.cancel(job.id)
        headers = {"authorization": f"Bearer {served.secret}"}
        assert httpx.get(served.url + "/readyz").json() == {"status": "ready", "missing": []}
        page = httpx.get(served.url + "/", headers=headers).text
        for link in (name, job.id, "toybase", "ready"):
            assert link in page, link
        metrics = httpx.get(served.url + "/metrics", headers=headers).text
        assert f'model="{name}",route="/v1/toy",status="200"' in metrics
        assert f'gristmill_usage_total{{meter="items",model="{name}"}} 2.0' in metrics
        drilled = httpx.get(f"{served.url}/requests/{job.id}", headers=headers)
        assert "trained_tokens" in drilled.text or "/v1/fine_tuning/jobs" in drilled.text
        text = served.log.read_text()
        assert "good news" not in text
        assert acme.api_key not in text
    with serving(home, plugins, base=base) as served:
        again: Any = None
        deadline = time.monotonic() + 30
        while again is None and time.monotonic() < deadline:
            with contextlib.suppress(openai.InternalServerError):
                again = ask(acme.with_options(base_url=served.url + "/v1"), name)
        assert again == answer


@pytest.mark.slow
def test_plans_without_a_training_price_may_not_train(tmp_path: Path, plugins: Path) -> None:
    """Training would be given away to customers whose plan does not sell it."""
    base = toy_base(tmp_path / "toybase")
    with serving(tmp_path / "home", plugins, base=base) as served:
        plan = tmp_path / "plan.toml"
        plan.write_text(
            '[[plans]]\nname = "basic"\n'
            '[[plans.prices]]\nmeter = "items"\npricing = "per_unit"\nparams = {amount = "0.001"}\n'
        )
        served.manage("plan", "create", file=str(plan))
        client = served.client("Acme", plan="basic")
        with pytest.raises(openai.PermissionDeniedError, match="fine-tuning"):
            client.fine_tuning.jobs.create(model="toybase", training_file=upload(client))
        with pytest.raises(openai.BadRequestError, match="not supported"):
            client.fine_tuning.jobs.create(model="ft:toybase:acme:x:12345678", training_file="file_x")
        with pytest.raises(openai.NotFoundError, match="toybase"):
            client.fine_tuning.jobs.create(model="gpt-4o", training_file="file_x")


@pytest.mark.slow
def test_a_prepaid_fine_tune_is_served_once_its_training_is_paid(tmp_path: Path, plugins: Path) -> None:
    """Training would be free for an empty wallet, or charged twice."""
    base = toy_base(tmp_path / "toybase")
    with serving(tmp_path / "home", plugins, base=base) as served:
        plan = tmp_path / "plan.toml"
        plan.write_text(
            '[[plans]]\nname = "prepaid"\nbilling = "prepaid"\n'
            '[[plans.prices]]\nmeter = "items"\npricing = "per_unit"\nparams = {amount = "0.001"}\n'
            '[[plans.prices]]\nmeter = "trained_tokens"\npricing = "per_unit"\nparams = {amount = "0.01"}\n'
        )
        served.manage("plan", "create", file=str(plan))
        client = served.client("Acme", plan="prepaid")
        job = finished(
            client, client.fine_tuning.jobs.create(model="toybase", training_file=upload(client)).id
        )
        assert job.status == "succeeded", job.error
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client, job.fine_tuned_model)
        assert caught.value.status_code in (402, 503)
        served.manage("wallet", "topup", customer="acme", amount="5")
        answer: Any = None
        deadline = time.monotonic() + 60
        while answer is None and time.monotonic() < deadline:
            time.sleep(0.5)
            with contextlib.suppress(openai.InternalServerError):
                answer = ask(client, job.fine_tuned_model)
        assert answer is not None
        headers = {"authorization": f"Bearer {served.secret}"}
        drilled = httpx.get(f"{served.url}/requests/{job.id}", headers=headers).text
        charged = f"{job.trained_tokens * 0.01:.9f} USD"
        assert "trained_tokens" in drilled
        assert charged in drilled
        shown = served.manage("wallet", "show", customer="acme")
        assert "4." in json.dumps(shown), shown


@pytest.mark.slow
def test_tls_serves_with_certificate_and_key(tmp_path: Path, plugins: Path) -> None:
    """Keys and prompts would cross the network in the clear."""
    cert, key = self_signed(tmp_path)
    flags = ("--tls-cert", str(cert), "--tls-key", str(key))
    with serving(tmp_path / "home", plugins, *flags) as served:
        assert served.url.startswith("https://")
        trust = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(served.url + "/healthz", verify=trust).json() == {"status": "alive"}
        with pytest.raises(httpx.HTTPError):
            httpx.get(served.url.replace("https", "http") + "/healthz")


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(private, hashes.SHA256())
    )
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert, key


def start_and_fail(home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run `gristmill serve`, which must end by itself."""
    command = [GRISTMILL, "serve", "--home", str(home), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    """An operator would read a traceback, or the server would seem to run."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = start_and_fail(tmp_path / "home", "--port", str(port))
    assert ended.returncode == 1
    assert f"Port {port} of 127.0.0.1 is in use." in ended.stderr
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "gmop-" not in ended.stderr


def test_another_address_waits_for_a_credential(tmp_path: Path) -> None:
    """A fresh home would be open to the network before anybody holds its credential."""
    ended = start_and_fail(tmp_path / "home", "--host", "0.0.0.0", "--port", "0")
    assert ended.returncode == 2
    assert "credential" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_wrong_tls_files_are_named(tmp_path: Path) -> None:
    """The server would serve without TLS, or end in a traceback."""
    half = start_and_fail(tmp_path / "home", "--port", "0", "--tls-cert", str(tmp_path / "c.pem"))
    assert (half.returncode, "tls_key" in half.stderr) == (2, True)
    (tmp_path / "c.pem").write_text("not a certificate")
    flags = ("--tls-cert", str(tmp_path / "c.pem"), "--tls-key", str(tmp_path / "c.pem"))
    wrong = start_and_fail(tmp_path / "home", "--port", "0", *flags)
    assert wrong.returncode == 2
    assert "c.pem" in wrong.stderr
    assert "Traceback" not in wrong.stderr
