"""Files over HTTP with the official client: checked, encrypted, the owner's alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gristmill.app.files import Files
from gristmill.core.account import Customer
from gristmill.core.clock import SystemClock
from gristmill.core.errors import BrokenInvariant
from gristmill.server import app
from gristmill.server.metrics import Metrics
from gristmill.server.openai import files as routes
from gristmill.server.openai.caller import who_calls
from gristmill.stages.access import queries as access
from gristmill.stages.access.index import AccessIndex
from gristmill.store.blobs import Blobs
from gristmill.store.cipher import Cipher
from gristmill.store.session import Database

Serve = Callable[[Any], str]
MAX_BYTES = 200_000
CHAT = [
    {"messages": [{"role": "user", "content": f"Question {n}"}, {"role": "assistant", "content": "Answer."}]}
    for n in range(3)
]
LABELLED = [{"text": f"a film {n}", "label": "fresh"} for n in range(3)]


def jsonl(rows: list[Any]) -> bytes:
    """Rows as a file's bytes."""
    return "\n".join(json.dumps(row) for row in rows).encode()


class Shop:
    """A served home with two customers and their clients."""

    def __init__(self, db: Database, folder: Path, serve: Serve) -> None:
        self.clock = SystemClock()
        self.blobs = folder / "blobs"
        self.cipher = Cipher(b"k" * 32, self.clock)
        self.files = Files(db, Blobs(self.blobs, folder / "artifacts"), self.cipher, self.clock, MAX_BYTES)
        index = AccessIndex(db, self.clock)
        keys = []
        with db.write() as c:
            access.seed_internal_plan(c, self.clock)
            for name in ("Acme", "Other"):
                owner = access.create_customer(c, self.clock, name=name, plan_name="internal")
                keys.append((owner, access.create_key(c, self.clock, customer_id=owner.id)[1]))
        index.refresh()
        rest = app.routed([routes.router(self.files, who_calls(index, self.clock))])
        limits = app.Limits(10_000, MAX_BYTES)
        whole = app.assemble(
            rest, self.clock, Metrics(), limits, host="127.0.0.1", find_operator=lambda _: None
        )
        self.url = serve(whole)
        self.owner: Customer = keys[0][0]
        self.key: str = keys[0][1]
        self.acme, self.other = (
            openai.OpenAI(api_key=key, base_url=self.url + "/v1", max_retries=0) for _, key in keys
        )


@pytest.fixture
def shop(db: Database, tmp_path: Path, serve: Serve) -> Shop:
    """Two customers."""
    return Shop(db, tmp_path, serve)


def test_a_file_comes_back_as_it_was_and_lies_encrypted(shop: Shop) -> None:
    """A customer's file would be altered, or readable by whoever copies the disk."""
    content = jsonl(CHAT)
    made = shop.acme.files.create(file=("train.jsonl", content), purpose="fine-tune")
    assert (made.object, made.bytes, made.filename, made.purpose) == (
        "file",
        len(content),
        "train.jsonl",
        "fine-tune",
    )
    assert made.status == "processed"
    assert shop.acme.files.retrieve(made.id) == made
    assert shop.acme.files.content(made.id).content == content
    stored = [path.read_bytes() for path in shop.blobs.rglob("*") if path.is_file()]
    assert len(stored) == 1
    assert b"Question" not in stored[0]


def test_a_sealed_file_opens_for_its_own_row_only(shop: Shop) -> None:
    """A blob moved to another customer's row would be handed to that customer."""
    sealed = shop.cipher.seal(b"rows", "file/cust_a/file_1")
    with pytest.raises(BrokenInvariant):
        shop.cipher.open(sealed, "file/cust_b/file_1")


def test_another_customers_file_does_not_exist(shop: Shop) -> None:
    """One customer could read, list or delete another's training data."""
    made = shop.acme.files.create(file=("a.jsonl", jsonl(LABELLED)), purpose="fine-tune")
    for attempt in (shop.other.files.retrieve, shop.other.files.content, shop.other.files.delete):
        with pytest.raises(openai.NotFoundError):
            attempt(made.id)
    with pytest.raises(openai.NotFoundError):
        shop.other.files.list(after=made.id)
    assert shop.other.files.list().data == []
    assert shop.acme.files.retrieve(made.id).id == made.id


def test_listing_pages_in_order(shop: Shop) -> None:
    """A client could not walk through its files."""
    made = [
        shop.acme.files.create(file=(f"{n}.jsonl", jsonl(CHAT)), purpose="fine-tune").id for n in range(5)
    ]
    assert [one.id for one in shop.acme.files.list(limit=2)] == made[::-1]
    assert [one.id for one in shop.acme.files.list(limit=2, order="asc")] == made
    assert shop.acme.files.list(limit=2).has_more is True
    assert shop.acme.files.list(purpose="batch").data == []


def test_a_deleted_file_is_gone_from_disk_too(shop: Shop) -> None:
    """Erasure would leave the content behind."""
    made = shop.acme.files.create(file=("a.jsonl", jsonl(LABELLED)), purpose="fine-tune")
    assert shop.acme.files.delete(made.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        shop.acme.files.retrieve(made.id)
    assert [path for path in shop.blobs.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("content", "line", "field"),
    [
        (jsonl([*CHAT, {"messages": []}]), 4, "messages"),
        (jsonl(LABELLED) + b'\n{"text": "no label"}', 4, "label"),
        (jsonl(CHAT) + b"\n{broken", 4, "line"),
        (jsonl(CHAT) + b"\n[1]", 4, "line"),
        (b'{"text": "\xff", "label": "a"}', 1, "line"),
    ],
)
def test_the_first_bad_row_is_named(shop: Shop, content: bytes, line: int, field: str) -> None:
    """A customer would find out after training, or not which of ten thousand lines is wrong."""
    with pytest.raises(openai.BadRequestError) as caught:
        shop.acme.files.create(file=("a.jsonl", content), purpose="fine-tune")
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["line"] == line
    assert body["field"].startswith(field)
    assert f"Line {line}" in caught.value.message


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"prompt": "x"}'])
def test_a_file_of_no_known_rows_is_refused(shop: Shop, content: bytes) -> None:
    """An empty or foreign file would become an empty dataset version."""
    with pytest.raises(openai.BadRequestError):
        shop.acme.files.create(file=("a.jsonl", content), purpose="fine-tune")


def test_other_purposes_and_unknown_fields_are_refused_by_name(shop: Shop) -> None:
    """A client would believe that a setting was heeded."""
    with pytest.raises(openai.BadRequestError, match="batch"):
        shop.acme.files.create(file=("a.jsonl", jsonl(CHAT)), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="expires_after"):
        shop.acme.files.create(
            file=("a.jsonl", jsonl(CHAT)),
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
    headers = {"authorization": f"Bearer {shop.key}"}
    assert httpx.get(shop.url + "/v1/files?colour=red", headers=headers).json()["error"]["param"] == "colour"


def test_a_file_over_the_limit_is_413(shop: Shop) -> None:
    """One upload could fill the server's memory."""
    for size in (MAX_BYTES + 1, 4 * MAX_BYTES):
        with pytest.raises(openai.APIStatusError) as caught:
            shop.acme.files.create(file=("a.jsonl", b" " * size), purpose="fine-tune")
        assert caught.value.status_code == 413


def test_no_key_or_a_wrong_key_is_401(shop: Shop) -> None:
    """Anyone could upload; and an operator's credential is not a customer's key."""
    for key in ("gm-none", "gmop-" + "a" * 52, shop.key[:-1] + "x"):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(api_key=key, base_url=shop.url + "/v1", max_retries=0).files.list()
