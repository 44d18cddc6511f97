"""Small models as users have them: saved by transformers, with a trained tokenizer, and texts to judge them on."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

VOCAB = 320
#: exllamav3's kernels run k and v together for few tokens, and want 128 columns of each.
_NATIVE_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
_SHARED = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
#: A dense layer and a sparse one.
GLM4_MOE = _SHARED | {
    "num_hidden_layers": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "first_k_dense_replace": 1,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.5,
}
LLAMA = _SHARED
#: Biases, a tied head, and dims that EXL3 pads.
QWEN2 = _SHARED | {"intermediate_size": 160, "tie_word_embeddings": True}
#: transformers writes the number of experts as num_local_experts.
QWEN3_MOE = _SHARED | {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "norm_topk_prob": True}


def write_model(out: Path, name: str, settings: Mapping[str, Any], seed: int = 0) -> Path:
    """A random bf16 model of transformers' class `{name}ForCausalLM` with a tokenizer."""
    import transformers

    from tests.standin.hook import native

    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**settings, **(_NATIVE_HEADS if native() else {})})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "bias" in parameter_name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.bfloat16().save_pretrained(out)
    write_tokenizer(out)
    return out


def write_tokenizer(out: Path) -> None:
    """A byte-level BPE tokenizer, trained on the words of `write_text`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([_text(99, 20_000)], trainer)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def write_text(path: Path, seed: int, characters: int = 40_000) -> Path:
    """A plain text file of paragraphs of made-up words."""
    path.write_text(_text(seed, characters), encoding="utf-8")
    return path


def _text(seed: int, characters: int) -> str:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abdeiklmnorstu", k=rng.randint(2, 8))) for _ in range(500)]
    text = ""
    while len(text) < characters:
        text += " ".join(rng.choices(words, k=60)) + ".\n\n"
    return text
