"""The project's own small models: their shapes, their tokenizer and how they are written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Glm4MoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB = 1024
SPECIAL_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_COMMON = {
    "vocab_size": VOCAB,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "attention_bias": False,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "dtype": "bfloat16",
    # Small models learn several times faster from larger initial weights.
    "initializer_range": 0.05,
}


@dataclass(frozen=True)
class SmallModel:
    """A model to train: its config, and how many steps of `batch` rows."""

    name: str
    config: PreTrainedConfig
    steps: int
    batch: int = 12
    learning_rate: float = 3e-3

    @property
    def sparse(self) -> bool:
        """Whether it has experts."""
        return "moe" in self.config.model_type


def glm4moe() -> SmallModel:
    """The demo's model: first layer dense, a shared expert, top-2 of 8 routed experts."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    config = Glm4MoeConfig(
        **_COMMON | {"rope_parameters": rope},
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        use_qk_norm=True,
        intermediate_size=384,
        first_k_dense_replace=1,
        moe_intermediate_size=128,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        num_nextn_predict_layers=0,
        routed_scaling_factor=1.0,
    )
    return SmallModel("glm4moe", config, steps=2500)


def qwen3moe() -> SmallModel:
    """All layers sparse, no shared expert, grouped-query attention."""
    config = Qwen3MoeConfig(
        **_COMMON,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=384,
        moe_intermediate_size=128,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )
    return SmallModel("qwen3moe", config, steps=2500)


def qwen3() -> SmallModel:
    """Dense, grouped-query attention: two query heads share a key/value head."""
    config = Qwen3Config(
        **_COMMON,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=512,
    )
    return SmallModel("qwen3", config, steps=2000)


SMALL_MODELS = {"glm4moe": glm4moe, "qwen3moe": qwen3moe, "qwen3": qwen3}


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL_TOKENS[0],
        pad_token=SPECIAL_TOKENS[0],
        model_max_length=1_000_000,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write bf16 safetensors, config and tokenizer; config.json names the experts for exllamav3 and transformers."""
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["model_type"] == "qwen3_moe":
        # transformers 5 writes num_local_experts, exllamav3 1.6.5 reads num_experts.
        config["num_experts"] = config.pop("num_local_experts", config.get("num_experts"))
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
