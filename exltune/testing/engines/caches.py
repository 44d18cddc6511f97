"""Mixes that have bits for the KV cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from exltune.errors import UsageError
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE
from exltune.testing.engines.mixes import cached, random_mixes, uniform
from exltune.testing.engines.oracle import logits, row_sums, whole_model
from exltune.testing.engines.suite import EngineOf, EngineSuite, per_token
from exltune.testing.tiny_models import VOCAB, TinyModel


class CacheContract(EngineSuite):
    """Keys and values are rounded as exllamav3's cache rounds them."""

    @pytest.mark.parametrize(("k", "v"), [("5", "4"), ("2", None), (None, "3")])
    def test_a_quantized_cache_scores_as_a_whole_model_with_one(
        self, model: TinyModel, engine_of: EngineOf, tokens: Tensor, tmp_path: Path, k: str | None, v: str | None
    ) -> None:
        mix = uniform(model, "3")
        (score,) = engine_of(model).score([cached(mix, k, v)], tokens)
        reference = logits(whole_model(model, uniform(model, REFERENCE), tmp_path / "ref"), tokens)
        bits = [None if choice is None else int(choice) for choice in (k, v)]
        whole = logits(whole_model(model, mix, tmp_path / "mix"), tokens, *bits)
        expected = row_sums(reference, whole, tokens)
        for field in ("kl_ref_mix", "kl_mix_ref", "nll"):
            self.assert_close_but_for_steps(per_token(score, field), expected[field] / score.positions)

    def test_an_unquantized_cache_is_the_same_as_none(
        self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor
    ) -> None:
        engine, mix = engine_of(tiny_moe), uniform(tiny_moe, "2")
        plain, *others = engine.score([mix, cached(mix, k="16"), cached(mix, "16", "16")], tokens)
        assert engine.stats.distinct_mixes == 1
        assert all(other.kl_ref_mix == plain.kl_ref_mix for other in others)

    def test_fewer_bits_in_the_cache_are_worse(self, model: TinyModel, engine_of: EngineOf) -> None:
        tokens = torch.randint(0, VOCAB, (48, 20), generator=torch.Generator().manual_seed(1))
        mix = uniform(model, REFERENCE)
        mixes = [cached(mix, *pair) for bits in "8765432" for pair in ((bits, None), (None, bits), (bits, bits))]
        sums = [sum(score.kl_ref_mix) for score in engine_of(model).score(mixes, tokens)]
        for part in (sums[::3], sums[1::3], sums[2::3]):
            assert part[0] > 0
            assert part == sorted(part)
        assert max(sum(sums[::3]), sum(sums[1::3])) < sum(sums[2::3])
        assert set(sums[::3]).isdisjoint(sums[1::3])

    def test_mixes_with_caches_together_and_alone(
        self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor
    ) -> None:
        engine = engine_of(tiny_moe)
        plain = random_mixes(tiny_moe, 2)
        mixes = [*plain, *(cached(mix, k, v) for mix in plain for k, v in (("4", "3"), ("3", "4"), ("16", "4")))]
        for mix, score in zip(mixes, engine.score(mixes, tokens), strict=True):
            (alone,) = engine.score([mix], tokens)
            for field in ("kl_ref_mix", "kl_mix_ref", "nll"):
                self.assert_close_but_for_steps(per_token(score, field), per_token(alone, field))

    @pytest.mark.parametrize("key", [CACHE_K, CACHE_V])
    @pytest.mark.parametrize("bits", ["1", "9", "2.5", "fp16", ""])
    def test_bits_that_the_cache_has_not_are_named(
        self, tiny_moe: TinyModel, engine_of: EngineOf, tokens: Tensor, key: str, bits: str
    ) -> None:
        mix = uniform(tiny_moe, "2", **{key: bits})
        with pytest.raises(UsageError, match=rf"{key} cannot have '{bits}' bits.*Choose one of 2, 3"):
            engine_of(tiny_moe).score([mix], tokens)
