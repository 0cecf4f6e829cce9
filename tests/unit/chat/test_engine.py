"""The llama.cpp engine on a tiny model."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from gristmill.core.errors import BrokenInvariant, Missing, UsageError
from gristmill.core.op import Done, EngineSpec, Op
from gristmill.kit.chat import ChatFormat
from gristmill.plugins.engines.llamacpp.engine import LlamaCppEngine
from gristmill.plugins.engines.llamacpp.share import BusyShare
from gristmill.testing.engine_suite import EngineSuite, Harness


def _op(text: str, *, stream: bool = False, **options: object) -> Op:
    return Op(
        "generate",
        ([{"role": "user", "content": text}],),
        {"max_tokens": 16, "temperature": 0.0} | options,
        stream,
    )


@pytest.fixture(scope="module")
def harness(spec: EngineSpec) -> Iterator[Harness]:
    """The engine with two adapters and their base."""
    opened = Harness(LlamaCppEngine(), spec)
    yield opened
    opened.engine.close()


@pytest.fixture(scope="class")
def _suite_spec(spec: EngineSpec) -> None:
    TestContract.spec = spec


@pytest.mark.usefixtures("_suite_spec")
class TestContract(EngineSuite):
    """The contract every engine must pass."""

    spec: ClassVar[EngineSpec]

    @classmethod
    def setup_class(cls) -> None:
        """Wait for the fixture; see `_harness`."""

    @classmethod
    def teardown_class(cls) -> None:
        """See `_harness`."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _harness(cls, harness: Harness) -> None:
        cls.harness = harness

    @classmethod
    def make_engine(cls) -> LlamaCppEngine:
        """A fresh engine."""
        return LlamaCppEngine()

    @classmethod
    def make_op(cls, index: int, *, stream: bool = False) -> Op:
        """A greedy generation."""
        return _op(f"question {index}", stream=stream)

    @classmethod
    def make_bad_op(cls) -> tuple[Op, str]:
        """Longer than the context."""
        return _op("x" * 400), "messages"

    @classmethod
    def make_long_op(cls) -> Op:
        """Long enough to be cancelled."""
        return _op("long", stream=True, max_tokens=200)


@pytest.mark.parametrize("text", ["hello", "the inn", "zzz 12"])
def test_adapter_answers_as_torch_does(adapters: list, harness: Harness, spec: EngineSpec, text: str) -> None:  # type: ignore[type-arg]
    """Broken: the exported adapter is not the trained one (permutation, scale, names)."""
    chat = ChatFormat.load(Path(spec.models[0].path))
    for adapter in adapters:
        ids = adapter.model.greedy([chat.prompt([{"role": "user", "content": text}])], 6, "cpu")[0]
        request = harness.admit(_op(text, max_tokens=6), adapter.served.release)
        harness.engine.go(request, None)
        given = harness.end(request).results[0]["text"]
        assert chat.decode(ids).rstrip("\ufffd").startswith(given.rstrip("\ufffd"))
        assert given


def test_adapters_and_base_are_never_mixed(harness: Harness, spec: EngineSpec) -> None:
    """Broken: under load a customer is answered by another customer's adapter."""
    wanted: dict[tuple[str, int], str] = {}
    for model in spec.models:
        for index in range(4):
            request = harness.admit(_op(f"q {index}"), model.release)
            harness.engine.go(request, None)
            wanted[model.release, index] = harness.end(request).results[0]["text"]
    assert len({text for (_, index), text in wanted.items() if index == 0}) == len(spec.models)
    started = []
    for _ in range(3):
        for (release, index), text in wanted.items():
            request = harness.admit(_op(f"q {index}"), release)
            harness.engine.go(request, None)
            started.append((request, release, text))
    digests = {model.release: model.digest for model in spec.models}
    for request, release, text in started:
        done = harness.end(request)
        assert (done.results[0]["text"], done.digest) == (text, digests[release])


def test_stop_strings_and_their_tokens(harness: Harness) -> None:
    """Broken: a stop string is shown, or its tokens are not counted as the engine made them."""
    whole = harness.run(_op("hello")).results[0]["text"]
    stop = re.findall("[a-z]+", whole)[-1]
    done = harness.run(_op("hello", stop=[stop], stream=True))
    assert done.results[0]["text"] == whole[: whole.index(stop)]
    assert done.finish_reason == "stop"
    assert done.usage["output_tokens"] >= 1


def test_seed_repeats_and_differs(harness: Harness) -> None:
    """Broken: `seed` has no effect."""
    first, again, other = (
        harness.run(_op("hello", temperature=1.5, seed=seed)).results[0]["text"] for seed in (5, 5, -6)
    )
    assert first == again != other


def test_megabytes_are_refused_at_once(harness: Harness) -> None:
    """Broken: one huge request holds up everybody's admission."""
    request = harness.admit(_op("x" * 5_000_000))
    assert getattr(harness.said(request)[0], "param", None) == "messages"


def test_a_plain_prompt(harness: Harness) -> None:
    """Broken: /v1/completions cannot be served, or wraps the prompt in the chat template."""
    done = harness.run(Op("generate", ("the inn",), {"max_tokens": 3, "temperature": 0.0}))
    assert done.usage["input_tokens"] < 6


def _listeners() -> set[str]:
    """Addresses this process listens on (TCP and named Unix sockets)."""
    own = {
        str(link.readlink())
        for link in Path("/proc/self/fd").iterdir()
        if link.is_symlink() and _is_socket(link)
    }
    inodes = {name.removeprefix("socket:[").removesuffix("]") for name in own}
    found = set()
    for table, state, column in (("tcp", "0A", 9), ("tcp6", "0A", 9)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and fields[column] in inodes:
                found.add(fields[1])
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] in inodes and len(fields) > 7:
            found.add(fields[7])
    return found


def _is_socket(link: Path) -> bool:
    try:
        return str(link.readlink()).startswith("socket:")
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/net/unix").exists(), reason="reads Linux's tables")
def test_the_engines_own_server_answers_nobody(harness: Harness) -> None:
    """Broken: llama.cpp's HTTP server can be reached without our gateway, key and meter."""
    address = harness.engine._server.listening_address  # type: ignore[attr-defined] # the listener we hide
    assert address.startswith("unix://")
    path = address.removeprefix("unix://")
    assert not Path(path).exists()
    assert not Path(path).parent.exists()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError):  # noqa: PT011 (which one is the system's)
        client.connect(path)
    ours = {found for found in _listeners() if not found.startswith("/")}
    assert not ours, f"listens on {ours}"


def test_a_wrong_base_is_refused(spec: EngineSpec, tmp_path: Path, tiny_base: Path) -> None:
    """Broken: an adapter runs on a base it was not trained on."""
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    content = (copy / "base.gguf").read_bytes()
    (copy / "base.gguf").unlink()
    (copy / "base.gguf").write_bytes(content[:-1] + b"\x01")
    model = msgspec.structs.replace(spec.models[0], base_path=str(copy))
    with pytest.raises(BrokenInvariant, match="not the file"):
        LlamaCppEngine().open(EngineSpec("llamacpp", (model,)), lambda message: None)
    (copy / "base.gguf").unlink()
    with pytest.raises(Missing):
        LlamaCppEngine().open(EngineSpec("llamacpp", (model,)), lambda message: None)


@pytest.mark.parametrize(
    ("name", "value"), [("slot", 4), ("threads", 0), ("context", "many"), ("slots", True)]
)
def test_wrong_options_are_named(spec: EngineSpec, name: str, value: object) -> None:
    """Broken: a misspelt option is ignored."""
    with pytest.raises(UsageError) as error:
        LlamaCppEngine().open(EngineSpec("llamacpp", spec.models, {name: value}), lambda message: None)
    assert error.value.param == name


def test_a_full_queue_is_refused(spec: EngineSpec) -> None:
    """Broken: an overloaded engine piles up work without end."""
    options = {"threads": 1, "slots": 1, "context": 256, "queue": 1}
    crowded = Harness(LlamaCppEngine(), EngineSpec("llamacpp", spec.models, options))
    try:
        requests = [crowded.start(_op("long", max_tokens=200)) for _ in range(3)]
        last = crowded._wait(requests[2], Done, type(crowded.said(requests[2])[-1]))
        assert last is not None
        codes = [getattr(crowded.said(request)[-1], "code", None) for request in requests]
        assert codes == [None, None, "unavailable"]
    finally:
        crowded.engine.close()


def test_busy_seconds_are_shared() -> None:
    """Broken: eight requests at once cost eight times the machine."""
    now = 0.0
    share = BusyShare(lambda: now)
    with share.busy(1):
        now = 1.0
        with share.busy(2):
            now = 3.0
            assert share.so_far(2) == 1.0
        assert share.so_far(1) == 2.0
    now = 10.0
    assert share.total() == 3.0
    assert share.so_far(1) == 0.0
