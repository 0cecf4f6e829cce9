"""LoRA adapters as GGUF, for llama.cpp to apply on a shared base.

Source: llama.cpp convert_lora_to_gguf.py (keys and names of tensors).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.kit.gguf import ARCHITECTURES, PERMUTED, PROJECTIONS, permute_rotary

if TYPE_CHECKING:
    import numpy as np

ADAPTER_FILE = "adapter.gguf"


def write_adapter(
    path: Path,
    weights: Mapping[str, np.ndarray[Any, Any]],
    *,
    model_type: str,
    alpha: float,
    heads: int,
    kv_heads: int,
) -> None:
    """Write a LoRA adapter.

    Args:
        path: file to write.
        weights: "<layer>.<projection>.<a|b>" → float32, a: (rank, in), b: (out, rank), as PEFT holds them.
        model_type: Hugging Face `model_type` of the base.
        alpha: LoRA's alpha; the engine scales by alpha / rank.
        heads: attention heads.
        kv_heads: heads of key and value.
    """
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), ARCHITECTURES[model_type])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    for name in sorted(weights):
        layer, projection, side = name.split(".")
        array = np.ascontiguousarray(weights[name], dtype=np.float32)
        if side == "b" and ARCHITECTURES[model_type] in PERMUTED and projection in ("q_proj", "k_proj"):
            array = permute_rotary(array, heads if projection == "q_proj" else kv_heads)
        writer.add_tensor(f"blk.{layer}.{PROJECTIONS[projection]}.weight.lora_{side}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
