"""`kill -9` of the server, a trainer and an engine: nothing acknowledged is lost, doubled or overcharged.

One kill serves most tests: `aftermath` catches the server while a stream runs, while another request is held
for and not settled, and under a load of keyed requests; the tests then read what the next start made of it.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from gristmill.core.money import NANO
from gristmill.testing.server import Buyer, ServerProcess, serving

pytestmark = pytest.mark.slow

TOKEN_S = 0.005
PLANS = """
[[plans]]
name = "prepaid"
billing = "prepaid"

[[plans.prices]]
meter = "letters"
pricing = "per_unit"
params = { amount = "0.001" }

[[plans.prices]]
meter = "output_tokens"
pricing = "per_unit"
params = { amount = "0.01" }
"""
PAID_IN = 50
PATH = "/v1/reverse"
LONG = " ".join(f"w{n}" for n in range(600))
EXPECTED = LONG[::-1].split(" ")


class Aftermath(NamedTuple):
    """What clients saw before the kill, and the server that was started after it."""

    server: ServerProcess
    streaming: Buyer
    received: list[str]
    held: Buyer
    loaded: Buyer
    acknowledged: dict[str, str]
    begun: dict[str, str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mirror: Any) -> Iterator[ServerProcess]:
    """A server with one product, whose engine writes a token each five milliseconds."""
    home = tmp_path_factory.mktemp("crashes") / "home"
    with serving(home, plugins=[mirror.plugins], settings={"hourly_rate": "36.00"}) as server:
        recipe = mirror.recipe("mirror", PLANS, f"{{ token_s = {TOKEN_S} }}", steps=1, step_s=0)
        server.manage("launch", recipe=str(recipe))
        yield server
    assert "Traceback" not in server.log_text()


def until(is_true: Callable[[], Any], what: str, patience_s: float = 60) -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + patience_s
    while not (found := is_true()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.03)
    return found


def charged(amount_letters: int, amount_tokens: int) -> int:
    """Nano-units that letters and tokens cost under the plan."""
    return amount_letters * NANO // 1000 + amount_tokens * NANO // 100


def body_of(text: str) -> bytes:
    """A request's body; a retry sends the same bytes."""
    return json.dumps({"model": "mirror", "input": text}).encode()


def events(server: ServerProcess, buyer: Buyer) -> list[dict[str, Any]]:
    """A customer's usage events, as rows with decoded meters."""
    rows = server.rows("SELECT * FROM usage_event WHERE customer_id = ? ORDER BY request_id", buyer.id)
    return [row | {"meters": json.loads(row["meters"])} for row in rows]


def assert_paid(server: ServerProcess, buyer: Buyer) -> None:
    """The wallet holds what was paid in less what was charged, and nothing is leased any more."""
    spent = sum(event["amount"] for event in events(server, buyer))
    assert server.balance(f"lease:{buyer.id}:gateway") == 0
    assert server.balance(f"wallet:{buyer.id}") == -(PAID_IN * NANO - spent) <= 0


def streamed(client: httpx.Client, secret: str) -> Iterator[dict[str, Any]]:
    """The events of a long streamed answer, until its end or until the connection breaks."""
    body = {"model": "mirror", "input": LONG, "stream": True}
    headers = {"authorization": f"Bearer {secret}"}
    try:
        with client.stream("POST", PATH, json=body, headers=headers) as response:
            assert response.status_code == 200
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line[6:])
    except httpx.TransportError:
        return


class Load(threading.Thread):
    """A client that sends keyed requests one after the other, until the server is gone."""

    def __init__(self, server: ServerProcess, buyer: Buyer, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._server, self._buyer = server, buyer
        self.begun: dict[str, str] = {}
        self.acknowledged: dict[str, str] = {}

    def run(self) -> None:
        """See threading.Thread."""
        headers = {"authorization": f"Bearer {self._buyer.secret}"}
        with self._server.http(headers=headers) as client, _until_gone():
            for n in itertools.count():
                key = f"{self.name}-{n}"
                self.begun[key] = f"request {n} of {self.name}"
                answer = client.post(PATH, content=body_of(self.begun[key]), headers={"idempotency-key": key})
                assert answer.status_code == 200, answer.text
                self.acknowledged[key] = answer.headers["x-request-id"]
                time.sleep(0.02)


class _until_gone:  # noqa: N801 - reads as a phrase
    """Leaves a block quietly when the connection breaks."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        return isinstance(error, httpx.TransportError)


@pytest.fixture(scope="module")
def aftermath(server: ServerProcess) -> Aftermath:
    """Kill the server in the middle of everything, and start it again."""
    buyers = [server.buyer(name, "prepaid", str(PAID_IN)) for name in ("Streaming", "Held", "Loaded")]
    streaming, held, loaded = buyers
    clients = [Load(server, loaded, f"client{n}") for n in range(3)]
    received: list[str] = []

    def ask_held() -> None:
        with server.http() as client, _until_gone():
            body = {"model": "mirror", "input": LONG}
            client.post(PATH, json=body, headers={"authorization": f"Bearer {held.secret}"})
            raise AssertionError("the held request was answered")

    with server.http() as client:
        for event in streamed(client, streaming.secret):
            received.append(event["output"])
            if len(received) == 1:
                for load in clients:
                    load.start()
            if len(received) == 200:
                threading.Thread(target=ask_held, daemon=True).start()
                until(lambda: server.balance(f"lease:{held.id}:gateway") < 0, "the lease")
                until(lambda: all(len(load.acknowledged) > 5 for load in clients), "some load")
                server.kill9()
    for load in clients:
        load.join(10)
    acknowledged = {key: request for load in clients for key, request in load.acknowledged.items()}
    begun = {key: text for load in clients for key, text in load.begun.items()}
    server.start()
    return Aftermath(server, streaming, received, held, loaded, acknowledged, begun)


def test_a_stream_cut_by_a_crash_is_charged_as_far_as_it_was_journalled(aftermath: Aftermath) -> None:
    """A customer would pay for tokens that never arrived, or a crash would make everything sent free."""
    server, received = aftermath.server, aftermath.received
    assert len(received) < len(EXPECTED), "the stream ended before the kill"
    assert "".join(received).split(" ") == EXPECTED[: len(received)]
    [event] = events(server, aftermath.streaming)
    assert event["status"] == "recovered"
    n_charged = event["meters"]["output_tokens"]
    assert 64 <= n_charged <= len(received)
    assert event["emitted_tokens"] == n_charged
    assert event["amount"] == charged(len(LONG), n_charged)
    assert event["cost"] > 0
    assert_paid(server, aftermath.streaming)
    assert server.rows("SELECT request_id FROM stream_journal") == []


def test_a_request_held_and_not_settled_is_free(aftermath: Aftermath) -> None:
    """A crash would keep a customer's money for an answer that nobody got."""
    assert events(aftermath.server, aftermath.held) == []
    assert_paid(aftermath.server, aftermath.held)


def test_acknowledged_usage_is_there_once_and_a_retry_is_never_charged_twice(aftermath: Aftermath) -> None:
    """Usage that a client was told of would be lost, or its retry after a crash charged again."""
    server, buyer = aftermath.server, aftermath.loaded
    before = [event["request_id"] for event in events(server, buyer)]
    assert set(aftermath.acknowledged.values()) <= set(before)
    assert len(before) - len(aftermath.acknowledged) <= 3, "at most one request of each client was open"
    open_keys = aftermath.begun.keys() - aftermath.acknowledged.keys()
    again = [*open_keys, *list(aftermath.acknowledged)[:3]]
    for key in again:
        text = aftermath.begun[key]
        answer = server.post(buyer.secret, PATH, body_of(text), idempotency_key=key)
        assert answer.status_code == 200, answer.text
        assert answer.json()["output"] == text[::-1]
        if key in aftermath.acknowledged:
            assert answer.headers["idempotent-replayed"] == "true"
    after = events(server, buyer)
    assert len(after) == len(aftermath.begun)
    for event in after:
        meters = event["meters"]
        assert event["amount"] == charged(meters["letters"], meters["output_tokens"])


def test_the_books_balance_after_the_crash(aftermath: Aftermath) -> None:
    """Σ postings would not be zero, or a wallet would be overdrawn."""
    assert aftermath.server.broken_books() == []


def test_a_killed_engine_charges_nothing_and_comes_back(server: ServerProcess) -> None:
    """One crash of an engine would end its model until an operator sees it, or be billed to the customer."""
    buyer = server.buyer("Unlucky", "prepaid", str(PAID_IN))
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(server.post(buyer.secret, PATH, {"model": "mirror", "input": LONG}))

    waiting = threading.Thread(target=ask)
    waiting.start()
    release = server.manage("release", "show", release="mirror")["id"]
    [engine] = [one for one in server.manage("deployment", "list") if one["release"] == release]
    seen: list[dict[str, Any]] = []
    with server.http() as client:
        for event in streamed(client, buyer.secret):
            seen.append(event)
            if len(seen) == 100:
                os.kill(engine["pid"], signal.SIGKILL)
    waiting.join(30)
    assert seen[-1]["error"]["code"] == "unavailable"
    assert len(seen) < len(EXPECTED)
    [answer] = answers
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"

    def retried() -> bool:
        answer = server.post(buyer.secret, PATH, {"model": "mirror", "input": "never even"})
        return answer.status_code == 200

    until(retried, "the engine's return", 20)
    failed = [event for event in events(server, buyer) if event["status"] == "failed"]
    assert [(event["amount"], event["meters"]) for event in failed] == [(0, {}), (0, {})]
    assert all(event["cost"] > 0 for event in failed), "its seconds are our cost"
    assert server.broken_books() == []


def steps_of(server: ServerProcess, run: str) -> list[tuple[int, int]]:
    """(attempt, step) of every training step that was begun."""
    path = server.home / "runs" / run / "work" / "steps.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(fence), int(step)) for fence, step in (line.split() for line in lines)]


def test_training_survives_its_own_death_and_the_servers(server: ServerProcess, mirror: Any) -> None:
    """Hours of training would be lost to a crash, or one run released or booked twice or left unsellable."""
    n_steps = 24
    plans = PLANS.replace("prepaid", "for-late", 1)
    launch = server.cli_started("launch", str(mirror.recipe("late", plans, steps=n_steps, step_s=0.15)))
    query = "SELECT id, state FROM run WHERE product = 'late'"
    run = until(lambda: server.rows(query), "the run")[0]["id"]
    until(lambda: len(steps_of(server, run)) >= 4, "steps of attempt 1")
    [trainer] = server.children("stages.train.child")
    os.kill(trainer, signal.SIGKILL)
    until(lambda: sum(fence == 2 for fence, _ in steps_of(server, run)) >= 4, "steps of attempt 2")
    server.kill9()
    out, err = launch.communicate(timeout=30)
    assert (launch.returncode, out) == (1, "")
    assert "stopped answering" in err
    assert "Traceback" not in err
    n_before = len(steps_of(server, run))
    server.start(until="/healthz")
    assert len(steps_of(server, run)) <= n_before + 1, "the trainer outlived its server"
    until(lambda: server.rows(query)[0]["state"] == "succeeded", "the end of the run")

    steps = steps_of(server, run)
    begun = {fence: min(step for one, step in steps if one == fence) for fence, _ in steps}
    assert list(begun) == [1, 2, 3]
    assert 0 < begun[2] < begun[3], "an attempt began from nothing"
    assert len(steps) <= n_steps + 2, "steps were done again that a checkpoint held"
    [release] = server.rows("SELECT id, version FROM release WHERE product = 'late'")
    [move] = server.rows("SELECT release_id FROM alias_move WHERE product = 'late'")
    assert move["release_id"] == release["id"]
    booked = "SELECT id FROM posting_group WHERE source = ? AND purpose = 'training-cost'"
    assert len(server.rows(booked, run)) == 1
    costs = "SELECT purpose FROM artifact_cost WHERE release_id = ? ORDER BY purpose"
    assert [row["purpose"] for row in server.rows(costs, release["id"])] == ["evaluation", "training"]
    buyer = server.buyer("Patient", "for-late", str(PAID_IN))
    answer = server.post(buyer.secret, PATH, {"model": "late", "input": "was it"})
    assert answer.json()["output"] == "ti saw"
    assert server.broken_books() == []


def test_a_second_server_on_one_home_refuses(server: ServerProcess) -> None:
    """Two processes would write one ledger; the second must leave with a clear line and change nothing."""
    second = server.cli("serve", "--port", "0")
    assert second.code == 2
    assert f"Another Gristmill process ({server.pid}) is using the home" in second.err
    assert "--home" in second.err
    assert "Traceback" not in second.err
    with server.http() as client:
        assert client.get("/healthz").status_code == 200
    assert server.cli("plan", "list").code == 0, "the control socket of the first still answers"


def test_a_port_in_use_is_named(server: ServerProcess, tmp_path: Path) -> None:
    """An operator would not learn which port is taken, or would be shown a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = ServerProcess(tmp_path / "home").cli("serve", "--port", str(port))
    assert ended.code == 1
    assert f"Port {port} of 127.0.0.1 is in use." in ended.err
    assert "Traceback" not in ended.err
