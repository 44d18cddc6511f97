"""The independent way to score a mix: write it out as a plain fp32 checkpoint and run transformers on all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from exltune.exl3.directory import QuantDir
from exltune.schema.mix import REFERENCE, Mix
from exltune.testing.cache_kernels import dequantize, quantize
from exltune.testing.tiny_models import TinyModel


def whole_model(model: TinyModel, mix: Mix, folder: Path) -> PreTrainedModel:
    """transformers' own model with the mix's weights, eager, fp32."""
    tensors = {name: tensor.float() for name, tensor in load_file(model.path / "model.safetensors").items()}
    specs = {spec.key: spec for spec in model.inventory.linears}
    config = (model.path / "config.json").read_text()
    for group in (*model.inventory.groups, model.inventory.head):
        choice = mix.choices[group.id]
        for spec in (specs[key] for key in group.tensors if choice != REFERENCE):
            linear = QuantDir(model.quants[choice]).load(spec.key)
            weight = linear.dequantize()[: spec.in_features, : spec.out_features]
            tensors[f"{spec.key}.weight"] = weight.T.contiguous()
            if linear.bias is not None:
                tensors[f"{spec.key}.bias"] = linear.bias[: spec.out_features].float()
    if "lm_head.weight" in tensors:
        config = config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(config)
    settings = {"dtype": torch.float32, "attn_implementation": "eager"}
    if any(".experts." in key for key in specs):
        settings["experts_implementation"] = "eager"
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, **settings)
    return loaded.eval()


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor, k_bits: int | None = None, v_bits: int | None = None) -> Tensor:
    """(rows, T, vocab) fp64; with bits, keys and values go through transformers' own cache, rounded as they enter."""
    if k_bits is None and v_bits is None:
        output: Tensor = model(input_ids=ids, use_cache=False).logits
    else:
        output = model(input_ids=ids, past_key_values=RoundedCache(model, k_bits, v_bits), use_cache=True).logits
    return output.double()


class RoundedCache(DynamicCache):
    """Holds keys and values as of exllamav3's cache kernels (rows, heads, T, head_dim)."""

    def __init__(self, model: PreTrainedModel, k_bits: int | None, v_bits: int | None) -> None:
        super().__init__(config=model.config)
        self.k_bits, self.v_bits = k_bits, v_bits

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Attention's inputs in their place."""
        key, value = _rounded(key_states, self.k_bits), _rounded(value_states, self.v_bits)
        found: tuple[Tensor, Tensor] = super().update(key, value, *args, **kwargs)
        return found


def _rounded(states: Tensor, bits: int | None) -> Tensor:
    if bits is None:
        return states
    words, scales = quantize(states.half().numpy().reshape(-1, 32), bits)
    return torch.from_numpy(dequantize(words, scales, bits).astype(np.float32)).view(states.shape)


def row_sums(reference: Tensor, mix: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """The fields of a Score, (rows,) or (5, rows), by the book."""
    p, q = reference[:, :-1].softmax(-1), mix[:, :-1].softmax(-1)
    next_ids = ids[:, 1:, None]
    order_p, order_q = reference[:, :-1].argsort(-1, descending=True), mix[:, :-1].argsort(-1, descending=True)
    agreement = [(order_p[..., :k] == order_q[..., :k]).all(-1).sum(-1) for k in range(1, 6)]
    return {
        "kl_ref_mix": (p * (p / q).log()).sum((-1, -2)),
        "kl_mix_ref": (q * (q / p).log()).sum((-1, -2)),
        "nll": -q.gather(-1, next_ids)[..., 0].log().sum(-1),
        "top_k": torch.stack(agreement),
    }
