"""Tiny random models on disk, each with two EXL3 quants, made in a moment: the weights follow the quants.

A trellis may hold any bits, so random ones make a valid EXL3 directory without an encoder; the checkpoint's weights
are its decoded values, plus noise. The second quant is the first with disturbed scales.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from exltune.exl3.linear import QuantizedLinear
from exltune.inventory import inventory_from_config, model_shape
from exltune.inventory.layout import unquantized_shapes
from exltune.schema.inventory import Inventory, LinearSpec, Role

VOCAB = 256
_SHARED = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    # exllamav3 runs k and v together for few tokens, and wants 128 columns of each.
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 128, "norm_topk_prob": True}

CONFIGS: Mapping[str, dict[str, Any]] = {
    "glm4moe": {
        **_SHARED,
        **_MOE,
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "num_hidden_layers": 3,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "use_qk_norm": True,
        "routed_scaling_factor": 1.5,
        "partial_rotary_factor": 0.5,
    },
    "qwen3moe": {
        **_SHARED,
        **_MOE,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": 2,
        "num_experts": 4,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    # Biases, a tied head, a sliding window in the last layer, and dims that EXL3 has to pad.
    "qwen2": {
        **_SHARED,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 192,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
}


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint and its quants by choice."""

    path: Path
    quants: Mapping[str, Path]
    inventory: Inventory


def make_tiny_model(root: Path, config: Mapping[str, Any], seed: int = 0) -> TinyModel:
    """Write `root/model` (bf16), `root/2` and `root/3` (EXL3)."""
    generator = torch.Generator().manual_seed(seed)
    inventory = inventory_from_config(config)
    plain = _plain_tensors(config, generator)
    quants: dict[str, dict[str, torch.Tensor]] = {"2": dict(plain), "3": dict(plain)}
    checkpoint = dict(plain)
    for spec in inventory.linears:
        if spec.role is Role.ROUTER:
            continue
        first = _random_linear(spec, generator)
        second = QuantizedLinear(first.trellis, _disturbed(first.suh, generator), first.svh, first.codebook, first.bias)
        quants["2"] |= first.tensors(spec.key)
        quants["3"] |= second.tensors(spec.key)
        weight = first.dequantize().T[: spec.out_features, : spec.in_features]
        noise = torch.randn(weight.shape, generator=generator) * weight.std() * 0.1
        checkpoint[f"{spec.key}.weight"] = (weight + noise).bfloat16()
        if first.bias is not None:
            checkpoint[f"{spec.key}.bias"] = first.bias[: spec.out_features].bfloat16()
    if inventory.tied_head:
        checkpoint["model.embed_tokens.weight"] = checkpoint.pop("lm_head.weight")
        for tensors in quants.values():
            tensors["model.embed_tokens.weight"] = checkpoint["model.embed_tokens.weight"]
    paths = {choice: _write(root / choice, config, tensors) for choice, tensors in quants.items()}
    return TinyModel(_write(root / "model", config, checkpoint), paths, inventory)


def _plain_tensors(config: Mapping[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, dims in unquantized_shapes(model_shape(config)).items():
        values = torch.randn(dims, generator=generator)
        if "norm" in name:
            values = 1 + 0.1 * values
        elif "mlp.gate" in name:
            values *= 0.2
        tensors[name] = values.bfloat16()
    return tensors


def _random_linear(spec: LinearSpec, generator: torch.Generator) -> QuantizedLinear:
    """K = 2, mul1; output variance near that of the input."""
    shape = (spec.padded_in // 16, spec.padded_out // 16, 32)
    trellis = torch.randint(-(1 << 15), 1 << 15, shape, generator=generator).to(torch.int16)
    gain = 2.5 if spec.role is Role.HEAD else 1.2
    suh = _signs(spec.padded_in, generator) * gain * spec.in_features**-0.5
    # Quantized zeros of a padded part are next to nothing, and random bits would not be.
    suh[spec.in_features :] = 0
    bias = 0.1 * torch.randn(spec.padded_out, generator=generator) if spec.bias else None
    svh = _signs(spec.padded_out, generator)
    svh[spec.out_features :] = 0
    return QuantizedLinear(trellis, suh.half(), svh.half(), "mul1", None if bias is None else bias.bfloat16().half())


def _signs(size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1.0


def _disturbed(scale: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (scale.float() * (1 + 0.05 * torch.randn(scale.shape, generator=generator))).half()


def _write(path: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    path.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path
