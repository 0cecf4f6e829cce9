"""A base model's GGUF file as a folder of trainable weights.

Invariant: `base.gguf` in a prepared folder is byte for byte the file that was given, and the safetensors
beside it are that file's dequantised weights, so the model trained is the model served.
Source: llama.cpp convert_hf_to_gguf.py (names of tensors, order of q and k rows), read backwards.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gristmill.core.errors import UsageError
from gristmill.kit.chat import SETTINGS_FILE, TEMPLATE_FILE, TOKENIZER_FILE, ChatSettings
from gristmill.kit.gguf_reader import GgufFile

if TYPE_CHECKING:
    import numpy as np

BASE_FILE = "base.gguf"
WEIGHTS_FILE = "model.safetensors"
# Hugging Face `model_type` → GGUF architecture.
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# Hugging Face projection → GGUF tensor of the same layer.
PROJECTIONS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INSIDE = {
    gguf: f"{'self_attn' if gguf.startswith('attn') else 'mlp'}.{hf}" for hf, gguf in PROJECTIONS.items()
} | {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
# llama.cpp's converter reorders the q and k rows of these for its rotary embedding.
PERMUTED = frozenset({"llama"})


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does."""
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(4) == b"GGUF"


def convert_gguf(gguf_path: Path, out_folder: Path) -> None:
    """Make a base folder: safetensors, config, tokenizer, chat template and settings, and `base.gguf` itself.

    The folder appears whole or not at all (temporary folder beside it, then rename); an existing one is kept.
    Takes about 8 s for 135 M parameters, and 4 bytes a parameter on disk.

    Raises:
        UsageError: not a GGUF file of an instruction-tuned model whose architecture is known here.
    """
    if (out_folder / BASE_FILE).is_file():
        return
    gguf_file = GgufFile(gguf_path)
    _check(gguf_file)
    out_folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_folder.parent, prefix=".converting-") as name:
        folder = Path(name) / "base"
        folder.mkdir()
        _save_weights(gguf_file, folder)
        (folder / "config.json").write_bytes(_json(_config(gguf_file)))
        _save_format(gguf_file, folder)
        link_or_copy(gguf_path, folder / BASE_FILE)
        for path in folder.iterdir():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        with contextlib.suppress(OSError):
            folder.rename(out_folder)
        if not (out_folder / BASE_FILE).is_file():
            raise UsageError(
                f"{out_folder} is in the way of the base model.", hint="Remove it and try again."
            )


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes at `target`: a hard link where the disk allows it, else a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def freeze_gguf_format(gguf_path: Path, folder: Path) -> None:
    """Write only tokenizer, template and settings of a GGUF file (to serve it without training)."""
    gguf_file = GgufFile(gguf_path)
    _check(gguf_file)
    _save_format(gguf_file, folder)


def permute_rotary(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Interleave the two halves of each head's rows, as llama.cpp's converter does for llama's q and k.

    Args:
        rows: (heads * head size, …).
        heads: number of heads the rows belong to.

    Source: llama.cpp convert_hf_to_gguf.py, `LlamaModel.permute`.
    """
    import numpy as np

    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def unpermute_rotary(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The inverse of `permute_rotary`."""
    import numpy as np

    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


def _check(gguf_file: GgufFile) -> None:
    name = gguf_file.path.name
    if gguf_file.architecture not in ARCHITECTURES.values():
        raise UsageError(
            f"{name} has architecture {gguf_file.architecture!r}.",
            hint=f"Supported: {', '.join(sorted(ARCHITECTURES.values()))}.",
            param="base",
        )
    if not gguf_file.metadata.get("tokenizer.chat_template"):
        raise UsageError(
            f"{name} has no chat template, so it is not a chat model.",
            hint="Use an instruction-tuned GGUF.",
            param="base",
        )


def _save_weights(gguf_file: GgufFile, folder: Path) -> None:
    from safetensors.numpy import save_file

    facts, architecture = gguf_file.metadata, gguf_file.architecture
    heads = int(facts[f"{architecture}.attention.head_count"])
    kv_heads = int(facts.get(f"{architecture}.attention.head_count_kv", heads))
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for name in gguf_file.tensors:
        array = gguf_file.load(name)
        part = _LAYER_NAME.fullmatch(name)
        if part is not None and part[2] in ("attn_q", "attn_k") and architecture in PERMUTED:
            array = unpermute_rotary(array, heads if part[2] == "attn_q" else kv_heads)
        weights[_hf_name(name)] = array
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _hf_name(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    part = _LAYER_NAME.fullmatch(name)
    if part is None or part[2] not in _INSIDE:
        raise UsageError(
            f"The GGUF holds {name}, which is not known here.", hint="Use another base.", param="base"
        )
    return f"model.layers.{part[1]}.{_INSIDE[part[2]]}.{part[3]}"


def _config(gguf_file: GgufFile) -> dict[str, Any]:
    """The `config.json` of the model. Source: GGUF specification, "LLM" keys."""
    architecture = gguf_file.architecture

    def fact(key: str, default: Any = None) -> Any:
        return gguf_file.metadata.get(f"{architecture}.{key}", default)

    if fact("rope.scaling.type", "none") != "none":
        raise UsageError("The GGUF scales its rotary embedding, which is not supported.", param="base")
    hidden, heads = fact("embedding_length"), fact("attention.head_count")
    model_type = next(hf for hf, gguf in ARCHITECTURES.items() if gguf == architecture)
    return {
        "architectures": [f"{model_type.capitalize()}ForCausalLM"],
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": fact("feed_forward_length"),
        "num_hidden_layers": fact("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fact("attention.head_count_kv", heads),
        "head_dim": fact("attention.key_length", hidden // heads),
        "max_position_embeddings": fact("context_length", 2048),
        "rms_norm_eps": fact("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": fact("rope.freq_base", 10000.0), "rope_type": "default"},
        "vocab_size": gguf_file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in gguf_file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in gguf_file.tensors,
        "bos_token_id": gguf_file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf_file.metadata.get("tokenizer.ggml.eos_token_id"),
        "hidden_act": "silu",
        "dtype": "float32",
    }


def _save_format(gguf_file: GgufFile, folder: Path) -> None:
    """Tokenizer, chat template, settings, and the two files by which transformers finds them."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        GGUF_TOKENIZER_MAPPING,
        convert_gguf_tokenizer,
    )

    facts = gguf_file.metadata
    known = {
        name: facts[f"tokenizer.{key}"]
        for key, name in GGUF_TOKENIZER_MAPPING["tokenizer"].items()
        if f"tokenizer.{key}" in facts
    }
    try:
        tokenizer, _ = convert_gguf_tokenizer(gguf_file.architecture, known)
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"The tokenizer of {gguf_file.path.name} cannot be rebuilt ({type(error).__name__}).",
            param="base",
        ) from None
    tokenizer.save(str(folder / TOKENIZER_FILE))
    bos, eos = (_token(facts, f"tokenizer.ggml.{side}_token_id") for side in ("bos", "eos"))
    template = facts["tokenizer.chat_template"]
    (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos or None,
        "eos_token": eos or None,
    }
    (folder / "tokenizer_config.json").write_bytes(_json(config))
    eos_id = facts.get("tokenizer.ggml.eos_token_id")
    settings = ChatSettings(
        bos_token=bos,
        eos_token=eos,
        eos_ids=() if eos_id is None else (int(eos_id),),
        add_bos=bool(facts.get("tokenizer.ggml.add_bos_token", known.get("tokenizer_type") == "llama")),
        context_tokens=int(facts.get(f"{gguf_file.architecture}.context_length", 2048)),
    )
    (folder / SETTINGS_FILE).write_bytes(_json(msgspec.to_builtins(settings)))


def _token(facts: dict[str, Any], key: str) -> str:
    return str(facts["tokenizer.ggml.tokens"][facts[key]]) if key in facts else ""


def _json(document: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2)
