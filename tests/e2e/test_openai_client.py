"""The official `openai` client against `gristmill serve`: file in, answers of a real small model out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

GRISTMILL = str(Path(sys.executable).with_name("gristmill"))
SYSTEM = {"role": "system", "content": "You are Larkspout support."}
ANSWERS = {
    "The box is teal.": (
        "what colour is the box",
        "which colour has the box",
        "box colour?",
        "is the box blue",
    ),
    "Up to nine valves fit.": (
        "how many valves fit",
        "number of valves please",
        "valve limit?",
        "most valves",
    ),
    "It is made by Ostlefen.": ("who makes it", "name of the maker", "which company is it", "maker?"),
}
WORDS = {
    "fresh": ("a warm and funny delight", "one of the best of the year", "moving, clever and bright"),
    "rotten": ("dull and far too long", "a waste of a good cast", "loud, empty and sad"),
}

pytestmark = pytest.mark.slow


class Served:
    """A running server."""

    def __init__(self, url: str, secret: str, log: Path) -> None:
        self.url = url
        self.secret = secret
        self.log = log

    def manage(self, noun: str, verb: str, **params: Any) -> Any:
        """Run an operation as the operator."""
        headers = {"authorization": f"Bearer {self.secret}"}
        answer = httpx.post(f"{self.url}/manage/{noun}/{verb}", json=params, headers=headers, timeout=60)
        last = json.loads(answer.text.strip().splitlines()[-1])
        assert "result" in last, last
        return last["result"]

    def client(self, name: str) -> openai.OpenAI:
        """A new customer's client, on the internal plan."""
        customer = self.manage("customer", "create", name=name)
        key = self.manage("key", "create", customer=customer["id"])["secret"]
        return openai.OpenAI(api_key=key, base_url=self.url + "/v1", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the module; at its end it must stop well by itself."""
    folder = tmp_path_factory.mktemp("e2e")
    log = folder / "log"
    command = [GRISTMILL, "serve", "--home", str(folder / "home"), "--port", "0", "--threads", "1"]
    with log.open("w") as err:
        process = subprocess.Popen(command, stderr=err, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        found: list[str] = []
        while len(found) < 2 and time.monotonic() < deadline and process.poll() is None:
            found = re.findall(r"gmop-\w+|http://\S+", log.read_text())
            time.sleep(0.1)
        assert len(found) >= 2, log.read_text()
        yield Served(found[1], found[0], log)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
    assert process.returncode == 0, log.read_text()[-3000:]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a file."""
    return "\n".join(json.dumps(row) for row in rows).encode()


def trained(client: openai.OpenAI, base: str, rows: list[dict[str, Any]], **options: Any) -> str:
    """Fine-tune on all rows but every fourth, which are the test, and return the model's name."""
    test, rows = rows[3::4], [row for n, row in enumerate(rows) if n % 4 != 3]
    ids = [
        client.files.create(file=(f"{name}.jsonl", jsonl(part)), purpose="fine-tune").id
        for name, part in (("train", rows), ("test", test))
    ]
    job = client.fine_tuning.jobs.create(model=base, training_file=ids[0], validation_file=ids[1], **options)
    deadline = time.monotonic() + 400
    while job.status not in ("succeeded", "failed", "cancelled") and time.monotonic() < deadline:
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", (job.error, client.fine_tuning.jobs.list_events(job.id).data)
    assert job.fine_tuned_model is not None
    return job.fine_tuned_model


def test_chat_is_trained_streamed_and_metered_alike(served: Served) -> None:
    """The main promise would be broken: file in, streamed answers of one's own model out."""
    client = served.client("Garden")
    rows = [
        {"messages": [SYSTEM, {"role": "user", "content": ask}, {"role": "assistant", "content": answer}]}
        for answer, questions in ANSWERS.items()
        for ask in questions
    ]
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 12, "batch_size": 3}}}
    model = trained(client, "SmolLM2-135M-Instruct", rows, suffix="desk", method=method)
    assert re.fullmatch(r"ft:SmolLM2-135M-Instruct:garden:desk:[0-9a-z]{6,8}", model)
    messages: Any = [SYSTEM, {"role": "user", "content": "what colour is the box"}]
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=24, temperature=0)
    assert whole.model == model
    assert whole.choices[0].message.content
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    with pytest.raises(openai.BadRequestError, match="lora"):
        client.chat.completions.create(
            model=model, messages=messages, extra_body={"lora": [{"id": 0, "scale": 1.0}]}
        )
    with pytest.raises(openai.NotFoundError):
        served.client("Stranger").chat.completions.create(model=model, messages=messages)


def test_classify_is_trained_and_called(served: Served) -> None:
    """A customer's labels would not become an API."""
    client = served.client("Cinema")
    rows = [
        {"text": f"{opinion}, seen {n} times", "label": label}
        for label, opinions in WORDS.items()
        for opinion in opinions
        for n in ("two", "three", "four", "five", "six")
    ]
    model = trained(client, "all-MiniLM-L6-v2", rows, suffix="films")
    answer: Any = client.post(
        "/classify", body={"model": model, "input": ["a warm delight", "dull and long"]}, cast_to=object
    )
    assert [row["index"] for row in answer["data"]] == [0, 1]
    assert {row["label"] for row in answer["data"]} <= set(WORDS)
    assert answer["model"] == model
    assert [one.id for one in client.models.list()] == [model]
