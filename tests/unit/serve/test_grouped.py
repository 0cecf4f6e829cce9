"""Grouping: which releases share a child."""

from __future__ import annotations

from gristmill.core.op import ServedModel
from gristmill.stages.serve.supervisor import Wanted, grouped


def _model(release: str) -> ServedModel:
    return ServedModel(release, f"/artifacts/{release}", f"digest of {release}")


def test_adapters_share_their_base_and_others_stand_alone() -> None:
    """Broken: each adapter loads its base again, or one model's crash takes down another's."""
    wanted = [
        Wanted("llamacpp", _model("rel_b"), {"slots": 8, "context": 512}, base_digest="base-1"),
        Wanted("llamacpp", _model("rel_a"), {"slots": 4, "context": 2048}, base_digest="base-1"),
        Wanted("llamacpp", _model("rel_c"), {}, base_digest="base-2"),
        Wanted("onnx", _model("rel_d")),
        Wanted("onnx", _model("rel_d"), {"threads": 1}),
    ]
    groups = grouped(wanted)
    assert set(groups) == {("llamacpp", "base-1"), ("llamacpp", "base-2"), ("onnx", "rel_d")}
    shared = groups["llamacpp", "base-1"]
    assert [model.release for model in shared.models] == ["rel_a", "rel_b"]
    assert shared.options == {"slots": 8, "context": 2048}
    assert groups["onnx", "rel_d"].options == {"threads": 1}
    assert len(groups["onnx", "rel_d"].models) == 1
    assert grouped(reversed(wanted)) == groups, "the order of the releases must not restart a child"
