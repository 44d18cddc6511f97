"""The reference engine's quantized cache: every architecture reads it, and what does not ask for it stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from exltune.engines.reference import shell
from exltune.engines.reference.attention import ATTENTION, cache_keywords
from exltune.engines.reference.engine import ReferenceEngine
from exltune.engines.reference.scoring import Limits
from exltune.errors import UsageError
from exltune.inventory import ARCHITECTURES
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE, Mix
from exltune.testing.tiny_models import CONFIGS, VOCAB, TinyModel, make_tiny_model

TOKENS = torch.randint(0, VOCAB, (5, 12), generator=torch.Generator().manual_seed(2))
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "first_k_dense_replace": 0,
    "pad_token_id": None,
}


def mix_of(model: TinyModel, choice: str, k: str = REFERENCE, v: str = REFERENCE) -> Mix:
    ids = [group.id for group in (*model.inventory.groups, model.inventory.head)]
    return Mix(name=f"{choice}, {k}, {v}", choices=dict.fromkeys(ids, choice) | {CACHE_K: k, CACHE_V: v})


def some_mixes(model: TinyModel) -> list[Mix]:
    caches = [("16", "16"), ("8", "3"), ("3", "8"), ("2", "2"), ("16", "4"), ("4", "16")]
    return [mix_of(model, choice, k, v) for choice in ("2", "16") for k, v in caches]


@pytest.mark.parametrize("name", [row.name for row in ARCHITECTURES.values() if not row.planning_only])
def test_every_architecture_reads_keys_and_values_from_the_cache(name: str) -> None:
    """A layer that kept the keyword to itself would score every cache as an unquantized one."""
    torch.manual_seed(0)
    config = getattr(transformers, name.replace("ForCausalLM", "Config"))(**SMALL)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()
    caches = [(REFERENCE, REFERENCE), ("2", REFERENCE), (REFERENCE, "2"), ("2", "2")]
    with torch.no_grad():
        found = [model(TOKENS, use_cache=False, **cache_keywords(cache)).logits for cache in caches]
    assert not any(torch.equal(a, b) for n, a in enumerate(found) for b in found[:n])


def test_an_unquantized_cache_scores_as_transformers_own_sdpa(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixes = [mix_of(tiny_model, "2"), mix_of(tiny_model, "3")]
    among_others = [*mixes, *some_mixes(tiny_model)]
    found = ReferenceEngine(tiny_model.path, tiny_model.quants).score(among_others, TOKENS)
    monkeypatch.setattr(shell, "ATTENTION", "sdpa")
    assert ReferenceEngine(tiny_model.path, tiny_model.quants).score(mixes, TOKENS) == found[:2]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_keep_their_caches_apart(tiny_moe: TinyModel, threads: int) -> None:
    limits, mixes = Limits(batch_bytes=4 * 12 * 128 * 2, head_bytes=1), some_mixes(tiny_moe)
    one = ReferenceEngine(tiny_moe.path, tiny_moe.quants, threads=1, limits=limits)
    many = ReferenceEngine(tiny_moe.path, tiny_moe.quants, threads=threads, limits=limits)
    assert many.score(mixes, TOKENS) == one.score(mixes, TOKENS)


def test_hessians_know_no_cache(tiny_moe: TinyModel) -> None:
    engine, key = ReferenceEngine(tiny_moe.path, tiny_moe.quants), "model.layers.2.self_attn.o_proj"
    (before,) = engine.capture(TOKENS, [key])
    engine.score([mix_of(tiny_moe, REFERENCE, "2", "2")], TOKENS)
    (after,) = engine.capture(TOKENS, [key])
    assert torch.equal(before.hessians[key].matrix, after.hessians[key].matrix)


def test_heads_that_do_not_divide_into_groups_are_refused(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path, {**CONFIGS["qwen2"], "head_dim": 48})
    engine = ReferenceEngine(model.path, model.quants)
    with pytest.raises(UsageError, match=r"cache\.v cannot be quantized: head_dim is 48.*Leave cache\.v at 16"):
        engine.score([mix_of(model, "2", v="4")], TOKENS)
    assert engine.score([mix_of(model, "2")], TOKENS)
