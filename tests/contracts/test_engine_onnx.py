"""The onnx engine passes the contract of every engine, and its answers do not depend on company."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gristmill.core.artifact import load_verified
from gristmill.core.errors import BrokenInvariant, UnknownField
from gristmill.core.op import Done, EngineSpec, FromChild, Op, ServedModel
from gristmill.core.run import TrainJob
from gristmill.plugins.engines.onnx.engine import OnnxEngine
from gristmill.plugins.trainers.encoder.trainer import EncoderTrainer
from gristmill.testing.engine_suite import EngineSuite
from gristmill.testing.tiny import MemoryAttempt, review_rows, tiny_bert

TEXTS = [row["text"] for row in review_rows(64, seed=5)]


def served(folder: Path, release: str) -> ServedModel:
    """An artefact folder as an engine loads it."""
    return ServedModel(release, str(folder), load_verified(folder).digest)


class TestClassify(EngineSuite):
    """A tiny trained classifier."""

    @classmethod
    def make_engine(cls) -> OnnxEngine:
        """See the suite."""
        return OnnxEngine()

    @classmethod
    def make_spec(cls, folder: Path) -> EngineSpec:
        """See the suite."""
        base = tiny_bert(folder / "base")
        rows = review_rows(150)
        hyper = {"epochs": 4, "method": "head", "threads": 1}
        work, artifact = str(folder / "work"), folder / "artifact"
        job = TrainJob(
            "run_1", 1, "classify", "encoder", "tiny", str(base), {}, hyper, 7, "cpu", 0, work, str(artifact)
        )
        EncoderTrainer().train(job, {"train": rows}, MemoryAttempt(folder / "checkpoints"))
        return EngineSpec("onnx", (served(artifact, "rel_1"),), {"threads": 1})

    @classmethod
    def make_op(cls, index: int, *, stream: bool = False) -> Op:
        """See the suite."""
        return Op("classify", (TEXTS[index],))

    @classmethod
    def make_bad_op(cls) -> tuple[Op, str]:
        """See the suite."""
        return Op("classify", (5,)), "input"

    def test_counts_tokens_as_the_model_reads_them(self) -> None:
        """Broken: a customer pays for other tokens than were processed."""
        done = self.harness.run(Op("classify", ("the film was lovely", "dull")))
        assert done.usage == {"input_tokens": 6 + 3, "items": 2}

    def test_the_wrong_op_is_refused(self) -> None:
        """Broken: an embedding request is answered by a classifier."""
        request = self.harness.admit(Op("embed", ("a",)))
        assert "classify" in self.harness.said(request)[0].message

    def test_cancel_while_waiting_ends_once(self) -> None:
        """Broken: a client that hung up still gets, or blocks, an answer."""
        request = self.harness.start(Op("classify", tuple(TEXTS * 30)))
        self.harness.engine.cancel(request)
        assert self.harness.end(request).finish_reason in {"cancelled", "stop"}
        time.sleep(0.1)
        assert len([m for m in self.harness.said(request) if isinstance(m, Done)]) == 1
        assert self.harness.run(self.make_op(1)).finish_reason == "stop"

    def test_unknown_options_are_named(self) -> None:
        """Broken: a misspelt engine option is silently ignored."""
        spec = EngineSpec("onnx", self.harness.spec.models, {"thread": 2})
        with pytest.raises(UnknownField) as caught:
            OnnxEngine().open(spec, lambda message: None)
        assert caught.value.param == "thread"

    def test_a_full_queue_is_said_at_once(self) -> None:
        """Broken: overload grows a queue without end instead of answering 503."""
        said: list[FromChild] = []
        engine = OnnxEngine()
        engine.open(EngineSpec("onnx", self.harness.spec.models, {"max_items": 2}), said.append)
        engine.admit(1, "rel_1", Op("classify", ("a", "b", "c")))
        engine.go(1, None)
        engine.close()
        assert said[-1].code == "unavailable"

    def test_the_manifest_is_part_of_the_digest(self, tmp_path: Path) -> None:
        """Broken: labels or length can be changed without the digest noticing."""
        import shutil

        model = self.harness.spec.models[0]
        shutil.copytree(model.path, tmp_path / "copy")
        manifest = tmp_path / "copy" / "artifact.json"
        manifest.write_bytes(manifest.read_bytes().replace(b'"good"', b'"grand"'))
        spec = EngineSpec("onnx", (ServedModel("rel_1", str(tmp_path / "copy"), model.digest),))
        with pytest.raises(BrokenInvariant):
            OnnxEngine().open(spec, lambda message: None)


class TestEmbed(EngineSuite):
    """A tiny base as an embedder."""

    @classmethod
    def make_engine(cls) -> OnnxEngine:
        """See the suite."""
        return OnnxEngine()

    @classmethod
    def make_spec(cls, folder: Path) -> EngineSpec:
        """See the suite."""
        EncoderTrainer().adopt("embed", "tiny", tiny_bert(folder / "base"), folder / "artifact")
        return EngineSpec("onnx", (served(folder / "artifact", "rel_2"),), {"threads": 1})

    @classmethod
    def make_op(cls, index: int, *, stream: bool = False) -> Op:
        """See the suite."""
        return Op("embed", (TEXTS[index],))

    @classmethod
    def make_bad_op(cls) -> tuple[Op, str]:
        """See the suite."""
        return Op("embed", (None,)), "input"
