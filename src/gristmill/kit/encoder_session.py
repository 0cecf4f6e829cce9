"""Running an exported encoder: tokenizer, ONNX session and what its output means; no torch in here.

Invariant: texts are cut to the same number of tokens in training and in serving, since both come through
`Texts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gristmill.core.errors import BrokenInvariant
from gristmill.kit.buckets import padded


class Texts:
    """A frozen `tokenizer.json` that cuts to `max_tokens`, closing token included.

    Args:
        path: tokenizer.json. max_tokens: longest row of ids. pad: id that fills short rows.
    """

    def __init__(self, path: Path, max_tokens: int, pad: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self.pad = pad

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included."""
        if len(texts) == 1:
            return [self._tokenizer.encode(texts[0]).ids or [self.pad]]
        return [encoding.ids or [self.pad] for encoding in self._tokenizer.encode_batch(list(texts))]


class Session:
    """An exported encoder: rows of token ids in, one result a row out.

    `facts` of the artefact say how to call it: `inputs` names the ids, mask and (optional) types inputs,
    `output` is "logits", "probs", "vector" or "hidden" (pooled and normalised here), `labels` the classes.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], *, threads: int) -> None:
        self._session = open_session(folder / facts["model"], threads=threads)
        self._inputs: dict[str, str] = facts["inputs"]
        self._output: str = facts["output"]
        self._labels: list[str] = facts.get("labels", [])
        self._pad: int = facts["pad"]

    def values(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Probabilities (rows, labels) or unit vectors (rows, width)."""
        ids, mask = padded(rows, self._pad)
        feed = {self._inputs["ids"]: ids, self._inputs["mask"]: mask}
        if "types" in self._inputs:
            feed[self._inputs["types"]] = np.zeros_like(ids)
        out = self._session.run(None, feed)[0]
        if self._output == "logits":
            return softmax(out)
        if self._output == "hidden":
            weights = mask[:, :, None].astype(np.float32)
            pooled = (out * weights).sum(1) / weights.sum(1)
            out = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
        return np.asarray(out, dtype=np.float64)

    def run(self, rows: Sequence[Sequence[int]]) -> list[Any]:
        """Engine results: {"label", "probs"} for a classifier, a list of float for an embedder."""
        values = self.values(rows)
        if not self._labels:
            return [[float(value) for value in row] for row in values.tolist()]
        return [classification(self._labels, row) for row in values]


def classification(labels: Sequence[str], probs: NDArray[np.float64]) -> dict[str, Any]:
    """A classify result from one row of probabilities (labels,)."""
    return {
        "label": labels[int(probs.argmax())],
        "probs": {label: round(float(p), 6) for label, p in zip(labels, probs, strict=True)},
    }


def open_session(path: Path, *, threads: int) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        path: the .onnx file.
        threads: of one run; 0 lets the runtime choose (one a core).
    """
    import onnxruntime

    if not path.is_file():
        raise BrokenInvariant(f"The artefact names {path.name}, which is not there.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of logits (rows, labels), summing to one in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    out: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return out
