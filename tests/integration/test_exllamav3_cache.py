"""exltune's quantized cache against exllamav3's own forward with the cache that its model_diff simulates."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exltune.engines.reference.attention import ATTENTION, cache_keywords
from exltune.exl3.cache_quant import fake_quantize_cache
from exltune.schema.mix import CACHE_BITS

CACHE = (4, 2)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 256, (2, 100), generator=torch.Generator().manual_seed(5))


def theirs(exllamav3: types.ModuleType, source: Path, ids: torch.Tensor, cache: tuple[int, int]) -> torch.Tensor:
    """Logits of exllamav3's model with keys and values rounded as `model_diff --cache_quant k,v` does."""
    model = exllamav3.Model.from_config(exllamav3.Config.from_directory(str(source)))
    model.load(torch.device("cpu"), progressbar=False)
    with torch.inference_mode():
        logits = model.forward(ids, {"attn_mode": "flash_attn_nc", "sim_kvq": cache}).float()[..., :256]
    model.unload()
    return logits


def ours(source: Path, ids: torch.Tensor, cache: tuple[int, int] | None) -> torch.Tensor:
    """Logits of transformers' model with the engine's attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation=ATTENTION)
    keywords = {} if cache is None else cache_keywords((str(cache[0]), str(cache[1])))
    with torch.no_grad():
        return model(ids, use_cache=False, **keywords).logits


def median_kl(reference: torch.Tensor, logits: torch.Tensor) -> float:
    """Median over tokens of KL(reference‖logits) in nats."""
    p, q = reference.log_softmax(-1), logits.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).median())


def test_a_forward_with_the_cache_is_exllamav3s(
    exllamav3: types.ModuleType, model_dir: Callable[[str], Path], kind: str, ids: torch.Tensor
) -> None:
    source = model_dir(kind)
    found, expected = ours(source, ids, CACHE), theirs(exllamav3, source, ids, CACHE)
    effect = median_kl(ours(source, ids, None), expected)
    # fp16 moves some keys and values by a step, which is little beside the steps themselves.
    assert median_kl(found, expected) < effect / 30
    # Keys and values are told apart.
    assert median_kl(ours(source, ids, CACHE[::-1]), expected) > effect / 10


@pytest.mark.parametrize("bits", CACHE_BITS)
def test_values_are_those_of_exllamav3s_simulation(exllamav3: types.ModuleType, bits: int) -> None:
    from exllamav3.modules.attn import _sim_kvq_inplace

    states = torch.randn(2, 9, 3, 96, generator=torch.Generator().manual_seed(bits)).half()
    rounded = states.clone()
    _sim_kvq_inplace(rounded, bits, 0.0)
    assert torch.equal(fake_quantize_cache(states.float(), bits), rounded.float())
