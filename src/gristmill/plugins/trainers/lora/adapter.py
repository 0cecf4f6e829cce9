"""The adapter on the model: PEFT's LoRA on the top layers, named as `<layer>.<projection>.<a|b>`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.plugins.trainers.lora.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import torch

_NAME = re.compile(r"layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])\.")


class AdaptedModel:
    """The frozen base with a fresh adapter; `parameters` by name are all that trains."""

    def __init__(self, base_path: Path, settings: Settings, seed: int) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model: Any = AutoModelForCausalLM.from_pretrained(
            base_path, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        n_layers = model.config.num_hidden_layers
        self.n_top = n_layers if settings.top_layers == "all" else min(int(settings.top_layers), n_layers)
        self.bottom = n_layers - self.n_top
        torch.manual_seed(seed)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(settings.projections),
            layers_to_transform=list(range(self.bottom, n_layers)),
            layers_pattern="layers",
            task_type="CAUSAL_LM",
        )
        self._peft = get_peft_model(model, config)
        self.model: Any = self._peft.base_model.model
        self.parameters: dict[str, torch.nn.Parameter] = {}
        for name, parameter in self._peft.named_parameters():
            part = _NAME.search(name)
            if parameter.requires_grad and part is not None:
                self.parameters[f"{part[1]}.{part[2]}.{part[3].lower()}"] = parameter

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The trained matrices as float32, by name."""
        return {name: value.detach().float().cpu().numpy() for name, value in self.parameters.items()}

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int, device: str) -> list[list[int]]:
        """The most likely continuation of each prompt (token ids), in one batch padded on the left."""
        import torch

        end = self._end_ids()
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[end[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        self.model.eval()
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids.to(device),
                attention_mask=seen.to(device),
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=end[0],
                eos_token_id=end,
                use_cache=True,
            )
        return [list(row[width:]) for row in out.tolist()]

    def _end_ids(self) -> list[int]:
        ids = self.model.config.eos_token_id
        return [ids] if isinstance(ids, int) else list(ids or [0])
