"""The fake engine passes the contract suite that every engine must pass, and the suite itself runs."""

from __future__ import annotations

from pathlib import Path

from gristmill.core.artifact import seal
from gristmill.core.op import EngineSpec, Op, ServedModel
from gristmill.testing.engine_suite import EngineSuite
from gristmill.testing.engines import FakeEngine


def _spec(folder: Path) -> EngineSpec:
    (folder / "weights.txt").write_text("1 2 3")
    artifact = seal(folder, task="classify", engine="fake", kind="model", base="none")
    model = ServedModel("rel_1", str(folder), artifact.digest)
    return EngineSpec("fake", (model,), {"labels": ["a", "b", "c"], "token_s": 0.0005})


class TestFakeClassify(EngineSuite):
    """Classification."""

    @classmethod
    def make_engine(cls) -> FakeEngine:
        """See EngineSuite."""
        return FakeEngine()

    @classmethod
    def make_spec(cls, folder: Path) -> EngineSpec:
        """See EngineSuite."""
        return _spec(folder)

    @classmethod
    def make_op(cls, index: int, *, stream: bool = False) -> Op:
        """See EngineSuite."""
        return Op("classify", (f"text number {index}", f"another {index}"))

    @classmethod
    def make_bad_op(cls) -> tuple[Op, str]:
        """See EngineSuite."""
        return Op("classify", ()), "input"


class TestFakeGenerate(TestFakeClassify):
    """Generation, streamed too."""

    @classmethod
    def make_op(cls, index: int, *, stream: bool = False) -> Op:
        """See EngineSuite."""
        return Op("generate", (f"say the number {index} again",), {"max_tokens": 16}, stream)

    @classmethod
    def make_bad_op(cls) -> tuple[Op, str]:
        """See EngineSuite."""
        return Op("generate", ("hi",), {"max_tokens": 0}), "max_tokens"

    @classmethod
    def make_long_op(cls) -> Op | None:
        """See EngineSuite."""
        return Op("generate", ([{"role": "user", "content": "word " * 5000}],), {}, True)
