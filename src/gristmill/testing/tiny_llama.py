"""A llama of a few thousand random weights as a GGUF file: a real base model that loads in milliseconds.

It speaks nonsense, but through every real part: llama.cpp serves it, transformers trains it, its tokenizer is
byte-level BPE and its chat template is ChatML with `<|im_start|>` and `<|im_end|>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter

TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGES = ("t h", "th e", "i n", "e r", "a n", "Ġ a", "o u", "Ġ the")


def write_tiny_llama(
    path: Path, *, seed: int = 0, layers: int = 4, hidden: int = 64, heads: int = 4, kv_heads: int = 2
) -> Path:
    """Write the model.

    Args:
        path: file to write, ending in .gguf.
        seed: of the weights; another seed is another model.
        layers: transformer layers.
        hidden: width; a multiple of `heads`.
        heads: attention heads.
        kv_heads: heads of key and value; a divisor of `heads`.

    Returns:
        `path`.
    """
    import gguf
    import numpy as np

    tokens = _vocabulary()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("model")
    writer.add_name("tiny-llama")
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(hidden * 2)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    _add_tokenizer(writer, tokens)
    for name, weight in _weights(np.random.default_rng(seed), layers, hidden, hidden * kv_heads // heads):
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter, tokens: list[str]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges(list(_MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _weights(
    random: np.random.Generator, layers: int, hidden: int, key_value: int
) -> Iterator[tuple[str, np.ndarray]]:
    import numpy as np

    shapes = {
        "attn_q": (hidden, hidden),
        "attn_k": (key_value, hidden),
        "attn_v": (key_value, hidden),
        "attn_output": (hidden, hidden),
        "ffn_gate": (2 * hidden, hidden),
        "ffn_up": (2 * hidden, hidden),
        "ffn_down": (hidden, 2 * hidden),
    }
    n_tokens = len(_vocabulary())
    yield "token_embd.weight", random.normal(0, 1.0, (n_tokens, hidden)).astype(np.float32)
    yield "output_norm.weight", np.ones(hidden, np.float32)
    for layer in range(layers):
        for name, shape in shapes.items():
            weight = random.normal(0, 1.5 / shape[1] ** 0.5, shape).astype(np.float32)
            yield f"blk.{layer}.{name}.weight", weight
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", np.ones(hidden, np.float32)


def _vocabulary() -> list[str]:
    """Special tokens, the 256 byte tokens, and what the merges make.

    Source: Radford et al. 2019 (GPT-2), the byte-to-unicode table.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    return [*SPECIAL, *letters, *(merge.replace(" ", "") for merge in _MERGES)]
