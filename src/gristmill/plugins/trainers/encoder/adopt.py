"""Adoption: a model that was not trained here becomes a sealed artefact.

"embed" takes any encoder folder; "classify" a folder whose config names a sequence classifier and its labels;
either takes a folder with one .onnx file and tokenizer.json beside it, whose inputs carry the usual names.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.core.artifact import seal
from gristmill.core.errors import UsageError
from gristmill.kit.encoder_session import Texts
from gristmill.plugins.trainers.encoder.base import BaseFacts, read_base

if TYPE_CHECKING:
    from torch import Tensor, nn

_PROBES = (
    "The delivery came two days late and the box was open.",
    "How do I change the address on my account?",
    "Great value, I would buy it again.",
    "Please cancel my subscription at the end of the month.",
    "The app closes by itself when I open the camera.",
    "Who was the first person to walk on the moon?",
)
"""Texts that int8 is compared with float32 on when there are no rows at hand."""

_INPUT_NAMES = {
    "ids": ("ids", "input_ids"),
    "mask": ("mask", "attention_mask"),
    "types": ("types", "token_type_ids"),
}


def adopt(task: str, base: str, base_path: Path, artifact_dir: Path) -> None:
    """Fill and seal `artifact_dir` from `base_path`.

    Raises:
        UsageError: the folder holds nothing this trainer can take for `task`.
    """
    folder = base_path.parent if base_path.suffix == ".onnx" else base_path
    files = [base_path] if base_path.suffix == ".onnx" else sorted(folder.glob("*.onnx"))
    if task not in ("embed", "classify"):
        raise UsageError(f"The encoder trainer cannot adopt a model for {task!r}.", param="task")
    if files and not list(folder.glob("*.safetensors")):
        _adopt_onnx(task, base, folder, files, artifact_dir)
        return
    facts = read_base(folder)
    texts = Texts(folder / "tokenizer.json", facts.max_tokens, facts.pad)
    from gristmill.plugins.trainers.encoder.export import write_artifact

    model, output = (_embedder(folder), "vector") if task == "embed" else (_classifier(folder), "logits")
    frozen: dict[str, Any] = {
        "max_tokens": facts.max_tokens,
        "pad": facts.pad,
        "output": output,
        "adopted": True,
    }
    if task == "classify":
        frozen["labels"] = facts.labels
    rows = texts.encode(_PROBES)
    write_artifact(
        model, artifact_dir, task=task, base=base, base_path=folder, facts=frozen, rows=rows, classes=None
    )


def _embedder(folder: Path) -> nn.Module:
    from gristmill.kit.encoder import Embedder, load_encoder

    return Embedder(load_encoder(folder))


def _classifier(folder: Path) -> nn.Module:
    import torch
    from transformers import AutoModelForSequenceClassification

    from gristmill.kit.encoder import check_folder

    check_folder(folder)
    config = read_config(folder)
    if not any("ForSequenceClassification" in name for name in config.get("architectures") or []):
        raise UsageError(
            f"The model in {folder.name} has no classification head, so it cannot classify as it is.",
            hint="Train it: gristmill launch, or import it for the task embed.",
            param="task",
        )
    whole = AutoModelForSequenceClassification.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
    )

    class Logits(torch.nn.Module):  # type: ignore[misc]  # mypy skips torch
        """The classifier as (ids, mask) → logits."""

        def __init__(self) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            logits: Tensor = self.whole(input_ids=ids, attention_mask=mask).logits
            return logits

    return Logits()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder that `read_base` has accepted."""
    import json

    document: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return document


def _adopt_onnx(task: str, base: str, folder: Path, files: list[Path], artifact_dir: Path) -> None:
    from gristmill.kit.encoder_session import Session, open_session

    if len(files) > 1 or not (folder / "tokenizer.json").is_file():
        raise UsageError(f"{folder.name} must hold one .onnx file and its tokenizer.json.", param="path")
    has_config = (folder / "config.json").is_file()
    known = read_base(folder) if has_config else BaseFacts(0, 0, 0, 0, 512, [])
    session = open_session(files[0], threads=0)
    given = {one.name for one in session.get_inputs()}
    inputs = {key: next((n for n in names if n in given), None) for key, names in _INPUT_NAMES.items()}
    unknown = given - set(inputs.values())
    if inputs["ids"] is None or inputs["mask"] is None or unknown:
        raise UsageError(
            f"The ONNX file's inputs are {', '.join(sorted(given))}.",
            hint="They must be input_ids, attention_mask and, if need be, token_type_ids.",
            param="path",
        )
    shape = session.get_outputs()[0].shape
    output = "hidden" if task == "embed" and len(shape) == 3 else "vector" if task == "embed" else "logits"
    facts: dict[str, Any] = {
        "model": "model.onnx",
        "inputs": {key: name for key, name in inputs.items() if name is not None},
        "output": output,
        "max_tokens": known.max_tokens,
        "pad": known.pad,
        "adopted": True,
    }
    if task == "classify":
        n_labels = shape[-1] if isinstance(shape[-1], int) else len(known.labels)
        if not known.labels or len(known.labels) != n_labels or len(shape) != 2:
            raise UsageError(
                "The labels of this classifier are not known.",
                hint="Put a config.json with id2label beside the .onnx file.",
                param="path",
            )
        facts["labels"] = known.labels
    artifact_dir.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(files[0], artifact_dir / "model.onnx")
    shutil.copyfile(folder / "tokenizer.json", artifact_dir / "tokenizer.json")
    texts = Texts(folder / "tokenizer.json", known.max_tokens, known.pad)
    Session(artifact_dir, facts, threads=0).run(texts.encode(_PROBES[:2]))
    seal(artifact_dir, task=task, engine="onnx", kind="model", base=base, facts=facts)
