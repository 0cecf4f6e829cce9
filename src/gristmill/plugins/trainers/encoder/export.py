"""From a trained or adopted model in PyTorch to a sealed ONNX artefact, int8 where that costs no quality.

Invariant: tokenizer, labels, length and padding freeze into the artefact with the weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from torch import nn

from gristmill.core.artifact import seal
from gristmill.kit.buckets import sorted_batches
from gristmill.kit.encoder_int8 import quantise
from gristmill.kit.encoder_onnx import export_onnx
from gristmill.kit.encoder_session import Session

_log = structlog.get_logger()

INPUTS = {"ids": "ids", "mask": "mask"}
MAX_LOSS = 0.005
"""Accuracy that int8 may cost before float32 is kept."""
MIN_COSINE = 0.98
_BATCH_TOKENS = 1024
_CALIBRATED = 200


def write_artifact(
    model: nn.Module,
    folder: Path,
    *,
    task: str,
    base: str,
    base_path: Path,
    facts: dict[str, Any],
    rows: list[list[int]],
    classes: NDArray[np.int64] | None,
) -> dict[str, Any]:
    """Export, quantise, compare, seal; returns the artefact's facts.

    Args:
        model: ids, mask → logits or unit vectors.
        folder: filled.
        task: of the artefact.
        base: name of the base model.
        base_path: where its tokenizer.json is.
        facts: labels, max_tokens, pad, output.
        rows: token ids to compare int8 with float32 on.
        classes: their right classes; None for vectors or where they are not known, then agreement decides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole, small = folder / "model.onnx", folder / "model.int8.onnx"
    shutil.copyfile(base_path / "tokenizer.json", folder / "tokenizer.json")
    export_onnx(model, whole, facts["output"])
    quantise(whole, small, rows[:: max(1, len(rows) // _CALIBRATED)], facts["pad"])
    facts = facts | {"inputs": INPUTS}
    is_good, measured = _compare(folder, facts, rows, classes)
    facts |= {"model": small.name if is_good else whole.name, "precision": "int8" if is_good else "float32"}
    facts |= {"quantisation": measured}
    (whole if is_good else small).unlink()
    if not is_good:
        _log.warning("int8_not_kept", **measured)
    seal(folder, task=task, engine="onnx", kind="model", base=base, facts=facts)
    return facts


def _compare(
    folder: Path, facts: dict[str, Any], rows: list[list[int]], classes: NDArray[np.int64] | None
) -> tuple[bool, dict[str, float]]:
    if not rows:
        return True, {}
    whole = all_values(Session(folder, facts | {"model": "model.onnx"}, threads=0), rows)
    small = all_values(Session(folder, facts | {"model": "model.int8.onnx"}, threads=0), rows)
    measured = {"n": float(len(rows))}
    if facts["output"] == "vector":
        cosine = float((whole * small).sum(1).mean())
        return cosine >= MIN_COSINE, measured | {"cosine": round(cosine, 5)}
    best, given = whole.argmax(1), small.argmax(1)
    measured["agreement"] = round(float((best == given).mean()), 4)
    if classes is None:
        return measured["agreement"] >= MIN_COSINE, measured
    lost = int(((best == classes) & (given != classes)).sum())
    won = int(((best != classes) & (given == classes)).sum())
    measured |= {
        "accuracy_float32": round(float((best == classes).mean()), 4),
        "accuracy_int8": round(float((given == classes).mean()), 4),
    }
    # A loss counts when it is over the limit and over chance (McNemar's test on the rows that changed).
    is_lost = lost - won > MAX_LOSS * len(rows) and lost - won > 2.0 * (lost + won) ** 0.5
    return not is_lost, measured


def all_values(session: Session, rows: list[list[int]]) -> NDArray[np.float64]:
    """A session's values for all rows, in their order."""
    out: NDArray[np.float64] | None = None
    for batch in sorted_batches([len(row) for row in rows], _BATCH_TOKENS):
        values = session.values([rows[row] for row in batch])
        if out is None:
            out = np.empty((len(rows), values.shape[1]))
        out[batch] = values
    assert out is not None
    return out
